// What the allocators of all devices have in common: size classes, and the statistics that they keep.
#pragma once

#include <bit>
#include <cstdint>

namespace fovea {

struct AllocatorStats {
  int64_t active_bytes = 0;        // in blocks that tensors hold
  int64_t peak_bytes = 0;          // the most active_bytes has been since the last reset_peak()
  int64_t cached_bytes = 0;        // in freed blocks that are kept for reuse
  int64_t allocations = 0;         // blocks handed out so far
  int64_t cache_hits = 0;          // of these, taken from the cache
};

namespace kernels {

inline constexpr int num_size_classes = 8 * 64;

struct SizeClass {
  int index;
  int64_t bytes;
};

// The smallest class that holds `bytes`: one of eight steps between a power of two and the next, so that at most 12.5 % is lost to rounding.
inline SizeClass size_class_of(int64_t bytes, int64_t smallest) {
  constexpr int64_t steps = 8;
  if (bytes < smallest) bytes = smallest;
  const int power = std::bit_width(static_cast<uint64_t>(bytes - 1)) - 1;      // 2^power <= bytes - 1 < 2^(power + 1)
  const int64_t base = int64_t{1} << power, step = base / steps;
  const int64_t k = (bytes - base + step - 1) / step;                            // 1..8
  return {static_cast<int>((power - 5) * steps + k - 1), base + k * step};
}

inline int64_t bytes_of_size_class(int index) {
  const int64_t base = int64_t{1} << (index / 8 + 5);
  return base + (index % 8 + 1) * (base / 8);
}

}  // namespace kernels
}  // namespace fovea
