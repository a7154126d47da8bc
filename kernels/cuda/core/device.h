// What every kernel file starts from. Kernels are plain CUDA C++; the few things that are written another way, so that the same files also run over the model of
// CUDA in tests/host_cuda, are here and in launch.h: shared memory is asked for with shared<T>(), and kernels are started with launch().
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include <fovea/kernels/table.h>

namespace fovea::kernels::cuda {

inline constexpr int warp_size = 32;

// The block's dynamic shared memory as a T: a struct of arrays, say. Grid::shared_bytes must be sizeof(T) or more.
template <class T>
__device__ inline T& shared() {
#ifdef FOVEA_HOST_CUDA
  return *static_cast<T*>(host_cuda::shared_memory(sizeof(T)));
#else
  extern __shared__ __align__(1024) unsigned char block_memory[];
  return *reinterpret_cast<T*>(block_memory);
#endif
}

template <class I>
__host__ __device__ constexpr I ceil_div(I a, I b) { return (a + b - 1) / b; }

inline cudaStream_t stream_of(Queue queue) { return static_cast<cudaStream_t>(queue); }

// The thread's place in a one-dimensional grid, and the number of its threads: for (i = global_thread(); i < n; i += global_threads()).
__device__ inline int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t global_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

}  // namespace fovea::kernels::cuda
