// Turning CUDA's error codes into exceptions; for host code, whichever compiler it goes through.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include <fovea/kernels/error.h>

namespace fovea::kernels::cuda {

// DeviceError with CUDA's own words when `result` is an error; `what` is what was being done.
void check_cuda(cudaError_t result, const std::string& what);

}  // namespace fovea::kernels::cuda
