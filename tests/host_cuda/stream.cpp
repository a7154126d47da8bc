// An operation may run when those before it in its stream have, the event that it waits for has been recorded, and the rule of the default stream allows it: that one
// comes after everything that was queued before it in blocking streams, and before everything that is queued after it. Which of the operations that may run does run
// is left to chance, with a bias that is drawn for every wait: anything, what was queued first, or what was queued last.
#include "stream.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

namespace host_cuda {
namespace {

// Never destroyed, as other statics' destructors may still call the API.
struct State {
  std::vector<std::unique_ptr<Stream>> defaults;   // one a device
  std::set<Stream*> streams;                       // of users
  std::set<Event*> events;
  uint64_t numbers = 0;
  size_t queued = 0;
};
State& state() {
  static State& s = *new State;
  return s;
}

// Work that nobody waits for runs when so much of it has gathered, so that it does not fill the memory.
constexpr size_t most_queued = 4096;

int chosen_devices() {
  const char* wish = std::getenv("FOVEA_HOST_CUDA_DEVICES");
  return wish ? std::clamp(std::atoi(wish), 0, 16) : 1;
}

thread_local int device_of_thread = 0;
thread_local cudaError_t last_error = cudaSuccess;

Stream& default_stream(int device) {
  auto& defaults = state().defaults;
  while (static_cast<int>(defaults.size()) <= device) {
    defaults.push_back(std::make_unique<Stream>());
    defaults.back()->device = static_cast<int>(defaults.size()) - 1;
    defaults.back()->is_default = true;
  }
  return *defaults[static_cast<size_t>(device)];
}

std::vector<Stream*> all_streams() {
  std::vector<Stream*> all;
  for (auto& s : state().defaults) all.push_back(s.get());
  all.insert(all.end(), state().streams.begin(), state().streams.end());
  // A set of pointers has an order that differs from run to run; schedules must not.
  std::sort(all.begin(), all.end(), [](const Stream* a, const Stream* b) {
    const auto first = [](const Stream* s) { return s->queue.empty() ? std::numeric_limits<uint64_t>::max() : s->queue.front().number; };
    return first(a) < first(b);
  });
  return all;
}

bool has_work_before(const Stream& s, uint64_t number) { return !s.queue.empty() && s.queue.front().number < number; }

bool may_run(const Stream& s, const std::vector<Stream*>& all) {
  if (s.queue.empty()) return false;
  const Operation& next = s.queue.front();
  if (next.waits_for && !next.waits_for->is_done) return false;
  for (const Stream* other : all) {
    if (other == &s || other->device != s.device) continue;
    const bool are_ordered = (s.is_default && other->is_blocking) || (s.is_blocking && other->is_default);
    if (are_ordered && has_work_before(*other, next.number)) return false;
  }
  return true;
}

void drop_everything() {
  for (Stream* s : all_streams()) {
    for (Operation& o : s->queue)
      if (o.records) o.records->is_done = true;
    s->queue.clear();
  }
  state().queued = 0;
}

void perform(const Operation& o, int device, Window& window) {
  if (o.waits_for && !o.run) return;
  if (o.records) {
    o.records->is_done = true;
    o.records->time = Clock::now();
    return;
  }
  window.show(o.is_host_code ? Window::none : o.all_devices ? Window::all : device);
  o.run();
  if (!o.is_host_code) check_guards(o.name);
}

// One operation of those that may run; false when there is none.
bool step(int bias, Window& window) {
  const std::vector<Stream*> all = all_streams();
  std::vector<Stream*> able;
  for (Stream* s : all)
    if (may_run(*s, all)) able.push_back(s);
  if (able.empty()) return false;
  Stream& chosen = bias == 0 ? *able[chance().below(static_cast<uint32_t>(able.size()))] : bias == 1 ? *able.front() : *able.back();
  const Operation o = std::move(chosen.queue.front());
  chosen.queue.pop_front();
  --state().queued;
  perform(o, chosen.device, window);
  return true;
}

}  // namespace

// Spoils the captures that are under way, of blocking streams only or of all; false when there is none.
bool break_captures(bool only_blocking) {
  bool found = false;
  for (Stream* s : state().streams) {
    if (!s->capture || (only_blocking && !s->is_blocking)) continue;
    s->capture->is_broken = true;
    found = true;
  }
  return found;
}

std::recursive_mutex& api_lock() {
  static std::recursive_mutex& lock = *new std::recursive_mutex;
  return lock;
}

int device_count() {
  static const int count = chosen_devices();
  return count;
}
int current_device() { return device_of_thread; }

Stream* resolve(cudaStream_t stream) {
  if (!stream || stream == reinterpret_cast<cudaStream_t>(1)) return &default_stream(device_of_thread);
  return state().streams.count(stream) ? stream : nullptr;
}
bool is_event(cudaEvent_t event) { return state().events.count(event) != 0; }

cudaError_t enqueue(Stream& stream, Operation operation) {
  if (stream.capture) {
    if (operation.run) {
      stream.capture->graph.operations.push_back(std::move(operation));
      ++stream.captured[&stream];
    }
    return cudaSuccess;
  }
  if (stream.is_default && break_captures(true)) return remember(cudaErrorStreamCaptureImplicit);
  operation.number = ++state().numbers;
  stream.queue.push_back(std::move(operation));
  if (++state().queued <= most_queued) return cudaSuccess;
  return run_until([] { return state().queued < most_queued / 2; });
}

cudaError_t run_until(const std::function<bool()>& finished) {
  const SignalStack own_stack;
  Window window;
  const int bias = static_cast<int>(chance().below(4)) % 3;
  try {
    while (!finished())
      if (!step(chance().one_in(8) ? 0 : bias, window)) break;
    return cudaSuccess;
  } catch (const Failure& failure) {
    drop_everything();
    return remember(failure.code, failure.what());
  }
}

cudaError_t run_one() {
  bool has_run = false;
  return run_until([&] { return std::exchange(has_run, true); });
}
cudaError_t run_all() {
  return run_until([] { return state().queued == 0; });
}

// ---- errors ----

namespace {
std::string failure_sentence;
cudaError_t failure_of_sentence = cudaSuccess;
}  // namespace

cudaError_t remember(cudaError_t error, const std::string& sentence) {
  if (!sentence.empty()) {
    failure_sentence = sentence;
    failure_of_sentence = error;
  }
  if (error != cudaSuccess) last_error = error;
  return error;
}

const std::string& last_failure() { return failure_sentence; }

}  // namespace host_cuda

