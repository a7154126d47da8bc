// What launch() leaves behind for host code of any compiler. Not installed.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <vector>

namespace fovea::kernels::cuda {

// A launch, as much of it as is free to keep; what CUDA knows of the kernel is asked when somebody wants it.
struct LaunchRecord {
  const char* name = "";
  const void* kernel = nullptr;              // null: no launch yet
  dim3 blocks, threads, cluster = dim3(1);
  size_t shared_bytes = 0;
  int device = 0;
};

// The latest launch of this thread.
LaunchRecord& latest_launch();

// From now on every launch of this thread adds its kernel's name to the list, for benchmarks and tests that want more than the latest; null ends it.
void log_launches(std::vector<std::string>* names);

// "kernel relu (12x1x1 blocks of 256x1x1 threads, 0 bytes of shared memory)"
std::string describe(const LaunchRecord& launch);

}  // namespace fovea::kernels::cuda
