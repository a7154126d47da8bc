// For kernels that number their work with 31 bits, so that they can divide by multiplication: how the host cuts larger tensors into launches.
#pragma once

#include <algorithm>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/strided.h>

namespace fovea::kernels::cuda {

inline constexpr int64_t index_limit = int64_t{1} << 31;

inline FastDivide divide_by(int64_t divisor) { return FastDivide(static_cast<uint32_t>(std::max<int64_t>(divisor, 1))); }

// Calls f(first, count) for runs of planes whose items (`items` in each, fewer than 2^31) can be numbered.
template <class F>
void for_each_run_of_planes(int64_t planes, int64_t items, F&& f) {
  if (items == 0) return;
  const int64_t at_once = std::max<int64_t>(1, (index_limit / 2) / items);
  for (int64_t first = 0; first < planes; first += at_once) f(first, std::min(at_once, planes - first));
}

// A thread for each of `items`, of which there are fewer than 2^31.
inline Grid thread_each(int64_t items, int threads = 256) {
  return {dim3(static_cast<unsigned>(ceil_div<int64_t>(items, threads))), dim3(static_cast<unsigned>(threads)), 0};
}

}  // namespace fovea::kernels::cuda
