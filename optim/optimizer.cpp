#include <fovea/optim/optimizer.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <unordered_set>

#include <fovea/autograd/shape.h>
#include <fovea/kernels/cuda/nvtx.h>
#include <fovea/tensor/creation.h>

namespace fovea::optim {
namespace {

std::string listed(const char* what, const std::vector<std::string>& names) {
  constexpr size_t at_most = 20;
  std::string text = what;
  for (size_t i = 0; i < std::min(names.size(), at_most); ++i) text += str(i ? ", \"" : " \"", names[i], '"');
  return names.size() > at_most ? text + str(" and ", names.size() - at_most, " more") : text;
}

bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }
// What a parameter's arithmetic and buffers are in.
DType step_dtype(const Tensor& parameter) { return is_half(parameter.dtype()) ? DType::float32 : parameter.dtype(); }

// Both change memory that recorded work may know. Of one dtype and device.
void overwrite(const Tensor& to, const Tensor& from) {
  table_of(to).copy(queue_of(to), from.view(), to.mutable_view());
  to.storage()->bump_version();
}
void fill(const Tensor& x, double value) {
  table_of(x).fill(queue_of(x), value, x.mutable_view());
  x.storage()->bump_version();
}

}  // namespace

void Optimizer::require(bool holds, const char* option, double value, const char* expected) const {
  check<ValueError>(holds, name_, ": ", option, " must be ", expected, ", got ", value);
}

void Optimizer::add_group(const std::string& name, const NamedTensors& parameters) {
  check<ValueError>(std::find(groups_.begin(), groups_.end(), name) == groups_.end(), name_, ": two groups are named \"", name, "\"");
  const size_t group = groups_.size();
  check_options(group);
  groups_.push_back(name);
  initial_lr_.push_back(option_values(group)[0]);
  const bool are_all_absent = parameters.size() > 0 && std::none_of(parameters.begin(), parameters.end(), [](const auto& entry) { return entry.second.defined(); });
  check<ValueError>(!are_all_absent, name_, ": group \"", name, "\" has only undefined tensors");
  for (const auto& entry : parameters) {
    const std::string& parameter_name = entry.first;
    const Tensor& parameter = entry.second;
    if (!parameter.defined()) continue;                              // a bias that is not there
    check<DTypeError>(is_floating(parameter.dtype()), name_, ": parameter \"", parameter_name, "\" is ", parameter.dtype(), ", expected a floating-point type");
    check<ShapeError>(parameter.is_contiguous(), name_, ": parameter \"", parameter_name, "\" is not contiguous; use contiguous(x)");
    check<ValueError>(parameter.is_leaf(), name_, ": parameter \"", parameter_name, "\" was made by an operation; only leaves keep a gradient, detach() it first");
    const auto is_same = [&](const Slot& slot) { return slot.parameter.is_same(parameter); };
    const auto is_named_so = [&](const Slot& slot) { return slot.name == parameter_name; };
    const auto same = std::find_if(slots_.begin(), slots_.end(), is_same);
    if (same != slots_.end()) {
      check<ValueError>(same->group == group, name_, ": \"", parameter_name, "\" is in two groups, \"", groups_[same->group], "\" and \"", name, "\"");
      continue;
    }
    check<ValueError>(std::none_of(slots_.begin(), slots_.end(), is_named_so), name_, ": two parameters are named \"", parameter_name, "\"");
    slots_.push_back({.name = parameter_name, .parameter = parameter, .group = group});
  }
}

