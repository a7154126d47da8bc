// Softmax, log-softmax and cross-entropy: kernels against double precision, operations against PyTorch's values and against differences.
#include <doctest/doctest.h>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/softmax.h>
#include <fovea/autograd/shape.h>

#include "devices.h"
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

TEST_CASE("softmax kernels agree with double precision, along every axis" * of_the_cpu()) {
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

TEST_CASE("softmax: huge, infinite and NaN scores do what PyTorch does" * of_the_cpu()) {
  const AxisGeometry g{1, 4, 1};
  const auto run = [&](const std::vector<double>& scores, bool is_log) { return values(run_softmax(g, is_log, to(from_vector(scores), DType::float32))); };
  CHECK(run({1e30, 1e30, -1e30, 0}, false) == std::vector<double>{0.5, 0.5, 0, 0});
  CHECK(run({-infinity, 0, -infinity, -infinity}, false) == std::vector<double>{0, 1, 0, 0});
  CHECK(run({-infinity, 0, -infinity, -infinity}, true) == std::vector<double>{-infinity, 0, -infinity, -infinity});
  for (double v : run({-infinity, -infinity, -infinity, -infinity}, false)) CHECK(std::isnan(v));
  for (double v : run({1, quiet_nan(), 2, 3}, false)) CHECK(std::isnan(v));
  for (double v : run({1, infinity, 2, 3}, false)) CHECK(std::isnan(v));
}

TEST_CASE("cross-entropy kernel: loss and gradient agree with double precision, with smoothing, weights and ignored rows" * of_the_cpu()) {
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
          const CrossEntropyGeometry g{.rows = rows, .classes = classes, .label_smoothing = smoothing};
          const ConstView w_view = has_weights ? weights.view() : ConstView();
          kernels::cpu_table().cross_entropy(nullptr, g, x.view(), targets.view(), w_view, losses.mutable_view(), {});
          kernels::cpu_table().cross_entropy_backward(nullptr, g, full({rows}, 1, dtype).view(), {}, x.view(), targets.view(), w_view, dx.mutable_view());
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

// --- operations ---

namespace {

Tensor pattern(const Shape& shape, int64_t step, int64_t modulus, int64_t shift) {
  return filled<double>(shape, [&](int64_t i) { return static_cast<double>(i * step % modulus - shift) / 2; });
}

Tensor labels_of(const std::vector<int64_t>& labels) { return from_vector(labels); }

}  // namespace

TEST_CASE("softmax and cross_entropy give PyTorch's values") {
  const Tensor logits = pattern({4, 3}, 7, 11, 3), labels = labels_of({2, 0, -100, 1}), weight = tensor({0.5, 2.0, 1.25}, DType::float64);
  const auto loss = [&](Reduction reduction, bool is_plain) {
    return values(cross_entropy(logits, labels, {.weight = is_plain ? Tensor() : weight, .reduction = reduction, .label_smoothing = is_plain ? 0 : 0.2}));
  };
  CHECK(distance(loss(Reduction::none, true), {2.153178207, 0.1429316285, 0, 2.142931628}) < 1e-8);
  CHECK(distance(loss(Reduction::mean, true), {1.479680488}) < 1e-8);
  CHECK(distance(loss(Reduction::sum, true), {4.439041464}) < 1e-8);
  CHECK(distance(loss(Reduction::none, false), {2.474806092, 0.6929055585, 0, 4.064423513}) < 1e-8);
  CHECK(distance(loss(Reduction::mean, false), {1.928569377}) < 1e-8);
  CHECK(distance(loss(Reduction::sum, false), {7.232135163}) < 1e-8);

  Tensor x = clone(logits);
  x.set_requires_grad();
  cross_entropy(x, labels, {.weight = weight, .label_smoothing = 0.2}).backward();
  CHECK(distance(x.grad(), {-0.0002526706498, 0.2504367146, -0.250184044, 0.03469208869, -0.01522174807, -0.01947034063, 0, 0, 0, 0.4187390217, -0.4043490778, -0.01438994383}) < 1e-9);

  const Tensor images = pattern({2, 3, 4}, 5, 13, 4);
  const Tensor places = reshape(labels_of({0, 1, 2, 1, 2, 2, 1, 0}), {2, 4});
  CHECK(distance(cross_entropy(images, places, {.reduction = Reduction::none}),
                 {3.576946645, 0.07694664454, 0.4926991533, 0.07694664454, 0.4926991533, 3.076946645, 0.07694664454, 0.9926991533}) < 1e-8);
  CHECK(distance(softmax(images, 1),
                 {0.02796094275, 0.02796094275, 0.3705751009,  0.02796094275, 0.9259392562,  0.9259392562,  0.01844984788, 0.9259392562,
                  0.04609980105, 0.04609980105, 0.6109750512,  0.04609980105, 0.3705751009,  0.02796094275, 0.02796094275, 0.3705751009,
                  0.01844984788, 0.9259392562,  0.9259392562,  0.01844984788, 0.6109750512,  0.04609980105, 0.04609980105, 0.6109750512}) < 1e-9);
  CHECK(std::isnan(cross_entropy(logits, full({4}, -100, DType::int64)).item()));
  CHECK(distance(cross_entropy(select(logits, 0, 0), scalar(2, DType::int64)), {2.153178207}) < 1e-8);
}

TEST_CASE("gradients of softmax and cross_entropy are the limits of differences, first and second") {
  using Inputs = const std::vector<Tensor>&;
  for (const int64_t axis : {0, 1, -1}) {
    const TensorFunction probabilities = [axis](Inputs i) { return softmax(i[0], axis); }, logarithms = [axis](Inputs i) { return log_softmax(i[0], axis); };
    const std::vector<Tensor> inputs = {random_leaf({3, 4, 2}, 3)};
    CHECK(gradcheck(probabilities, inputs) == "");
    CHECK(gradgradcheck(probabilities, inputs) == "");
    CHECK(gradcheck(logarithms, inputs) == "");
    CHECK(gradgradcheck(logarithms, inputs) == "");
  }
  const Tensor labels = labels_of({1, 0, -100, 2}), weight = tensor({0.5, 2.0, 1.25}, DType::float64);
  for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
    for (const double smoothing : {0.0, 0.3}) {
      for (const bool has_weight : {false, true}) {
        const TensorFunction f = [&](Inputs i) {
          return cross_entropy(i[0], labels, {.weight = has_weight ? weight : Tensor(), .reduction = reduction, .label_smoothing = smoothing});
        };
        CHECK(gradcheck(f, {random_leaf({4, 3}, 3)}) == "");
        CHECK(gradgradcheck(f, {random_leaf({4, 3}, 3)}) == "");
      }
    }
  }
  CHECK(gradcheck([](Inputs i) { return cross_entropy(i[0], zeros({2, 4}, DType::int64)); }, {random_leaf({2, 3, 4}, 5)}) == "");
}

TEST_CASE("cross_entropy names a label out of range, and takes nothing and shapes without data") {
  const Tensor logits = zeros({2, 3});
  CHECK(error_of<IndexError>([&] { cross_entropy(logits, labels_of({0, 3})); }) == "cross_entropy: labels[1] is 3, out of range [0, 3) for 3 classes");
  CHECK(error_of<IndexError>([&] { cross_entropy(logits, labels_of({-1, 0})); }).find("labels[0] is -1") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { cross_entropy(logits, labels_of({0})); }) == "cross_entropy: labels must be [2] for logits [2,3], got [1]");
  CHECK(error_of<DTypeError>([&] { cross_entropy(logits, zeros({2})); }).find("labels must be int64") != std::string::npos);
  CHECK(error_of<ValueError>([&] { cross_entropy(logits, labels_of({0, 1}), {.label_smoothing = 2}); }).find("label_smoothing") != std::string::npos);
  CHECK(error_of<DTypeError>([&] { softmax(zeros({2}, DType::int64)); }).find("int64") != std::string::npos);
  Tensor none = zeros({0, 3});
  none.set_requires_grad();
  const Tensor total = cross_entropy(none, zeros({0}, DType::int64), {.reduction = Reduction::sum});
  CHECK(total.item() == 0);
  total.backward();
  CHECK(none.grad().shape() == Shape{0, 3});
  const TensorOptions meta(DType::float32, Device::meta());
  CHECK(cross_entropy(empty({2, 3, 5}, meta), empty({2, 5}, {DType::int64, Device::meta()})).shape() == Shape());
  CHECK(log_softmax(empty({2, 3, 5}, meta), 1).shape() == Shape{2, 3, 5});
}
