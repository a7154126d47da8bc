#include <fovea/optim/clip.h>

#include <cmath>

#include <fovea/kernels/cuda/nvtx.h>
#include <fovea/optim/gradients.h>
#include <fovea/tensor/creation.h>

namespace fovea::optim {
namespace {

Tensor norm_of(const DeviceGradients& gradients, bool is_infinity) {
  Tensor norm = empty(Shape{}, {DType::float64, gradients.device});
  gradients.table().gradient_norm(gradients.queue(), is_infinity, gradients.slots, static_cast<double*>(norm.mutable_view().data));
  return norm;
}

// Of the gradients of all devices.
Tensor common_norm(const std::vector<DeviceGradients>& devices, bool is_infinity) {
  if (devices.empty()) return scalar(0, {DType::float64, Device::cpu()});
  if (devices.size() == 1) return norm_of(devices[0], is_infinity);
  double total = 0;
  for (const DeviceGradients& gradients : devices) {
    const double norm = norm_of(gradients, is_infinity).item();
    if (!is_infinity) total += norm * norm;
    else if (std::isnan(norm) || norm > total) total = norm;
  }
  return scalar(is_infinity ? total : std::sqrt(total), {DType::float64, Device::cpu()});
}

void check_finite(const NamedTensors& parameters, bool is_infinity) {
  for (const auto& [name, parameter] : parameters)
    for (const DeviceGradients& gradient : gradients_of({{name, parameter}}))
      check<ValueError>(std::isfinite(norm_of(gradient, is_infinity).item()), "clip_grad_norm: the gradient of \"", name, "\" is not finite");
}

void change(const Tensor& gradient, kernels::Unary how, kernels::Scalars scalars) {
  table_of(gradient).unary(queue_of(gradient), how, scalars, gradient.view(), gradient.mutable_view());
  gradient.storage()->bump_version();
}

}  // namespace

Tensor clip_grad_norm_async(const NamedTensors& parameters, double max_norm, ClipOptions options) {
  const cuda::Range range("clip_grad_norm");
  const bool is_infinity = std::isinf(options.norm_type) && options.norm_type > 0;
  check<ValueError>(is_infinity || options.norm_type == 2, "clip_grad_norm: norm_type must be 2 or infinity, got ", options.norm_type);
  check<ValueError>(max_norm >= 0, "clip_grad_norm: max_norm must not be negative, got ", max_norm);
  const std::vector<DeviceGradients> devices = gradients_of(parameters);
  const Tensor norm = common_norm(devices, is_infinity);
  if (options.error_if_nonfinite && !std::isfinite(norm.item())) check_finite(parameters, is_infinity);
  for (const DeviceGradients& gradients : devices) {
    const Tensor here = norm.device() == gradients.device ? norm : copied_to(norm, gradients.device);
    gradients.table().clip_gradients(gradients.queue(), max_norm, static_cast<const double*>(here.view().data), gradients.slots);
    gradients.store();
  }
  return norm;
}

double clip_grad_norm(const NamedTensors& parameters, double max_norm, ClipOptions options) { return clip_grad_norm_async(parameters, max_norm, options).item(); }

void clip_grad_value(const NamedTensors& parameters, double limit) {
  const cuda::Range range("clip_grad_value");
  check<ValueError>(limit >= 0, "clip_grad_value: limit must not be negative, got ", limit);
  for (const auto& [name, parameter] : parameters)
    if (parameter.defined() && parameter.grad().defined()) change(parameter.grad(), kernels::Unary::clamp, {.alpha = -limit, .beta = limit});
}

}  // namespace fovea::optim
