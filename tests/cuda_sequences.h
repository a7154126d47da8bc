// What the tests of CUDA's kernels for sequences have in common: random arguments, and memory for a workspace or a reserve.
#pragma once

#include <random>

#include "cuda_kernels.h"

namespace fovea::testing {

inline Tensor numbers(const Shape& shape, DType dtype, unsigned seed, double scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0, scale);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = normal(generator);
  Tensor y = empty(shape, dtype);
  cpu().copy(nullptr, from_vector(values, shape).view(), y.mutable_view());
  return y;
}

inline Tensor widened(const Tensor& x) {
  Tensor y = empty(x.shape(), DType::float64);
  cpu().copy(nullptr, x.view(), y.mutable_view());
  return y;
}

// Device memory for a kernel's workspace or reserve, poisoned.
class DeviceBytes {
 public:
  explicit DeviceBytes(int64_t bytes) : memory_(DeviceTensor::poisoned({bytes}, DType::uint8)), bytes_(bytes) {}
  operator kernels::Workspace() const { return {memory_.view().data, bytes_}; }
  void check_guards() const { memory_.to_host(); }

 private:
  DeviceTensor memory_;
  int64_t bytes_;
};

struct HostBytes {
  explicit HostBytes(int64_t bytes) : memory(empty({bytes}, DType::uint8)) {}
  operator kernels::Workspace() { return {memory.mutable_view().data, memory.numel()}; }
  void check_guards() const {}               // the CPU's kernels have tests of their own
  Tensor memory;
};

}  // namespace fovea::testing
