// y[i] = a chain of fused multiply-adds that depends on nothing else: what the float32 units give when nothing has to be fetched.
// Eight chains a thread, so that the latency of one is hidden by the others. Writes every element of y once. Floor: 2 * 256 * rounds operations a thread.
#include <fovea/kernels/cuda/core/launch.h>

#include "machine.h"

namespace fovea::benchmarks {

namespace {

__global__ void fused_multiply_adds(int64_t threads, int rounds, float* y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= threads) return;
  constexpr int chains = 8, links = 32;
  float sums[chains];
  for (int c = 0; c < chains; ++c) sums[c] = static_cast<float>(i + c) * 1e-6f;
  const float a = 0.999f + static_cast<float>(i % 7) * 1e-5f, b = 1e-3f;
  for (int round = 0; round < rounds; ++round)
    for (int link = 0; link < links; ++link)
      for (int c = 0; c < chains; ++c) sums[c] = fmaf(sums[c], a, b);
  float sum = 0;
  for (int c = 0; c < chains; ++c) sum += sums[c];
  y[i] = sum;
}

}  // namespace

double run_fused_multiply_adds(void* stream, int64_t threads, int rounds, float* y) {
  using namespace kernels::cuda;
  launch(stream, "fused_multiply_adds", Grid{dim3(static_cast<unsigned>((threads + 255) / 256)), dim3(256)}, fused_multiply_adds, threads, rounds, y);
  return 2.0 * 256 * rounds * static_cast<double>(threads);
}

}  // namespace fovea::benchmarks
