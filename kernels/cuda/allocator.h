// Device memory: a cache of freed blocks for each device, ordered by streams.
#pragma once

#include <cstdint>

#include <fovea/kernels/cuda/runtime.h>
#include <fovea/kernels/memory.h>

namespace fovea::cuda {

// Policy: a request is rounded up as the CPU's are (tensor/allocator.h; 512 bytes at least) and served by a cached block of exactly that class, else by
// cudaMalloc. A block belongs to the stream that was current when it was asked for.
//   - Freed while that stream is current, it may be reused on the same stream at once: the new user's work comes after the old one's. For other streams an event
//     is recorded when it is freed (if there are other streams), and they may have it when the event has passed.
//   - Freed while another stream is current, or announced to others by record_use(), it waits for events on all of these streams.
//   - Blocks stay in the cache until clear(), or until the limit or the device's memory would be exceeded: then the cache is emptied and the request tried again
//     before MemoryError is thrown.
// All functions may be called from any thread.
namespace allocator {

void* allocate(int64_t bytes, int device);                     // not null for 0 bytes
void release(void* block, int64_t bytes, int device) noexcept; // bytes as given to allocate()
AllocatorStats stats(int device = current_device());
void reset_peak(int device = current_device());
void set_limit(int64_t bytes, int device = current_device());  // of active + cached bytes; 0 (the default): the device's memory
// Gives the cached blocks back to CUDA, but for those of recorded graphs. Waits for the device; DeviceError while a graph is recorded there.
void clear(int device = current_device());

// The same of pinned host memory, which serves all devices.
AllocatorStats pinned_stats();
void clear_pinned();                                           // waits for the copies that use what is cached; what recorded graphs copy is kept

// As for the CPU: poisons what it hands out and puts guards around it. Guards are looked at by damaged_blocks(), and when many freed blocks have gathered.
void set_debug(bool is_on);
int64_t damaged_blocks();

}  // namespace allocator
}  // namespace fovea::cuda
