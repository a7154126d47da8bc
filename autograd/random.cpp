#include <fovea/autograd/random.h>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

void check_probability(const char* op, const Tensor& x, double p) {
  detail::check_defined(op, "x", x);
  check<ValueError>(p >= 0 && p <= 1, op, ": p must be in [0, 1], got ", p);
  check<DTypeError>(is_floating(x.dtype()), op, ": takes a floating-point tensor, got ", x.dtype(),
                    "; convert it with to(x, DType::float32)");
}

// Linear in x: its gradient is the same mask on g.
Tensor masked(const Tensor& x0, double p, kernels::PhiloxKey key) {
  const Tensor x = contiguous(x0);
  Tensor y = empty_like(x);
  table_of(x).dropout(queue_of(x), p, key, x.view(), y.mutable_view());
  return record("dropout", y, {x}, saving(), [p, key](const Saved&, const Tensor& g) { return grads(masked(g, p, key)); });
}

}  // namespace

Tensor dropout(const Tensor& x, double p, Generator& generator) {
  const cuda::Range range("dropout");
  check_probability("dropout", x, p);
  return p == 0 ? x : masked(x, p, generator.next(x.numel()));
}

Tensor feature_dropout(const Tensor& x, double p, Generator& generator) {
  const cuda::Range range("feature_dropout");
  check_probability("feature_dropout", x, p);
  check<ShapeError>(x.rank() >= 2, "feature_dropout: takes x [n, c, ...], got shape ", x.shape());
  if (p == 0) return x;
  Shape channels = Shape::filled(x.rank(), 1);
  channels[0] = x.shape()[0];
  channels[1] = x.shape()[1];
  return mul(x, masked(ones(channels, {x.dtype(), x.device()}), p, generator.next(channels.numel())));
}

}  // namespace fovea
