// The patch of float32 planes that the windows of a tile of pixels see, copied to shared memory: for conv_direct.cu and conv_direct_weight.cu.
#pragma once

#include <fovea/kernels/cuda/conv_functions.h>

#include <fovea/kernels/cuda/core/ptx.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {

// Starts the copies of `channels` planes, of which `first` is the first; a warp of the block's `warps` copies a row of one channel at a time.
// p has the axes and the patch's patch_h, patch_w, pitch and by_patch_h; pixels that do not exist become zero. `any`: an address that may be read.
template <class Product>
__device__ void copy_planes(const Product& p, int32_t channels, int32_t first_row, int32_t first_column, const float* first, const float* any,
                           float* patch, int warps) {
  const int32_t top = p.vertical.step * first_row + p.vertical.base, left = p.horizontal.step * first_column + p.horizontal.base;
  const int64_t plane = static_cast<int64_t>(p.vertical.size) * p.horizontal.size;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int32_t line = static_cast<int32_t>(threadIdx.x) / warp_size; line < channels * p.patch_h; line += warps) {
    const int32_t channel = static_cast<int32_t>(p.by_patch_h.quotient(static_cast<uint32_t>(line))),
                  row = top + line - channel * p.patch_h;
    const bool is_row = static_cast<uint32_t>(row) < static_cast<uint32_t>(p.vertical.size);
    const float* const from = first + channel * plane + static_cast<int64_t>(row) * p.horizontal.size;
    for (int32_t j = lane; j < p.patch_w; j += warp_size) {
      const bool is_there = is_row && static_cast<uint32_t>(left + j) < static_cast<uint32_t>(p.horizontal.size);
      copy_async<sizeof(float)>(patch + line * p.pitch + j, is_there ? from + left + j : any, is_there);
    }
  }
}

}  // namespace fovea::kernels::cuda
