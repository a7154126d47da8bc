// cuDNN as a vendor: what its parts (cudnn_*.cpp) share.
#pragma once

#include <cudnn.h>

#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <fovea/kernels/error.h>

#include "vendor.h"

namespace fovea::benchmarks {

using Makers = std::vector<std::function<Algorithm()>>;

// The error ends with what cuDNN itself says about it ("!handle", the condition that did not hold).
inline void check_status(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char reason[256] = "";
  cudnnGetLastErrorString(reason, sizeof reason);
  fail<Error>(what, ": ", cudnnGetErrorString(status), reason[0] ? " (" : "", reason, reason[0] ? ")" : "");
}

inline cudnnDataType_t cudnn_type(DType dtype) {
  switch (dtype) {
    case DType::float32: return CUDNN_DATA_FLOAT;
    case DType::float16: return CUDNN_DATA_HALF;
    case DType::bfloat16: return CUDNN_DATA_BFLOAT16;
    case DType::int32: return CUDNN_DATA_INT32;
    case DType::int64: return CUDNN_DATA_INT64;
    default: fail<Error>("cuDNN: no such dtype");
  }
}

// The products that a float32 task may use: none of reduced precision unless TF32 is allowed.
inline cudnnMathType_t math_of(const Task& task) {
  return task.inputs[0].dtype == DType::float32 && !task.allows_tf32 ? CUDNN_FMA_MATH : CUDNN_TENSOR_OP_MATH;
}

// A descriptor that lives as long as somebody holds it.
template <class Descriptor>
using Shared = std::shared_ptr<std::remove_pointer_t<Descriptor>>;

template <class Descriptor>
Shared<Descriptor> make_shared_descriptor(cudnnStatus_t (*create)(Descriptor*), cudnnStatus_t (*destroy)(Descriptor), const char* what) {
  Descriptor descriptor = nullptr;
  check_status(create(&descriptor), what);
  return Shared<Descriptor>(descriptor, [destroy](Descriptor d) { destroy(d); });
}

using TensorDescriptor = Shared<cudnnTensorDescriptor_t>;
TensorDescriptor tensor_descriptor(cudnnDataType_t type, std::vector<int64_t> shape, std::vector<int64_t> strides);
TensorDescriptor tensor_descriptor(const Array& x);              // with axes of size 1 behind, as far as four

// Device memory of a plan's own (reserves, weights, labels), freed with it.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes);
  DeviceMemory(const void* host, size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

Makers conv_algorithms(cudnnHandle_t handle, const Task& task);
Makers batch_norm_algorithms(cudnnHandle_t handle, const Task& task);
Makers lstm_algorithms(cudnnHandle_t handle, const Task& task);
Makers ctc_algorithms(cudnnHandle_t handle, const Task& task);
Makers pooling_algorithms(cudnnHandle_t handle, const Task& task);
Makers softmax_algorithms(cudnnHandle_t handle, const Task& task);

// Vendor::check_without_device, one for each family.
std::string check_conv(const Task& task, double seconds);
std::string check_batch_norm(const Task& task);
std::string check_lstm(const Task& task);
std::string check_ctc(const Task& task);
std::string check_pooling(const Task& task);
std::string check_softmax(const Task& task);

}  // namespace fovea::benchmarks
