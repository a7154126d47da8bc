#include <fovea/kernels/cuda/runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <string>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/core/launch_log.h>
#include <fovea/kernels/cuda/range_report.h>
#include <fovea/kernels/cuda/streams.h>

namespace fovea::kernels::cuda {

// core/launch.h, which only the compiler of kernels understands.
void set_synchronous(bool is_on);

}  // namespace fovea::kernels::cuda

namespace fovea::cuda {

using kernels::cuda::check_cuda;
using kernels::cuda::throw_reported;

namespace {

struct Devices {
  int count = 0;
  cudaError_t error = cudaSuccess;           // why there is none
};

const Devices& devices() {
  static const Devices found = [] {
    Devices d;
    d.error = cudaGetDeviceCount(&d.count);
    if (d.error != cudaSuccess) {
      cudaGetLastError();                    // no driver or no GPU is not an error that a later call should report
      d.count = 0;
    }
    d.count = std::min(d.count, detail::max_devices);
    return d;
  }();
  return found;
}

// For the error of a wait: kernels run late, and what failed is likely to be the latest.
std::string latest_kernel_note() {
  const kernels::cuda::LaunchRecord& latest = kernels::cuda::latest_launch();
  return latest.kernel ? " (the latest that this thread launched is " + describe(latest) + ")" : "";
}

// Has what a query was about happened? "Not yet" is an error to CUDA, which the program's next cudaGetLastError() must not find.
bool is_ready(cudaError_t result) {
  if (result == cudaErrorNotReady) cudaGetLastError();
  return result != cudaErrorNotReady;
}

// The result of a call that waited for the device, with what the device has found meanwhile.
void check_waited(cudaError_t result, int device, const char* what) {
  if (result != cudaSuccess) [[unlikely]] kernels::cuda::fail_cuda(result, str("cuda:", device, ": while ", what, latest_kernel_note()));
  throw_reported(device);
}

thread_local int chosen_device = 0;
std::array<std::atomic<bool>, detail::max_devices> many_streams{};
std::atomic<bool> is_tf32_allowed{false};

}  // namespace

int device_count() noexcept { return devices().count; }
bool is_built() noexcept { return true; }

void check_device(int index) {
  if (index >= 0 && index < devices().count) [[likely]] return;
  if (devices().count == 0)
    fail<DeviceError>("cuda:", index, ": this machine has no CUDA device that can be used (",
                      devices().error == cudaSuccess ? "none was found" : cudaGetErrorString(devices().error), "); use Device::cpu()");
  fail<DeviceError>("cuda:", index, ": this machine has ", devices().count, devices().count == 1 ? " CUDA device, cuda:0" : " CUDA devices, numbered from 0");
}

int current_device() noexcept { return chosen_device; }

void set_device(int index) {
  check_device(index);
  chosen_device = index;
}

// --- streams ---

namespace detail {

struct StreamState : std::enable_shared_from_this<StreamState> {
  StreamState(cudaStream_t handle, int device) : handle(handle), device(device) {}
  ~StreamState() {
    if (!handle) return;
    cudaStreamSynchronize(handle);           // its memory is free for every stream afterwards
    forget_stream(handle, device);
    cudaStreamDestroy(handle);
  }
  StreamState(const StreamState&) = delete;
  StreamState& operator=(const StreamState&) = delete;

  cudaStream_t handle;
  int device;
};

struct EventState {
  EventState(cudaEvent_t handle, int device) : handle(handle), device(device) {}
  ~EventState() { cudaEventDestroy(handle); }
  EventState(const EventState&) = delete;
  EventState& operator=(const EventState&) = delete;

