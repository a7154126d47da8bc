#include <fovea/layers/init.h>

#include <algorithm>
#include <cmath>

#include <fovea/autograd/inplace.h>
#include <fovea/autograd/matmul.h>
#include <fovea/autograd/shape.h>
#include <fovea/autograd/tape.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers::init {
namespace {

void fill_random(const Tensor& x, kernels::Distribution distribution, double a, double b, Generator& generator) {
  check<ValueError>(x.defined(), "init: the tensor is undefined");
  check<DTypeError>(is_floating(x.dtype()), "init: draws floating-point numbers, got a tensor of ", x.dtype());
  if (x.is_meta() || x.numel() == 0) return;
  check<ShapeError>(x.is_contiguous(), "init: takes a contiguous tensor, got strides ", x.strides(), " of shape ", x.shape());
  x.storage()->bump_version();
  table_of(x).random(queue_of(x), distribution, {a, b}, generator.next(x.numel()), x.mutable_view());
}

double kaiming_deviation(const Tensor& weight, const KaimingOptions& options) {
  const Fans fan = fans(weight.shape());
  const double divisor = static_cast<double>(options.mode == Fan::in ? fan.in : fan.out);
  return divisor > 0 ? gain(options.nonlinearity, options.slope) / std::sqrt(divisor) : 0;
}

double xavier_deviation(const Tensor& weight, double gain) {
  const Fans fan = fans(weight.shape());
  return fan.in + fan.out > 0 ? gain * std::sqrt(2.0 / static_cast<double>(fan.in + fan.out)) : 0;
}

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Gram and Schmidt within `count` rows of n values, twice: once is not enough in floating point ("twice is enough", Giraud et al. 2005).
void orthonormalize(double* rows, int64_t count, int64_t n) {
  for (int64_t i = 0; i < count; ++i) {
    double* row = rows + i * n;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double* earlier = rows + j * n;
        const double projection = dot(row, earlier, n);
        for (int64_t k = 0; k < n; ++k) row[k] -= projection * earlier[k];
      }
    }
    const double length = std::sqrt(dot(row, row, n));
    for (int64_t k = 0; k < n; ++k) row[k] /= length;
  }
}

// All rows of a float64 matrix, by blocks: what a block has of the rows above it goes by two matrix products (twice again), what is left is worked out row by row.
void orthonormalize(Tensor& matrix) {
  constexpr int64_t block = 64;
  const int64_t count = matrix.size(0), n = matrix.size(1);
  for (int64_t start = 0; start < count; start += block) {
    const int64_t rows = std::min(block, count - start);
    const Tensor part = narrow(matrix, 0, start, rows), above = narrow(matrix, 0, 0, start);
    for (int pass = 0; pass < 2 && start > 0; ++pass) sub_(part, matmul(matmul(part, transpose(above)), above));
    orthonormalize(matrix.mutable_data<double>() + start * n, rows, n);
  }
}

}  // namespace

Fans fans(const Shape& weight) {
  check<ShapeError>(weight.rank() >= 2, "init: fan_in and fan_out need a weight of at least two axes [out, in, ...], got ", weight);
  int64_t positions = 1;
  for (int i = 2; i < weight.rank(); ++i) positions *= weight[i];
  return {weight[1] * positions, weight[0] * positions};
}

double gain(Nonlinearity nonlinearity, double slope) {
  switch (nonlinearity) {
    case Nonlinearity::linear:
    case Nonlinearity::sigmoid: return 1;
    case Nonlinearity::tanh: return 5.0 / 3.0;
    case Nonlinearity::relu: return std::sqrt(2.0);
    case Nonlinearity::leaky_relu: return std::sqrt(2.0 / (1 + slope * slope));
    case Nonlinearity::selu: return 0.75;
  }
  fail<ValueError>("init: unknown nonlinearity ", static_cast<int>(nonlinearity));
}

void constant_(const Tensor& x, double value) {
  detail::check_fits("constant_", value, x.dtype());
  x.storage()->bump_version();
  table_of(x).fill(queue_of(x), value, x.mutable_view());
}

void uniform_(const Tensor& x, double low, double high, Generator& generator) {
  check<ValueError>(std::isfinite(low) && std::isfinite(high) && low <= high, "init: uniform numbers lie between a lower and a higher bound, got ", low, " and ", high);
  fill_random(x, kernels::Distribution::uniform, low, high, generator);
}
void normal_(const Tensor& x, double mean, double deviation, Generator& generator) {
  check<ValueError>(std::isfinite(mean) && std::isfinite(deviation) && deviation >= 0, "init: normal numbers have a mean and a deviation that is not negative, got ", mean, " and ", deviation);
  fill_random(x, kernels::Distribution::normal, mean, deviation, generator);
}

void xavier_uniform_(const Tensor& weight, double gain, Generator& generator) {
  const double bound = std::sqrt(3.0) * xavier_deviation(weight, gain);
  uniform_(weight, -bound, bound, generator);
}
void xavier_normal_(const Tensor& weight, double gain, Generator& generator) {
  normal_(weight, 0, xavier_deviation(weight, gain), generator);
}

void kaiming_uniform_(const Tensor& weight, KaimingOptions options, Generator& generator) {
  const double bound = std::sqrt(3.0) * kaiming_deviation(weight, options);
  uniform_(weight, -bound, bound, generator);
}
void kaiming_normal_(const Tensor& weight, KaimingOptions options, Generator& generator) {
  normal_(weight, 0, kaiming_deviation(weight, options), generator);
}

void orthogonal_(const Tensor& weight, double gain, Generator& generator) {
  check<ShapeError>(weight.rank() >= 2, "orthogonal_: takes at least two axes, got ", weight.shape());
  if (weight.is_meta() || weight.numel() == 0) return;
  NoGrad no_grad;
  const int64_t rows = weight.size(0), columns = weight.numel() / rows, count = std::min(rows, columns), length = std::max(rows, columns);
  Tensor matrix = randn({count, length}, {DType::float64, Device::cpu()}, generator);
  orthonormalize(matrix);
  mul_(matrix, gain);
  if (rows > columns) matrix = transpose(matrix);
  const Tensor shaped = to(reshape(matrix, weight.shape()), weight.device());
  weight.storage()->bump_version();
  table_of(weight).copy(queue_of(weight), shaped.view(), weight.mutable_view());
}

void lstm_forget_bias_(Module& module, double value) {
  NoGrad no_grad;
  module.apply([value](Module& m) {
    const std::string type = m.type_name();
    if (type != "LSTM" && type != "LSTMCell") return;
    for (const auto& [name, parameter] : m.parameters()) {
      if (name.rfind("bias_", 0) != 0) continue;
      const int64_t hidden = parameter.size(0) / 4;                          // gates i f g o
      constant_(narrow(parameter, 0, hidden, hidden), name.rfind("bias_ih", 0) == 0 ? value : 0);
    }
  });
}

void linear_default_(const Tensor& weight, const Tensor& bias, Generator& generator) {
  const int64_t fan_in = fans(weight.shape()).in;
  const double bound = fan_in > 0 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0;
  uniform_(weight, -bound, bound, generator);
  if (bias) uniform_(bias, -bound, bound, generator);
}

}  // namespace fovea::layers::init
