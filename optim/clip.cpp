#include <fovea/optim/clip.h>

#include <cmath>

#include <fovea/autograd/tape.h>
#include <fovea/tensor/creation.h>

namespace fovea::optim {
namespace {

double reduced(kernels::Reduce how, const Tensor& x) {
  Tensor result = empty(Shape::filled(x.rank(), 1), {x.dtype(), x.device()});
  table_of(x).reduce(queue_of(x), how, x.view(), result.mutable_view());
  return result.item();
}

// The sum of squares, or for the infinity norm the largest magnitude.
double partial_norm(const Tensor& gradient, bool is_infinity) {
  if (gradient.numel() == 0) return 0;
  if (!is_infinity) return reduced(kernels::Reduce::sum_squares, gradient);
  const double highest = reduced(kernels::Reduce::max, gradient), lowest = reduced(kernels::Reduce::min, gradient);
  return std::isnan(highest) ? highest : std::max(std::abs(highest), std::abs(lowest));
}

void change(const Tensor& gradient, kernels::Unary how, kernels::Scalars scalars) {
  table_of(gradient).unary(queue_of(gradient), how, scalars, gradient.view(), gradient.mutable_view());
  gradient.storage()->bump_version();
}

}  // namespace

double clip_grad_norm(const NamedTensors& parameters, double max_norm, ClipOptions options) {
  const bool is_infinity = std::isinf(options.norm_type) && options.norm_type > 0;
  check<ValueError>(is_infinity || options.norm_type == 2, "clip_grad_norm: norm_type must be 2 or infinity, got ", options.norm_type);
  check<ValueError>(max_norm >= 0, "clip_grad_norm: max_norm must not be negative, got ", max_norm);
  double total = 0;
  for (const auto& [name, parameter] : parameters) {
    const Tensor gradient = parameter.defined() ? parameter.grad() : Tensor();
    if (!gradient.defined()) continue;
    const double part = partial_norm(gradient, is_infinity);
    check<ValueError>(!options.error_if_nonfinite || std::isfinite(part), "clip_grad_norm: the gradient of \"", name, "\" is not finite");
    total = is_infinity && !std::isnan(total) ? std::max(part, total) : total + part;
    if (std::isnan(part)) total = part;
  }
  const double norm = is_infinity ? total : std::sqrt(total);
  const double scale = max_norm / (norm + 1e-6);
  if (scale >= 1) return norm;                                       // false for NaN: as in PyTorch all gradients become NaN, which cannot be overlooked
  for (const auto& [name, parameter] : parameters)
    if (parameter.defined() && parameter.grad().defined()) change(parameter.grad(), kernels::Unary::mul_scalar, {.alpha = scale});
  return norm;
}

void clip_grad_value(const NamedTensors& parameters, double limit) {
  check<ValueError>(limit >= 0, "clip_grad_value: limit must not be negative, got ", limit);
  for (const auto& [name, parameter] : parameters)
    if (parameter.defined() && parameter.grad().defined()) change(parameter.grad(), kernels::Unary::clamp, {.alpha = -limit, .beta = limit});
}

}  // namespace fovea::optim
