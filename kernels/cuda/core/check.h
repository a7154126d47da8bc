// Turning CUDA's error codes into exceptions; for host code, whichever compiler it goes through.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include <fovea/kernels/error.h>

namespace fovea::kernels::cuda {

[[noreturn]] void fail_cuda(cudaError_t result, const std::string& what);

// DeviceError (MemoryError for want of memory) with CUDA's own words when `result` is an error; `what` says what was being done. It becomes a text only then: this stands on the way of every launch.
template <class... What>
void check_cuda(cudaError_t result, const What&... what) {
  if (result != cudaSuccess) [[unlikely]] fail_cuda(result, str(what...));
}

}  // namespace fovea::kernels::cuda
