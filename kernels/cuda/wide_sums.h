// Sums of half types that come together in memory, from threads that do not know of each other's terms: kernels add them up in float32 scratch, and once all are in
// they are rounded.
//
//   with_wide_sums(queue, dx, [&](auto* sums) { launch(..., sums); });       // sums: dx's own elements, or floats where dx is of a half type
//
// Beside half types the scratch costs a write and a read of 4 bytes an element.
#pragma once

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/scratch.h>

namespace fovea::kernels::cuda {

// T: dx's element type. dx is contiguous, and overwritten by what f leaves in the sums.
template <class T, class F>
void with_wide_sums(Queue queue, const View& dx, const F& f) {
  if constexpr (is_half<T>) {
    const DeviceScratch memory(dx.numel() * static_cast<int64_t>(sizeof(float)), queue);
    f(memory.as<float>());
    ConstView sums = dx;
    sums.data = memory.data();
    sums.dtype = DType::float32;
    int device = 0;
    check_cuda(cudaGetDevice(&device), "cuda: asking for the current device");
    cuda_table(device).copy(queue, sums, dx);
  } else {
    f(dx.as<T>());
  }
}

}  // namespace fovea::kernels::cuda
