// A piece of work, a training step say, recorded once and run again with one call: what the host does to put each kernel on a stream is paid only once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include <fovea/kernels/cuda/runtime.h>

namespace fovea::cuda {

namespace detail {
struct GraphState;
}

// The work itself is fixed, and so is every number that the host gave it: a learning rate, say, or the step count of an optimizer that counts on the host. Values in tensors
// may change between runs, by copying new ones into the tensors that the recorded work read. Those must stay alive; memory asked for while recording belongs to the
// graph as long as it lives, also when its tensors are gone. What the work draws from the default generator (dropout, rand) is drawn anew by each run: the runs draw what as many
// calls of work() would have drawn, from the generator of the thread that calls replay(). Other generators' numbers are the same in every run.
class Graph {
 public:
  // Calls work() once with a stream of the graph's own as the current one, and records what it puts there; nothing is computed yet. Work that waits for the device (item(),
  // copies to the host, masks and nonzero()) can't be recorded: DeviceError, and there is no graph. Run the work once before, so that what is made
  // on first use is there. Other threads may use the device meanwhile, on other streams, but a wait for all of it (cuda::synchronize()) spoils the recording.
  explicit Graph(const std::function<void()>& work, int device = current_device());
  // Puts one run on the current stream: after what is there, before what comes.
  void replay();

 private:
  std::shared_ptr<detail::GraphState> state_;
};

// The number of the recording that this thread's work goes into, which no other has; 0: none. For what keeps results to use them again: those of a recording are there in
// runs of its graph only, and a graph must not rely on any that were kept before.
uint64_t recording() noexcept;

}  // namespace fovea::cuda
