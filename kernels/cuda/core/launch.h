// The one way to start a kernel: launch(queue, "name", grid, kernel, arguments...). It checks the shape, raises the limit of shared memory where that is needed,
// and turns CUDA's error into a DeviceError that names the kernel and its launch shape.
#pragma once

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/core/device.h>
#include <fovea/kernels/cuda/nvtx.h>

namespace fovea::kernels::cuda {

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;                   // of dynamic shared memory, for each block
  dim3 cluster = dim3(1);                    // blocks that run together and reach each other's shared memory (ptx_cluster.h): 1 to 16, and they divide `blocks`
};

// So many blocks. DeviceError where there are more than a grid can have, instead of a number that has lost its upper bits.
dim3 blocks_of(int64_t x, int64_t y = 1, int64_t z = 1);

// A one-dimensional grid for `items` pieces of work, one a thread; kernels loop over what is left where there are more than fit into the grid.
inline Grid grid_for(int64_t items, int threads = 256, size_t shared_bytes = 0) {
  constexpr int64_t most_blocks = 1 << 16;
  const int64_t blocks = ceil_div<int64_t>(items, threads);
  return {blocks_of(blocks < most_blocks ? blocks : most_blocks), dim3(static_cast<unsigned>(threads)), shared_bytes};
}

// While on, every launch waits for its kernel, so that an error comes from the call that caused it. Off, unless FOVEA_CUDA_SYNC=1 is in the environment.
void set_synchronous(bool is_on);
bool is_synchronous();
// The name that the latest launch of this thread was given; "" before the first.
const char* last_kernel();

inline uint64_t cluster_blocks(const Grid& grid) { return uint64_t{grid.cluster.x} * grid.cluster.y * grid.cluster.z; }

// The two halves of launch() that do not depend on the kernel's type.
bool prepare_launch(const char* name, const Grid& grid, const void* kernel);         // false when there is nothing to do: no blocks
void finish_launch(const char* name, const Grid& grid, Queue queue, cudaError_t result);

// Of a kernel. CUDA before 12.1 stops at 4096.
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr size_t most_parameter_bytes = 4096;
#else
constexpr size_t most_parameter_bytes = 32764;
#endif

template <class... Parameters, class... Arguments>
void launch(Queue queue, const char* name, const Grid& grid, void (*kernel)(Parameters...), const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= most_parameter_bytes, "a kernel's parameters are too many bytes; pass a pointer to device memory");
  if (!prepare_launch(name, grid, reinterpret_cast<const void*>(kernel))) return;
  const fovea::cuda::Range range(name);
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream_of(queue);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = grid.cluster.x, cluster.val.clusterDim.y = grid.cluster.y, cluster.val.clusterDim.z = grid.cluster.z;
  config.attrs = &cluster;
  config.numAttrs = cluster_blocks(grid) > 1;
  finish_launch(name, grid, queue, cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace fovea::kernels::cuda
