// What the runtime and the allocator know of each other. Not installed.
#pragma once

#include <cuda_runtime.h>

#include <fovea/kernels/cuda/runtime.h>

namespace fovea::cuda::detail {

inline constexpr int max_devices = 64;

// Makes a device CUDA's current one and puts the former one back at the end.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = -1;                        // -1: nothing to put back
};

cudaStream_t current_handle(int device);     // null: CUDA's default stream
bool has_many_streams(int device);           // was ever a stream beside the default one made there?

// Defined by the allocator. A stream is about to go, its work is done: its blocks are free for every stream.
void forget_stream(cudaStream_t stream, int device) noexcept;
// Memory asked for or freed on `stream` from now on stays with that stream, whoever asks for more, because a recorded graph goes on using it; until the
// stream goes.
void keep_for_graph(cudaStream_t stream, int device);
// Scratch memory of a stream, for whatever is put there: one piece of work after the other uses it. The same at every call, made at the first, and given back when the
// stream goes. Not among the allocator's statistics. Null where the device has no more.
void* scratch_of(cudaStream_t stream, int device, int64_t bytes);
// Gives the cached blocks back for somebody else who needs the device's memory, unless a graph is recorded there.
void make_room(int device);
// Note [Nothing waits for a device while a graph is recorded]
// Waiting for the whole device, as the allocator does before it gives memory back, spoils every recording that is under way there, whichever thread's it is. So the allocator
// is told of recordings, and does without what it would have to wait for.
void begin_recording(int device);
void end_recording(int device) noexcept;
// Notes that a copy on `stream` uses pinned memory, if `host` lies in some.
void record_pinned_use(const void* host, cudaStream_t stream, int device);

}  // namespace fovea::cuda::detail
