// CUDA's pooling against the CPU's: windows of every size, stride, padding and dilation, adaptive ones, and their gradients.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include <fovea/autograd/backward.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/pool.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/cuda/core/launch.h>

#include "cuda_kernels.h"
#include "cuda_layouts.h"

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
      {.n = 2, .c = 3, .h = 4, .w = 5, .out_h = 0, .out_w = 2},                // nothing: the gradient is zero
      {.n = 2, .c = 3, .h = 4, .w = 5, .out_h = 2, .out_w = 0},
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

// Max pooling where the windows are known, in both directions.
void check_max_windows(const PoolGeometry& g, DType dtype, const std::vector<double>& specials, Layout layout, int64_t offset) {
  INFO(name_of(dtype), " n ", g.n, " c ", g.c, " h ", g.h, " w ", g.w, layout == Layout::planar ? " planar" : " channels-last", " offset ", offset);
  const Tensor x = numbers(shape_of_x(g), dtype, 7, specials), dy = numbers(shape_of_y(g), dtype, 8, {not_a_number}), wide_dy = as_computed(dy);
  const Maxima want = maxima_on_cpu(g, as_computed(x), &kernels::KernelTable::max_pool);
  Tensor dx = empty(shape_of_x(g), wide_dy.dtype());
  cpu().max_pool_backward(nullptr, &g, wide_dy.view(), want.indices.view(), dx.mutable_view());
  const LaidTensor device_x(x, layout, offset), device_dy(dy, layout, offset), device_y(shape_of_y(g), dtype, layout, offset), indices(shape_of_y(g), DType::int64, layout, offset),
      device_dx(shape_of_x(g), dtype, layout, offset);
  testing::cuda().max_pool(nullptr, g, device_x.view(), device_y.view(), indices.view());
  testing::cuda().max_pool_backward(nullptr, &g, device_dy.view(), indices.view(), device_dx.view());
  CHECK(difference(device_y.to_host(), want.y, 0, 0) == "");
  CHECK(difference(indices.to_host(), want.indices, 0, 0) == "");
  CHECK(difference(device_dx.to_host(), dx, 0, 0) == "");
  if (dx.numel() > 0) CHECK(std::string(kernels::cuda::last_kernel()) == "max_pool_gather");
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
  cpu().max_pool_backward(nullptr, nullptr, wide_dy.view(), want.indices.view(), dx.mutable_view());
  const DeviceTensor device_dy(dy), device_indices(want.indices), device_dx = DeviceTensor::poisoned(shape_of_x(g), dtype);
  testing::cuda().max_pool_backward(nullptr, nullptr, device_dy.view(), device_indices.view(), device_dx.view());
  CHECK(difference(device_dx.to_host(), dx, 0, 0) == "");                     // sums of quarters are exact, in half types too
}

