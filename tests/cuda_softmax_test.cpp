// Softmax, its backward pass and cross-entropy of CUDA's table against the CPU's.
#include <array>
#include <cstdint>

#include <fovea/kernels/cuda/core/launch_log.h>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

Tensor sample(const Shape& shape, DType dtype, double spread, uint32_t state = 1) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = spread * (static_cast<double>((state = state * 1664525u + 1013904223u) >> 8) / 0x1p23 - 1);
  Tensor y = empty(shape, dtype);
  cpu().copy(nullptr, from_vector(values, shape).view(), y.mutable_view());
  return y;
}

Tensor as_float64(const Tensor& x) {
  Tensor y = empty(x.shape(), DType::float64);
  cpu().copy(nullptr, x.view(), y.mutable_view());
  return y;
}

constexpr DType floating[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16};

double tolerance(DType dtype) { return dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 4e-6 : dtype == DType::float16 ? 0x1p-10 : 0x1p-7; }
// float16 has 24 steps of 2^-24 below its smallest normal number.
double absolute(DType dtype) { return dtype == DType::float64 ? 1e-14 : dtype == DType::float32 ? 1e-7 : dtype == DType::float16 ? 0x1p-20 : 1e-6; }

AxisGeometry axis(int64_t outer, int64_t size, int64_t inner) { return {.outer = outer, .size = size, .inner = inner}; }

void check_softmax(const AxisGeometry& g, DType dtype, int64_t offset) {
  const Shape shape{g.outer, g.size, g.inner};
  const Tensor x = sample(shape, dtype, 4), dy = sample(shape, dtype, 1, 9), wide = as_float64(x), wide_dy = as_float64(dy);
  for (const bool is_log : {false, true}) {
    CAPTURE(name_of(dtype));
    CAPTURE(str(shape, is_log ? " log" : ""));
    Tensor want = empty(shape, DType::float64), want_dx = empty(shape, DType::float64);
    cpu().softmax(nullptr, g, is_log, wide.view(), want.mutable_view());
    const DeviceTensor device(x, offset), y = DeviceTensor::poisoned(shape, dtype, offset), again = DeviceTensor::poisoned(shape, dtype);
    testing::cuda().softmax(nullptr, g, is_log, device.view(), y.view());
    testing::cuda().softmax(nullptr, g, is_log, device.view(), again.view());
    const Tensor got = y.to_host();
    CHECK(difference(got, want, tolerance(dtype), absolute(dtype)) == "");
    CHECK(same_bits(got, again.to_host()));

    cpu().softmax_backward(nullptr, g, is_log, wide_dy.view(), as_float64(got).view(), want_dx.mutable_view());
    const DeviceTensor device_dy(dy, offset), dx = DeviceTensor::poisoned(shape, dtype, offset), dx_again = DeviceTensor::poisoned(shape, dtype);
    testing::cuda().softmax_backward(nullptr, g, is_log, device_dy.view(), y.view(), dx.view());
    testing::cuda().softmax_backward(nullptr, g, is_log, device_dy.view(), y.view(), dx_again.view());
    const Tensor got_dx = dx.to_host();
    // The sum's rounding is that of its largest terms, whatever is left of it.
    CHECK(difference(got_dx, want_dx, tolerance(dtype), 50 * absolute(dtype)) == "");
    CHECK(same_bits(got_dx, dx_again.to_host()));
  }
}

}  // namespace

TEST_CASE("cuda softmax: rows of a few elements, of a warp, of a block, and longer than its registers") {
  for (const DType dtype : floating)
    for (const int64_t size : {1, 3, 31, 32, 33, 100, 128, 129, 512, 513, 1024, 1500})
      check_softmax(axis(5, size, 1), dtype, size % 2);
  for (const DType dtype : floating) check_softmax(axis(2, 9000, 1), dtype, 0);
  check_softmax(axis(300, 10, 1), DType::float32, 0);
}