  cudaEvent_t handle;
  int device;
};

namespace {

// The thread's current streams; null is the default one. Plain pointers, so that tensors may be freed while the thread ends; a StreamScope keeps them alive.
thread_local StreamState* current_states[max_devices] = {};

std::shared_ptr<StreamState> default_state(int device) {
  static const auto& states = *new auto([] {                                 // never destroyed, as the allocator
    std::array<std::shared_ptr<StreamState>, max_devices> all;
    for (int i = 0; i < max_devices; ++i) all[static_cast<size_t>(i)] = std::make_shared<StreamState>(nullptr, i);
    return all;
  }());
  return states[static_cast<size_t>(device)];
}

std::shared_ptr<StreamState> new_state(int device) {
  check_device(device);
  DeviceScope scope(device);
  cudaStream_t handle = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "cuda:", device, ": no new stream");
  many_streams[static_cast<size_t>(device)] = true;
  return std::make_shared<StreamState>(handle, device);
}

}  // namespace

DeviceScope::DeviceScope(int device) {
  int active = 0;
  check_cuda(cudaGetDevice(&active), "cuda: asking for the current device");
  if (active == device) return;
  check_cuda(cudaSetDevice(device), "cuda:", device, " cannot be made the current device");
  previous_ = active;
}

DeviceScope::~DeviceScope() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

cudaStream_t current_handle(int device) {
  const StreamState* state = current_states[device];
  return state ? state->handle : nullptr;
}

bool has_many_streams(int device) { return many_streams[static_cast<size_t>(device)].load(std::memory_order_relaxed); }

}  // namespace detail

Stream::Stream(int device) : state_(detail::new_state(device)) {}

Stream Stream::default_of(int device) {
  check_device(device);
  return Stream(detail::default_state(device));
}

int Stream::device() const { return state_->device; }
void* Stream::handle() const { return state_->handle; }

void Stream::synchronize() const {
  detail::DeviceScope scope(device());
  check_waited(cudaStreamSynchronize(state_->handle), device(), "waiting for a stream");
}

bool Stream::is_idle() const {
  detail::DeviceScope scope(device());
  const cudaError_t result = cudaStreamQuery(state_->handle);
  if (!is_ready(result)) return false;
  check_waited(result, device(), "looking at a stream");
  return true;
}

void Stream::wait(const Event& event) const {
  detail::DeviceScope scope(device());
  check_cuda(cudaStreamWaitEvent(state_->handle, event.state_->handle, 0), "cuda:", device(), ": making a stream wait for an event");
}

Stream current_stream(int device) {
  check_device(device);
  detail::StreamState* state = detail::current_states[device];
  return Stream(state ? state->shared_from_this() : detail::default_state(device));
}

StreamScope::StreamScope(const Stream& stream) : stream_(stream.state_), previous_(current_stream(stream.device()).state_) {
  detail::current_states[stream_->device] = stream_.get();
}

StreamScope::~StreamScope() { detail::current_states[previous_->device] = previous_.get(); }

kernels::Queue queue_on(int device) {
  check_device(device);
  int active = 0;
  check_cuda(cudaGetDevice(&active), "cuda: asking for the current device");
  if (active != device) check_cuda(cudaSetDevice(device), "cuda:", device, " cannot be made the current device");
  return detail::current_handle(device);
}

void synchronize(int device) {
  check_device(device);
  detail::DeviceScope scope(device);
  check_waited(cudaDeviceSynchronize(), device, "waiting for the device");
}

// --- events ---

Event::Event(int device) {
  check_device(device);
  detail::DeviceScope scope(device);
  cudaEvent_t handle = nullptr;
  check_cuda(cudaEventCreateWithFlags(&handle, cudaEventDefault), "cuda:", device, ": no new event");
  state_ = std::make_shared<detail::EventState>(handle, device);
}

void Event::record(const Stream& stream) {
  check<DeviceError>(stream.device() == device(), "Event::record: the event belongs to cuda:", device(), " but the stream to cuda:", stream.device());
  detail::DeviceScope scope(device());
  check_cuda(cudaEventRecord(state_->handle, static_cast<cudaStream_t>(stream.handle())), "cuda:", device(), ": recording an event");
}

void Event::synchronize() const {
  check_waited(cudaEventSynchronize(state_->handle), device(), "waiting for an event");
}

bool Event::has_passed() const {
  const cudaError_t result = cudaEventQuery(state_->handle);
  if (!is_ready(result)) return false;
  check_waited(result, device(), "looking at an event");
  return true;
}

int Event::device() const { return state_->device; }

double seconds_between(const Event& begin, const Event& end) {
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, begin.state_->handle, end.state_->handle), "seconds_between: both events must be recorded and have passed");
  return static_cast<double>(milliseconds) * 1e-3;
}

// --- copies ---

