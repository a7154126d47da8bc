// Convolutions through cuDNN's backend (graph) interface: every engine that its heuristics name, in modes A, B and fallback, is a candidate.
// An engine is left out where its numerical notes say that it computes less exactly than the task asks for.
#include <algorithm>
#include <array>
#include <chrono>
#include <set>

#include "cudnn_vendor.h"

namespace fovea::benchmarks {

namespace {

using Backend = Shared<cudnnBackendDescriptor_t>;

Backend make_backend(cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t descriptor = nullptr;
  check_status(cudnnBackendCreateDescriptor(type, &descriptor), "cudnnBackendCreateDescriptor");
  return Backend(descriptor, [](cudnnBackendDescriptor_t d) { cudnnBackendDestroyDescriptor(d); });
}

void set(const Backend& descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  check_status(cudnnBackendSetAttribute(descriptor.get(), name, type, count, values), "cudnnBackendSetAttribute");
}

void set(const Backend& descriptor, cudnnBackendAttributeName_t name, const Backend& value) {
  const cudnnBackendDescriptor_t raw = value.get();
  set(descriptor, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
}

void finalize(const Backend& descriptor, const char* what) { check_status(cudnnBackendFinalize(descriptor.get()), what); }

Backend tensor(const Array& x, int64_t id) {
  const Backend t = make_backend(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  const cudnnDataType_t type = cudnn_type(x.dtype);
  const int64_t alignment = 16, rank = static_cast<int64_t>(x.shape.size());
  set(t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, rank, x.shape.data());
  set(t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, rank, x.strides.data());
  set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
  set(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
  finalize(t, "tensor descriptor");
  return t;
}

Backend convolution(const Task& task) {
  const Backend c = make_backend(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  const int64_t axes = 2, padding[] = {task["pad"], task["pad"]}, stride[] = {task["stride"], task["stride"]}, dilation[] = {task["dilation"], task["dilation"]};
  set(c, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  set(c, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
  set(c, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &axes);
  set(c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, padding);
  set(c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, padding);
  set(c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
  set(c, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation);
  finalize(c, "convolution descriptor");
  return c;
}

// The names of one direction's attributes; `first`, `second` and `result` are the task's inputs and its output.
struct Direction {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t first, second, result, description, alpha, beta;
};

Direction direction_of(const std::string& name) {
  if (name == "forward")
    return {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
            CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
            CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA};
  if (name == "backward_data")
    return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA};
  return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
}

// What plans are made for: the GPU behind a handle, or one that is only described.
struct Target {
  cudnnHandle_t handle = nullptr;
  Backend device;
};

// An H200, in the words of cuDNN's serialised device properties: limits of compute capability 9.0 from the CUDA programming guide, sizes and clocks from NVIDIA's data sheet.
Target described_h200() {
  const std::string text =
      R"({"deviceName":"NVIDIA H200","deviceVer":900,"driverVer":13000,"cudaDeviceId":0,"pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,)"
      R"("multiProcessorCount":132,"warpSize":32,"maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,)"
      R"("maxCtasPerSM":32,"regsPerBlock":65536,"maxRegistersPerSM":65536,"maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":232448,)"
      R"("reservedSharedMemoryPerBlock":1024,"totalGlobalMem":150000000000,"l2CacheSize":62914560,"smClockRateKHz":1980000,"memClockRateKHz":3201000,)"
      R"("schemaVersion":1,"cudnnVersion":)" + std::to_string(cudnnGetVersion()) + "}";
  Target target{.device = make_backend(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)};
  set(target.device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, static_cast<int64_t>(text.size() + 1), text.c_str());
  finalize(target.device, "description of a device");
  return target;
}

Backend operation_graph(const Target& target, const Task& task) {
  const Direction d = direction_of(task.direction);
  const Backend operation = make_backend(d.type);
  const double alpha = 1, beta = 0;
  set(operation, d.first, tensor(task.inputs[0], 0));
  set(operation, d.second, tensor(task.inputs[1], 1));
  set(operation, d.result, tensor(task.outputs[0], 2));
  set(operation, d.description, convolution(task));
  set(operation, d.alpha, CUDNN_TYPE_DOUBLE, 1, &alpha);
  set(operation, d.beta, CUDNN_TYPE_DOUBLE, 1, &beta);
  finalize(operation, "convolution operation");
  const Backend graph = make_backend(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
  if (target.handle) set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &target.handle);
  finalize(graph, "operation graph");
  return graph;
}

// The engine configurations that a heuristic mode names, the best first.
std::vector<Backend> configurations(const Target& target, const Backend& graph, cudnnBackendHeurMode_t mode) {
  const Backend heuristic = make_backend(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  if (target.device) set(heuristic, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, target.device);
  set(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  set(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (cudnnBackendFinalize(heuristic.get()) != CUDNN_STATUS_SUCCESS) return {};
  int64_t count = 0;
  if (cudnnBackendGetAttribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, nullptr) != CUDNN_STATUS_SUCCESS) return {};
  std::vector<Backend> found;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < count; ++i) {
    found.push_back(make_backend(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    raw.push_back(found.back().get());
  }
  int64_t written = 0;
  if (cudnnBackendGetAttribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &written, raw.data()) != CUDNN_STATUS_SUCCESS) return {};
  found.resize(static_cast<size_t>(std::min(written, count)));
  return found;
}

struct Engine {
  int64_t index = -1;
  std::set<cudnnBackendNumericalNote_t> notes;
};

Engine engine_of(const Backend& configuration) {
  const Backend engine = make_backend(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.get();
  int64_t count = 0;
  check_status(cudnnBackendGetAttribute(configuration.get(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &raw), "asking for an engine");
  Engine result;
  check_status(cudnnBackendGetAttribute(raw, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count, &result.index), "asking for an engine's number");
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  if (cudnnBackendGetAttribute(raw, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, static_cast<int64_t>(notes.size()), &count, notes.data()) == CUDNN_STATUS_SUCCESS)
    result.notes.insert(notes.begin(), notes.begin() + std::min<int64_t>(count, static_cast<int64_t>(notes.size())));
  return result;
}

bool is_exact_enough(const Engine& engine, const Task& task) {
  const bool is_float32 = task.inputs[0].dtype == DType::float32 && !task.allows_tf32;
  if (is_float32 && (engine.notes.count(CUDNN_NUMERICAL_NOTE_TENSOR_CORE) || engine.notes.count(CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS))) return false;
  return !engine.notes.count(CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION);
}

std::string name_of(const Engine& engine) {
  std::string name = "engine " + std::to_string(engine.index);
  if (engine.notes.count(CUDNN_NUMERICAL_NOTE_TENSOR_CORE)) name += " tensor-core";
  if (engine.notes.count(CUDNN_NUMERICAL_NOTE_WINOGRAD)) name += " winograd";
  if (engine.notes.count(CUDNN_NUMERICAL_NOTE_FFT)) name += " fft";
  if (engine.notes.count(CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)) name += " nondeterministic";
  return name;
}

Algorithm plan_of(const Target& target, const Backend& configuration, const Engine& engine) {
  const Backend plan = make_backend(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  if (target.device) set(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, target.device);
  else set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &target.handle);
  set(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
  finalize(plan, "execution plan");
  int64_t bytes = 0, count = 0;
  check_status(cudnnBackendGetAttribute(plan.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &bytes), "asking for a plan's workspace");
  constexpr int64_t most = int64_t{4} << 30;
  check<Error>(bytes <= most, name_of(engine), " wants ", bytes >> 20, " MiB of workspace");
  return {.name = name_of(engine), .workspace_bytes = bytes,
          .run = [handle = target.handle, plan](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void* workspace) {
            check_status(cudnnSetStream(handle, static_cast<cudaStream_t>(stream)), "cudnnSetStream");
            const Backend pack = make_backend(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
            const int64_t ids[] = {0, 1, 2};
            void* const pointers[] = {in[0].data, in[1].data, out[0].data};
            set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, ids);
            set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, pointers);
            set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
            finalize(pack, "variant pack");
            check_status(cudnnBackendExecute(handle, plan.get(), pack.get()), "cudnnBackendExecute");
          }};
}

Makers plans_for(const Target& target, const Task& task) {
  const Backend graph = operation_graph(target, task);
  Makers makers;
  std::set<int64_t> engines;                                     // of a later mode only engines that the one before did not name
  for (cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_B, CUDNN_HEUR_MODE_FALLBACK}) {
    const std::set<int64_t> before = engines;
    for (const Backend& configuration : configurations(target, graph, mode)) {
      const Engine engine = engine_of(configuration);
      if (before.count(engine.index) || !is_exact_enough(engine, task)) continue;
      engines.insert(engine.index);
      // The graph has to live as long as its configurations do.
      makers.push_back([target, graph, configuration, engine] { return plan_of(target, configuration, engine); });
    }
  }
  return makers;
}

}  // namespace

Makers conv_algorithms(cudnnHandle_t handle, const Task& task) { return plans_for({.handle = handle, .device = {}}, task); }

std::string check_conv(const Task& task, double seconds) {
  const auto now = [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); };
  const Makers makers = plans_for(described_h200(), task);
  check<Error>(!makers.empty(), "the heuristics name no engine that is exact enough");
  size_t tried = 0, made = 0;
  double longest = 0;
  std::string refusal, fastest;
  for (const double end = now() + seconds; tried < makers.size() && (tried == 0 || now() < end); ++tried) {
    const double begin = now();
    try {
      const Algorithm algorithm = makers[tried]();
      if (made++ == 0) fastest = algorithm.name;
    } catch (const Error& error) {
      refusal = error.what();
    }
    longest = std::max(longest, now() - begin);
  }
  check<Error>(made > 0, "no plan of ", makers.size(), " could be made: ", refusal);
  return str(made, " plans made of ", tried, " tried of ", makers.size(), ", the slowest in ", static_cast<int>(1000 * longest), " ms; first: ", fastest,
             refusal.empty() ? "" : "; refused: ", refusal);
}

}  // namespace fovea::benchmarks
