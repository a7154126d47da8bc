// Walking several tensors of one shape together, whatever their strides.
//
// StridedLoop drops axes of size one, puts the axes in the order of the first operand's memory (so a permuted output is written front to
// back), and merges neighbours that every operand steps over evenly. Most loops end up with one axis, a broadcast row vector with two.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include <fovea/kernels/view.h>

namespace fovea::kernels {

// N operands; operand 0 is the output.
template <int N>
struct StridedLoop {
  int rank = 0;
  int64_t size[max_rank] = {};
  int64_t stride[N][max_rank] = {};            // bytes
  char* base[N] = {};
  int64_t total = 1;

  void set(int operand, const ConstView& v) { set(operand, v.data, v.dtype, v.strides); }
  void set(int operand, const void* data, DType dtype, const Strides& strides) {
    base[operand] = static_cast<char*>(const_cast<void*>(data));
    const int64_t bytes = size_of(dtype);
    for (int i = 0; i < strides.rank(); ++i) stride[operand][i] = strides[i] * bytes;
  }

  // After every operand was set.
  void collapse(const Shape& shape) {
    total = shape.numel();
    for (int i = 0; i < shape.rank(); ++i) {
      if (shape[i] == 1) continue;
      size[rank] = shape[i];
      for (int k = 0; k < N; ++k) stride[k][rank] = stride[k][i];
      ++rank;
    }
    sort_axes();
    merge_axes();
    if (rank == 0) {
      rank = 1;
      size[0] = 1;
      for (int k = 0; k < N; ++k) stride[k][0] = 0;
    }
  }

  int64_t inner() const { return size[rank - 1]; }
  int64_t inner_stride(int operand) const { return stride[operand][rank - 1]; }
  // All elements of an operand lie one after the other, in the order of the loop.
  bool is_flat(int operand, int64_t element_bytes) const {
    return total <= 1 || (rank == 1 && stride[operand][0] == element_bytes) || is_flat_over_axes(operand, element_bytes);
  }

 private:
  bool is_flat_over_axes(int operand, int64_t expected) const {
    for (int i = rank - 1; i >= 0; --i) {
      if (stride[operand][i] != expected) return false;
      expected *= size[i];
    }
    return true;
  }
  bool belongs_before(int a, int b) const {    // axis a outside axis b
    for (int k = 0; k < N; ++k) {
      const int64_t sa = std::abs(stride[k][a]), sb = std::abs(stride[k][b]);
      if (sa != sb) return sa > sb;
    }
    return false;
  }
  void swap_axes(int a, int b) {
    std::swap(size[a], size[b]);
    for (int k = 0; k < N; ++k) std::swap(stride[k][a], stride[k][b]);
  }
  void sort_axes() {                           // insertion sort: stable, and short
    for (int i = 1; i < rank; ++i)
      for (int j = i; j > 0 && belongs_before(j, j - 1); --j) swap_axes(j, j - 1);
  }
  void merge_axes() {
    int kept = 0;
    for (int i = 1; i < rank; ++i) {
      bool is_even = true;
      for (int k = 0; k < N; ++k) is_even = is_even && stride[k][kept] == stride[k][i] * size[i];
      if (is_even) {
        size[kept] *= size[i];
      } else {
        ++kept;
        size[kept] = size[i];
      }
      for (int k = 0; k < N; ++k) stride[k][kept] = stride[k][i];
    }
    if (rank > 0) rank = kept + 1;
  }
};

// Where a walk stands: an index for each axis, last axis fastest.
struct Cursor {
  int64_t index[max_rank] = {};

  Cursor() = default;
  Cursor(const int64_t* size, int rank, int64_t linear) {
    for (int i = rank - 1; i > 0 && linear > 0; --i) {
      index[i] = linear % size[i];
      linear /= size[i];
    }
    index[0] += linear;
  }
  int64_t offset(const int64_t* stride, int rank) const {
    int64_t sum = 0;
    for (int i = 0; i < rank; ++i) sum += index[i] * stride[i];
    return sum;
  }
  // Moves n elements on; n must not go past the end of the last axis' row.
  void advance(const int64_t* size, int rank, int64_t n) {
    index[rank - 1] += n;
    for (int i = rank - 1; i > 0 && index[i] == size[i]; --i) {
      index[i] = 0;
      ++index[i - 1];
    }
  }
};

// Calls f(pointers, n) for the runs along the innermost axis that make up elements [begin, end); pointers[k] moves by loop.inner_stride(k).
template <int N, class F>
void for_each_run(const StridedLoop<N>& loop, int64_t begin, int64_t end, const F& f) {
  Cursor cursor(loop.size, loop.rank, begin);
  while (begin < end) {
    const int64_t n = std::min(end - begin, loop.inner() - cursor.index[loop.rank - 1]);
    std::array<char*, N> pointers;
    for (int k = 0; k < N; ++k) pointers[static_cast<size_t>(k)] = loop.base[k] + cursor.offset(loop.stride[k], loop.rank);
    f(pointers, n);
    cursor.advance(loop.size, loop.rank, n);
    begin += n;
  }
}

}  // namespace fovea::kernels
