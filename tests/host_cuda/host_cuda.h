// A model of CUDA on the host: the kernels of kernels/cuda/ compiled by the host's own compiler, their threads run as fibers of one thread, device memory fenced off.
// It exists to find mistakes where there is no GPU. What it checks, and what it can't, stands in tests/host_cuda/README.md.
//
// Schedules (the order of blocks, of threads, of streams) are random and come from one seed: FOVEA_HOST_CUDA_SEED in the environment, else 1.
// FOVEA_HOST_CUDA_MEMORY is the size of a device's memory ("2G" when not given), FOVEA_HOST_CUDA_DEVICES their number (1).
//
// A mistake in a kernel reaches the host as CUDA's own errors do: from the call that waits for it, as cudaErrorLaunchFailure (or cudaErrorIllegalAddress), whose
// cudaGetErrorString() is the whole sentence: kernel, block, thread, what happened, and the seed. All work that was queued is dropped, and the model goes on
// working afterwards, where a real device would be lost until the process ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace host_cuda {

// Starts the random schedules anew.
void set_seed(uint64_t seed);
uint64_t seed();

// The sentence of the latest failure; "" before the first.
const std::string& last_failure();

// Changes the size of every device's memory, for tests that run out of it.
void set_memory_size(size_t bytes);

// Whether this is a build with the address sanitizer, which names the line of an access beside an allocation and ends the program before the model can say anything.
bool has_address_sanitizer();
// Whether the thread sanitizer watches kernels: it reports accesses to shared and device memory by two threads of a block that no barrier or warp operation orders.
bool has_thread_sanitizer();

// The name that the next launch of this thread has in messages.
void name_next_launch(const char* name);

// NVTX: from now on every range of this thread that begins is added to the list, as the names of all that are open, the outermost first; null ends it.
void record_ranges(std::vector<std::vector<std::string>>* ranges);
size_t open_ranges();                        // of this thread

// For kernels: the block's dynamic shared memory, which must have been given `bytes` or more at launch.
void* shared_memory(size_t bytes);

}  // namespace host_cuda
