// The device of tests through the public interface, and what it finds late.
#pragma once

#include <string>
#include <vector>

#include <fovea/fovea.h>

#include "messages.h"

namespace fovea::testing {

inline bool has_device() { return cuda::device_count() > 0; }
inline const Device gpu = Device::cuda(0), cpu = Device::cpu();

// What an error about values says at its end when it was found after the call that it belongs to.
inline const char* const late = " (found on cuda:0 by work queued earlier)";
// The error that waiting for the device brings.
inline std::string found_late() { return error_of<IndexError>([] { cuda::synchronize(0); }); }

inline const void* memory_of(const Tensor& x) { return x.view().data; }

// Tests of the allocator look at the cache, which the poisoning of fresh memory goes around.
class RealAllocator {
 public:
  RealAllocator() { cuda::allocator::set_debug(false); cuda::allocator::clear(); }
  ~RealAllocator() {
    cuda::allocator::set_limit(0);
    cuda::allocator::clear();
    cuda::allocator::set_debug(true);
  }
};

inline Tensor on_gpu(const std::vector<int64_t>& values, const Shape& shape) { return to(from_vector(values, shape, cpu), gpu); }

}  // namespace fovea::testing
