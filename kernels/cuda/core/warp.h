// Reductions over the lanes of a warp and the threads of a block. The order is fixed (a tree over lanes, then over warps), so the same inputs give the same bits.
#pragma once

#include <fovea/kernels/cuda/core/device.h>

namespace fovea::kernels::cuda {

inline constexpr unsigned all_lanes = 0xffffffffu;

struct Sum {
  template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Max {                                 // a NaN wins
  template <class T> __device__ T operator()(T a, T b) const { return a > b || a != a ? a : b; }
};
struct Min {
  template <class T> __device__ T operator()(T a, T b) const { return a < b || a != a ? a : b; }
};

// Over groups of `width` neighbouring lanes (a power of two); every lane gets its group's result. All 32 lanes must call it.
template <int width = warp_size, class T, class Op>
__device__ inline T warp_reduce(T value, Op op) {
#pragma unroll
  for (int distance = width / 2; distance > 0; distance /= 2) value = op(value, __shfl_xor_sync(all_lanes, value, distance));
  return value;
}

// Over all threads of a one-dimensional block of whole warps; every thread gets the result. `scratch` is shared memory for 32 values, free for reuse afterwards.
template <class T, class Op>
__device__ inline T block_reduce(T value, Op op, T identity, T* scratch) {
  value = warp_reduce(value, op);
  const int warps = static_cast<int>(blockDim.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
  if (warps == 1) return value;
  if (lane == 0) scratch[threadIdx.x / warp_size] = value;
  __syncthreads();
  value = warp_reduce(lane < warps ? scratch[lane] : identity, op);
  __syncthreads();
  return value;
}

}  // namespace fovea::kernels::cuda
