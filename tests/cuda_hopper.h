// What the tests of the instructions of sm_90 share: whether there are any, random numbers, and tensors whose boxes are copied.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <vector>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/core/tensor_map.h>

namespace fovea::testing {

inline bool has_hopper() {
  int major = 0;
  kernels::cuda::check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "asking for the compute capability");
  if (major != 9) MESSAGE("left out: these instructions need a GPU of compute capability 9.0, this one has " << major << ".x");
  return major == 9;
}

inline std::mt19937 generator(11);
inline int random_below(int n) { return static_cast<int>(generator() % static_cast<unsigned>(n)); }
inline std::vector<unsigned char> random_bytes(size_t n) {
  std::vector<unsigned char> bytes(n);
  for (unsigned char& b : bytes) b = static_cast<unsigned char>(generator());
  return bytes;
}

struct Position {
  int at[5];
};

// A tensor with a gap behind each row, and what its boxes hold.
struct TensorOfBytes {
  kernels::cuda::TiledLayout layout;
  std::vector<unsigned char> bytes;
  int box_bytes = 0;
};

inline TensorOfBytes random_tensor(int rank, DType dtype, kernels::cuda::Swizzle swizzle) {
  TensorOfBytes t;
  const int size = static_cast<int>(size_of(dtype)), pack = 16 / size;
  t.layout.dtype = dtype, t.layout.rank = rank, t.layout.swizzle = swizzle;
  int64_t stride = 1;
  t.box_bytes = size;
  for (int i = 0; i < rank; ++i) {
    t.layout.sizes[i] = i == 0 ? 20 + random_below(80) : 3 + random_below(9);
    t.layout.box[i] = i == 0 ? pack * (1 + random_below(4)) : 1 + random_below(4);
    if (i == 0 && swizzle != kernels::cuda::Swizzle::none) t.layout.box[i] = (16 << static_cast<int>(swizzle)) / size;
    t.layout.strides[i] = stride;
    stride = i == 0 ? (t.layout.sizes[0] + 2 * pack) / pack * pack : stride * t.layout.sizes[i];
    t.box_bytes *= t.layout.box[i];
  }
  if (rank == 2) t.box_bytes = t.box_bytes / t.layout.box[1] * 21, t.layout.box[1] = 21;        // more rows than a swizzle's period
  t.bytes = random_bytes(static_cast<size_t>(stride * size));
  return t;
}

inline Position random_position(const TensorOfBytes& t) {
  Position p{};
  for (int i = 0; i < t.layout.rank; ++i) p.at[i] = random_below(static_cast<int>(t.layout.sizes[i]) + t.layout.box[i]) - t.layout.box[i] / 2;
  return p;
}

// Calls f(offset of the element in the box's shared memory, its offset in the tensor's bytes or -1) for all elements of a box.
template <class F>
void for_each_element(const TensorOfBytes& t, const Position& p, F&& f) {
  const int size = static_cast<int>(size_of(t.layout.dtype));
  for (int i = 0; i < t.box_bytes / size; ++i) {
    int64_t offset = 0;
    bool is_there = true;
    for (int d = 0, rest = i; d < t.layout.rank; rest /= t.layout.box[d++]) {
      const int64_t at = p.at[d] + rest % t.layout.box[d];
      is_there = is_there && at >= 0 && at < t.layout.sizes[d];
      offset += at * t.layout.strides[d];
    }
    f(kernels::cuda::swizzled(static_cast<uint32_t>(i * size), t.layout.swizzle), is_there ? offset * size : -1);
  }
}

// A convolution's input, channels innermost, and what one copy in im2col mode brings of it.
struct Convolution {
  kernels::cuda::Im2colLayout layout;
  int filter[3] = {1, 1, 1}, dilation[3] = {1, 1, 1};        // along width, height, depth
  int64_t outputs[3] = {1, 1, 1};
  std::vector<unsigned char> bytes;
};
struct Column {
  Position at, offsets;
  int64_t first = 0;                       // number of its first row in the convolution's matrix
};

