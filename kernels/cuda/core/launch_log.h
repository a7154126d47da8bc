// The names of all kernels that a thread launches, one after the other: for benchmarks and tests that want more than the latest.
#pragma once

#include <string>
#include <vector>

namespace fovea::kernels::cuda {

// From now on every launch of this thread adds its kernel's name to the list; null ends it.
void log_launches(std::vector<std::string>* names);

}  // namespace fovea::kernels::cuda
