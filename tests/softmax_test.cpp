// Softmax, log-softmax and cross-entropy: kernels against double precision, operations against PyTorch's values and against differences.
#include <doctest/doctest.h>

#include "tensor_helpers.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// y and dx of a softmax (or its logarithm) over the middle axis, in double.
void reference_softmax(const AxisGeometry& g, bool is_log, const std::vector<double>& x, const std::vector<double>& dy, std::vector<double>& y, std::vector<double>& dx) {
  y.assign(x.size(), 0);
  dx = y;
  for (int64_t o = 0; o < g.outer; ++o) {
    for (int64_t i = 0; i < g.inner; ++i) {
      const auto at = [&](int64_t k) { return static_cast<size_t>((o * g.size + k) * g.inner + i); };
      double max = -infinity, sum = 0, dot = 0, total = 0;
      for (int64_t k = 0; k < g.size; ++k) max = std::max(max, x[at(k)]);
      for (int64_t k = 0; k < g.size; ++k) sum += std::exp(x[at(k)] - max);
      for (int64_t k = 0; k < g.size; ++k) {
        const double p = std::exp(x[at(k)] - max) / sum;
        y[at(k)] = is_log ? x[at(k)] - max - std::log(sum) : p;
        dot += p * dy[at(k)];
        total += dy[at(k)];
      }
      for (int64_t k = 0; k < g.size; ++k) {
        const double p = std::exp(x[at(k)] - max) / sum;
        dx[at(k)] = is_log ? dy[at(k)] - p * total : p * (dy[at(k)] - dot);
      }
    }
  }
}

Tensor run_softmax(const AxisGeometry& g, bool is_log, const Tensor& x) {
  Tensor y = poisoned(x.shape(), x.dtype());
  kernels::cpu_table().softmax(nullptr, g, is_log, x.view(), y.mutable_view());
  return y;
}

Tensor run_softmax_backward(const AxisGeometry& g, bool is_log, const Tensor& dy, const Tensor& y) {
  Tensor dx = poisoned(y.shape(), y.dtype());
  kernels::cpu_table().softmax_backward(nullptr, g, is_log, dy.view(), y.view(), dx.mutable_view());
  return dx;
}

const AxisGeometry cases[] = {{3, 10, 1}, {1, 1, 1}, {2, 16, 1}, {5, 33, 1}, {2, 9001, 1}, {2, 5, 3}, {3, 7, 16}, {1, 4, 37}, {64, 80, 1}, {4, 0, 3}, {0, 4, 1}, {2, 4, 0}};

}  // namespace

TEST_CASE("softmax kernels agree with double precision, along every axis") {
  for (const AxisGeometry& g : cases) {
    for (const bool is_log : {false, true}) {
      for (const DType dtype : {DType::float32, DType::float64}) {
        CAPTURE(g.outer); CAPTURE(g.size); CAPTURE(g.inner); CAPTURE(is_log); CAPTURE(name_of(dtype));
        const Tensor x = random_tensor({g.outer, g.size, g.inner}, dtype, 3), dy = random_tensor(x.shape(), dtype, 4);
        std::vector<double> y, dx;
        reference_softmax(g, is_log, values(x), values(dy), y, dx);
        const Tensor actual = run_softmax(g, is_log, x);
        const double tolerance = dtype == DType::float32 ? 2e-6 : 1e-13;
        CHECK(distance(actual, y) < tolerance);
        CHECK(distance(run_softmax_backward(g, is_log, dy, actual), dx) < 20 * tolerance);
      }
    }
  }
}

TEST_CASE("softmax: huge, infinite and NaN scores do what PyTorch does") {
  const AxisGeometry g{1, 4, 1};
  const auto run = [&](std::initializer_list<double> scores, bool is_log) { return values(run_softmax(g, is_log, tensor(scores))); };
  CHECK(run({1e30, 1e30, -1e30, 0}, false) == std::vector<double>{0.5, 0.5, 0, 0});
  CHECK(run({-infinity, 0, -infinity, -infinity}, false) == std::vector<double>{0, 1, 0, 0});
  CHECK(run({-infinity, 0, -infinity, -infinity}, true) == std::vector<double>{-infinity, 0, -infinity, -infinity});
  for (double v : run({-infinity, -infinity, -infinity, -infinity}, false)) CHECK(std::isnan(v));
  for (double v : run({1, quiet_nan(), 2, 3}, false)) CHECK(std::isnan(v));
  for (double v : run({1, infinity, 2, 3}, false)) CHECK(std::isnan(v));
}

TEST_CASE("cross-entropy kernel: loss and gradient agree with double precision, with smoothing, weights and ignored rows") {
  for (const int64_t classes : {1, 5, 16, 83}) {
    for (const double smoothing : {0.0, 0.1}) {
      for (const bool has_weights : {false, true}) {
        for (const DType dtype : {DType::float32, DType::float64}) {
          CAPTURE(classes); CAPTURE(smoothing); CAPTURE(has_weights);
          const int64_t rows = 6;
          const Tensor x = random_tensor({rows, classes}, dtype, 3), weights = full({classes}, 1.5, dtype);
          Tensor targets = empty({rows}, DType::int64);
          for (int64_t i = 0; i < rows; ++i) targets.mutable_data<int64_t>()[i] = i == 2 ? -100 : i * 7 % classes;
          Tensor losses = poisoned({rows}, dtype), dx = poisoned({rows, classes}, dtype);
          kernels::cpu_table().cross_entropy(nullptr, smoothing, -100, x.view(), targets.view(), has_weights ? weights.view() : ConstView(), losses.mutable_view(), dx.mutable_view());
          std::vector<double> logp, unused, loss(rows, 0), gradient(static_cast<size_t>(rows * classes), 0);
          reference_softmax({rows, classes, 1}, true, values(x), values(x), logp, unused);
          const double w = has_weights ? 1.5 : 1;
          for (int64_t i = 0; i < rows; ++i) {
            if (i == 2) continue;
            const int64_t t = i * 7 % classes;
            for (int64_t c = 0; c < classes; ++c) {
              const size_t at = static_cast<size_t>(i * classes + c);
              const double weight = (c == t ? (1 - smoothing) * w : 0) + smoothing / static_cast<double>(classes) * w;
              loss[static_cast<size_t>(i)] -= weight * logp[at];
              gradient[at] = w * std::exp(logp[at]) - weight;
            }
          }
          const double tolerance = dtype == DType::float32 ? 4e-6 : 1e-13;
          CHECK(distance(losses, loss) < tolerance);
          CHECK(distance(dx, gradient) < tolerance);
        }
      }
    }
  }
}
