// What kernels on tensor cores have in common: how a stage of operands lies in shared memory, and which instruction multiplies them.
#pragma once

#include <fovea/kernels/cuda/core/copy_ring.h>
#include <fovea/kernels/cuda/core/numeric.h>

namespace fovea::kernels::cuda {

constexpr int copy_bytes = 16;                          // of a chunk: what one cp.async copies, and a row of one of ldmatrix's matrices
template <class T> inline constexpr int chunk = copy_bytes / static_cast<int>(sizeof(T));        // elements
template <class T> inline constexpr int instruction_depth = 2 * chunk<T>;                        // steps of the sum that one mma does: 16 of a half type, 8 of TF32

// Note [Chunks that change places]
// Eight chunks are as wide as all banks of shared memory together. A warp reads eight chunks at once, of the same column and of eight rows. So that these lie in
// different banks, the chunks of a row change places with each other, by a rule that differs among the rows that would meet. Rows of fewer than eight chunks lie
// several to the width of the banks, and only every so many rows meet.
// Returns the byte where a chunk begins. `spread` stands for the row where it is not eight neighbouring ones that meet.
template <int chunks>
__device__ inline int place_of_chunk(int row, int column, int spread) {
  constexpr int beside = chunks < 8 ? chunks : 8;
  return (row * chunks + (column ^ (spread / (8 / beside) % beside))) * copy_bytes;
}
template <int chunks>
__device__ inline int place_of_chunk(int row, int column) { return place_of_chunk<chunks>(row, column, row); }

// How many blocks of 128 threads an SM should hold, by mma's tiles of a warp: as many as have registers enough for their sums, operands and addresses.
constexpr int blocks_beside(int tiles) { return tiles > 16 ? 2 : tiles > 8 ? 3 : 4; }

// sums += a b for tiles of 16 x 8 sums; a and b as ldmatrix leaves them.
template <class T, int tall, int wide>
__device__ inline void multiply_fragments(float (&sums)[tall][wide][4], uint32_t (&a)[tall][4], uint32_t (&b)[wide][2]) {
  if constexpr (std::is_same_v<T, float>) {             // to_tf32 rounds; the instruction alone would cut bits off
#pragma unroll
    for (int i = 0; i < tall; ++i)
#pragma unroll
      for (int v = 0; v < 4; ++v) a[i][v] = to_tf32(__uint_as_float(a[i][v]));
#pragma unroll
    for (int j = 0; j < wide; ++j)
#pragma unroll
      for (int v = 0; v < 2; ++v) b[j][v] = to_tf32(__uint_as_float(b[j][v]));
  }
#pragma unroll
  for (int i = 0; i < tall; ++i)
#pragma unroll
    for (int j = 0; j < wide; ++j) {
      if constexpr (std::is_same_v<T, float>) multiply_tf32(sums[i][j], a[i], b[j]);
      else multiply(sums[i][j], a[i], b[j], T{});
    }
}

// The place of a thread's sums within a tile of 16 x 8: rows sum_row() and 8 below, columns sum_column() and the next.
__device__ inline int sum_row() { return static_cast<int>(threadIdx.x) % warp_size / 4; }
__device__ inline int sum_column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

}  // namespace fovea::kernels::cuda
