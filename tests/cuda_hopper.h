// What the tests of the instructions of sm_90 share: whether there are any, random numbers, and tensors whose boxes are copied.
#pragma once

#include <doctest/doctest.h>

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

}  // namespace fovea::testing
