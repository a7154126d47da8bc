// Integer arithmetic that wraps around instead of overflowing: sums and products are made without a sign, where that is defined.
#pragma once

#include <cstdint>

namespace fovea::kernels {

inline int64_t wrapped_add(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b)); }
inline int64_t wrapped_subtract(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b)); }
inline int64_t wrapped_multiply(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b)); }

inline int64_t integer_power(int64_t x, int64_t exponent) {
  if (exponent < 0) return x == 1 ? 1 : x == -1 ? (exponent % 2 == 0 ? 1 : -1) : 0;
  int64_t y = 1;
  for (; exponent > 0; exponent >>= 1, x = wrapped_multiply(x, x))
    if (exponent & 1) y = wrapped_multiply(y, x);
  return y;
}

}  // namespace fovea::kernels