using namespace host_cuda;

#define HOST_CUDA_LOCK const std::lock_guard lock(api_lock())

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidMemcpyDirection: return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorMisalignedAddress: return "cudaErrorMisalignedAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnjoined: return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorStreamCaptureIsolation: return "cudaErrorStreamCaptureIsolation";
    case cudaErrorStreamCaptureImplicit: return "cudaErrorStreamCaptureImplicit";
    case cudaErrorInvalidClusterSize: return "cudaErrorInvalidClusterSize";
    case cudaErrorUnknown: return "cudaErrorUnknown";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  HOST_CUDA_LOCK;
  if (error == failure_of_sentence && !failure_sentence.empty()) {
    thread_local std::string kept;                 // the next failure must not pull the text away from under its reader
    kept = failure_sentence;
    return kept.c_str();
  }
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit: return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorInvalidClusterSize: return "cluster misconfiguration";
    default: return cudaGetErrorName(error);
  }
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return remember(device_count() ? cudaErrorInvalidDevice : cudaErrorNoDevice);
  device_of_thread = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = device_of_thread;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  HOST_CUDA_LOCK;
  if (break_captures(false)) return remember(cudaErrorStreamCaptureUnsupported);
  return run_all();
}

// ---- streams ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  HOST_CUDA_LOCK;
  *stream = new Stream{device_of_thread, flags != cudaStreamNonBlocking, false, {}, {}};
  state().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) { return cudaStreamCreateWithFlags(stream, flags); }

// What is queued still runs, as in CUDA; here before the call returns.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  HOST_CUDA_LOCK;
  if (!state().streams.count(stream)) return remember(cudaErrorInvalidResourceHandle);
  const cudaError_t result = run_until([&] { return stream->queue.empty(); });
  state().streams.erase(stream);
  delete stream;
  return result;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  if (s->capture) return s->capture->is_broken = true, remember(cudaErrorStreamCaptureUnsupported);
  return run_until([&] { return s->queue.empty(); });
}

