// For tests that call the kernels of CUDA's table directly: device memory that is filled from a host tensor, stands between guards, and can
// be copied back. They run on a GPU and over the model of tests/host_cuda alike.
#pragma once

#include <doctest/doctest.h>
#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/table.h>
#include <fovea/tensor/creation.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "messages.h"

namespace fovea::testing {

inline const kernels::KernelTable& cpu() { return kernels::cpu_table(); }
inline const kernels::KernelTable& cuda() { return kernels::cuda_table(0); }

// The elements of one contiguous tensor on the device. `offset` elements lie unused before the first, so that packs are not aligned.
class DeviceTensor {
 public:
  explicit DeviceTensor(const Tensor& host, int64_t offset = 0)
      : shape_(host.shape()), dtype_(host.dtype()), offset_bytes_(offset * size_of(dtype_)) {
    check(host.is_contiguous(), "DeviceTensor: takes a contiguous host tensor");
    std::vector<unsigned char> all(static_cast<size_t>(total_bytes()), guard_byte);
    std::memcpy(all.data() + data_at(), host.view().data, static_cast<size_t>(bytes()));
    void* memory = nullptr;
    kernels::cuda::check_cuda(cudaMalloc(&memory, all.size()), "allocating memory for a test");
    memory_ = static_cast<char*>(memory);
    kernels::cuda::check_cuda(cudaMemcpy(memory_, all.data(), all.size(), cudaMemcpyHostToDevice), "copying a test's input");
  }
  // An output as a kernel may find it: NaN, or bytes of ones.
  static DeviceTensor poisoned(const Shape& shape, DType dtype, int64_t offset = 0) {
    Tensor host = empty(shape, dtype);
    std::memset(host.mutable_view().data, dtype == DType::boolean ? 1 : 0xff, static_cast<size_t>(host.numel() * size_of(dtype)));
    return DeviceTensor(host, offset);
  }
  ~DeviceTensor() {
    if (memory_) cudaFree(memory_);
  }
  DeviceTensor(DeviceTensor&& other) noexcept
      : shape_(other.shape_), dtype_(other.dtype_), offset_bytes_(other.offset_bytes_), memory_(std::exchange(other.memory_, nullptr)) {}
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  View view() const { return view(shape_, contiguous_strides(shape_)); }
  // The same memory from element `first` on, with another shape and other strides.
  View view(const Shape& shape, const Strides& strides, int64_t first = 0) const {
    View v;
    v.data = memory_ + data_at() + first * size_of(dtype_);
    v.dtype = dtype_;
    v.shape = shape;
    v.strides = strides;
    return v;
  }

  // Waits for the device. Fails the test where something wrote beside the memory.
  Tensor to_host() const {
    std::vector<unsigned char> all(static_cast<size_t>(total_bytes()));
    kernels::cuda::check_cuda(cudaDeviceSynchronize(), "waiting for a test's kernels");
    kernels::cuda::check_cuda(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDeviceToHost), "copying a test's output");
    int64_t damaged = 0;
    for (int64_t i = 0; i < total_bytes(); ++i)
      if ((i < data_at() || i >= data_at() + bytes()) && all[static_cast<size_t>(i)] != guard_byte) ++damaged;
    CHECK_MESSAGE(damaged == 0, "guard bytes were overwritten");
    Tensor host = empty(shape_, dtype_);
    std::memcpy(host.mutable_view().data, all.data() + data_at(), static_cast<size_t>(bytes()));
    return host;
  }

 private:
  static constexpr int64_t guard = 256;
  static constexpr unsigned char guard_byte = 0x5a;
  int64_t bytes() const { return shape_.numel() * size_of(dtype_); }
  int64_t data_at() const { return guard + offset_bytes_; }
  int64_t total_bytes() const { return data_at() + bytes() + guard; }

  Shape shape_;
  DType dtype_;
  int64_t offset_bytes_;
  char* memory_ = nullptr;
};

// A view that is not there.
inline ConstView absent() { return {}; }

inline bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

// What the CPU's kernels take of values for a kernel that computes half types in float32: the same values in float32.
inline Tensor as_computed(const Tensor& x) {
  if (!is_half(x.dtype())) return x;
  Tensor wide = empty(x.shape(), DType::float32);
  cpu().copy(nullptr, x.view(), wide.mutable_view());
  return wide;
}

// How far the nearest number of a half type is from a number, relative to it; 0 for other dtypes, whose tolerances are the kernels' own.
inline double rounding(DType dtype) { return dtype == DType::float16 ? 0x1p-11 : dtype == DType::bfloat16 ? 0x1p-8 : 0; }

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.view().data, b.view().data, static_cast<size_t>(a.numel() * size_of(a.dtype()))) == 0;
}

// "" where |got - want| <= relative * |want| + absolute everywhere, NaN counting as equal to NaN and an infinity to itself; else a sentence
// about the first and the number of elements that differ. Integers are compared exactly.
inline std::string difference(const Tensor& got, const Tensor& want, double relative, double absolute) {
  if (got.shape() != want.shape()) return "shapes differ";
  if (!is_floating(got.dtype()) && got.dtype() == want.dtype()) {
    if (same_bits(got, want)) return "";
    relative = absolute = 0;
  }
  const std::vector<double> g = got.to_vector<double>(), w = want.to_vector<double>();
  size_t count = 0, first = 0;
  for (size_t i = 0; i < g.size(); ++i) {
    const bool is_close = g[i] == w[i] || (std::isnan(g[i]) && std::isnan(w[i])) ||
                          (std::isfinite(g[i]) && std::isfinite(w[i]) && std::abs(g[i] - w[i]) <= relative * std::abs(w[i]) + absolute);
    if (!is_close && count++ == 0) first = i;
  }
  return count == 0 ? "" : str(count, " of ", g.size(), " elements differ, the first at ", first, ": ", g[first], " instead of ", w[first]);
}

}  // namespace fovea::testing
