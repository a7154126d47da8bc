// CUDA's devices as a program sees them: how many there are, streams, events, copies and switches. No CUDA header is needed to use it, and all of it is there in a
// build without CUDA too: device_count() is 0 then, and what needs a device says how to get one.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include <fovea/kernels/table.h>

namespace fovea::cuda {

// Devices this build can use on this machine; 0 without a driver, without a GPU, or where the library was built without CUDA. Never an error.
int device_count() noexcept;
bool is_built() noexcept;                                      // was the library built with CUDA?
// DeviceError that says what is missing, unless the device is there.
void check_device(int index);

// The device that the functions below mean when they are given none; one a thread, 0 at first. Operations run on the device of their tensors, whatever this is.
int current_device() noexcept;
void set_device(int index);

// Note [Streams]
// Work on one stream runs in the order it was put there; work on different streams runs in any order, unless an event says otherwise. Every thread has a current
// stream for each device: CUDA's default stream, until a StreamScope puts another in its place. All operations, copies and allocations go there.
// A tensor that is used on another stream than the one it was made on must be announced by record_use(), else its memory may be given away too early.
class Event;
namespace detail {
struct StreamState;
struct EventState;
}  // namespace detail

class Stream {
 public:
  explicit Stream(int device = current_device());              // a new stream
  static Stream default_of(int device = current_device());     // CUDA's default stream
  int device() const;
  void* handle() const;                                        // the cudaStream_t
  void synchronize() const;                                    // waits until all work put there so far is done
  bool is_idle() const;
  void wait(const Event& event) const;                         // later work waits for the event; the calling thread doesn't
  bool operator==(const Stream& other) const { return state_ == other.state_; }

 private:
  friend class StreamScope;
  friend Stream current_stream(int device);
  explicit Stream(std::shared_ptr<detail::StreamState> state) : state_(std::move(state)) {}
  std::shared_ptr<detail::StreamState> state_;
};

Stream current_stream(int device = current_device());

class StreamScope {                                            // makes a stream the thread's current one on its device, for the life of the object
 public:
  explicit StreamScope(const Stream& stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  std::shared_ptr<detail::StreamState> stream_, previous_;     // the scope keeps both alive
};

// A mark in a stream's work.
class Event {
 public:
  explicit Event(int device = current_device());
  void record(const Stream& stream);
  void record() { record(current_stream(device())); }
  void synchronize() const;                                    // the calling thread waits; an event that was never recorded has passed
  bool has_passed() const;
  int device() const;

 private:
  friend class Stream;
  friend double seconds_between(const Event& begin, const Event& end);
  std::shared_ptr<detail::EventState> state_;
};
// Both must have passed.
double seconds_between(const Event& begin, const Event& end);

// Waits for everything on all streams of a device. Errors of kernels that have failed meanwhile come out here, and so does the IndexError for an index, a label or a length
// out of range: no operation waits to look at them. It names the operation and the value; out of whatever waits first, the functions above and below or item(). What was
// computed from such a value (a row of zeros, a loss of NaN without a gradient) is to be thrown away; everything else goes on as before.
void synchronize(int device = current_device());

// What kernels are given as their queue: the thread's current stream on the device, which is made CUDA's current device.
kernels::Queue queue_on(int device);
// `data` lies in a tensor's memory and is used by work on `stream`: after the tensor is gone the memory is not reused before that work is done.
void record_use(const void* data, const Stream& stream);

// Copies between devices or between host and device, on the current stream of the device (the source's, between two). A copy to the host has arrived
// when the call returns, a copy from pageable host memory has been read. With is_async and pinned host memory the call returns at once: the memory is to be left
// alone until the stream has come that far.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, int64_t bytes, bool is_async = false);

// Host memory that devices read and write by themselves, cached like device memory. It may be released while copies still use it.
void* allocate_pinned(int64_t bytes);
void release_pinned(void* block, int64_t bytes);

// While on, every launch waits for its kernel, so that an error comes from the call that caused it. Off, unless FOVEA_CUDA_SYNC=1 is in the environment.
void set_synchronous(bool is_on);
// The name of the latest kernel that this thread launched; "" before the first. A run of a graph counts as a launch of the last kernel recorded in it.
const char* last_kernel();

// A launch of a kernel, and how it makes use of the device.
struct LaunchInfo {
  std::string name;                                            // as last_kernel() gives it; all else is 0 where it is ""
  int device = 0;
  std::array<int64_t, 3> blocks{}, threads{};                  // x, y, z; threads of a block
  int64_t shared_bytes = 0;                                    // of a block
  int registers = 0;                                           // of a thread
  int64_t local_bytes = 0;                                     // of a thread: spilled registers, and arrays that don't fit into registers
  int blocks_per_multiprocessor = 0;                           // that registers, shared memory and threads let run at once on one multiprocessor
  double occupancy = 0;                                        // the part of a multiprocessor's warps that these blocks keep busy, up to 1; fewer where the grid is small
};
// Of the kernel that last_kernel() names. CUDA is asked when this is called; a launch only notes which it was.
LaunchInfo last_launch();

// Whether products and convolutions of float32 may be computed from TF32 (10 bits of mantissa) on tensor cores: several times as fast, with about three digits. Off by default.
void set_allow_tf32(bool is_on);
bool allow_tf32();

}  // namespace fovea::cuda