namespace {

// Work put on `later` from now on waits for what is on `earlier` now.
void order_after(int later, int earlier) {
  Event event(earlier);
  event.record();
  current_stream(later).wait(event);
}

void copy_on(int device, void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
  detail::DeviceScope scope(device);
  const cudaError_t result = cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, detail::current_handle(device));
  if (result != cudaSuccess) [[unlikely]] kernels::cuda::fail_cuda(result, str("cuda:", device, ": while copying ", bytes, " bytes", latest_kernel_note()));   // it may have waited
}

// Is it ordinary host memory, which CUDA has copied aside when the call that copies it returns?
bool is_pageable(const void* host) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, host) == cudaSuccess) return attributes.type == cudaMemoryTypeUnregistered;
  cudaGetLastError();
  return false;
}

// A device that can read such memory by itself may do so at its turn, long after the call.
bool reads_pageable(int device) {
  int does = 1;
  if (cudaDeviceGetAttribute(&does, cudaDevAttrPageableMemoryAccess, device) != cudaSuccess) cudaGetLastError();
  return does != 0;
}

// A graph would copy again in every run, from or to host memory that may be gone by then, and nobody can wait for what is only recorded.
void check_not_recorded(int device) {
  const cudaStream_t stream = detail::current_handle(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (stream) check_cuda(cudaStreamIsCapturing(stream, &status), "cuda: looking whether a graph is recorded");
  check<DeviceError>(status == cudaStreamCaptureStatusNone, "cuda:", device, ": while a graph is recorded nothing can be copied between host ",
                     "and device, but from and to pinned memory with is_async; copy before or after");
}

}  // namespace

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, int64_t bytes, bool is_async) {
  const bool to_cuda = to_device.kind == Device::Kind::cuda, from_cuda = from_device.kind == Device::Kind::cuda;
  check<DeviceError>(to_cuda || from_cuda, "copy_bytes: one side must be a CUDA device, got ", from_device, " and ", to_device);
  if (bytes == 0) return;
  if (to_cuda && from_cuda) {
    check_device(to_device.index);
    check_device(from_device.index);
    const bool is_between = to_device != from_device;
    if (is_between) order_after(from_device.index, to_device.index);         // the target's memory may still be in use by its former owner
    copy_on(from_device.index, to, from, bytes, is_between ? cudaMemcpyDefault : cudaMemcpyDeviceToDevice);
    if (is_between) order_after(to_device.index, from_device.index);
    return;
  }
  const int device = to_cuda ? to_device.index : from_device.index;
  check_device(device);
  const void* const host = to_cuda ? from : to;
  const bool is_ordinary = is_pageable(host), waits = is_ordinary ? from_cuda || reads_pageable(device) : !is_async;
  if (waits || is_ordinary) check_not_recorded(device);
  copy_on(device, to, from, bytes, to_cuda ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost);
  if (waits) current_stream(device).synchronize();
  else if (!is_ordinary) detail::record_pinned_use(host, detail::current_handle(device), device);
}

// --- switches ---

void set_synchronous(bool is_on) { kernels::cuda::set_synchronous(is_on); }
const char* last_kernel() { return kernels::cuda::latest_launch().name; }

LaunchInfo last_launch() {
  const kernels::cuda::LaunchRecord& latest = kernels::cuda::latest_launch();
  if (!latest.kernel) return {};
  detail::DeviceScope scope(latest.device);
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, latest.kernel), "last_launch: asking for the attributes of kernel ", latest.name);
  const int threads = static_cast<int>(latest.threads.x * latest.threads.y * latest.threads.z);
  constexpr int warp = 32;
  int blocks = 0, most_threads = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, latest.kernel, threads, latest.shared_bytes), "last_launch: asking for the occupancy of kernel ", latest.name);
  check_cuda(cudaDeviceGetAttribute(&most_threads, cudaDevAttrMaxThreadsPerMultiProcessor, latest.device), "last_launch: asking how many threads run at once");
  const int warps = (threads + warp - 1) / warp;
  return {latest.name, latest.device, {latest.blocks.x, latest.blocks.y, latest.blocks.z}, {latest.threads.x, latest.threads.y, latest.threads.z},
          static_cast<int64_t>(attributes.sharedSizeBytes + latest.shared_bytes), attributes.numRegs, static_cast<int64_t>(attributes.localSizeBytes), blocks,
          static_cast<double>(blocks * warps * warp) / most_threads};
}
void set_allow_tf32(bool is_on) { is_tf32_allowed = is_on; }
bool allow_tf32() { return is_tf32_allowed; }

}  // namespace fovea::cuda
