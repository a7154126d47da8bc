// CUDA's pooling against the CPU's: windows of every size, stride, padding and dilation, adaptive ones, and their gradients.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include <fovea/kernels/cuda/core/launch.h>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity(), not_a_number = std::numeric_limits<double>::quiet_NaN();

// Multiples of 1/4 in [-2, 2]: windows hold equal values, and sums of a few are exact in any order.
Tensor numbers(const Shape& shape, DType dtype, uint32_t seed, const std::vector<double>& specials = {}) {
  Tensor wide = empty(shape, DType::float64), result = empty(shape, dtype);
  uint32_t state = seed * 2654435761u + 12345u;
  for (int64_t i = 0; i < wide.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    const uint32_t number = state >> 8;
    const bool is_special = !specials.empty() && number % 11 == 0;
    wide.mutable_data<double>()[i] = is_special ? specials[number / 11 % specials.size()] : static_cast<double>(number % 17) / 4 - 2;
  }
  cpu().copy(nullptr, wide.view(), result.mutable_view());
  return result;
}

double tolerance(DType dtype) { return dtype == DType::float64 ? 1e-12 : 2e-6; }

const std::vector<DType> dtypes = {DType::float32, DType::float64, DType::float16, DType::bfloat16};

std::vector<PoolGeometry> geometries() {
  return {
      {.n = 1, .c = 1, .h = 1, .w = 1},
      {.n = 2, .c = 3, .h = 8, .w = 9, .kernel_h = 2, .kernel_w = 2, .stride_h = 2, .stride_w = 2},
      {.n = 2, .c = 3, .h = 11, .w = 13, .kernel_h = 3, .kernel_w = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1},
      {.n = 1, .c = 2, .h = 11, .w = 10, .kernel_h = 3, .kernel_w = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1, .ceil_mode = true},
      {.n = 1, .c = 2, .h = 9, .w = 12, .kernel_h = 3, .kernel_w = 2, .stride_h = 1, .stride_w = 3, .pad_h = 1, .pad_w = 0, .ceil_mode = true, .count_include_pad = false},
      {.n = 1, .c = 2, .h = 7, .w = 8, .kernel_h = 4, .kernel_w = 5, .stride_h = 3, .stride_w = 1, .pad_h = 2, .pad_w = 2, .count_include_pad = false},
      {.n = 3, .c = 2, .h = 6, .w = 26, .kernel_h = 2, .kernel_w = 2, .stride_h = 2, .stride_w = 1, .pad_w = 1},                       // CRNN's
      {.n = 1, .c = 2, .h = 5, .w = 5, .kernel_h = 5, .kernel_w = 5},
      {.n = 1, .c = 1, .h = 40, .w = 43, .kernel_h = 3, .kernel_w = 3},                                                                // over several blocks
      {.n = 0, .c = 2, .h = 5, .w = 5, .kernel_h = 2, .kernel_w = 2},
  };
}

std::vector<PoolGeometry> dilated() {
  return {
      {.n = 1, .c = 2, .h = 12, .w = 11, .kernel_h = 3, .kernel_w = 2, .stride_h = 1, .stride_w = 2, .pad_h = 1, .pad_w = 1, .dilation_h = 2, .dilation_w = 3},
      {.n = 1, .c = 2, .h = 9, .w = 9, .kernel_h = 2, .kernel_w = 2, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1, .dilation_h = 4, .dilation_w = 5, .ceil_mode = true},
  };
}

std::vector<AdaptivePoolGeometry> divisions() {
  return {
      {.n = 2, .c = 3, .h = 7, .w = 9, .out_h = 3, .out_w = 4},                // windows overlap
      {.n = 1, .c = 2, .h = 5, .w = 6, .out_h = 7, .out_w = 6},                // more outputs than inputs
      {.n = 1, .c = 1, .h = 6, .w = 6, .out_h = 6, .out_w = 6},
      {.n = 2, .c = 20, .h = 9, .w = 11, .out_h = 1, .out_w = 1},              // a warp each
      {.n = 1, .c = 3, .h = 40, .w = 50, .out_h = 2, .out_w = 3},
      {.n = 1, .c = 1, .h = 100, .w = 110, .out_h = 1, .out_w = 1},            // more than 4096 elements
      {.n = 0, .c = 3, .h = 4, .w = 4, .out_h = 2, .out_w = 2},
  };
}

