// What unary.cu, binary.cu and elementwise.cu share besides the loops: integer arithmetic that wraps, scalars, and the entries' signatures.
#pragma once

#include <cmath>

#include <fovea/kernels/cpu/elementwise_blocks.h>
#include <fovea/kernels/cuda/elementwise.h>

namespace fovea::kernels::cuda {

void unary(Queue, Unary, Scalars, const ConstView& x, const View& y);
void binary(Queue, Binary, Scalars, const ConstView& a, const ConstView& b, const View& y);

// Integers wrap: sums and products are made without a sign.
__device__ inline int64_t wrapped_add(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b)); }
__device__ inline int64_t wrapped_subtract(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b)); }
__device__ inline int64_t wrapped_multiply(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b)); }

__device__ inline int64_t integer_power(int64_t x, int64_t exponent) {
  if (exponent < 0) return x == 1 ? 1 : x == -1 ? (exponent % 2 == 0 ? 1 : -1) : 0;
  int64_t y = 1;
  for (; exponent > 0; exponent >>= 1, x = wrapped_multiply(x, x))
    if (exponent & 1) y = wrapped_multiply(y, x);
  return y;
}

// A scalar in the type computed with; integers are cut off, and held within 64 bits.
template <class C>
C scalar(double value) {
  if constexpr (std::is_integral_v<C>)
    return value >= 0x1p63 ? std::numeric_limits<C>::max() : value >= -0x1p63 ? static_cast<C>(value) : std::numeric_limits<C>::min();
  else
    return static_cast<C>(value);
}

}  // namespace fovea::kernels::cuda