TEST_CASE("cuda softmax: rows that begin anywhere between two packs, in tensors that begin at one or do not") {
  for (const DType dtype : floating)
    for (const int64_t size : {65, 66, 101, 259, 1001, 2047, 2500, 4099})
      for (const int64_t offset : {0, 1}) check_softmax(axis(5, size, 1), dtype, offset);
}

TEST_CASE("cuda softmax: a long row is shared by a cluster of blocks, and what is too much for their memory is read again") {
  const auto cluster_of = [](const AxisGeometry& g) {
    const DeviceTensor x(sample({g.outer, g.size, g.inner}, DType::float32, 4)), y = DeviceTensor::poisoned(x.view().shape, DType::float32);
    testing::cuda().softmax(nullptr, g, false, x.view(), y.view());
    return kernels::cuda::latest_launch().cluster.x;
  };
  int device = 0, has_clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device);
  CHECK(cluster_of(axis(3, 16000, 1)) == 1);
  CHECK(cluster_of(axis(3, 32000, 1)) == (has_clusters ? 2u : 1u));
  CHECK(cluster_of(axis(1, 128256, 1)) == (has_clusters ? 8u : 1u));
  for (const DType dtype : floating)
    for (const int64_t offset : {0, 1}) check_softmax(axis(2, 40003, 1), dtype, offset);
  for (const DType dtype : floating) check_softmax(axis(1, 500001, 1), dtype, 0);
}

TEST_CASE("cuda softmax: along an axis that is not the last") {
  for (const DType dtype : floating)
    for (const AxisGeometry& g : {axis(3, 5, 7), axis(1, 300, 2), axis(2, 4, 600), axis(1, 1, 9), axis(20, 33, 40)}) check_softmax(g, dtype, 1);
}

TEST_CASE("cuda softmax: nothing to do") {
  for (const AxisGeometry& g : {axis(0, 5, 1), axis(5, 0, 1), axis(0, 5, 3), axis(2, 3, 0)}) check_softmax(g, DType::float32, 0);
}

TEST_CASE("cuda softmax: NaN fills its row, -infinity has no share, integers are an error") {
  const float inf = INFINITY;
  const Tensor x = from_vector(std::vector<float>{1, NAN, 3, 0, -inf, 0, -inf, -inf, -inf, inf, 1, 2}, {4, 3});
  for (const bool is_log : {false, true}) {
    Tensor want = empty({4, 3});
    cpu().softmax(nullptr, axis(4, 3, 1), is_log, x.view(), want.mutable_view());
    for (const AxisGeometry& g : {axis(4, 3, 1), axis(1, 3, 4)}) {
      const Tensor source = g.inner == 1 ? x : from_vector(std::vector<float>{1, 0, -inf, inf, NAN, -inf, -inf, 1, 3, 0, -inf, 2}, {3, 4});
      const DeviceTensor device(source), y = DeviceTensor::poisoned(source.shape(), DType::float32);
      testing::cuda().softmax(nullptr, g, is_log, device.view(), y.view());
      const std::vector<float> got = y.to_host().to_vector<float>(), expected = want.to_vector<float>();
      for (size_t i = 0; i < 12; ++i) {
        const float v = g.inner == 1 ? got[i] : got[i % 3 * 4 + i / 3];
        CHECK((v == doctest::Approx(expected[i]) || v == expected[i] || (std::isnan(v) && std::isnan(expected[i]))));
      }
    }
  }
  // Of half scores, a result in float32.
  for (const DType dtype : {DType::float16, DType::bfloat16})
    for (const AxisGeometry& g : {axis(3, 20, 1), axis(2, 700, 1), axis(3, 7, 5)})
      for (const bool is_log : {false, true}) {
        const Shape shape{g.outer, g.size, g.inner};
        const Tensor x = sample(shape, dtype, 4), dy = sample(shape, DType::float32, 1, 9), wide = as_float64(x);
        Tensor want = empty(shape, DType::float64), want_dx = empty(shape, DType::float64);
        const DeviceTensor device(x), y = DeviceTensor::poisoned(shape, DType::float32), device_dy(dy), dx = DeviceTensor::poisoned(shape, dtype);
        cpu().softmax(nullptr, g, is_log, wide.view(), want.mutable_view());
        cpu().softmax_backward(nullptr, g, is_log, as_float64(dy).view(), want.view(), want_dx.mutable_view());
        testing::cuda().softmax(nullptr, g, is_log, device.view(), y.view());
        testing::cuda().softmax_backward(nullptr, g, is_log, device_dy.view(), y.view(), dx.view());
        CHECK(difference(y.to_host(), want, tolerance(DType::float32), absolute(DType::float32)) == "");
        CHECK(difference(dx.to_host(), want_dx, tolerance(dtype), absolute(dtype)) == "");
      }
  const DeviceTensor integers(from_vector(std::vector<int64_t>{1, 2})), y = DeviceTensor::poisoned({2}, DType::int64);
  CHECK_THROWS_WITH_AS(testing::cuda().softmax(nullptr, axis(1, 2, 1), false, integers.view(), y.view()), doctest::Contains("softmax: takes a floating-point dtype, got int64"), DTypeError);
}

