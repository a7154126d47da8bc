// LSTM and CTC through cuDNN.
#include <cuda_runtime.h>

#include <map>

#include "cudnn_vendor.h"

namespace fovea::benchmarks {

namespace {

void check_cuda(cudaError_t result, const char* what) { check<Error>(result == cudaSuccess, what, ": ", cudaGetErrorString(result)); }

std::vector<int> as_int(const std::vector<int64_t>& values) { return std::vector<int>(values.begin(), values.end()); }

size_t bytes_of_element(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// --- LSTM ---

// A set's weights in cuDNN's order, their gradients, and what the forward pass leaves for the backward one. `lengths` on the host are part of the data descriptors.
struct LstmState {
  LstmState(size_t weight_bytes, size_t reserve_bytes, const std::vector<int>& lengths)
      : weights(weight_bytes), gradients(weight_bytes), reserve(reserve_bytes), lengths(lengths.data(), 4 * lengths.size()) {}
  DeviceMemory weights, gradients, reserve, lengths;
  bool has_shown_gradients = false;
};

struct LstmPlan {
  Shared<cudnnRNNDescriptor_t> rnn;
  Shared<cudnnDropoutDescriptor_t> dropout;
  Shared<cudnnRNNDataDescriptor_t> x, y;
  TensorDescriptor states;
  int layers = 1, directions = 1, input = 0, hidden = 0;
  DType dtype = DType::float32;
  bool has_backward = false;
  size_t weight_bytes = 0, workspace_bytes = 0, reserve_bytes = 0;
  std::map<const void*, std::unique_ptr<LstmState>> sets;        // by where x lies; made at a set's first run
  float padding = 0;
};

Shared<cudnnRNNDataDescriptor_t> sequences(LstmPlan& plan, int time, int batch, int size, bool is_even, const std::vector<int>& lengths) {
  auto data = make_shared_descriptor<cudnnRNNDataDescriptor_t>(cudnnCreateRNNDataDescriptor, cudnnDestroyRNNDataDescriptor, "cudnnCreateRNNDataDescriptor");
  const cudnnRNNDataLayout_t layout = is_even ? CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_PACKED : CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_UNPACKED;
  check_status(cudnnSetRNNDataDescriptor(data.get(), cudnn_type(plan.dtype), layout, time, batch, size, lengths.data(), &plan.padding), "cudnnSetRNNDataDescriptor");
  return data;
}

// The descriptors; those that a device is needed for only where there is a handle.
std::shared_ptr<LstmPlan> described_lstm(cudnnHandle_t handle, const Task& task, cudnnRNNAlgo_t algorithm) {
  const auto plan = std::make_shared<LstmPlan>();
  const int time = static_cast<int>(task["time"]), batch = static_cast<int>(task["batch"]);
  plan->layers = static_cast<int>(task["layers"]);
  plan->directions = static_cast<int>(task["directions"]);
  plan->input = static_cast<int>(task["input"]);
  plan->hidden = static_cast<int>(task["hidden"]);
  plan->dtype = task.inputs[0].dtype;
  plan->has_backward = task.direction != "forward";
  const bool is_even = task.values.at("lengths") == "equal";
  plan->dropout = make_shared_descriptor<cudnnDropoutDescriptor_t>(cudnnCreateDropoutDescriptor, cudnnDestroyDropoutDescriptor, "cudnnCreateDropoutDescriptor");
  if (handle) check_status(cudnnSetDropoutDescriptor(plan->dropout.get(), handle, 0, nullptr, 0, 0), "cudnnSetDropoutDescriptor");
  plan->rnn = make_shared_descriptor<cudnnRNNDescriptor_t>(cudnnCreateRNNDescriptor, cudnnDestroyRNNDescriptor, "cudnnCreateRNNDescriptor");
  // As PyTorch: float32 sums for all types; float32 without tensor cores unless TF32 is allowed.
  const cudnnMathType_t math = plan->dtype != DType::float32 ? CUDNN_TENSOR_OP_MATH : task.allows_tf32 ? CUDNN_DEFAULT_MATH : CUDNN_FMA_MATH;
  check_status(cudnnSetRNNDescriptor_v8(plan->rnn.get(), algorithm, CUDNN_LSTM, CUDNN_RNN_DOUBLE_BIAS, plan->directions == 2 ? CUDNN_BIDIRECTIONAL : CUDNN_UNIDIRECTIONAL,
                                        CUDNN_LINEAR_INPUT, cudnn_type(plan->dtype), CUDNN_DATA_FLOAT, math, plan->input, plan->hidden, plan->hidden, plan->layers,
                                        plan->dropout.get(), is_even ? CUDNN_RNN_PADDED_IO_DISABLED : CUDNN_RNN_PADDED_IO_ENABLED),
               "cudnnSetRNNDescriptor_v8");
  const std::vector<int> lengths = as_int(task.inputs[2].values);
  plan->x = sequences(*plan, time, batch, plan->input, is_even, lengths);
  plan->y = sequences(*plan, time, batch, plan->directions * plan->hidden, is_even, lengths);
  const int64_t rows = int64_t{plan->layers} * plan->directions;
  plan->states = tensor_descriptor(cudnn_type(plan->dtype), {rows, batch, plan->hidden}, {int64_t{batch} * plan->hidden, plan->hidden, 1});
  return plan;
}

std::shared_ptr<LstmPlan> lstm_plan(cudnnHandle_t handle, const Task& task, cudnnRNNAlgo_t algorithm) {
  std::shared_ptr<LstmPlan> plan = described_lstm(handle, task, algorithm);
  check_status(cudnnGetRNNWeightSpaceSize(handle, plan->rnn.get(), &plan->weight_bytes), "cudnnGetRNNWeightSpaceSize");
  check_status(cudnnGetRNNTempSpaceSizes(handle, plan->rnn.get(), plan->has_backward ? CUDNN_FWD_MODE_TRAINING : CUDNN_FWD_MODE_INFERENCE, plan->x.get(),
                                         &plan->workspace_bytes, &plan->reserve_bytes),
               "cudnnGetRNNTempSpaceSizes");
  return plan;
}

// Calls f(index of the parameter among ours, byte where the gate's share of it begins, where cuDNN has it, bytes) for every gate's matrix and bias. Gates are i f g o in both.
template <class F>
void for_each_weight(cudnnHandle_t handle, const LstmPlan& plan, void* space, F f) {
  const auto matrix = make_shared_descriptor<cudnnTensorDescriptor_t>(cudnnCreateTensorDescriptor, cudnnDestroyTensorDescriptor, "cudnnCreateTensorDescriptor");
  const auto bias = make_shared_descriptor<cudnnTensorDescriptor_t>(cudnnCreateTensorDescriptor, cudnnDestroyTensorDescriptor, "cudnnCreateTensorDescriptor");
  constexpr int gates = 4;
  for (int pseudo = 0; pseudo < plan.layers * plan.directions; ++pseudo) {
    const int width = pseudo < plan.directions ? plan.input : plan.directions * plan.hidden;
    for (int id = 0; id < 2 * gates; ++id) {                     // the input's four, then the state's
      void *matrix_at = nullptr, *bias_at = nullptr;
      check_status(cudnnGetRNNWeightParams(handle, plan.rnn.get(), pseudo, plan.weight_bytes, space, id, matrix.get(), &matrix_at, bias.get(), &bias_at), "cudnnGetRNNWeightParams");
      const size_t from_state = id >= gates, gate = static_cast<size_t>(id % gates), element = bytes_of_element(plan.dtype);
      const size_t matrix_bytes = element * static_cast<size_t>(plan.hidden) * static_cast<size_t>(from_state ? plan.hidden : width);
      const size_t bias_bytes = element * static_cast<size_t>(plan.hidden), first = 4 * static_cast<size_t>(pseudo);
      f(first + from_state, gate * matrix_bytes, matrix_at, matrix_bytes);
      f(first + 2 + from_state, gate * bias_bytes, bias_at, bias_bytes);
    }
  }
}

LstmState& lstm_state(cudnnHandle_t handle, LstmPlan& plan, const std::vector<Array>& in, cudaStream_t stream) {
  std::unique_ptr<LstmState>& state = plan.sets[in[0].data];
  if (state) return *state;
  state = std::make_unique<LstmState>(plan.weight_bytes, plan.reserve_bytes, as_int(in[2].values));
  for_each_weight(handle, plan, state->weights.data(), [&](size_t parameter, size_t offset, void* at, size_t bytes) {
    check_cuda(cudaMemcpyAsync(at, static_cast<const char*>(in[3 + parameter].data) + offset, bytes, cudaMemcpyDeviceToDevice, stream), "copying a weight");
  });
  return *state;
}

void lstm_backward(cudnnHandle_t handle, LstmPlan& plan, LstmState& state, const std::vector<Array>& in, const std::vector<Array>& out, void* workspace, cudaStream_t stream) {
  const auto* lengths = static_cast<const int32_t*>(state.lengths.data());
  check_status(cudnnRNNBackwardData_v8(handle, plan.rnn.get(), lengths, plan.y.get(), out[0].data, in[1].data, plan.x.get(), out[1].data, plan.states.get(), nullptr, nullptr,
                                       nullptr, plan.states.get(), nullptr, nullptr, nullptr, plan.weight_bytes, state.weights.data(), plan.workspace_bytes, workspace,
                                       plan.reserve_bytes, state.reserve.data()),
               "cudnnRNNBackwardData_v8");
  check_cuda(cudaMemsetAsync(state.gradients.data(), 0, plan.weight_bytes, stream), "clearing gradients");      // cuDNN only adds to them
  check_status(cudnnRNNBackwardWeights_v8(handle, plan.rnn.get(), CUDNN_WGRAD_MODE_ADD, lengths, plan.x.get(), in[0].data, plan.states.get(), nullptr, plan.y.get(), out[0].data,
                                          plan.weight_bytes, state.gradients.data(), plan.workspace_bytes, workspace, plan.reserve_bytes, state.reserve.data()),
               "cudnnRNNBackwardWeights_v8");
  if (state.has_shown_gradients) return;
  // The first run is the one that is compared: only there do gradients leave cuDNN's own order, and no time is counted for it.
  state.has_shown_gradients = true;
  for_each_weight(handle, plan, state.gradients.data(), [&](size_t parameter, size_t offset, void* at, size_t bytes) {
    check_cuda(cudaMemcpyAsync(static_cast<char*>(out[2 + parameter].data) + offset, at, bytes, cudaMemcpyDeviceToDevice, stream), "copying a gradient");
  });
}

Algorithm lstm_algorithm(cudnnHandle_t handle, const Task& task, cudnnRNNAlgo_t algorithm, const std::string& name) {
  const std::shared_ptr<LstmPlan> plan = lstm_plan(handle, task, algorithm);
  return {.name = name, .workspace_bytes = static_cast<int64_t>(plan->workspace_bytes),
          .run = [=](void* queue, const std::vector<Array>& in, const std::vector<Array>& out, void* workspace) {
            const auto stream = static_cast<cudaStream_t>(queue);
            check_status(cudnnSetStream(handle, stream), "cudnnSetStream");
            LstmState& state = lstm_state(handle, *plan, in, stream);
            check_status(cudnnRNNForward(handle, plan->rnn.get(), plan->has_backward ? CUDNN_FWD_MODE_TRAINING : CUDNN_FWD_MODE_INFERENCE,
                                         static_cast<const int32_t*>(state.lengths.data()), plan->x.get(), in[0].data, plan->y.get(), out[0].data, plan->states.get(), nullptr,
                                         nullptr, plan->states.get(), nullptr, nullptr, plan->weight_bytes, state.weights.data(), plan->workspace_bytes, workspace,
                                         plan->reserve_bytes, state.reserve.data()),
                         "cudnnRNNForward");
            if (plan->has_backward) lstm_backward(handle, *plan, state, in, out, workspace, stream);
          }};
}

}  // namespace

Makers lstm_algorithms(cudnnHandle_t handle, const Task& task) {
  return {[=] { return lstm_algorithm(handle, task, CUDNN_RNN_ALGO_STANDARD, "standard"); },
          [=] { return lstm_algorithm(handle, task, CUDNN_RNN_ALGO_PERSIST_STATIC, "persist static"); },
          [=] { return lstm_algorithm(handle, task, CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H, "persist static small hidden"); }};
}

std::string check_lstm(const Task& task) {
  for (cudnnRNNAlgo_t algorithm : {CUDNN_RNN_ALGO_STANDARD, CUDNN_RNN_ALGO_PERSIST_STATIC, CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H}) described_lstm(nullptr, task, algorithm);
  return "descriptors made";
}

// --- CTC ---

namespace {

// A set's labels one after the other, and lengths; on the device for the newer function, on the host for the older one.
struct CtcLabels {
  explicit CtcLabels(const std::vector<Array>& in)
      : host(flat(in[1], in[3].values)), host_counts(as_int(in[3].values)), host_steps(as_int(in[2].values)), labels(host.data(), 4 * host.size()),
        counts(host_counts.data(), 4 * host_counts.size()), steps(host_steps.data(), 4 * host_steps.size()) {}