inline Convolution random_convolution(int rank, DType dtype, kernels::cuda::Swizzle swizzle) {
  Convolution c;
  kernels::cuda::Im2colLayout& l = c.layout;
  const int pack = 16 / static_cast<int>(size_of(dtype));
  l.dtype = dtype, l.rank = rank, l.swizzle = swizzle;
  l.channels = swizzle == kernels::cuda::Swizzle::none ? pack * (1 + random_below(4)) : (16 << static_cast<int>(swizzle)) / static_cast<int>(size_of(dtype));
  l.pixels = 1 + random_below(100);
  l.sizes[0] = l.channels + random_below(2 * l.channels);
  l.sizes[rank - 1] = 1 + random_below(4);
  for (int d = 0; d < rank - 2; ++d) {
    l.sizes[d + 1] = 4 + random_below(9);
    c.filter[d] = 1 + random_below(3), c.dilation[d] = 1 + random_below(2), l.steps[d] = 1 + random_below(3);
    const int before = random_below(3), behind = random_below(3), reach = c.dilation[d] * (c.filter[d] - 1);
    l.lower[d] = -before, l.upper[d] = behind - reach;
    if (l.sizes[d + 1] + l.upper[d] - l.lower[d] < 1) l.sizes[d + 1] += reach;
    c.outputs[d] = (l.sizes[d + 1] + before + behind - reach - 1) / l.steps[d] + 1;
  }
  int64_t stride = 1;
  for (int i = 0; i < rank; ++i) {
    l.strides[i] = stride;
    stride = i == 0 ? (l.sizes[0] + 2 * pack) / pack * pack : stride * l.sizes[i];
  }
  c.bytes = random_bytes(static_cast<size_t>(stride * size_of(dtype)));
  return c;
}

// The position of row number `row` of the matrix: where the filter stands, and in which image.
inline Position position_of_row(const Convolution& c, int64_t row) {
  Position p{};
  for (int d = 0; d < c.layout.rank - 2; row /= c.outputs[d++]) p.at[d + 1] = c.layout.lower[d] + c.layout.steps[d] * static_cast<int>(row % c.outputs[d]);
  p.at[c.layout.rank - 1] = static_cast<int>(row);
  return p;
}

// Any row of the matrix, or one just behind the last; any element of the filter; channels that may reach beyond the last.
inline Column random_column(const Convolution& c) {
  Column column;
  column.first = random_below(static_cast<int>(c.outputs[0] * c.outputs[1] * c.outputs[2] * c.layout.sizes[c.layout.rank - 1]) + 2);
  column.at = position_of_row(c, column.first);
  column.at.at[0] = random_below(static_cast<int>(c.layout.sizes[0]));
  column.offsets = {};
  for (int d = 0; d < c.layout.rank - 2; ++d) column.offsets.at[d] = random_below(c.filter[d]) * c.dilation[d];
  return column;
}

// What arrives in shared memory.
inline std::vector<unsigned char> expected_column(const Convolution& c, const Column& column) {
  const kernels::cuda::Im2colLayout& l = c.layout;
  const int64_t size = size_of(l.dtype);
  std::vector<unsigned char> bytes(static_cast<size_t>(l.pixels * l.channels * size), 0);
  for (int i = 0; i < l.pixels * l.channels; ++i) {
    Position p = position_of_row(c, column.first + i / l.channels);
    p.at[0] = column.at.at[0] + i % l.channels;
    for (int d = 0; d < l.rank - 2; ++d) p.at[d + 1] += column.offsets.at[d];
    int64_t offset = 0;
    bool is_there = true;
    for (int d = 0; d < l.rank; ++d) is_there = is_there && p.at[d] >= 0 && p.at[d] < l.sizes[d], offset += p.at[d] * l.strides[d];
    const uint32_t to = kernels::cuda::swizzled(static_cast<uint32_t>(i * size), l.swizzle);
    if (is_there) std::memcpy(&bytes[to], &c.bytes[static_cast<size_t>(offset * size)], static_cast<size_t>(size));
  }
  return bytes;
}

}  // namespace fovea::testing