namespace {

constexpr Reduction reductions[] = {Reduction::none, Reduction::mean, Reduction::sum};

DType wide_of(DType dtype) { return is_half(dtype) ? DType::float32 : dtype; }

// Scores, labels and what comes of them on the CPU in float64 and on the device.
struct LossCase {
  CrossEntropyGeometry g;
  DType dtype;
  bool has_weights = false;

  Shape losses() const { return g.reduction == Reduction::none ? Shape{g.rows} : Shape{}; }

  void run() const {
    CAPTURE(str(Shape{g.rows, g.classes, g.inner}, " ", name_of(dtype), g.is_normalized ? " of log-probabilities" : "", has_weights ? " with weights" : ""));
    CAPTURE(g.label_smoothing);
    CAPTURE(static_cast<int>(g.reduction));
    const DType wide = wide_of(dtype);
    const Tensor logits = sample({g.rows * g.classes}, dtype, 5), weights = sample({g.classes}, wide, 0.5, 3), dlosses = sample({std::max<int64_t>(g.rows, 1)}, wide, 2, 7);
    std::vector<int64_t> labels(static_cast<size_t>(g.rows));
    for (size_t i = 0; i < labels.size(); ++i) labels[i] = i % 5 == 3 ? -100 : static_cast<int64_t>(i * 7) % g.classes;
    const Tensor targets = from_vector(labels), logits64 = as_float64(logits), weights64 = as_float64(weights), dlosses64 = as_float64(dlosses);
    Tensor want = empty(losses(), DType::float64), want_dx = empty(logits.shape(), DType::float64), divisor64 = empty({}, DType::float64);
    cpu().cross_entropy(nullptr, g, logits64.view(), targets.view(), has_weights ? ConstView(weights64.view()) : absent(), want.mutable_view(), divisor64.mutable_view());
    cpu().cross_entropy_backward(nullptr, g, dlosses64.view(), divisor64.view(), logits64.view(), targets.view(), has_weights ? ConstView(weights64.view()) : absent(),
                                 want_dx.mutable_view());
    const DeviceTensor x(logits), t(targets), w(weights), upstream(dlosses);
    const ConstView w_view = has_weights ? ConstView(w.view()) : absent();
    Tensor first, first_dx;
    for (const bool again : {false, true}) {
      const DeviceTensor got = DeviceTensor::poisoned(losses(), wide), divisor = DeviceTensor::poisoned({}, wide), dx = DeviceTensor::poisoned(logits.shape(), dtype);
      testing::cuda().cross_entropy(nullptr, g, x.view(), t.view(), w_view, got.view(), divisor.view());
      testing::cuda().cross_entropy_backward(nullptr, g, upstream.view(), divisor.view(), x.view(), t.view(), w_view, dx.view());
      if (again) {
        CHECK(same_bits(got.to_host(), first));
        CHECK(same_bits(dx.to_host(), first_dx));
      }
      first = got.to_host();
      first_dx = dx.to_host();
    }
    const double terms = g.reduction == Reduction::sum ? std::sqrt(static_cast<double>(std::max<int64_t>(g.rows, 1))) : 1;
    CHECK(difference(first, want, tolerance(wide), 4 * terms * absolute(wide)) == "");
    CHECK(difference(first_dx, want_dx, tolerance(dtype), 8 * absolute(dtype)) == "");
  }
};

}  // namespace

