#include <fovea/kernels/cuda/graph.h>

#include <atomic>
#include <utility>

#include <fovea/kernels/cuda/allocator.h>
#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/core/launch_log.h>
#include <fovea/kernels/cuda/nvtx.h>
#include <fovea/kernels/cuda/range_report.h>
#include <fovea/kernels/cuda/recorded_random.h>
#include <fovea/kernels/cuda/streams.h>
#include <fovea/kernels/generator.h>

namespace fovea::cuda {

using kernels::cuda::check_cuda;

namespace detail {

struct GraphState {
  explicit GraphState(int device) : stream(device), before(device), after(device), random(static_cast<kernels::PhiloxKey*>(allocator::allocate(sizeof(kernels::PhiloxKey), device))) {}
  ~GraphState() {
    cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle()));      // a run may be under way
    if (executable) cudaGraphExecDestroy(executable);
    allocator::release(random, sizeof(kernels::PhiloxKey), stream.device());
  }
  GraphState(const GraphState&) = delete;
  GraphState& operator=(const GraphState&) = delete;

  Stream stream;
  Event before, after;                       // of a run
  cudaGraphExec_t executable = nullptr;
  kernels::PhiloxKey* random;                // on the device: the default generator as a run begins
  int64_t draws = 0;                         // how far a run moves it
  kernels::cuda::LaunchRecord last_launch;   // of a run
};

namespace {

// Between the calls that begin and end recording.
class Recording {
 public:
  Recording(cudaStream_t stream, int device) : stream_(stream), device_(device) {
    begin_recording(device);                                                // before: another thread's allocator may be waiting for the device right now
    // Relaxed: the allocator may ask CUDA for memory meanwhile.
    const cudaError_t result = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    if (result == cudaSuccess) return;
    end_recording(device);
    kernels::cuda::fail_cuda(result, "cuda::Graph: recording cannot begin");
  }
  ~Recording() {
    if (!is_over_) {                                                        // work() threw
      cudaGraph_t unfinished = nullptr;
      cudaStreamEndCapture(stream_, &unfinished);
      if (unfinished) cudaGraphDestroy(unfinished);
      cudaGetLastError();
    }
    end_recording(device_);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  cudaGraph_t end() {
    is_over_ = true;
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream_, &graph), "cuda::Graph: the work cannot be recorded; it must stay on the current stream and not wait for the device");
    return graph;
  }

 private:
  cudaStream_t stream_;
  int device_;
  bool is_over_ = false;
};

// Of the thread's launches only those count that are recorded; where there are none, the latest before them is the latest again.
class LaunchRecording {
 public:
  LaunchRecording() : before_(std::exchange(kernels::cuda::latest_launch(), {})) {}
  ~LaunchRecording() {
    if (!kernels::cuda::latest_launch().kernel) kernels::cuda::latest_launch() = before_;
  }
  LaunchRecording(const LaunchRecording&) = delete;
  LaunchRecording& operator=(const LaunchRecording&) = delete;

 private:
  kernels::cuda::LaunchRecord before_;
};

uint64_t& this_recording() noexcept {
  thread_local uint64_t number = 0;
  return number;
}

class NumberedRecording {
 public:
  NumberedRecording() : outer_(this_recording()) {
    static std::atomic<uint64_t> latest{0};
    this_recording() = ++latest;
  }
  ~NumberedRecording() { this_recording() = outer_; }
  NumberedRecording(const NumberedRecording&) = delete;
  NumberedRecording& operator=(const NumberedRecording&) = delete;

 private:
  uint64_t outer_;
};

// While recording, kernels take the default generator's state from device memory. Recording draws nothing, so the generator is put back at the end.
class RandomRecording {
 public:
  explicit RandomRecording(kernels::PhiloxKey* of_run) : before_(default_generator()) { kernels::cuda::recorded_random() = {{before_.seed(), before_.offset()}, of_run}; }
  ~RandomRecording() {
    kernels::cuda::recorded_random() = {};
    default_generator() = before_;
  }
  RandomRecording(const RandomRecording&) = delete;
  RandomRecording& operator=(const RandomRecording&) = delete;

  int64_t draws() const {
    const Generator& now = default_generator();
    check<ValueError>(now.seed() == before_.seed() && now.offset() >= before_.offset(), "cuda::Graph: the recorded work must not seed the default generator; do that before");
    return static_cast<int64_t>(now.offset() - before_.offset());
  }

 private:
  Generator before_;
};

}  // namespace
}  // namespace detail

Graph::Graph(const std::function<void()>& work, int device) : state_(std::make_shared<detail::GraphState>(device)) {
  check<ValueError>(work != nullptr, "cuda::Graph: the function to record is empty");
  detail::DeviceScope on_device(device);
  const auto stream = static_cast<cudaStream_t>(state_->stream.handle());
  state_->stream.synchronize();
  kernels::cuda::range_report_of(device);    // made on first use, which must not be recorded
  detail::keep_for_graph(stream, device);
  const StreamScope scope(state_->stream);
  detail::Recording recording(stream, device);
  {
    const detail::NumberedRecording numbered;
    const detail::RandomRecording random(state_->random);
    const detail::LaunchRecording launches;
    work();
    state_->draws = random.draws();
    state_->last_launch = kernels::cuda::latest_launch();
  }
  cudaGraph_t graph = recording.end();
  const cudaError_t result = cudaGraphInstantiate(&state_->executable, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(result, "cuda::Graph: the recorded work cannot be made into something that runs");
}

uint64_t recording() noexcept { return detail::this_recording(); }

void Graph::replay() {
  check<ValueError>(state_ != nullptr, "cuda::Graph: this graph was moved to another, which replays it");
  const int device = state_->stream.device();
  const Range range("cuda::Graph");
  const Stream current = current_stream(device);
  state_->before.record(current);
  state_->stream.wait(state_->before);
  {
    detail::DeviceScope on_device(device);
    if (state_->draws > 0) kernels::cuda::begin_run(state_->stream.handle(), state_->random, default_generator().next(state_->draws));
    check_cuda(cudaGraphLaunch(state_->executable, static_cast<cudaStream_t>(state_->stream.handle())), "cuda::Graph: a run cannot be started");
  }
  state_->after.record(state_->stream);
  current.wait(state_->after);
  if (state_->last_launch.kernel) kernels::cuda::latest_launch() = state_->last_launch;
}

}  // namespace fovea::cuda
