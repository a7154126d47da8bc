// CUDA's resizing and grid sampling against the CPU's, with their gradients.
#include <doctest/doctest.h>

#include <array>
#include <string>
#include <vector>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

// In (-range, range).
Tensor numbers(const Shape& shape, DType dtype, uint32_t seed, double range = 1) {
  Tensor wide = empty(shape, DType::float64), result = empty(shape, dtype);
  uint32_t state = seed * 2654435761u + 12345u;
  for (int64_t i = 0; i < wide.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    wide.mutable_data<double>()[i] = range * static_cast<double>(static_cast<int32_t>(state)) * 0x1p-31;
  }
  cpu().copy(nullptr, wide.view(), result.mutable_view());
  return result;
}

const std::vector<DType> dtypes = {DType::float32, DType::float64, DType::float16, DType::bfloat16};

// Positions in float32 are rounded in another place where the compiler fuses a product with a sum: a difference of some 1e-7 of a coordinate, times the steepness of x.
double tolerance(DType dtype, double size = 1) { return size * (dtype == DType::float64 ? 1e-12 : 4e-6); }

std::vector<ResizeGeometry> resizes() {
  std::vector<ResizeGeometry> all;
  for (const auto& [h, w, out_h, out_w] : std::vector<std::array<int64_t, 4>>{
           {1, 1, 1, 1}, {4, 5, 8, 10}, {5, 7, 5, 7}, {9, 8, 4, 3}, {3, 4, 7, 9}, {1, 6, 5, 2}, {6, 1, 1, 4}, {13, 11, 1, 1}, {2, 3, 40, 35}, {40, 35, 3, 2}, {30, 31, 29, 32}})
    for (const bool align_corners : {false, true}) all.push_back({3, h, w, out_h, out_w, align_corners});
  all.push_back({0, 4, 4, 8, 8, false});
  return all;
}

template <class Forward, class Backward>
void check_resize(Forward forward, Backward backward) {
  for (const DType dtype : dtypes)
    for (const ResizeGeometry& g : resizes()) {
      INFO(name_of(dtype), " ", g.h, "x", g.w, " to ", g.out_h, "x", g.out_w, g.align_corners ? ", corners aligned" : "");
      const Tensor x = numbers({g.planes, g.h, g.w}, dtype, 1), dy = numbers({g.planes, g.out_h, g.out_w}, dtype, 2), wide_x = as_computed(x), wide_dy = as_computed(dy);
      Tensor y = empty(dy.shape(), wide_x.dtype()), dx = empty(x.shape(), wide_x.dtype());
      (cpu().*forward)(nullptr, g, wide_x.view(), y.mutable_view());
      (cpu().*backward)(nullptr, g, wide_dy.view(), dx.mutable_view());
      const DeviceTensor device_x(x), device_dy(dy), device_y = DeviceTensor::poisoned(y.shape(), dtype), device_dx = DeviceTensor::poisoned(x.shape(), dtype);
      (testing::cuda().*forward)(nullptr, g, device_x.view(), device_y.view());
      (testing::cuda().*backward)(nullptr, g, device_dy.view(), device_dx.view());
      const double outputs_each = static_cast<double>(g.out_h * g.out_w) / static_cast<double>(g.h * g.w);
      CHECK(difference(device_y.to_host(), y, rounding(dtype), tolerance(dtype, 4)) == "");
      CHECK(difference(device_dx.to_host(), dx, rounding(dtype), tolerance(dtype, 8 + outputs_each)) == "");
    }
}

struct GridCase {
  Tensor x, grid, dy;
  GridCase(DType dtype, int64_t n, int64_t c, int64_t h, int64_t w, int64_t out_h, int64_t out_w, double range)
      : x(numbers({n, c, h, w}, dtype, 1)), grid(numbers({n, out_h, out_w, 2}, dtype, 2, range)), dy(numbers({n, c, out_h, out_w}, dtype, 3)) {}
};

