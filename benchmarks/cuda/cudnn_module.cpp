#include <cuda_runtime.h>

#include "cudnn_vendor.h"

namespace fovea::benchmarks {

TensorDescriptor tensor_descriptor(cudnnDataType_t type, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  const std::vector<int> sizes(shape.begin(), shape.end()), steps(strides.begin(), strides.end());
  TensorDescriptor descriptor = make_shared_descriptor<cudnnTensorDescriptor_t>(cudnnCreateTensorDescriptor, cudnnDestroyTensorDescriptor, "cudnnCreateTensorDescriptor");
  check_status(cudnnSetTensorNdDescriptor(descriptor.get(), type, static_cast<int>(sizes.size()), sizes.data(), steps.data()), "cudnnSetTensorNdDescriptor");
  return descriptor;
}

TensorDescriptor tensor_descriptor(const Array& x) {
  std::vector<int64_t> shape = x.shape, strides = x.strides;
  for (; shape.size() < 4; strides.push_back(1)) shape.push_back(1);
  return tensor_descriptor(cudnn_type(x.dtype), shape, strides);
}

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  check<Error>(cudaMalloc(&data_, bytes > 0 ? bytes : 1) == cudaSuccess, "no ", bytes, " bytes of device memory for the vendor's plan");
}

DeviceMemory::DeviceMemory(const void* host, size_t bytes) : DeviceMemory(bytes) {
  check<Error>(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice) == cudaSuccess, "copying ", bytes, " bytes for the vendor's plan failed");
}

DeviceMemory::~DeviceMemory() { cudaFree(data_); }

namespace {

class Cudnn final : public Vendor {
 public:
  explicit Cudnn(bool has_device) {
    if (has_device) check_status(cudnnCreate(&handle_), "cudnnCreate");
  }
  ~Cudnn() override {
    if (handle_) cudnnDestroy(handle_);
  }

  std::string name() const override {
    const size_t version = cudnnGetVersion();
    return "cuDNN " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
  }

  Makers algorithms(const Task& task) override {
    if (task.op == "conv2d") return conv_algorithms(handle_, task);
    if (task.op.starts_with("batch_norm")) return batch_norm_algorithms(handle_, task);
    if (task.op == "lstm") return lstm_algorithms(handle_, task);
    if (task.op == "ctc_loss") return ctc_algorithms(handle_, task);
    if (task.op == "max_pool2d" || task.op == "avg_pool2d") return pooling_algorithms(handle_, task);
    if (task.op == "softmax") return softmax_algorithms(handle_, task);
    return {};
  }

  std::string check_without_device(const Task& task, double seconds) override {
    if (task.op == "conv2d") return check_conv(task, seconds);
    if (task.op.starts_with("batch_norm")) return check_batch_norm(task);
    if (task.op == "lstm") return check_lstm(task);
    if (task.op == "ctc_loss") return check_ctc(task);
    if (task.op == "max_pool2d" || task.op == "avg_pool2d") return check_pooling(task);
    if (task.op == "softmax") return check_softmax(task);
    return "cuDNN does not compute it";
  }

 private:
  cudnnHandle_t handle_ = nullptr;
};

}  // namespace
}  // namespace fovea::benchmarks

extern "C" fovea::benchmarks::Vendor* fovea_make_vendor(bool has_device) { return new fovea::benchmarks::Cudnn(has_device); }
