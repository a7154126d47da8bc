// Tests make their tensors on the CPU or, with FOVEA_DEVICE=cuda in the environment (main.cpp), on the first CUDA device. What a test needs to do either.
#pragma once

#include <doctest/doctest.h>

#include <vector>

#include <fovea/kernels/cuda/allocator.h>
#include <fovea/tensor/allocator.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/named_tensors.h>

#include "default_device.h"

namespace fovea::testing {

// Decorates a case about the CPU itself: its kernels, its allocator, memory that host code reads, processes that fork. Left out where tensors are made elsewhere.
inline doctest::test_suite of_the_cpu() { return {"cpu"}; }

// Copies, without a gradient: for host code to read; as what a test makes itself, where the library reads or makes it on the CPU.
inline Tensor on_cpu(const Tensor& x) { return copied_to(x, Device::cpu()); }
inline Tensor on_default_device(const Tensor& x) { return copied_to(x, default_device()); }
inline NamedTensors on_default_device(const NamedTensors& tensors) {
  NamedTensors moved;
  for (const auto& [name, tensor] : tensors) moved.add(name, on_default_device(tensor));
  return moved;
}

// What tensors of the default device hold.
inline AllocatorStats allocator_stats() { return default_device().kind == Device::Kind::cuda ? cuda::allocator::stats() : allocator::stats(); }

// So much at most, while it is alive: a device may have room for what a test takes for too much.
class MemoryLimit {
 public:
  explicit MemoryLimit(int64_t bytes) { set(bytes); }
  ~MemoryLimit() { set(0); }
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

 private:
  static void set(int64_t bytes) {
    if (default_device().kind == Device::Kind::cuda) cuda::allocator::set_limit(bytes);
    else allocator::set_limit(bytes);
  }
};

// value(i) for element i, counted in row-major order.
template <class T, class Value>
Tensor filled(const Shape& shape, const Value& value) {
  std::vector<T> values(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(value(static_cast<int64_t>(i)));
  return from_vector(values, shape);
}

// How often to do something whose every part is a launch and a fresh allocation between guards: a device takes a hundred times as long for these as the CPU.
inline int64_t less_on_a_device(int64_t on_the_cpu, int64_t on_a_device) { return default_device().kind == Device::Kind::cuda ? on_a_device : on_the_cpu; }

// How often to do something, or how large to make it: less over the model of CUDA, which takes a thousand times as long.
inline int64_t less_over_the_model([[maybe_unused]] int64_t elsewhere, [[maybe_unused]] int64_t over_the_model) {
#ifdef FOVEA_HOST_CUDA
  if (default_device().kind == Device::Kind::cuda) return over_the_model;
#endif
  return elsewhere;
}

}  // namespace fovea::testing
