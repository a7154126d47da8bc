#include <fovea/layers/linear.h>

#include <cmath>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/matmul.h>
#include <fovea/autograd/shape.h>
#include <fovea/layers/init.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {
namespace {

int64_t rows_of(const Shape& x, int64_t in, const char* layer) {
  check<ShapeError>(x.rank() >= 1 && x.back() == in, layer, ": the last axis of x must have ", in, " elements, got shape ", x);
  return x.numel() / in;
}

// The shape of a weight, looked at before memory is asked for.
Shape positive(const char* layer, const Shape& shape) {
  for (int64_t size : shape) check<ValueError>(size > 0, layer, ": sizes must be positive, got ", shape, " for the weight");
  checked_numel(shape, layer);
  return shape;
}

}  // namespace

Linear::Linear(int64_t in, int64_t out, LinearOptions options)
    : weight(param("weight", empty(positive("Linear", {out, in})))), bias(param("bias", options.bias ? empty({out}) : Tensor())) {
  init::linear_default_(weight, bias);
}

Tensor Linear::forward(const Tensor& x) {
  rows_of(x.shape(), weight.size(1), "Linear");
  return linear(x, alongside(x, weight), alongside(x, bias));
}

std::string Linear::options() const { return str(weight.size(1), ", ", weight.size(0), bias ? "" : ", no bias"); }

std::optional<Cost> Linear::own_cost(const Shape& input) const {
  const int64_t in = weight.size(1);
  return MatmulGeometry{.batch = 1, .m = rows_of(input, in, "Linear"), .n = weight.size(0), .k = in}.linear_cost(bias.defined());
}

Bilinear::Bilinear(int64_t in1, int64_t in2, int64_t out, LinearOptions options)
    : weight(param("weight", empty(positive("Bilinear", {out, in1, in2})))), bias(param("bias", options.bias ? empty({out}) : Tensor())) {
  const double bound = 1 / std::sqrt(static_cast<double>(in1));              // PyTorch's
  init::uniform_(weight, -bound, bound);
  if (bias) init::uniform_(bias, -bound, bound);
}

// a [rows, in1] times W seen as [in1, out * in2] gives the rows' own matrices [out, in2]; each then meets its row of b.
Tensor Bilinear::forward(const Tensor& a, const Tensor& b) {
  const int64_t out = weight.size(0), in1 = weight.size(1), in2 = weight.size(2), rows = rows_of(a.shape(), in1, "Bilinear");
  check<ShapeError>(rows_of(b.shape(), in2, "Bilinear") == rows && a.rank() == b.rank(), "Bilinear: a ", a.shape(), " and b ", b.shape(),
                    " must agree in all axes but the last");
  detail::check_same_device("Bilinear", "b", b, "a", a);
  const Tensor w = reshape(permute(alongside(a, weight), {1, 0, 2}), {in1, out * in2});
  const Tensor matrices = reshape(matmul(reshape(a, {rows, in1}), w), {rows, out, in2});
  Shape shape = a.shape();
  shape[shape.rank() - 1] = out;
  const Tensor y = reshape(matmul(matrices, reshape(b, {rows, in2, 1})), shape);
  return bias ? y + alongside(a, bias) : y;
}

std::string Bilinear::options() const { return str(weight.size(1), ", ", weight.size(2), ", ", weight.size(0), bias ? "" : ", no bias"); }

std::optional<Cost> Bilinear::own_cost(const Shape& first) const {
  const int64_t out = weight.size(0), in1 = weight.size(1), in2 = weight.size(2), rows = rows_of(first, in1, "Bilinear");
  Cost cost = MatmulGeometry{.batch = 1, .m = rows, .n = out * in2, .k = in1}.linear_cost(false);
  cost += MatmulGeometry{.batch = rows, .m = out, .n = 1, .k = in2}.cost();
  if (bias) cost += Cost::of(0, rows * out, out, out);
  return cost;
}

}  // namespace fovea::layers
