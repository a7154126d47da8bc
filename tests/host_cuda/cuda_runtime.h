// Stands in for CUDA's header where kernels/cuda/ is compiled for the host: this folder comes first on the include path. See host_cuda.h.
#pragma once

#include "device_math.h"
#include "execution.h"
#include "host_cuda.h"
#include "runtime_api.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
// __restrict__ is the host compiler's own; __shared__ is left out on purpose: kernels use shared<T>() of kernels/cuda/core/device.h.