void Optimizer::check_gradients() const {
  for (const Slot& slot : slots_) {
    const Tensor gradient = slot.parameter.grad();
    if (!gradient.defined()) continue;
    const DType dtype = step_dtype(slot.parameter);
    const bool is_taken = gradient.dtype() == dtype || (dtype == DType::float32 && is_half(gradient.dtype()));
    check<DTypeError>(is_taken, name_, ": the gradient of \"", slot.name, "\" is ", gradient.dtype(), ", the parameter ", slot.parameter.dtype());
    check<DeviceError>(gradient.device() == slot.parameter.device(), name_, ": the gradient of \"", slot.name, "\" is on ", gradient.device(), ", the parameter on ",
                       slot.parameter.device());
    check<ShapeError>(gradient.shape() == slot.parameter.shape(), name_, ": the gradient of \"", slot.name, "\" has shape ", gradient.shape(), ", expected ",
                      slot.parameter.shape());
    check<ShapeError>(slot.parameter.is_contiguous(), name_, ": parameter \"", slot.name, "\" is not contiguous any more");
    const bool has_changed = !slot.buffers.empty() && (slot.buffers[0].dtype() != dtype || slot.buffers.size() != names_of(slot).size());
    check<DTypeError>(!has_changed, name_, ": parameter \"", slot.name, "\" became ", slot.parameter.dtype(),
                      " after the first step; convert the module before the optimizer is made");
  }
}

std::vector<const char*> Optimizer::names_of(const Slot& slot) const {
  std::vector<const char*> names = buffer_names(slot.group);
  if (is_half(slot.parameter.dtype())) names.push_back("master");
  return names;
}

void Optimizer::make_buffers() {
  for (Slot& slot : slots_) {
    const Device device = slot.parameter.device();
    for (Tensor& buffer : slot.buffers)
      if (buffer.device() != device) buffer = copied_to(buffer, device);
    if (is_capturable_) {
      if (!slot.count.defined()) slot.count = full(Shape{}, static_cast<double>(slot.step), {DType::int64, device});
      else if (slot.count.device() != device) slot.count = copied_to(slot.count, device);
      device_lr(slot.group, device);
    }
    const bool is_new = slot.buffers.empty() && slot.step == 0;
    if (!is_new || (!is_capturable_ && !slot.parameter.grad().defined())) continue;
    const DType dtype = step_dtype(slot.parameter);
    std::vector<Tensor> buffers;
    for (size_t i = 0; i < buffer_names(slot.group).size(); ++i) buffers.push_back(full(slot.parameter.shape(), initial_value(slot.group), {dtype, device}));
    if (is_half(slot.parameter.dtype())) buffers.push_back(to(slot.parameter, dtype));
    slot.buffers = std::move(buffers);
  }
}

const Tensor& Optimizer::device_lr(size_t group, Device device) {
  for (const DeviceLr& known : device_lrs_)
    if (known.group == group && known.value.device() == device) return known.value;
  device_lrs_.push_back({group, full(Shape{}, lr(group), {DType::float64, device})});
  return device_lrs_.back().value;
}

void Optimizer::set_capturable(bool is_on) {
  NoGrad no_grad;
  if (!is_on) {
    for (Slot& slot : slots_) {
      slot.step = steps_of(slot);
      slot.count = {};
    }
    device_lrs_.clear();
  }
  is_capturable_ = is_on;
  if (is_on) make_buffers();
}

// The kernels' view of a step. `gradients` keeps alive what it points to.
Optimizer::DeviceStep Optimizer::step_on(Device device, const kernels::StepControl& control, std::vector<Tensor>& gradients) {
  std::optional<DeviceStep> result;
  for (Slot& slot : slots_) {
    const Tensor& parameter = slot.parameter;
    if (parameter.device() != device || !parameter.grad().defined()) continue;
    if (!result) result.emplace(DeviceStep{table_of(parameter), queue_of(parameter), {}, {}, control});
    gradients.push_back(contiguous(parameter.grad()));
    kernels::StepSlot s;
    s.gradient = gradients.back().view().data;
    s.gradient_dtype = gradients.back().dtype();
    s.numel = parameter.numel();
    s.dtype = step_dtype(parameter);
    const size_t states = buffer_names(slot.group).size();
    for (size_t i = 0; i < states; ++i) s.state[i] = slot.buffers[i].mutable_view().data;
    s.parameter = parameter.mutable_view().data;
    if (is_half(parameter.dtype())) {
      s.rounded = s.parameter;
      s.rounded_dtype = parameter.dtype();
      s.parameter = slot.buffers.back().mutable_view().data;
    }
    if (is_capturable_) {
      s.lr = static_cast<const double*>(device_lr(slot.group, device).view().data);
      s.count = static_cast<int64_t*>(slot.count.mutable_view().data);
    }
    const GroupStep step{slot.group, is_capturable_ ? 0 : slot.step + 1};
    const auto known = std::find(result->steps.begin(), result->steps.end(), step);
    s.step = known - result->steps.begin();
    if (known == result->steps.end()) result->steps.push_back(step);
    result->slots.push_back(s);
  }
  return std::move(*result);
}