// Asking makes the device go on by one operation, so that a loop that asks again ends.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  if (s->capture) return s->capture->is_broken = true, remember(cudaErrorStreamCaptureUnsupported);
  if (const cudaError_t result = run_one()) return result;
  return s->queue.empty() ? cudaSuccess : remember(cudaErrorNotReady);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s || !is_event(event)) return remember(cudaErrorInvalidResourceHandle);
  if (event->capture && !s->capture) {
    s->capture = event->capture;
    s->capture->streams.push_back(s);
  }
  if (s->capture && s->capture == event->capture)
    for (const auto& [each, count] : event->captured) s->captured[each] = std::max(s->captured[each], count);
  if (s->capture && !event->capture && event->latest) return s->capture->is_broken = true, remember(cudaErrorStreamCaptureIsolation);
  if (s->capture || !event->latest) return cudaSuccess;      // captured operations keep the order in which they were captured
  return enqueue(*s, {{}, {}, event->latest, {}, false, false, 0});
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  return enqueue(*s, {{}, [=] { function(data); }, {}, {}, false, true, 0});
}

// ---- events ----

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  HOST_CUDA_LOCK;
  *event = new Event{device_of_thread, !(flags & cudaEventDisableTiming), {}, {}};
  state().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  HOST_CUDA_LOCK;
  if (!state().events.erase(event)) return remember(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s || !is_event(event) || s->device != event->device) return remember(cudaErrorInvalidResourceHandle);
  event->capture = s->capture;
  event->captured = s->captured;
  if (s->capture) return cudaSuccess;
  event->latest = std::make_shared<Recording>();
  return enqueue(*s, {{}, {}, {}, event->latest, false, false, 0});
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  HOST_CUDA_LOCK;
  if (!is_event(event)) return remember(cudaErrorInvalidResourceHandle);
  if (event->capture) return remember(cudaErrorStreamCaptureUnsupported);
  const std::shared_ptr<Recording> recording = event->latest;
  if (!recording || recording->is_done) return cudaSuccess;
  if (const cudaError_t result = run_one()) return result;
  return recording->is_done ? cudaSuccess : remember(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  HOST_CUDA_LOCK;
  if (!is_event(event)) return remember(cudaErrorInvalidResourceHandle);
  if (event->capture) return remember(cudaErrorStreamCaptureUnsupported);
  const std::shared_ptr<Recording> recording = event->latest;
  return run_until([&] { return !recording || recording->is_done; });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  HOST_CUDA_LOCK;
  if (!is_event(begin) || !is_event(end) || !begin->latest || !end->latest || !begin->has_timing || !end->has_timing) return remember(cudaErrorInvalidResourceHandle);
  if (!begin->latest->is_done || !end->latest->is_done) return remember(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(end->latest->time - begin->latest->time).count();
  return cudaSuccess;
}

// ---- graphs ----

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  if (s->is_default) return remember(cudaErrorStreamCaptureUnsupported);      // the legacy stream can't be captured
  if (s->capture) return remember(cudaErrorInvalidValue);
  s->capture = std::make_shared<Capture>();
  s->capture->streams.push_back(s);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  HOST_CUDA_LOCK;
  *graph = nullptr;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Capture> capture = s->capture;
  if (!capture || capture->streams.front() != s) return remember(cudaErrorInvalidValue);
  const bool is_joined = std::all_of(capture->streams.begin(), capture->streams.end(), [&](Stream* each) { return each->captured[each] <= s->captured[each]; });
  for (Stream* each : capture->streams) each->capture.reset(), each->captured.clear();
  for (Event* event : state().events)
    if (event->capture == capture) event->capture.reset();
  if (capture->is_broken) return remember(cudaErrorStreamCaptureInvalidated);
  if (!is_joined) return remember(cudaErrorStreamCaptureUnjoined);
  *graph = new Graph(std::move(capture->graph));
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  *status = !s->capture ? cudaStreamCaptureStatusNone : s->capture->is_broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  thread_local cudaStreamCaptureMode own = cudaStreamCaptureModeGlobal;
  std::swap(own, *mode);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new Executable{std::make_shared<const Graph>(*graph)};
  return cudaSuccess;
}

// One operation of the stream: all that was captured, one after the other.
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  return enqueue(*s, {[] { return std::string("a graph"); }, [graph = executable->graph] {
                        for (const Operation& o : graph->operations) {
                          o.run();
                          check_guards(o.name);
                        }
                      }, {}, {}, true, false, 0});
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, void* nodes, size_t* count) {
  if (nodes) return remember(cudaErrorNotSupported);
  *count = graph->operations.size();
  return cudaSuccess;
}