  static std::vector<int> flat(const Array& targets, const std::vector<int64_t>& counts) {
    std::vector<int> all;
    const size_t row = static_cast<size_t>(targets.shape[1]);
    for (size_t b = 0; b < counts.size(); ++b)
      for (size_t i = 0; i < static_cast<size_t>(counts[b]); ++i) all.push_back(static_cast<int>(targets.values[b * row + i]));
    return all;
  }

  std::vector<int> host, host_counts, host_steps;
  DeviceMemory labels, counts, steps;
};

struct CtcPlan {
  Shared<cudnnCTCLossDescriptor_t> loss;
  TensorDescriptor logits;
  size_t workspace_bytes = 0;
  std::map<const void*, std::unique_ptr<CtcLabels>> sets;
  const CtcLabels& labels_of(const std::vector<Array>& in) {
    std::unique_ptr<CtcLabels>& labels = sets[in[0].data];
    if (!labels) labels = std::make_unique<CtcLabels>(in);
    return *labels;
  }
};

// Why cuDNN is not asked, or "". Where a sample has more labels than steps no path exists, and what cuDNN does then is not documented.
std::string why_not_ctc(const Task& task) {
  if (task.inputs[0].dtype != DType::float32) return "cuDNN's CTC takes float32 only";
  if (task["target"] > 255) return "cuDNN's CTC takes at most 255 labels a sample";
  const std::vector<int64_t> &steps = task.inputs[2].values, &counts = task.inputs[3].values;
  for (size_t i = 0; i < counts.size(); ++i)
    if (counts[i] > steps[i]) return "cuDNN's CTC is not for samples with more labels than steps";
  return "";
}

std::shared_ptr<CtcPlan> described_ctc(const Task& task) {
  const auto plan = std::make_shared<CtcPlan>();
  const Array& logits = task.inputs[0];
  check<Error>(why_not_ctc(task).empty(), why_not_ctc(task));
  plan->logits = tensor_descriptor(CUDNN_DATA_FLOAT, logits.shape, logits.strides);
  plan->loss = make_shared_descriptor<cudnnCTCLossDescriptor_t>(cudnnCreateCTCLossDescriptor, cudnnDestroyCTCLossDescriptor, "cudnnCreateCTCLossDescriptor");
  check_status(cudnnSetCTCLossDescriptor_v9(plan->loss.get(), CUDNN_DATA_FLOAT, CUDNN_LOSS_NORMALIZATION_SOFTMAX, CUDNN_CTC_ZERO_OOB_GRADIENTS, static_cast<int>(task["target"])),
               "cudnnSetCTCLossDescriptor_v9");
  return plan;
}

Algorithm ctc_algorithm(cudnnHandle_t handle, const Task& task, cudnnCTCLossAlgo_t algorithm, bool is_on_host) {
  const std::shared_ptr<CtcPlan> plan = described_ctc(task);
  if (is_on_host) {
    const CtcLabels& l = plan->labels_of(task.inputs);
    check_status(cudnnGetCTCLossWorkspaceSize(handle, plan->logits.get(), plan->logits.get(), l.host.data(), l.host_counts.data(), l.host_steps.data(), algorithm,
                                              plan->loss.get(), &plan->workspace_bytes),
                 "cudnnGetCTCLossWorkspaceSize");
  } else {
    check_status(cudnnGetCTCLossWorkspaceSize_v8(handle, algorithm, plan->loss.get(), plan->logits.get(), plan->logits.get(), &plan->workspace_bytes),
                 "cudnnGetCTCLossWorkspaceSize_v8");
  }
  const std::string name = std::string(algorithm == CUDNN_CTC_LOSS_ALGO_DETERMINISTIC ? "deterministic" : "nondeterministic") + (is_on_host ? " labels on the host" : "");
  return {.name = name, .workspace_bytes = static_cast<int64_t>(plan->workspace_bytes),
          .run = [=](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void* workspace) {
            check_status(cudnnSetStream(handle, static_cast<cudaStream_t>(stream)), "cudnnSetStream");
            const CtcLabels& l = plan->labels_of(in);
            if (is_on_host) {
              check_status(cudnnCTCLoss(handle, plan->logits.get(), in[0].data, l.host.data(), l.host_counts.data(), l.host_steps.data(), out[0].data, plan->logits.get(),
                                        out[1].data, algorithm, plan->loss.get(), workspace, plan->workspace_bytes),
                           "cudnnCTCLoss");
            } else {
              check_status(cudnnCTCLoss_v8(handle, algorithm, plan->loss.get(), plan->logits.get(), in[0].data, static_cast<const int*>(l.labels.data()),
                                           static_cast<const int*>(l.counts.data()), static_cast<const int*>(l.steps.data()), out[0].data, plan->logits.get(), out[1].data,
                                           plan->workspace_bytes, workspace),
                           "cudnnCTCLoss_v8");
            }
          }};
}

}  // namespace

Makers ctc_algorithms(cudnnHandle_t handle, const Task& task) {
  Makers makers;
  for (bool is_on_host : {false, true})
    for (cudnnCTCLossAlgo_t algorithm : {CUDNN_CTC_LOSS_ALGO_DETERMINISTIC, CUDNN_CTC_LOSS_ALGO_NON_DETERMINISTIC})
      makers.push_back([=] { return ctc_algorithm(handle, task, algorithm, is_on_host); });
  return makers;
}

std::string check_ctc(const Task& task) {
  if (const std::string why = why_not_ctc(task); !why.empty()) return why;
  described_ctc(task);
  CtcLabels::flat(task.inputs[1], task.inputs[3].values);
  return "descriptors made";
}

}  // namespace fovea::benchmarks
