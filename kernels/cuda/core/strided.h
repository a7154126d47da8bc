// From the number of an element to where it lies in several views of one shape. The host merges axes that every view walks through in one stride, so that the
// device divides as seldom as it can, and by multiplication (FastDivide).
#pragma once

#include <algorithm>
#include <initializer_list>

#include <fovea/kernels/cuda/core/device.h>

namespace fovea::kernels::cuda {

// n / divisor for n < 2^31 as a multiplication and a shift (Granlund & Montgomery 1994, "Division by invariant integers using multiplication").
struct FastDivide {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  FastDivide() = default;
  explicit FastDivide(uint32_t d) : divisor(d) {
    while (shift < 31 && (uint32_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
  __host__ __device__ uint32_t quotient(uint32_t n) const {
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> 32);
    return (high + n) >> shift;
  }
};

// n / divisor for any n, quick for n < 2^31.
struct Divide {
  FastDivide quick;
  int64_t divisor = 1;
  bool is_wide = false;

  Divide(int64_t d, int64_t largest) : quick(static_cast<uint32_t>(std::min<int64_t>(d, 1 << 30))), divisor(d), is_wide(largest >= (int64_t{1} << 31) || d > (1 << 30)) {}
  __device__ int64_t quotient(int64_t n) const { return is_wide ? n / divisor : quick.quotient(static_cast<uint32_t>(n)); }
};

// Axes of `views` pointers, innermost first.
template <int views>
struct StridedIndex {
  int rank = 0;
  bool is_wide = false;                      // 2^31 elements or more: divisions in 64 bits
  int64_t numel = 1;
  int64_t sizes[max_rank] = {};
  FastDivide divide[max_rank];
  int64_t strides[views][max_rank] = {};

  // Views of one shape; strides may be zero or negative.
  StridedIndex(const Shape& shape, const Strides* const (&all)[views]) {
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      if (shape[axis] == 1) continue;
      numel *= shape[axis];
      bool merges = rank > 0;
      for (int v = 0; merges && v < views; ++v) merges = (*all[v])[axis] == strides[v][rank - 1] * sizes[rank - 1];
      if (merges) {
        sizes[rank - 1] *= shape[axis];
        continue;
      }
      sizes[rank] = shape[axis];
      for (int v = 0; v < views; ++v) strides[v][rank] = (*all[v])[axis];
      ++rank;
    }
    if (numel == 0) rank = 0;                // no element will be asked for, and nothing divides by a size of zero
    is_wide = numel >= (int64_t{1} << 31);
    for (int axis = 0; axis < rank && !is_wide; ++axis) divide[axis] = FastDivide(static_cast<uint32_t>(sizes[axis]));
  }

  // One run through memory in every view?
  bool is_contiguous() const {
    if (rank > 1) return false;
    for (int v = 0; rank == 1 && v < views; ++v)
      if (strides[v][0] != 1) return false;
    return true;
  }

  struct Offsets {
    int64_t of[views];
  };
  __device__ Offsets offsets(int64_t element) const {
    Offsets result = {};
    if (is_wide) {
      for (int axis = 0; axis < rank; ++axis) {
        const int64_t next = element / sizes[axis];
        add(result, axis, element - next * sizes[axis]);
        element = next;
      }
      return result;
    }
    uint32_t left = static_cast<uint32_t>(element);
#pragma unroll
    for (int axis = 0; axis < max_rank; ++axis) {
      if (axis == rank) break;
      const uint32_t next = divide[axis].quotient(left);
      add(result, axis, left - next * divide[axis].divisor);
      left = next;
    }
    return result;
  }

 private:
  __device__ void add(Offsets& result, int axis, int64_t coordinate) const {
#pragma unroll
    for (int v = 0; v < views; ++v) result.of[v] += coordinate * strides[v][axis];
  }
};

}  // namespace fovea::kernels::cuda
