// Optimizers change parameters by their gradients. The arithmetic, the defaults and the names of the state are PyTorch's (torch.optim).
//
//     optim::AdamW optimizer(model.named_parameters(), {.lr = 1e-3});
//     optimizer.zero_grad();
//     loss.backward();
//     optim::clip_grad_norm(optimizer.parameters(), 1.0);
//     optimizer.set_lr(schedule(step));
//     optimizer.step();
//
// Parameters may come in groups with options of their own: AdamW({{"decay", weights, {.weight_decay = 0.1}}, {"no_decay", biases, {.weight_decay = 0}}}).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <fovea/tensor/named_tensors.h>

namespace fovea::optim {

template <class Options>
struct Group {
  std::string name;
  NamedTensors parameters;
  Options options = {};
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // Changes every parameter that has a gradient. All gradients are checked first: after an error nothing has changed.
  void step();
  void zero_grad();                                                  // forgets the gradients
  NamedTensors parameters() const;                                   // of all groups; a tensor that has two names (tied weights) appears once

  const char* name() const { return name_; }                         // Adam
  const std::vector<std::string>& groups() const { return groups_; }
  double lr(size_t group = 0) const;
  void set_lr(double lr);                                            // of all groups
  void set_lr(size_t group, double lr);
  void scale_lr(double factor);                                      // of each group, to its initial lr times factor: for schedules over groups that differ

  // What a resumed run needs besides the parameters: options as "param_groups.GROUP.OPTION" (float64), and after the first step of a parameter
  // "state.PARAMETER.step" (int64) and its buffers, such as "state.PARAMETER.exp_avg". The buffers share the optimizer's memory.
  NamedTensors state() const;
  // Takes it back, exactly, options included. ValueError that lists what is missing, unexpected or of another shape; the optimizer is then as it was.
  void load_state(const NamedTensors& state);

 protected:
  struct Slot {
    std::string name;
    Tensor parameter;
    size_t group = 0;
    int64_t step = 0;                                                // steps taken, the present one included
    std::vector<Tensor> buffers = {};                                  // as buffer_names() says; none before the first step
  };
  using VisitOption = std::function<void(const char* name, double& value)>;

  explicit Optimizer(const char* name) : name_(name) {}
  void add_group(const std::string& name, const NamedTensors& parameters);   // called by constructors, once the options of the group are there

  virtual void update(const Slot& slot, const Tensor& gradient) = 0;
  virtual std::vector<const char*> buffer_names(size_t group) const = 0;
  virtual double initial_value(size_t /*group*/) const { return 0; }          // of buffers
  virtual void visit_options(size_t group, const VisitOption& visit) = 0;     // the first is lr; what visit leaves in value is taken
  virtual void check_options(size_t group) const = 0;

  // For check_options: ValueError with the optimizer's name.
  void require(bool holds, const char* option, double value, const char* expected) const;

 private:
  void check_gradients() const;
  void make_buffers();
  std::vector<double> option_values(size_t group) const;
  void set_options(size_t group, const std::vector<double>& values);
  void load_checked(const NamedTensors& state);

  const char* name_;
  std::vector<std::string> groups_;
  std::vector<double> initial_lr_;
  std::vector<Slot> slots_;
};

}  // namespace fovea::optim