Shape shape_of_x(const auto& g) { return {g.n, g.c, g.h, g.w}; }
Shape shape_of_y(const PoolGeometry& g) { return {g.n, g.c, g.out_h(), g.out_w()}; }
Shape shape_of_y(const AdaptivePoolGeometry& g) { return {g.n, g.c, g.out_h, g.out_w}; }

struct Maxima {
  Tensor y, indices;
};

Maxima maxima_on_cpu(const auto& g, const Tensor& x, auto entry) {
  Maxima m{empty(shape_of_y(g), x.dtype()), empty(shape_of_y(g), DType::int64)};
  (cpu().*entry)(nullptr, g, x.view(), m.y.mutable_view(), m.indices.mutable_view());
  return m;
}

void check_maxima(const auto& g, auto entry, DType dtype, const std::vector<double>& specials) {
  INFO(name_of(dtype), " n ", g.n, " c ", g.c, " h ", g.h, " w ", g.w);
  const Tensor x = numbers(shape_of_x(g), dtype, 7, specials);
  const Maxima want = maxima_on_cpu(g, as_computed(x), entry);
  const DeviceTensor device_x(x), y = DeviceTensor::poisoned(shape_of_y(g), dtype), indices = DeviceTensor::poisoned(shape_of_y(g), DType::int64),
                     y_alone = DeviceTensor::poisoned(shape_of_y(g), dtype);
  (testing::cuda().*entry)(nullptr, g, device_x.view(), y.view(), indices.view());
  (testing::cuda().*entry)(nullptr, g, device_x.view(), y_alone.view(), View());
  CHECK(difference(y.to_host(), want.y, 0, 0) == "");
  CHECK(difference(indices.to_host(), want.indices, 0, 0) == "");
  CHECK(difference(y_alone.to_host(), want.y, 0, 0) == "");

  const Tensor dy = numbers(shape_of_y(g), dtype, 8), wide_dy = as_computed(dy);
  Tensor dx = empty(shape_of_x(g), wide_dy.dtype());
  cpu().max_pool_backward(nullptr, wide_dy.view(), want.indices.view(), dx.mutable_view());
  const DeviceTensor device_dy(dy), device_indices(want.indices), device_dx = DeviceTensor::poisoned(shape_of_x(g), dtype);
  testing::cuda().max_pool_backward(nullptr, device_dy.view(), device_indices.view(), device_dx.view());
  CHECK(difference(device_dx.to_host(), dx, 0, 0) == "");                     // sums of quarters are exact, in half types too
}

template <class G, class Forward, class Backward>
void check_means(const G& g, Forward forward, Backward backward, DType dtype) {
  INFO(name_of(dtype), " n ", g.n, " c ", g.c, " h ", g.h, " w ", g.w);
  const Tensor x = numbers(shape_of_x(g), dtype, 5), dy = numbers(shape_of_y(g), dtype, 6), wide_x = as_computed(x), wide_dy = as_computed(dy);
  Tensor y = empty(shape_of_y(g), wide_x.dtype()), dx = empty(shape_of_x(g), wide_x.dtype());
  (cpu().*forward)(nullptr, g, wide_x.view(), y.mutable_view());
  (cpu().*backward)(nullptr, g, wide_dy.view(), dx.mutable_view());
  const DeviceTensor device_x(x), device_dy(dy), device_y = DeviceTensor::poisoned(shape_of_y(g), dtype), device_dx = DeviceTensor::poisoned(shape_of_x(g), dtype);
  (testing::cuda().*forward)(nullptr, g, device_x.view(), device_y.view());
  (testing::cuda().*backward)(nullptr, g, device_dy.view(), device_dx.view());
  CHECK(difference(device_y.to_host(), y, rounding(dtype), tolerance(dtype)) == "");
  CHECK(difference(device_dx.to_host(), dx, rounding(dtype), tolerance(dtype)) == "");
}

}  // namespace

