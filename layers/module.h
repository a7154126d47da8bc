// Module: parameters, buffers and children under names, and a forward.
//
//     class Digits : public Module {
//      public:
//       Digits()
//           : features(add("features", Sequential(Conv2d({.in = 1, .out = 8, .kernel = 3}), ReLU()))),
//             head(add("head", Linear(8 * 26 * 26, 10))) {}
//       Tensor forward(const Tensor& x) override { return head(flatten(features(x), 1)); }
//      private:
//       Sequential& features;
//       Linear& head;
//     };
//
// A module owns its children on the heap and hands out references, which stay valid when the module is moved. Modules move, and do not
// copy. Call a module with operator(): forward() is what it means, operator() is also how the cost of a model is counted.
//
// A layer that is told everything by name takes its own Options (Conv2d({.in = 1, .out = 8, .kernel = 3})); one whose sizes speak for
// themselves takes them first, and what remains as XOptions (LayerNorm(8, {.eps = 1e-6})).
//
// Note [A forward on meta]
// forward on a tensor of Device::meta() gives the shape of the result without touching data, whatever device the parameters are on, and
// leaves the module as it was: no random number is drawn, no running statistic changes. So a layer hands a parameter to an operation as
// alongside(x, parameter), which has no data where x has none, and changes its state only where x is not on meta.
#pragma once

#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <fovea/kernels/cuda/nvtx.h>
#include <fovea/layers/receptive_field.h>
#include <fovea/tensor/named_tensors.h>

namespace fovea::layers {

class Module;

// One call of a layer within a forward pass.
struct LayerCost {
  const Module* layer = nullptr;
  std::string path;                          // features.0
  Shape input;
  Cost cost;
};

class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(Module&&) = default;
  Module& operator=(Module&&) = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  virtual Tensor forward(const Tensor& x);   // an error here: layers of several inputs have forwards of their own
  Tensor operator()(const Tensor& x) {
    Call call(*this, x);
    return forward(x);
  }

  // --- what it is made of; names are paths such as "features.0.weight", in the order of PyTorch's state dict ---
  std::string type_name() const;                               // Conv2d
  virtual std::string options() const { return ""; }           // what the printed tree shows in brackets
  const std::vector<std::pair<std::string, std::unique_ptr<Module>>>& children() const { return children_; }
  const NamedTensors& parameters() const { return parameters_; } // this module's own
  const NamedTensors& buffers() const { return buffers_; }
  NamedTensors named_parameters(const std::string& prefix = "") const;
  NamedTensors named_buffers(const std::string& prefix = "") const;
  // This one (named by the prefix) and all below it.
  std::vector<std::pair<std::string, Module*>> named_modules(const std::string& prefix = "");
  Module& layer(const std::string& path);                      // IndexError with the nearest name if there is none; "" is this one
  template <class M> M& layer(const std::string& path) {
    M* found = dynamic_cast<M*>(&layer(path));
    if (!found) fail_layer_type(path);
    return *found;
  }
  int64_t parameter_count() const;                             // elements, whether frozen or not; a shared tensor counts once
  int64_t trainable_count() const;
  std::string tree() const;                                    // as PyTorch prints it

  // --- changing it, and all below it ---
  Module& apply(const std::function<void(Module&)>& fn);       // children first
  Module& train(bool is_training = true);
  Module& eval() { return train(false); }
  bool is_training() const { return is_training_; }
  Module& freeze(bool is_frozen = true);                       // parameters of a frozen module get no gradient
  Module& zero_grad();                                         // forgets the gradients
  Module& to(DType dtype);                                     // of floating-point parameters, their gradients, and buffers; every handle on them follows
  Module& to(Device device);

  // --- looking into it ---
  // What one forward pass over `input` (batch included) costs. A layer has its formula (kernels/geometry.h); any other module runs a
  // forward on meta and adds up the layers it calls. Functions called between layers (relu(x), concat) are not counted. An input that forward
  // would not take is the same error here.
  Cost cost(const Shape& input);
  std::vector<LayerCost> layer_costs(const Shape& input);
  Shape output_shape(const Shape& input);                      // by a forward on meta
  // What an output unit sees. A module that is put together from others sees what its children see one after the other, in the order they
  // were added; one whose forward goes another way overrides own_field().
  ReceptiveField receptive_field() const;

 protected:
  template <class M>
  M& add(const std::string& name, M child) {
    static_assert(std::is_base_of_v<Module, M>, "add: a child is a Module");
    return static_cast<M&>(add_child(name, std::make_unique<M>(std::move(child))));
  }
  Tensor param(const std::string& name, Tensor value);         // an undefined tensor is a parameter that is not there
  Tensor buffer(const std::string& name, Tensor value);

  // A layer's own answers; nothing means: ask the children.
  virtual std::optional<Cost> own_cost(const Shape&) const { return {}; }
  // Before own_cost is asked by cost(): throws what a forward over such an input would. By a forward on meta, but for layers that have none of one tensor.
  virtual void check_cost_input(const Shape& input);
  virtual std::optional<ReceptiveField> own_field() const { return {}; }

  // Stands in every operator(): gives the call a range for profilers, and reports it while costs are counted.
  class Call {
   public:
    Call(const Module& module, const Tensor& x);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    cuda::Range range_;
    void* suspended_ = nullptr;
  };

 private:
  Module& add_child(const std::string& name, std::unique_ptr<Module> child);
  void check_new_name(const std::string& name) const;
  void print(std::ostream& out, const std::string& indent) const;
  void replace_tensors(const std::function<Tensor(const Tensor&)>& convert);
  Tensor meta_input(const Shape& input) const;
  [[noreturn]] void fail_layer_type(const std::string& path);

  std::string name_;                         // under which it was added to another; a range says it
  std::vector<std::pair<std::string, std::unique_ptr<Module>>> children_;
  NamedTensors parameters_, buffers_;
  bool is_training_ = true;
};

std::ostream& operator<<(std::ostream& out, const Module& module);            // the tree

// The parameter as a forward over x needs it: where x has no data, neither has the parameter.
Tensor alongside(const Tensor& x, const Tensor& parameter);

}  // namespace fovea::layers

namespace fovea {

std::ostream& operator<<(std::ostream& out, const Cost& cost);                // in both conventions, MACs and FLOPs

}  // namespace fovea
