#include <fovea/layers/activation.h>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {
PReLU::PReLU(int64_t channels, double first_value) : weight(param("weight", full({channels}, first_value))) {}

Tensor PReLU::forward(const Tensor& x) {
  Tensor slope = alongside(x, weight);
  if (slope.numel() != 1) {
    check<ShapeError>(x.rank() >= 2 && x.size(1) == slope.numel(), "PReLU: x ", x.shape(), " does not have the ", slope.numel(), " channels of the weight in axis 1");
    Shape shape = Shape::filled(x.rank(), 1);
    shape[1] = slope.numel();
    slope = reshape(slope, shape);
  }
  return relu(x) - slope * relu(-x);
}

}  // namespace fovea::layers
