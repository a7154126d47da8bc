#include <fovea/layers/activation.h>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {
namespace {

Cost softmax_cost(const Shape& input, int64_t axis) {
  const int at = wrap_axis(axis, input.rank(), "Softmax");
  const int64_t rest = input[at] > 0 ? input.numel() / input[at] : 0;
  return AxisGeometry{.outer = rest, .size = input[at], .inner = 1}.softmax_cost();
}

}  // namespace

PReLU::PReLU(int64_t channels, double first_value) {
  check<ValueError>(channels > 0, "PReLU: channels must be positive, got ", channels);
  weight = param("weight", full({channels}, first_value));
}

Tensor PReLU::forward(const Tensor& x) {
  Tensor slope = alongside(x, weight);
  if (slope.numel() != 1) {
    check<ShapeError>(x.rank() >= 2 && x.size(1) == slope.numel(), "PReLU: x ", x.shape(), " does not have the ", slope.numel(),
                      " channels of the weight in axis 1");
    Shape shape = Shape::filled(x.rank(), 1);
    shape[1] = slope.numel();
    slope = reshape(slope, shape);
  }
  return where(x > 0, x, slope * x);                       // at 0 with the slope of the left, as PyTorch
}

std::optional<Cost> Softmax::own_cost(const Shape& input) const { return softmax_cost(input, axis_); }
std::optional<Cost> LogSoftmax::own_cost(const Shape& input) const { return softmax_cost(input, axis_); }

}  // namespace fovea::layers
