#include <fovea/kernels/cuda/graph.h>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/streams.h>

namespace fovea::cuda {

using kernels::cuda::check_cuda;

namespace detail {

struct GraphState {
  explicit GraphState(int device) : stream(device) {}
  ~GraphState() {
    cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle()));      // a run may be under way
    if (executable) cudaGraphExecDestroy(executable);
    keep_for_graph(static_cast<cudaStream_t>(stream.handle()), stream.device(), false);
  }
  GraphState(const GraphState&) = delete;
  GraphState& operator=(const GraphState&) = delete;

  Stream stream;
  cudaGraphExec_t executable = nullptr;
};

namespace {

// Between the calls that begin and end recording.
class Recording {
 public:
  explicit Recording(cudaStream_t stream) : stream_(stream) {
    // Relaxed: the allocator may ask CUDA for memory meanwhile.
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cuda::Graph: recording cannot begin");
  }
  ~Recording() {
    if (is_over_) return;
    cudaGraph_t unfinished = nullptr;                                       // work() threw
    cudaStreamEndCapture(stream_, &unfinished);
    if (unfinished) cudaGraphDestroy(unfinished);
    cudaGetLastError();
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
  bool is_over_ = false;
};

}  // namespace
}  // namespace detail

Graph::Graph(const std::function<void()>& work, int device) : state_(std::make_shared<detail::GraphState>(device)) {
  detail::DeviceScope on_device(device);
  const auto stream = static_cast<cudaStream_t>(state_->stream.handle());
  state_->stream.synchronize();
  detail::keep_for_graph(stream, device, true);
  const StreamScope scope(state_->stream);
  detail::Recording recording(stream);
  work();
  cudaGraph_t graph = recording.end();
  const cudaError_t result = cudaGraphInstantiate(&state_->executable, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(result, "cuda::Graph: the recorded work cannot be made into something that runs");
}

void Graph::replay() {
  const int device = state_->stream.device();
  const Stream current = current_stream(device);
  Event before(device), after(device);
  before.record(current);
  state_->stream.wait(before);
  {
    detail::DeviceScope on_device(device);
    check_cuda(cudaGraphLaunch(state_->executable, static_cast<cudaStream_t>(state_->stream.handle())), "cuda::Graph: a run cannot be started");
  }
  after.record(state_->stream);
  current.wait(after);
}

}  // namespace fovea::cuda