void check_grid(const GridCase& t, bool align_corners, double size) {
  const DType dtype = t.x.dtype();
  INFO(name_of(dtype), ", x ", t.x.shape(), ", grid ", t.grid.shape(), align_corners ? ", corners aligned" : "");
  const Tensor wide_x = as_computed(t.x), wide_grid = as_computed(t.grid), wide_dy = as_computed(t.dy);
  Tensor y = empty(t.dy.shape(), wide_x.dtype()), dx = empty(t.x.shape(), wide_x.dtype()), dgrid = empty(t.grid.shape(), wide_x.dtype());
  cpu().grid_sample(nullptr, align_corners, wide_x.view(), wide_grid.view(), y.mutable_view());
  cpu().grid_sample_backward(nullptr, align_corners, wide_dy.view(), wide_x.view(), wide_grid.view(), dx.mutable_view(), dgrid.mutable_view());
  const DeviceTensor x(t.x), grid(t.grid), dy(t.dy), device_y = DeviceTensor::poisoned(y.shape(), dtype), device_dx = DeviceTensor::poisoned(dx.shape(), dtype),
                     device_dgrid = DeviceTensor::poisoned(dgrid.shape(), dtype), dx_alone = DeviceTensor::poisoned(dx.shape(), dtype),
                     dgrid_alone = DeviceTensor::poisoned(dgrid.shape(), dtype);
  testing::cuda().grid_sample(nullptr, align_corners, x.view(), grid.view(), device_y.view());
  testing::cuda().grid_sample_backward(nullptr, align_corners, dy.view(), x.view(), grid.view(), device_dx.view(), device_dgrid.view());
  testing::cuda().grid_sample_backward(nullptr, align_corners, dy.view(), x.view(), grid.view(), dx_alone.view(), View());
  testing::cuda().grid_sample_backward(nullptr, align_corners, dy.view(), x.view(), grid.view(), View(), dgrid_alone.view());
  CHECK(difference(device_y.to_host(), y, rounding(dtype), tolerance(dtype, size)) == "");
  CHECK(difference(device_dx.to_host(), dx, rounding(dtype), tolerance(dtype, size)) == "");
  CHECK(difference(device_dgrid.to_host(), dgrid, rounding(dtype), tolerance(dtype, size * size)) == "");
  CHECK(same_bits(device_dx.to_host(), dx_alone.to_host()));
  CHECK(same_bits(device_dgrid.to_host(), dgrid_alone.to_host()));
}

}  // namespace

TEST_CASE("nearest resizing gives what the CPU gives") { check_resize(&kernels::KernelTable::resize_nearest, &kernels::KernelTable::resize_nearest_backward); }

TEST_CASE("bilinear resizing gives what the CPU gives") { check_resize(&kernels::KernelTable::resize_bilinear, &kernels::KernelTable::resize_bilinear_backward); }

TEST_CASE("a nearest resize moves values as they are, NaN and infinities too") {
  Tensor x = numbers({1, 3, 4}, DType::float32, 1);
  x.mutable_data<float>()[2] = std::numeric_limits<float>::quiet_NaN();
  x.mutable_data<float>()[7] = -std::numeric_limits<float>::infinity();
  const ResizeGeometry g{1, 3, 4, 7, 5, false};
  Tensor want = empty({1, 7, 5}, DType::float32);
  cpu().resize_nearest(nullptr, g, x.view(), want.mutable_view());
  const DeviceTensor device_x(x), y = DeviceTensor::poisoned({1, 7, 5}, DType::float32);
  testing::cuda().resize_nearest(nullptr, g, device_x.view(), y.view());
  CHECK(same_bits(y.to_host(), want));
}

TEST_CASE("grid sampling gives what the CPU gives, inside the image and beyond it") {
  for (const DType dtype : dtypes)
    for (const bool align_corners : {false, true}) {
      check_grid(GridCase(dtype, 2, 3, 7, 9, 5, 6, 0.9), align_corners, 32);
      check_grid(GridCase(dtype, 1, 2, 5, 4, 20, 30, 1.6), align_corners, 64);             // many points a pixel, over several rounds
      check_grid(GridCase(dtype, 1, 19, 6, 6, 3, 4, 1.2), align_corners, 32);              // more channels than a thread samples
      check_grid(GridCase(dtype, 1, 1, 1, 1, 2, 2, 1.5), align_corners, 32);
      check_grid(GridCase(dtype, 0, 2, 4, 4, 3, 3, 1), align_corners, 32);
    }
}

TEST_CASE("points that are NaN, infinite or far away sample nothing and get no gradient") {
  GridCase t(DType::float64, 1, 2, 4, 4, 2, 3, 0.5);
  double* const grid = t.grid.mutable_data<double>();
  grid[0] = std::numeric_limits<double>::quiet_NaN();
  grid[3] = std::numeric_limits<double>::infinity();
  grid[4] = -1e300;
  check_grid(t, false, 32);
  check_grid(t, true, 32);
}

TEST_CASE("gradients that meet in one pixel are added in the same order in every run") {
  GridCase t(DType::float32, 1, 3, 8, 8, 24, 25, 0.2);                                      // 600 points over a few pixels
  Tensor first;
  for (int run = 0; run < 3; ++run) {
    const DeviceTensor x(t.x), grid(t.grid), dy(t.dy), dx = DeviceTensor::poisoned(t.x.shape(), DType::float32);
    testing::cuda().grid_sample_backward(nullptr, false, dy.view(), x.view(), grid.view(), dx.view(), View());
    if (run == 0) first = dx.to_host();
    else CHECK(same_bits(dx.to_host(), first));
  }
}

TEST_CASE("large batches take several channels a block, with the same result") {
  check_grid(GridCase(DType::float64, 3, 701, 3, 3, 2, 2, 1.1), false, 32);
}