template <class G, class Forward, class Backward>
void check_means(const G& g, Forward forward, Backward backward, DType dtype, Layout layout = Layout::planar, int64_t offset = 0) {
  INFO(name_of(dtype), " n ", g.n, " c ", g.c, " h ", g.h, " w ", g.w, layout == Layout::planar ? " planar" : " channels-last", " offset ", offset);
  const Tensor x = numbers(shape_of_x(g), dtype, 5), dy = numbers(shape_of_y(g), dtype, 6), wide_x = as_computed(x), wide_dy = as_computed(dy);
  Tensor y = empty(shape_of_y(g), wide_x.dtype()), dx = empty(shape_of_x(g), wide_x.dtype());
  (cpu().*forward)(nullptr, g, wide_x.view(), y.mutable_view());
  (cpu().*backward)(nullptr, g, wide_dy.view(), dx.mutable_view());
  const LaidTensor device_x(x, layout, offset), device_dy(dy, layout, offset), device_y(shape_of_y(g), dtype, layout, offset), device_dx(shape_of_x(g), dtype, layout, offset);
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

TEST_CASE("the gradient of max pooling with known windows is gathered, in planes and channels-last, and is the CPU's for equal values, NaN and infinities too") {
  for (const DType dtype : dtypes)
    for (const Layout layout : {Layout::planar, Layout::channels_last})
      for (const std::vector<double>& specials : {std::vector<double>(), {inf, not_a_number, -inf}})
        for (std::vector<PoolGeometry> all : {geometries(), dilated()})
          for (PoolGeometry& g : all)
            for (const int64_t channels : {g.c, int64_t{16}}) {                  // 16 fill whole packs
              g.c = channels;
              for (const int64_t offset : {0, 1})
                if (offset == 0 || layout == Layout::channels_last) check_max_windows(g, dtype, specials, layout, offset);
            }
}

TEST_CASE("means of tensors that lie channels-last are the CPU's") {
  for (const DType dtype : dtypes)
    for (const int64_t channels : {5, 16})
      for (const int64_t offset : {0, 1}) {
        for (PoolGeometry g : geometries()) {
          g.c = channels;
          check_means(g, &kernels::KernelTable::avg_pool, &kernels::KernelTable::avg_pool_backward, dtype, Layout::channels_last, offset);
        }
        for (AdaptivePoolGeometry g : divisions()) {
          g.c = channels;
          check_means(g, &kernels::KernelTable::adaptive_avg_pool, &kernels::KernelTable::adaptive_avg_pool_backward, dtype, Layout::channels_last, offset);
        }
      }
}

TEST_CASE("more outputs than 31 bits count are refused, of no images too") {
  const LaidTensor x(Shape{0, 1, 4, 4}, DType::float32, Layout::planar, 0), y(Shape{0, 1, int64_t{1} << 33, 2}, DType::float32, Layout::planar, 0);
  const AdaptivePoolGeometry g{.n = 0, .c = 1, .h = 4, .w = 4, .out_h = int64_t{1} << 33, .out_w = 2};
  CHECK_THROWS_WITH_AS(testing::cuda().adaptive_avg_pool(nullptr, g, x.view(), y.view()), "adaptive_avg_pool2d: 4 elements to 8589934592 are too many for the CUDA kernels", ShapeError);
}

TEST_CASE("tensors that do not lie alike are refused") {
  const PoolGeometry g{.n = 1, .c = 2, .h = 4, .w = 4, .kernel_h = 2, .kernel_w = 2, .stride_h = 2, .stride_w = 2};
  const LaidTensor x(numbers(shape_of_x(g), DType::float32, 1), Layout::channels_last, 0), y(shape_of_y(g), DType::float32, Layout::planar, 0);
  CHECK_THROWS_WITH_AS(testing::cuda().avg_pool(nullptr, g, x.view(), y.view()),
                       "avg_pool2d: tensors must be contiguous, or all of them channels-last; got one of shape [1,2,2,2] with strides [8,4,2,1]", ShapeError);
}

TEST_CASE("the operations keep tensors channels-last on CUDA, gradients and second gradients too, with the values that contiguous ones have") {
  const std::vector<std::function<Tensor(const Tensor&)>> operations = {
      [](const Tensor& x) { return max_pool2d(x, 3, {.stride = 2, .padding = 1}); },
      [](const Tensor& x) { return avg_pool2d(x, 2); },
      [](const Tensor& x) { return adaptive_avg_pool2d(x, {3, 2}); },
      [](const Tensor& x) { return adaptive_max_pool2d(x, {3, 3}); },
      [](const Tensor& x) { return adaptive_avg_pool2d(x, 1); },                // results that lie both ways
      [](const Tensor& x) { return max_pool2d(x, {6, 9}); },
  };
  for (size_t i = 0; i < operations.size(); ++i) {
    INFO("operation ", i);
    std::vector<Tensor> results;
    for (const bool is_last : {false, true}) {
      const Tensor on = to(numbers({2, 8, 6, 9}, DType::float32, 3), Device::cuda(0));
      Tensor x = (is_last ? channels_last(on) : on).detach();
      x.set_requires_grad();
      const Tensor y = operations[i](x), squares = y * y;
      CHECK(is_channels_last(y) == (is_last || y.size(2) * y.size(3) == 1));
      const Tensor dx = grad({sum(squares)}, {x}, {}, {.create_graph = true})[0];
      CHECK(is_channels_last(dx) == is_last);
      const Tensor second = grad({sum(dx * dx)}, {x})[0];
      for (const Tensor& result : {y, dx, second}) results.push_back(to(contiguous(result.detach()), Device::cpu()));
    }
    for (size_t k = 0; k < 3; ++k) CHECK(same_bits(results[k], results[k + 3]));
  }
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
  cpu().max_pool_backward(nullptr, nullptr, dy.view(), indices.view(), want.mutable_view());
  for (int run = 0; run < 3; ++run) {
    const DeviceTensor device_dy(dy), device_indices(indices), dx = DeviceTensor::poisoned(inputs, DType::float32);
    testing::cuda().max_pool_backward(nullptr, nullptr, device_dy.view(), device_indices.view(), dx.view());
    const Tensor got = dx.to_host();
    CHECK(difference(got, want, 1e-6, 0) == "");
    if (run == 0) first = got;
    else CHECK(same_bits(got, first));
  }
}