void Optimizer::step() { step({}); }

void Optimizer::step(const kernels::StepControl& control) {
  const cuda::Range range(name_, "::step");
  NoGrad no_grad;
  check_gradients();
  make_buffers();
  std::vector<Device> devices;
  for (const Slot& slot : slots_) {
    const Device device = slot.parameter.device();
    if (slot.parameter.grad().defined() && std::find(devices.begin(), devices.end(), device) == devices.end()) devices.push_back(device);
  }
  for (const Device device : devices) {
    std::vector<Tensor> gradients;
    DeviceStep device_step = step_on(device, control, gradients);
    update(device_step);
  }
  for (Slot& slot : slots_) {
    if (!slot.parameter.grad().defined()) continue;
    if (!is_capturable_) ++slot.step;
    slot.parameter.storage()->bump_version();
  }
}

void Optimizer::zero_grad() {
  for (const Slot& slot : slots_) slot.parameter.set_grad({});
}

NamedTensors Optimizer::parameters() const {
  NamedTensors list;
  for (const Slot& slot : slots_) list.add(slot.name, slot.parameter);
  return list;
}

// visit_options() may change options, so it is not const; here nothing changes.
std::vector<double> Optimizer::option_values(size_t group) const {
  std::vector<double> values;
  const_cast<Optimizer*>(this)->visit_options(group, [&](const char*, double& value) { values.push_back(value); });
  return values;
}

void Optimizer::set_options(size_t group, const std::vector<double>& values) {
  size_t i = 0;
  visit_options(group, [&](const char*, double& value) { value = values[i++]; });
}

double Optimizer::lr(size_t group) const {
  check<IndexError>(group < groups_.size(), name_, ": there is no group ", group, ", only ", groups_.size());
  return option_values(group)[0];
}

void Optimizer::set_lr(size_t group, double lr) {
  check<IndexError>(group < groups_.size(), name_, ": there is no group ", group, ", only ", groups_.size());
  require(std::isfinite(lr) && lr >= 0, "lr", lr, "a finite number that is not negative");
  std::vector<double> values = option_values(group);
  values[0] = lr;
  set_options(group, values);
  for (const DeviceLr& known : device_lrs_)
    if (known.group == group) fill(known.value, lr);
}

void Optimizer::set_lr(double lr) {
  for (size_t group = 0; group < groups_.size(); ++group) set_lr(group, lr);
}

void Optimizer::scale_lr(double factor) {
  for (size_t group = 0; group < groups_.size(); ++group) set_lr(group, initial_lr_[group] * factor);
}

NamedTensors Optimizer::state() const {
  NamedTensors state;
  for (size_t group = 0; group < groups_.size(); ++group) {
    const std::string prefix = "param_groups." + groups_[group] + ".";
    const_cast<Optimizer*>(this)->visit_options(group, [&](const char* name, double& value) { state.add(prefix + name, scalar(value, {DType::float64, Device::cpu()})); });
    state.add(prefix + "initial_lr", scalar(initial_lr_[group], {DType::float64, Device::cpu()}));
  }
  for (const Slot& slot : slots_) {
    const int64_t step = steps_of(slot);
    if (step == 0) continue;
    const std::string prefix = "state." + slot.name + ".";
    state.add(prefix + "step", from_vector(std::vector<int64_t>{step}, Shape{}, Device::cpu()));
    const std::vector<const char*> names = names_of(slot);
    for (size_t i = 0; i < names.size(); ++i) state.add(prefix + names[i], slot.buffers[i]);
  }
  return state;
}

