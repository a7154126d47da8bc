// Batch norm, pooling and softmax through cuDNN's older functions, which are what PyTorch calls too.
#include <cuda_runtime.h>

#include <map>

#include "cudnn_vendor.h"

namespace fovea::benchmarks {

namespace {

constexpr float one = 1, zero = 0;

// What a backward pass needs of the forward one, for each set of inputs (told apart by where x lies). It is made at a set's first run, which is before anything is timed
// or recorded.
template <class State>
class PerSet {
 public:
  template <class Make>
  State& of(const Array& x, Make make) {
    std::unique_ptr<State>& state = states_[x.data];
    if (!state) state = make();
    return *state;
  }

 private:
  std::map<const void*, std::unique_ptr<State>> states_;
};

void use_stream(cudnnHandle_t handle, void* stream) { check_status(cudnnSetStream(handle, static_cast<cudaStream_t>(stream)), "cudnnSetStream"); }

// --- batch norm ---

struct NormState {
  NormState(const Array& x, size_t reserve_bytes)
      : y(static_cast<size_t>(x.numel() * (x.dtype == DType::float32 ? 4 : 2))), mean(static_cast<size_t>(4 * x.shape[1])), invstd(static_cast<size_t>(4 * x.shape[1])),
        reserve(reserve_bytes) {}
  DeviceMemory y, mean, invstd, reserve;
};

struct NormPlan {
  cudnnBatchNormMode_t mode;
  cudnnBatchNormOps_t ops;
  bool has_residual;
  TensorDescriptor x, channels;
  Shared<cudnnActivationDescriptor_t> relu;
  size_t reserve_bytes = 0, workspace_bytes = 0;
  std::unique_ptr<NormState> scratch;                            // of forward passes, whose state nobody asks for
  std::unique_ptr<DeviceMemory> running_mean, running_variance;
  PerSet<NormState> states;
  static constexpr double eps = 1e-5;