TEST_CASE("max pooling gives the CPU's values and indices, for equal values, NaN and infinities too") {
  for (const DType dtype : dtypes)
    for (const std::vector<double>& specials : {std::vector<double>(), {not_a_number}, {-inf}, {inf, not_a_number, -inf}}) {
      for (const PoolGeometry& g : geometries()) check_maxima(g, &kernels::KernelTable::max_pool, dtype, specials);
      for (const PoolGeometry& g : dilated()) check_maxima(g, &kernels::KernelTable::max_pool, dtype, specials);
    }
}

TEST_CASE("average pooling gives what the CPU gives") {
  for (const DType dtype : dtypes)
    for (const PoolGeometry& g : geometries()) check_means(g, &kernels::KernelTable::avg_pool, &kernels::KernelTable::avg_pool_backward, dtype);
}

TEST_CASE("adaptive max pooling gives the CPU's values and indices, for equal values, NaN and infinities too") {
  for (const DType dtype : dtypes)
    for (const std::vector<double>& specials : {std::vector<double>(), {not_a_number}, {-inf}, {inf, not_a_number, -inf}})
      for (const AdaptivePoolGeometry& g : divisions()) check_maxima(g, &kernels::KernelTable::adaptive_max_pool, dtype, specials);
}

TEST_CASE("a plane of nothing but -infinity has its first element as the maximum") {
  const AdaptivePoolGeometry g{.n = 1, .c = 2, .h = 9, .w = 9};
  const Tensor x = full(shape_of_x(g), -inf);
  const DeviceTensor device_x(x), y = DeviceTensor::poisoned({1, 2, 1, 1}, DType::float32), indices = DeviceTensor::poisoned({1, 2, 1, 1}, DType::int64);
  testing::cuda().adaptive_max_pool(nullptr, g, device_x.view(), y.view(), indices.view());
  CHECK(indices.to_host().to_vector<int64_t>() == std::vector<int64_t>{0, 0});
  CHECK(y.to_host().to_vector<double>() == std::vector<double>{-inf, -inf});
}

TEST_CASE("adaptive average pooling gives what the CPU gives") {
  for (const DType dtype : dtypes)
    for (const AdaptivePoolGeometry& g : divisions()) check_means(g, &kernels::KernelTable::adaptive_avg_pool, &kernels::KernelTable::adaptive_avg_pool_backward, dtype);
}

TEST_CASE("large windows get a warp each") {
  for (const auto& [size, name] : {std::pair{8, "adaptive_avg_pool_warp"}, std::pair{7, "adaptive_avg_pool"}}) {
    const AdaptivePoolGeometry g{.n = 1, .c = 1, .h = size, .w = size};
    const DeviceTensor x(ones(shape_of_x(g))), y = DeviceTensor::poisoned({1, 1, 1, 1}, DType::float32);
    testing::cuda().adaptive_avg_pool(nullptr, g, x.view(), y.view());
    CHECK(std::string(kernels::cuda::last_kernel()) == name);
    CHECK(y.to_host().item() == 1);
  }
}

TEST_CASE("gradients that meet in one element are added in the same order in every run") {
  // 600 outputs over three rounds of a block, all pointing at seven elements, some of which share a slot of the claims (they are 1024 apart).
  const Shape inputs{1, 1, 64, 64}, outputs{1, 1, 20, 30};
  Tensor indices = empty(outputs, DType::int64), dy = empty(outputs, DType::float32);
  const std::vector<int64_t> places = {5, 1029, 2053, 77, 4095, 0, 1024};
  for (int64_t i = 0; i < 600; ++i) {
    indices.mutable_data<int64_t>()[i] = places[static_cast<size_t>(i * i % 7)];
    dy.mutable_data<float>()[i] = 1.0f / static_cast<float>(3 * i + 1);       // sums depend on their order
  }
  Tensor want = empty(inputs, DType::float32), first;
  cpu().max_pool_backward(nullptr, dy.view(), indices.view(), want.mutable_view());
  for (int run = 0; run < 3; ++run) {
    const DeviceTensor device_dy(dy), device_indices(indices), dx = DeviceTensor::poisoned(inputs, DType::float32);
    testing::cuda().max_pool_backward(nullptr, device_dy.view(), device_indices.view(), dx.view());
    const Tensor got = dx.to_host();
    CHECK(difference(got, want, 1e-6, 0) == "");
    if (run == 0) first = got;
    else CHECK(same_bits(got, first));
  }
}
