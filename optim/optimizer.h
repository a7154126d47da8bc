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
//
// A parameter of a half type is stepped on in float32: the optimizer keeps a copy of it ("state.PARAMETER.master"), and the parameter is that copy, rounded. Elements
// that somebody else changes between two steps (by loading weights, say) are taken over into the copy.
//
// Parameters may lie on several devices. On a CUDA device all of them are stepped with one launch, up to several hundred of them.
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

  // Note [Recorded steps]
  // A graph (cuda::Graph) repeats a step with every number that the host gave it. A capturable optimizer keeps learning rates and step counts on the parameters' device
  // and reads them there: a recorded step() counts each time it is replayed, and set_lr() between two replays takes effect (within the recorded work it would be
  // repeated, too). Buffers are made at once, not in the first step. The arithmetic is the same. state() then waits for the device, and load_state() writes into
  // the memory that is there, so that recorded steps go on with what was loaded.
  void set_capturable(bool is_on = true);
  bool is_capturable() const { return is_capturable_; }

  // What a resumed run needs besides the parameters: options as "param_groups.GROUP.OPTION" (float64), and after the first step of a parameter
  // "state.PARAMETER.step" (int64) and its buffers, such as "state.PARAMETER.exp_avg". The buffers share the optimizer's memory.
  NamedTensors state() const;
  // Takes it back, exactly, options included. ValueError that lists what is missing, unexpected or of another shape; the optimizer is then as it was.
  void load_state(const NamedTensors& state);

 protected:
  // Numbers that several parameters of a step have in common. step counts from 1; a capturable optimizer's is on the device, and 0 here.
  struct GroupStep {
    size_t group;
    int64_t step;
    bool operator==(const GroupStep&) const = default;
  };
  // A step of all parameters on one device that have a gradient.
  struct DeviceStep {
    const kernels::KernelTable& table;
    kernels::Queue queue;
    std::vector<GroupStep> steps;
    std::vector<kernels::StepSlot> slots;                            // state: the buffers, in the order of buffer_names()
    kernels::StepControl control;
  };
  using VisitOption = std::function<void(const char* name, double& value)>;

  explicit Optimizer(const char* name) : name_(name) {}
  void add_group(const std::string& name, const NamedTensors& parameters);   // called by constructors, once the options of the group are there

  virtual void update(DeviceStep& step) = 0;
  virtual std::vector<const char*> buffer_names(size_t group) const = 0;
  virtual double initial_value(size_t /*group*/) const { return 0; }          // of buffers
  virtual void visit_options(size_t group, const VisitOption& visit) = 0;     // the first is lr; what visit leaves in value is taken
  virtual void check_options(size_t group) const = 0;

  // For check_options: ValueError with the optimizer's name.
  void require(bool holds, const char* option, double value, const char* expected) const;

 private:
  friend class GradScaler;
  struct Slot {
    std::string name;
    Tensor parameter;
    size_t group = 0;
    int64_t step = 0;                                                // steps taken; of a capturable optimizer, count on the parameter's device
    Tensor count = {};
    std::vector<Tensor> buffers = {};                                // as names_of() says; none before the first step, unless capturable
  };
  struct DeviceLr {                                                  // a group's learning rate, where it is read by recorded steps
    size_t group;
    Tensor value;
  };

  void step(const kernels::StepControl& control);
  void check_gradients() const;
  void make_buffers();
  DeviceStep step_on(Device device, const kernels::StepControl& control, std::vector<Tensor>& gradients);
  const Tensor& device_lr(size_t group, Device device);
  std::vector<const char*> names_of(const Slot& slot) const;         // of its buffers
  int64_t steps_of(const Slot& slot) const { return slot.count.defined() ? slot.count.item<int64_t>() : slot.step; }
  void adopt(std::vector<Slot> loaded);
  std::vector<double> option_values(size_t group) const;
  void set_options(size_t group, const std::vector<double>& values);
  void load_checked(const NamedTensors& state);

  const char* name_;
  std::vector<std::string> groups_;
  std::vector<double> initial_lr_;
  std::vector<Slot> slots_;
  bool is_capturable_ = false;
  std::vector<DeviceLr> device_lrs_;
};

}  // namespace fovea::optim
