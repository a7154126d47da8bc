// Device memory of a test that is freed again.
#pragma once

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/core/device.h>

#include <vector>

namespace fovea::testing {

template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : n_(values.size()) {
    allocate();
    kernels::cuda::check_cuda(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice), "input of a test");
  }
  explicit Buffer(size_t n) : n_(n) {          // NaN, as floating-point numbers
    allocate();
    kernels::cuda::check_cuda(cudaMemset(data_, 0xff, bytes()), "memory of a test");
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* get() const { return data_; }
  std::vector<T> values() const {              // waits for the device
    std::vector<T> host(n_);
    kernels::cuda::check_cuda(cudaDeviceSynchronize(), "kernel of a test");
    kernels::cuda::check_cuda(cudaMemcpy(host.data(), data_, bytes(), cudaMemcpyDeviceToHost), "output of a test");
    return host;
  }

 private:
  size_t bytes() const { return n_ * sizeof(T); }
  void allocate() { kernels::cuda::check_cuda(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), "memory of a test"); }

  T* data_ = nullptr;
  size_t n_;
};

}  // namespace fovea::testing