TEST_CASE("cuda cross_entropy: loss and gradient, with smoothing, weights, ignored rows and every reduction") {
  for (const DType dtype : floating)
    for (const auto& [rows, classes] : {std::pair<int64_t, int64_t>{1, 1}, {7, 3}, {33, 40}, {5, 200}, {3, 512}, {3, 513}, {2, 2050}, {2, 5000}, {0, 4}})
      for (const double smoothing : {0.0, 0.1, 1.0})
        for (const bool has_weights : {false, true})
          for (const Reduction reduction : reductions)
            LossCase{{.rows = rows, .classes = classes, .label_smoothing = smoothing, .reduction = reduction}, dtype, has_weights}.run();
  for (const DType dtype : floating) LossCase{{.rows = 4, .classes = 70001, .label_smoothing = 0.1, .reduction = Reduction::mean}, dtype, true}.run();      // a cluster a row
  LossCase{{.rows = 9000, .classes = 3, .reduction = Reduction::mean}, DType::float32, true}.run();            // more rows than the grid has warps
}

TEST_CASE("cuda nll_loss: loss and gradient of log-probabilities, with classes along any axis") {
  for (const DType dtype : floating)
    for (const auto& [rows, classes, inner] : {std::array<int64_t, 3>{1, 1, 1}, {7, 3, 1}, {600, 5, 1}, {24, 7, 12}, {3, 2000, 3}, {0, 4, 1}})
      for (const bool has_weights : {false, true})
        for (const Reduction reduction : reductions)
          LossCase{{.rows = rows, .classes = classes, .inner = inner, .reduction = reduction, .is_normalized = true}, dtype, has_weights}.run();
}

TEST_CASE("cuda cross_entropy: a label out of range makes its own loss NaN, without a gradient, and nothing else") {
  for (const DType dtype : floating)
    for (const bool is_normalized : {false, true})
      for (const int64_t classes : {int64_t{6}, int64_t{1500}}) {
        const CrossEntropyGeometry g{.rows = 4, .classes = classes, .label_smoothing = is_normalized ? 0 : 0.1, .is_normalized = is_normalized};
        const Tensor logits = sample({4, classes}, dtype, 3);
        const DeviceTensor x(logits), ones(full({4}, 1, wide_of(dtype)));
        const auto run = [&](const std::vector<int64_t>& labels) {
          const DeviceTensor t(from_vector(labels)), losses = DeviceTensor::poisoned({4}, wide_of(dtype)), dx = DeviceTensor::poisoned({4, classes}, dtype);
          testing::cuda().cross_entropy(nullptr, g, x.view(), t.view(), absent(), losses.view(), View{});
          testing::cuda().cross_entropy_backward(nullptr, g, ones.view(), absent(), x.view(), t.view(), absent(), dx.view());
          return std::pair(losses.to_host().to_vector<double>(), dx.to_host().to_vector<double>());
        };
        const auto want = run({1, 2, 3, 4}), got = run({1, classes, -1, 4});
        for (size_t r = 0; r < 4; ++r) {
          const bool is_bad = r == 1 || r == 2;
          CHECK((is_bad ? std::isnan(got.first[r]) : got.first[r] == want.first[r]));
          for (size_t i = r * static_cast<size_t>(classes); i < (r + 1) * static_cast<size_t>(classes); ++i) CHECK(got.second[i] == (is_bad ? 0 : want.second[i]));
        }
      }
}