void Optimizer::load_state(const NamedTensors& state) {
  std::vector<std::vector<double>> options_before;
  for (size_t group = 0; group < groups_.size(); ++group) options_before.push_back(option_values(group));
  const std::vector<double> initial_lr_before = initial_lr_;
  try {
    load_checked(state);
  } catch (...) {
    for (size_t group = 0; group < groups_.size(); ++group) set_options(group, options_before[group]);
    initial_lr_ = initial_lr_before;
    throw;
  }
}

// Options first, because they say which buffers there are. The slots are changed at the very end, when nothing can fail any more.
void Optimizer::load_checked(const NamedTensors& state) {
  std::vector<std::string> missing, unexpected, unfit;
  std::unordered_set<std::string> known;
  const auto find = [&](const std::string& name, const Shape& shape, DType dtype) -> const Tensor* {
    known.insert(name);
    const Tensor* found = state.find(name);
    if (!found) missing.push_back(name);
    else if (!found->defined()) {
      unfit.push_back(name + ": an undefined tensor");
      return nullptr;
    } else if (found->shape() != shape || found->dtype() != dtype) {
      unfit.push_back(str(name, ": ", found->dtype(), found->shape(), ", expected ", dtype, shape));
      return nullptr;
    }
    return found;
  };
  for (size_t group = 0; group < groups_.size(); ++group) {
    const std::string prefix = "param_groups." + groups_[group] + ".";
    visit_options(group, [&](const char* name, double& value) {
      if (const Tensor* saved = find(prefix + name, {}, DType::float64)) value = saved->item();
    });
    if (const Tensor* saved = find(prefix + "initial_lr", {}, DType::float64)) initial_lr_[group] = saved->item();
    check_options(group);
  }

  std::vector<Slot> loaded;
  for (const Slot& slot : slots_) {
    Slot fresh{.name = slot.name, .parameter = slot.parameter, .group = slot.group};
    const std::string prefix = "state." + slot.name + ".";
    if (state.contains(prefix + "step")) {                           // a parameter that had no gradient has no state
      if (const Tensor* saved = find(prefix + "step", {}, DType::int64)) fresh.step = saved->item<int64_t>();
      if (fresh.step <= 0) unfit.push_back(prefix + "step, which must be positive");
      for (const char* name : names_of(slot))
        if (const Tensor* saved = find(prefix + name, slot.parameter.shape(), step_dtype(slot.parameter))) fresh.buffers.push_back(copied_to(*saved, slot.parameter.device()));
    }
    loaded.push_back(std::move(fresh));
  }
  for (const auto& [name, tensor] : state)
    if (!known.contains(name)) unexpected.push_back(name);

  std::string problems;
  for (const auto& [what, names] : {std::pair{"missing", &missing}, {"unexpected", &unexpected}, {"unfit", &unfit}})
    if (!names->empty()) problems += (problems.empty() ? "" : "; ") + listed(what, *names);
  check<ValueError>(problems.empty(), name_, ": load_state: ", problems);
  adopt(std::move(loaded));
}

// The slots and options that load_checked() found. Note [Recorded steps]: a capturable optimizer's memory stays where it is.
void Optimizer::adopt(std::vector<Slot> loaded) {
  NoGrad no_grad;
  for (size_t i = 0; is_capturable_ && i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    Slot& fresh = loaded[i];
    fresh.count = slot.count;
    fill(fresh.count, static_cast<double>(fresh.step));
    if (slot.buffers.size() != names_of(slot).size()) continue;              // the options that were loaded ask for others
    const bool is_new = fresh.buffers.empty();
    for (size_t k = 0; k < slot.buffers.size(); ++k) {
      const bool is_master = k == buffer_names(slot.group).size();
      if (!is_new) overwrite(slot.buffers[k], fresh.buffers[k]);
      else if (is_master) overwrite(slot.buffers[k], to(slot.parameter, DType::float32));
      else fill(slot.buffers[k], initial_value(slot.group));
    }
    fresh.buffers = slot.buffers;
  }
  slots_ = std::move(loaded);
  for (const DeviceLr& known : device_lrs_) fill(known.value, lr(known.group));
  if (is_capturable_) make_buffers();
}

}  // namespace fovea::optim