  // y may be the state's own or an output.
  void forward(cudnnHandle_t handle, const std::vector<Array>& in, void* y, NormState& state, void* workspace) const {
    check_status(cudnnBatchNormalizationForwardTrainingEx(handle, mode, ops, &one, &zero, x.get(), in[0].data, has_residual ? x.get() : nullptr,
                                                          has_residual ? in[3].data : nullptr, x.get(), y, channels.get(), in[1].data, in[2].data, 0.1,
                                                          running_mean->data(), running_variance->data(), eps, state.mean.data(), state.invstd.data(), relu.get(),
                                                          workspace, workspace_bytes, state.reserve.data(), state.reserve.bytes()),
                 "cudnnBatchNormalizationForwardTrainingEx");
  }
};

// The descriptors alone: no device is needed for them.
std::shared_ptr<NormPlan> described_norm(const Task& task, cudnnBatchNormMode_t mode) {
  const auto plan = std::make_shared<NormPlan>();
  const Array& x = task.inputs[0];
  plan->mode = mode;
  plan->has_residual = task.op == "batch_norm_add_relu";
  plan->ops = task.op == "batch_norm" ? CUDNN_BATCHNORM_OPS_BN : plan->has_residual ? CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION : CUDNN_BATCHNORM_OPS_BN_ACTIVATION;
  plan->x = tensor_descriptor(x);
  plan->channels = tensor_descriptor(CUDNN_DATA_FLOAT, {1, x.shape[1], 1, 1}, {x.shape[1], 1, 1, 1});
  if (task.op != "batch_norm") {
    plan->relu = make_shared_descriptor<cudnnActivationDescriptor_t>(cudnnCreateActivationDescriptor, cudnnDestroyActivationDescriptor, "cudnnCreateActivationDescriptor");
    check_status(cudnnSetActivationDescriptor(plan->relu.get(), CUDNN_ACTIVATION_RELU, CUDNN_PROPAGATE_NAN, 0), "cudnnSetActivationDescriptor");
  }
  return plan;
}

std::shared_ptr<NormPlan> norm_plan(cudnnHandle_t handle, const Task& task, cudnnBatchNormMode_t mode) {
  std::shared_ptr<NormPlan> plan = described_norm(task, mode);
  const std::vector<float> zeros(static_cast<size_t>(task.inputs[0].shape[1]), 0.0f);
  plan->running_mean = std::make_unique<DeviceMemory>(zeros.data(), 4 * zeros.size());
  plan->running_variance = std::make_unique<DeviceMemory>(zeros.data(), 4 * zeros.size());
  if (task.direction == "eval") return plan;
  check_status(cudnnGetBatchNormalizationTrainingExReserveSpaceSize(handle, mode, plan->ops, plan->relu.get(), plan->x.get(), &plan->reserve_bytes),
               "asking for batch norm's reserve");
  size_t forward_bytes = 0, backward_bytes = 0;
  const cudnnTensorDescriptor_t z = plan->has_residual ? plan->x.get() : nullptr;
  check_status(cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(handle, mode, plan->ops, plan->x.get(), z, plan->x.get(), plan->channels.get(), plan->relu.get(),
                                                                        &forward_bytes),
               "asking for batch norm's workspace");
  const cudnnTensorDescriptor_t y = plan->relu ? plan->x.get() : nullptr;
  check_status(cudnnGetBatchNormalizationBackwardExWorkspaceSize(handle, mode, plan->ops, plan->x.get(), y, plan->x.get(), z, plan->x.get(), plan->channels.get(),
                                                                 plan->relu.get(), &backward_bytes),
               "asking for batch norm's workspace");
  plan->workspace_bytes = std::max(forward_bytes, backward_bytes);
  return plan;
}

Algorithm norm_algorithm(cudnnHandle_t handle, const Task& task, cudnnBatchNormMode_t mode) {
  const std::shared_ptr<NormPlan> plan = norm_plan(handle, task, mode);
  Algorithm algorithm{.name = mode == CUDNN_BATCHNORM_SPATIAL ? "spatial" : "spatial persistent", .workspace_bytes = static_cast<int64_t>(plan->workspace_bytes), .run = {}};
  if (task.direction == "eval") {
    check<Error>(task.op == "batch_norm", "cuDNN's batch norm in evaluation has no ReLU");
    algorithm.run = [=](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void*) {
      use_stream(handle, stream);
      check_status(cudnnBatchNormalizationForwardInference(handle, plan->mode, &one, &zero, plan->x.get(), in[0].data, plan->x.get(), out[0].data, plan->channels.get(),
                                                           in[1].data, in[2].data, in[3].data, in[4].data, NormPlan::eps),
                   "cudnnBatchNormalizationForwardInference");
    };
  } else if (task.direction == "forward") {
    plan->scratch = std::make_unique<NormState>(task.inputs[0], plan->reserve_bytes);
    algorithm.run = [=](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void* workspace) {
      use_stream(handle, stream);
      plan->forward(handle, in, out[0].data, *plan->scratch, workspace);
    };
  } else {
    algorithm.run = [=](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void* workspace) {
      use_stream(handle, stream);
      NormState& state = plan->states.of(in[0], [&] {
        auto made = std::make_unique<NormState>(in[0], plan->reserve_bytes);
        plan->forward(handle, in, made->y.data(), *made, workspace);
        return made;
      });
      const bool has_relu = plan->relu != nullptr, has_residual = plan->has_residual;
      const cudnnTensorDescriptor_t x = plan->x.get();
      check_status(cudnnBatchNormalizationBackwardEx(handle, plan->mode, plan->ops, &one, &zero, &one, &zero, x, in[0].data, has_relu ? x : nullptr,
                                                     has_relu ? state.y.data() : nullptr, x, in.back().data, has_residual ? x : nullptr, has_residual ? out[3].data : nullptr, x,
                                                     out[0].data, plan->channels.get(), in[1].data, has_relu ? in[2].data : nullptr, out[1].data, out[2].data, NormPlan::eps,
                                                     state.mean.data(), state.invstd.data(), plan->relu.get(), workspace, plan->workspace_bytes, state.reserve.data(),
                                                     state.reserve.bytes()),
                   "cudnnBatchNormalizationBackwardEx");
    };
  }
  return algorithm;
}

}  // namespace

Makers batch_norm_algorithms(cudnnHandle_t handle, const Task& task) {
  Makers makers;
  for (cudnnBatchNormMode_t mode : {CUDNN_BATCHNORM_SPATIAL_PERSISTENT, CUDNN_BATCHNORM_SPATIAL})
    makers.push_back([=] { return norm_algorithm(handle, task, mode); });
  return makers;
}

std::string check_batch_norm(const Task& task) {
  const std::shared_ptr<NormPlan> plan = described_norm(task, CUDNN_BATCHNORM_SPATIAL_PERSISTENT);
  // What describes one value a channel must be what cuDNN derives from x.
  const auto derived = make_shared_descriptor<cudnnTensorDescriptor_t>(cudnnCreateTensorDescriptor, cudnnDestroyTensorDescriptor, "cudnnCreateTensorDescriptor");
  check_status(cudnnDeriveBNTensorDescriptor(derived.get(), plan->x.get(), plan->mode), "cudnnDeriveBNTensorDescriptor");
  const auto sizes_of = [](cudnnTensorDescriptor_t descriptor) {
    cudnnDataType_t type;
    int rank = 0, sizes[4] = {}, strides[4] = {};
    check_status(cudnnGetTensorNdDescriptor(descriptor, 4, &type, &rank, sizes, strides), "cudnnGetTensorNdDescriptor");
    return str(type == CUDNN_DATA_FLOAT ? "float32 [" : "another type [", sizes[0], ",", sizes[1], ",", sizes[2], ",", sizes[3], "]");
  };
  check<Error>(sizes_of(derived.get()) == sizes_of(plan->channels.get()), "a value a channel is ", sizes_of(plan->channels.get()), ", cuDNN wants ", sizes_of(derived.get()));
  return "descriptors made";
}

// --- pooling ---

namespace {

struct PoolPlan {
  Shared<cudnnPoolingDescriptor_t> pool;
  TensorDescriptor x, y;
  PerSet<DeviceMemory> outputs;                                  // of the forward pass, for the backward one
};

Algorithm pool_algorithm(cudnnHandle_t handle, const Task& task, cudnnPoolingMode_t mode, const std::string& name) {
  const auto plan = std::make_shared<PoolPlan>();
  const bool is_backward = task.direction == "backward";
  plan->x = tensor_descriptor(task.inputs[0]);
  plan->y = tensor_descriptor(is_backward ? task.inputs[1] : task.outputs[0]);
  plan->pool = make_shared_descriptor<cudnnPoolingDescriptor_t>(cudnnCreatePoolingDescriptor, cudnnDestroyPoolingDescriptor, "cudnnCreatePoolingDescriptor");
  const int kernel = static_cast<int>(task["kernel"]), padding = static_cast<int>(task["pad"]), stride = static_cast<int>(task["stride"]);
  check_status(cudnnSetPooling2dDescriptor(plan->pool.get(), mode, CUDNN_PROPAGATE_NAN, kernel, kernel, padding, padding, stride, stride), "cudnnSetPooling2dDescriptor");
  Algorithm algorithm{.name = name, .workspace_bytes = 0, .run = {}};
  if (!is_backward) {
    algorithm.run = [=](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void*) {
      use_stream(handle, stream);
      check_status(cudnnPoolingForward(handle, plan->pool.get(), &one, plan->x.get(), in[0].data, &zero, plan->y.get(), out[0].data), "cudnnPoolingForward");
    };
    return algorithm;
  }
  algorithm.run = [=](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void*) {
    use_stream(handle, stream);
    const DeviceMemory& y = plan->outputs.of(in[0], [&] {
      auto made = std::make_unique<DeviceMemory>(static_cast<size_t>(in[1].numel() * (in[1].dtype == DType::float32 ? 4 : 2)));
      check_status(cudnnPoolingForward(handle, plan->pool.get(), &one, plan->x.get(), in[0].data, &zero, plan->y.get(), made->data()), "cudnnPoolingForward");
      return made;
    });
    check_status(cudnnPoolingBackward(handle, plan->pool.get(), &one, plan->y.get(), y.data(), plan->y.get(), in[1].data, plan->x.get(), in[0].data, &zero, plan->x.get(),
                                      out[0].data),
                 "cudnnPoolingBackward");
  };
  return algorithm;
}

}  // namespace

Makers pooling_algorithms(cudnnHandle_t handle, const Task& task) {
  if (task.op == "avg_pool2d") return {[=] { return pool_algorithm(handle, task, CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING, "average"); }};
  return {[=] { return pool_algorithm(handle, task, CUDNN_POOLING_MAX, "max"); },
          [=] { return pool_algorithm(handle, task, CUDNN_POOLING_MAX_DETERMINISTIC, "max deterministic"); }};
}

std::string check_pooling(const Task& task) {
  for (const auto& make : pooling_algorithms(nullptr, task)) make();
  const auto pool = make_shared_descriptor<cudnnPoolingDescriptor_t>(cudnnCreatePoolingDescriptor, cudnnDestroyPoolingDescriptor, "cudnnCreatePoolingDescriptor");
  const int kernel = static_cast<int>(task["kernel"]), padding = static_cast<int>(task["pad"]), stride = static_cast<int>(task["stride"]);
  check_status(cudnnSetPooling2dDescriptor(pool.get(), CUDNN_POOLING_MAX, CUDNN_PROPAGATE_NAN, kernel, kernel, padding, padding, stride, stride), "cudnnSetPooling2dDescriptor");
  int n = 0, c = 0, h = 0, w = 0;
  check_status(cudnnGetPooling2dForwardOutputDim(pool.get(), tensor_descriptor(task.inputs[0]).get(), &n, &c, &h, &w), "cudnnGetPooling2dForwardOutputDim");
  const std::vector<int64_t>& y = task.direction == "backward" ? task.inputs[1].shape : task.outputs[0].shape;
  check<Error>(y == std::vector<int64_t>{n, c, h, w}, "cuDNN's output is ", n, "x", c, "x", h, "x", w, ", ours ", y[0], "x", y[1], "x", y[2], "x", y[3]);
  return "descriptors made";
}

// --- softmax ---

Makers softmax_algorithms(cudnnHandle_t handle, const Task& task) {
  Makers makers;
  for (cudnnSoftmaxMode_t mode : {CUDNN_SOFTMAX_MODE_INSTANCE, CUDNN_SOFTMAX_MODE_CHANNEL}) {
    makers.push_back([=] {
      const TensorDescriptor rows = tensor_descriptor(task.inputs[0]);
      const bool has_backward = task.direction != "forward";
      return Algorithm{.name = mode == CUDNN_SOFTMAX_MODE_INSTANCE ? "accurate, instance" : "accurate, channel", .workspace_bytes = 0,
                       .run = [=](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void*) {
                         use_stream(handle, stream);
                         check_status(cudnnSoftmaxForward(handle, CUDNN_SOFTMAX_ACCURATE, mode, &one, rows.get(), in[0].data, &zero, rows.get(), out[0].data),
                                      "cudnnSoftmaxForward");
                         if (!has_backward) return;
                         check_status(cudnnSoftmaxBackward(handle, CUDNN_SOFTMAX_ACCURATE, mode, &one, rows.get(), out[0].data, rows.get(), in[1].data, &zero, rows.get(),
                                                           out[1].data),
                                      "cudnnSoftmaxBackward");
                       }};
    });
  }
  return makers;
}

std::string check_softmax(const Task& task) {
  for (const auto& make : softmax_algorithms(nullptr, task)) make();
  tensor_descriptor(task.inputs[0]);
  return "descriptors made";
}

}  // namespace fovea::benchmarks
