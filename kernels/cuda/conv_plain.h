// What the two kernels of float32 and float64 convolutions have in common (conv_plain.cu, conv_plain_weight.cu): tiles of sums, and who has
// which of them.
#pragma once

#include <fovea/kernels/cuda/conv_functions.h>
#include <fovea/kernels/cuda/core/copy_ring.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>

namespace fovea::kernels::cuda {

// Note [Sixteen by eight sums]
// A step of the sum takes tall + wide operands out of shared memory for tall * wide multiplications. An SM multiplies 128 times in a cycle
// and reads 128 bytes: 8 x 8 sums of float32 take 64 bytes for 64 products, so that both units would have to be busy always; 16 x 8 take 96
// for 128. These fill the register file with 8 warps of an SM, in two blocks, so that one block multiplies while the other waits at its
// barrier.
// A tile is shared out to warps_down x warps_right warps, and a warp's part to lanes_down x (32 / lanes_down) threads.
template <class T, int warps_down_, int warps_right_, int tall_, int wide_, int lanes_down_ = 4>
struct PlainTile {
  using Element = T;
  static constexpr int warps_right = warps_right_, tall = tall_, wide = wide_, lanes_down = lanes_down_,
                       lanes_right = warp_size / lanes_down_;
  static constexpr int warp_rows = lanes_down * tall, warp_columns = lanes_right * wide;
  static constexpr int rows = warps_down_ * warp_rows, columns = warps_right * warp_columns,
                       threads = warps_down_ * warps_right * warp_size;
  static constexpr int depth = 8;  // steps of the sum in a stage of the ring
  static constexpr int pack = full_pack<T>;

  // So many blocks an SM should hold, by the registers that the sums and what belongs to them take.
  static constexpr int words = tall * wide * static_cast<int>(sizeof(T) / 4), registers = words > 64 ? 256 : words >= 32 ? 128 : 96;
  static constexpr int blocks_beside = 65536 / (threads * registers);

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_size; }
  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / warp_size / warps_right * warp_rows; }  // of the warp
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) / warp_size % warps_right * warp_columns; }
};

}  // namespace fovea::kernels::cuda
