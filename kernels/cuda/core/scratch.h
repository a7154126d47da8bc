// Memory for the length of one host function, for entries of the table that come without a Workspace. It goes back to the allocator as soon as the object does,
// which is right while kernels still run: whoever gets it next on the same stream comes after them.
#pragma once

#include <fovea/kernels/cuda/allocator.h>
#include <fovea/kernels/cuda/core/check.h>

namespace fovea::kernels::cuda {

class DeviceScratch {
 public:
  // `queue` is the current stream of CUDA's current device, as operations pass it to kernels.
  DeviceScratch(int64_t bytes, Queue) : bytes_(bytes) {
    check_cuda(cudaGetDevice(&device_), "cuda: asking for the current device");
    data_ = fovea::cuda::allocator::allocate(bytes, device_);
  }
  ~DeviceScratch() { fovea::cuda::allocator::release(data_, bytes_, device_); }
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;

  void* data() const { return data_; }
  template <class T> T* as() const { return static_cast<T*>(data_); }
  operator Workspace() const { return {data_, bytes_}; }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
  int device_ = 0;
};

}  // namespace fovea::kernels::cuda
