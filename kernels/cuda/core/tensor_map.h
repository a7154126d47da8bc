// What the tensor memory accelerator of sm_90 is told of a tensor in global memory: where it lies, its sizes and strides, and the box of it that one copy moves.
// A map is made on the host and handed to kernels as `const __grid_constant__ TensorMap`; ptx_hopper.h has the copies.
#pragma once

#include <fovea/kernels/cuda/core/device.h>

namespace fovea::kernels::cuda {

// Which of a row's 16-byte pieces go where in shared memory: piece i of row r lies at i ^ (r % 8) with rows of 128 bytes, so that eight rows' pieces of one column
// lie in different banks. Rows of 64 and 32 bytes do the same among their 4 and 2 pieces, of every second and fourth row.
enum class Swizzle { none, rows_of_32_bytes, rows_of_64_bytes, rows_of_128_bytes };

// The address in shared memory where what belongs at `address` lies.
__host__ __device__ constexpr uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  return address ^ ((address >> 7 & ((1u << static_cast<int>(swizzle)) - 1)) << 4);
}

struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// A tensor of 1 to 5 dimensions and a box of it, the innermost dimension first, as in the PTX ISA.
struct TiledLayout {
  const void* data = nullptr;              // a multiple of 16
  DType dtype = DType::float32;
  int rank = 0;
  int64_t sizes[5] = {};                   // 1 to 2^32 - 1
  int64_t strides[5] = {};                 // in elements; the innermost is 1, the others are multiples of 16 bytes
  int box[5] = {};                         // 1 to 256; the innermost is a multiple of 16 bytes, and as many as the swizzle's rows have
  Swizzle swizzle = Swizzle::none;
};

// A tensor of images, channels innermost, and what one copy brings of it: of a column of `pixels` pixels, `channels` channels each. This is a tile of the matrix that a
// convolution multiplies: its rows are the places where the filter may stand, and the copy says which element of the filter (its offsets) and which channels.
//
// A filter stands at position p of a direction (the input's index under the filter's first element) for p = lower, lower + step, ... up to size - 1 + upper:
// with a padding of `before` and `behind`, lower is -before and upper is behind - dilation (filter - 1). From one pixel of a column to the next p goes along the width,
// from the end of a row to the beginning of the next along the height, then the depth, then to the next image.
struct Im2colLayout {
  const void* data = nullptr;              // a multiple of 16
  DType dtype = DType::float32;
  int rank = 4;                            // 3 to 5: channels, width, (height, depth,) images
  int64_t sizes[5] = {};                   // 1 to 2^32 - 1
  int64_t strides[5] = {};                 // in elements; the channels' is 1, the others are multiples of 16 bytes
  int lower[3] = {}, upper[3] = {};        // of width, height, depth: 16 bits with one of them, 8 bits with two, 5 bits with three
  int steps[3] = {1, 1, 1};                // the convolution's stride along width, height, depth: 1 to 8
  int channels = 0;                        // 1 to 256; a multiple of 16 bytes, and as many as the swizzle's rows have
  int pixels = 0;                          // 1 to 1024
  Swizzle swizzle = Swizzle::none;
};

// Both throw ShapeError where the hardware could not do it, DeviceError where the driver has no such function or refuses.
TensorMap tiled_map(const TiledLayout& layout);
TensorMap im2col_map(const Im2colLayout& layout);

}  // namespace fovea::kernels::cuda
