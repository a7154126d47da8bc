#include <fovea/optim/grad_scaler.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/autograd/tape.h>
#include <fovea/optim/gradients.h>
#include <fovea/tensor/creation.h>

namespace fovea::optim {
namespace {

constexpr size_t most_uses = 16;             // optimizers between two update()s

template <class T>
T* memory_of(const Tensor& x) { return static_cast<T*>(x.mutable_view().data); }

void set(const Tensor& x, double value) {
  table_of(x).fill(queue_of(x), value, x.mutable_view());
  x.storage()->bump_version();
}

}  // namespace

GradScaler::GradScaler(GradScalerOptions options) : options_(options) {
  check_options(options);
  make(Device::cpu());
}

void GradScaler::check_options(const GradScalerOptions& o) const {
  using Limits = std::numeric_limits<float>;                         // what scale_ is in
  check<ValueError>(o.init_scale >= Limits::min() && o.init_scale <= Limits::max(), "GradScaler: init_scale must be positive and finite in float32, got ", o.init_scale);
  check<ValueError>(std::isfinite(o.growth_factor) && o.growth_factor > 1, "GradScaler: growth_factor must be above 1, got ", o.growth_factor);
  check<ValueError>(o.backoff_factor > 0 && o.backoff_factor < 1, "GradScaler: backoff_factor must be between 0 and 1, got ", o.backoff_factor);
  check<ValueError>(o.growth_interval > 0 && o.growth_interval < (int64_t{1} << 31), "GradScaler: growth_interval must be positive and below 2^31, got ", o.growth_interval);
}

// Puts scale and counts on a device; they keep their values.
void GradScaler::make(Device device) {
  if (scale_.defined() && scale_.device() == device) return;
  scale_ = scale_.defined() ? copied_to(scale_, device) : full(Shape{}, options_.init_scale, {DType::float32, device});
  good_steps_ = good_steps_.defined() ? copied_to(good_steps_, device) : zeros(Shape{}, {DType::int32, device});
  found_inf_ = zeros({static_cast<int64_t>(most_uses)}, {DType::int32, device});
}

Tensor GradScaler::scale(const Tensor& loss) {
  if (!options_.enabled) return loss;
  check<ValueError>(loss.defined(), "GradScaler: the loss is an undefined tensor");
  check<DTypeError>(is_floating(loss.dtype()), "GradScaler: the loss is ", loss.dtype(), ", expected a floating-point type");
  check<DeviceError>(uses_.empty() || loss.device() == scale_.device(), "GradScaler: the loss is on ", loss.device(), ", gradients since the last update() were on ",
                     scale_.device());
  make(loss.device());
  const DType dtype = loss.dtype() == DType::float64 ? DType::float64 : DType::float32;
  return to(loss, dtype) * to(scale_.detach(), dtype);
}

GradScaler::Use& GradScaler::use_of(const Optimizer& optimizer) {
  for (Use& use : uses_)
    if (use.optimizer == &optimizer) return use;
  check<ValueError>(uses_.size() < most_uses, "GradScaler: more than ", most_uses, " optimizers were used since the last update()");
  return uses_.emplace_back(Use{&optimizer});
}

int32_t* GradScaler::found_by(const Use& use) { return memory_of<int32_t>(found_inf_) + (&use - uses_.data()); }

// The optimizer's gradients, all of them where the scale is.
std::vector<DeviceGradients> GradScaler::checked_gradients(const Optimizer& optimizer) const {
  std::vector<DeviceGradients> devices = gradients_of(optimizer.parameters());
  for (const DeviceGradients& gradients : devices)
    check<DeviceError>(gradients.device == scale_.device(), "GradScaler: ", optimizer.name(), " has gradients on ", gradients.device, ", the scale is on ", scale_.device(),
                       "; scale(loss) puts it on the device of the loss, where all gradients must be");
  return devices;
}

void GradScaler::look_for_inf(const std::vector<DeviceGradients>& devices, const Use& use, bool is_written) {
  for (const DeviceGradients& gradients : devices) {
    gradients.table().unscale_gradients(gradients.queue(), is_written, memory_of<const float>(scale_), gradients.slots, found_by(use));
    if (is_written) gradients.store();
  }
}

void GradScaler::unscale(Optimizer& optimizer) {
  if (!options_.enabled) return;
  for (const auto& [name, parameter] : optimizer.parameters()) {
    const Tensor gradient = parameter.grad();
    check<DTypeError>(!gradient.defined() || gradient.dtype() != DType::float16, "GradScaler: the gradient of \"", name,
                      "\" is float16, and unscaled would lose its small values; leave it to step(), and clip at the limit times current_scale()");
  }
  const std::vector<DeviceGradients> gradients = checked_gradients(optimizer);
  Use& use = use_of(optimizer);
  check<ValueError>(!use.is_unscaled, "GradScaler: the gradients of this ", optimizer.name(), " were unscaled already since the last update()");
  check<ValueError>(!use.has_stepped, "GradScaler: unscale() comes after step(); call update() first");
  look_for_inf(gradients, use, true);
  use.is_unscaled = true;
}

void GradScaler::step(Optimizer& optimizer) {
  if (!options_.enabled) return optimizer.step();
  const std::vector<DeviceGradients> gradients = checked_gradients(optimizer);
  Use& use = use_of(optimizer);
  check<ValueError>(!use.has_stepped, "GradScaler: this ", optimizer.name(), " has stepped already since the last update()");
  if (!use.is_unscaled) look_for_inf(gradients, use, false);
  kernels::StepControl control;
  if (!use.is_unscaled) control.grad_scale = memory_of<const float>(scale_);
  if (optimizer.is_capturable()) {
    control.found_inf = found_by(use);
    optimizer.step(control);
  } else if (found_inf_.to_vector<int32_t>()[static_cast<size_t>(&use - uses_.data())] == 0) {
    optimizer.step(control);
  }
  use.has_stepped = true;
}

void GradScaler::update() {
  if (!options_.enabled) return;
  const kernels::ScaleGrowth growth{options_.growth_factor, options_.backoff_factor, options_.growth_interval};
  check<ValueError>(!uses_.empty(), "GradScaler: update() comes after a step()");
  table_of(scale_).update_scale(queue_of(scale_), growth, memory_of<float>(scale_), memory_of<int32_t>(good_steps_), memory_of<int32_t>(found_inf_), most_uses);
  scale_.storage()->bump_version();
  uses_.clear();
}

double GradScaler::current_scale() const { return options_.enabled ? scale_.item() : 1; }

NamedTensors GradScaler::state() const {
  const TensorOptions number{DType::float64, Device::cpu()};
  return {{"scale", copied_to(scale_, Device::cpu())},
          {"good_steps", copied_to(good_steps_, Device::cpu())},
          {"growth_factor", scalar(options_.growth_factor, number)},
          {"backoff_factor", scalar(options_.backoff_factor, number)},
          {"growth_interval", scalar(static_cast<double>(options_.growth_interval), number)}};
}

void GradScaler::load_state(const NamedTensors& state) {
  const auto value = [&](const char* name, DType dtype) {
    const Tensor* found = state.find(name);
    check<ValueError>(found != nullptr, "GradScaler: load_state: missing \"", name, '"');
    check<ValueError>(found->defined(), "GradScaler: load_state: ", name, " is an undefined tensor");
    check<ValueError>(found->shape() == Shape{} && found->dtype() == dtype, "GradScaler: load_state: ", name, ": ", found->dtype(), found->shape(), ", expected ", dtype, "[]");
    return found->item();
  };
  GradScalerOptions loaded = options_;
  loaded.growth_factor = value("growth_factor", DType::float64);
  loaded.backoff_factor = value("backoff_factor", DType::float64);
  const double growth_interval = value("growth_interval", DType::float64);
  check<ValueError>(growth_interval >= 1 && growth_interval < 0x1p31, "GradScaler: load_state: growth_interval must be positive and below 2^31, got ", growth_interval);
  loaded.growth_interval = static_cast<int64_t>(growth_interval);
  check_options(loaded);
  const double scale = value("scale", DType::float32), good_steps = value("good_steps", DType::int32);
  check<ValueError>(std::isfinite(scale) && scale > 0, "GradScaler: load_state: scale must be positive and finite, got ", scale);
  check<ValueError>(good_steps >= 0, "GradScaler: load_state: good_steps must not be negative, got ", good_steps);
  options_ = loaded;
  set(scale_, scale);
  set(good_steps_, good_steps);
}

}  // namespace fovea::optim
