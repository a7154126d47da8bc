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

// Throws ShapeError where the hardware could not do it, DeviceError where the driver has no such function or refuses.
TensorMap tiled_map(const TiledLayout& layout);

}  // namespace fovea::kernels::cuda
