// Adding into places that several threads of a block may want at once, in the same order in every run and without atomic sums: the threads take turns.
//
//   auto& claims = shared<Claims>();
//   claims.clear();                                    // then a barrier
//   bool waits = ...;                                  // has this thread something to add at `place`?
//   while (__syncthreads_or(waits)) {
//     if (!claims.take_turn(waits, place)) continue;
//     out[place] += value;
//     waits = false;
//   }
//
// In each round the thread with the lowest number among those that wait for a place gets it. Places share a slot when their numbers differ by a multiple of `slots`;
// that may cost a round, and changes nothing else. Most rounds are the only one.
#pragma once

#include <fovea/kernels/cuda/core/device.h>

namespace fovea::kernels::cuda {

struct Claims {
  static constexpr int slots = 1024, nobody = 1 << 30;
  int lowest[slots];

  __device__ void clear() {
    for (int i = static_cast<int>(threadIdx.x); i < slots; i += static_cast<int>(blockDim.x)) lowest[i] = nobody;
  }
  // All threads of the block, after a barrier: has the calling thread got its turn?
  __device__ bool take_turn(bool waits, int64_t place) {
    const int slot = static_cast<int>(place & (slots - 1)), self = static_cast<int>(threadIdx.x);
    if (waits) atomicMin(&lowest[slot], self);
    __syncthreads();
    const bool is_next = waits && lowest[slot] == self;
    __syncthreads();
    if (is_next) lowest[slot] = nobody;
    return is_next;
  }
};

}  // namespace fovea::kernels::cuda
