// The ring of stages in shared memory through which products pass their operands.
#pragma once

#include <fovea/kernels/cuda/core/ptx.h>

namespace fovea::kernels::cuda {

constexpr int stages = 4;  // of the ring: three are on their way while one is multiplied

// Note [A ring of stages]
// Step t is multiplied out of stage t % stages, while the next stages - 1 steps are on their way. The barrier comes after each thread has
// waited for its own copies of step t: then all of them have landed. It also ends everyone's reading of step t - 1, whose stage is filled
// again right after it.
// A group of copies is closed in every step, empty or not, so that the number of groups in flight is the same to the end.
// Calls copy(stage, t), which starts a thread's copies, and multiply(stage). All threads of a block call this; no copy is under way when it
// returns.
template <int ring_stages = stages, class Copy, class Multiply>
__device__ inline void run_ring(int steps, const Copy& copy, const Multiply& multiply) {
#pragma unroll
  for (int t = 0; t < ring_stages - 1; ++t) {
    if (t < steps) copy(t, t);
    commit_copies();
  }
  for (int t = 0; t < steps; ++t) {
    wait_for_copies<ring_stages - 2>();
    __syncthreads();
    const int next = t + ring_stages - 1;
    if (next < steps) copy(next % ring_stages, next);
    commit_copies();
    multiply(t % ring_stages);
  }
  wait_for_copies<0>();
}

}  // namespace fovea::kernels::cuda
