// Sorting and topk of CUDA's table: bit for bit what the CPU's give, since the order of equals is fixed.
#include <cstdint>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

constexpr DType all_dtypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean};

// Many equals, zeros of both signs, infinities and NaN among floating values; both ends of their range among integers.
Tensor sample(const Shape& shape, DType dtype, uint32_t state = 1) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) {
    state = state * 1664525u + 1013904223u;
    const uint32_t draw = state >> 12;
    v = static_cast<double>(draw % 1000) - 500;
    if (is_floating(dtype)) {
      v /= 8;
      if (draw % 50 == 1) v = NAN;
      if (draw % 50 == 2) v = draw % 100 == 2 ? INFINITY : -INFINITY;
      if (draw % 50 == 3) v = draw % 100 == 3 ? 0.0 : -0.0;
    } else if (dtype == DType::int32 && draw % 50 == 1) {
      v = draw % 100 == 1 ? -0x1p31 : 0x1p31 - 1;
    } else if (dtype == DType::int64 && draw % 50 == 1) {
      v = draw % 100 == 1 ? -0x1p62 : 0x1p62;
    } else if (dtype == DType::uint8 || dtype == DType::boolean) {
      v = static_cast<double>(draw % (dtype == DType::uint8 ? 256 : 2));
    }
  }
  Tensor y = empty(shape, dtype);
  cpu().copy(nullptr, from_vector(values, shape).view(), y.mutable_view());
  return y;
}

// kept < 0: sort.
void check_order(const Tensor& x, const Shape& shape, const Strides& strides, int64_t first, int axis, bool is_descending, int64_t kept) {
  CAPTURE(name_of(x.dtype()));
  CAPTURE(str(shape, " strides ", strides, " axis ", axis, is_descending ? " descending" : " ascending", " kept ", kept));
  Shape result = shape;
  if (kept >= 0) result[axis] = kept;
  const auto order = [&](const kernels::KernelTable& t, const ConstView& from, const View& values, const View& indices) {
    (kept < 0 ? t.sort : t.topk)(nullptr, axis, is_descending, from, values, indices);
  };
  ConstView from = x.view();
  from.data = static_cast<const char*>(from.data) + first * size_of(from.dtype);
  from.shape = shape;
  from.strides = strides;
  Tensor values = empty(result, x.dtype()), indices = empty(result, DType::int64);
  order(cpu(), from, values.mutable_view(), indices.mutable_view());
  const DeviceTensor device(x), got_values = DeviceTensor::poisoned(result, x.dtype()), got_indices = DeviceTensor::poisoned(result, DType::int64);
  order(testing::cuda(), device.view(shape, strides, first), got_values.view(), got_indices.view());
  CHECK(same_bits(got_indices.to_host(), indices));
  CHECK(same_bits(got_values.to_host(), values));
}

void check_order(const Tensor& x, int axis, bool is_descending, int64_t kept = -1) {
  check_order(x, x.shape(), contiguous_strides(x.shape()), 0, axis, is_descending, kept);
}

}  // namespace

TEST_CASE("cuda sort: every dtype, both directions, any axis; short lines share a block") {
  for (const DType dtype : all_dtypes)
    for (const bool is_descending : {false, true}) {
      for (int axis = 0; axis < 3; ++axis) check_order(sample({7, 11, 13}, dtype), axis, is_descending);
      for (const int64_t size : {1, 2, 31, 64, 65, 1000}) check_order(sample({3, size}, dtype), 1, is_descending);
    }
}

TEST_CASE("cuda sort: lines around the size of a tile and beyond") {
  for (const DType dtype : {DType::float32, DType::float64, DType::uint8})
    for (const int64_t size : {2047, 2048, 2049, 4096, 5000, 9001}) check_order(sample({2, size}, dtype), 1, size % 2 == 0);
  check_order(sample({5000, 3}, DType::float32), 0, true);
}

TEST_CASE("cuda topk: few and many of short and long lines, the largest and the smallest") {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::int64, DType::boolean})
    for (const bool is_largest : {false, true}) {
      for (const int64_t kept : {0, 1, 5, 40}) check_order(sample({6, 40}, dtype), 1, is_largest, kept);
      for (const int64_t kept : {1, 10, 1024, 1025, 5000}) check_order(sample({2, 5000}, dtype), 1, is_largest, kept);
      check_order(sample({30, 9}, dtype), 0, is_largest, 3);
    }
  check_order(sample({1, 20000}, DType::float32), 1, true, 1000);          // more than one pass over items
}

TEST_CASE("cuda sort: strided views, single elements and nothing") {
  const Tensor x = sample({3000}, DType::float32);
  for (const Strides& strides : {Strides{-60, 3}, Strides{1, 20}, Strides{0, 1}})
    for (int axis = 0; axis < 2; ++axis) check_order(x, {20, 25}, strides, 1500, axis, true, -1);
  check_order(sample({1}, DType::float64), 0, false);
  check_order(sample({0}, DType::float64), 0, false);
  check_order(sample({3, 0}, DType::float32), 1, false);
  check_order(sample({0, 3}, DType::float32), 1, true, 2);
}
