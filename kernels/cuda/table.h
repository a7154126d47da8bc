// What tests ask of the table of CUDA devices. Not installed.
#pragma once

#include <string>
#include <vector>

#include <fovea/kernels/cuda/runtime.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels::cuda {

// Every entry becomes a function that throws DeviceError with the entry's name.
void fill_with_missing(KernelTable& table);
// Entries that no family fills in.
std::vector<std::string> missing_entries();

}  // namespace fovea::kernels::cuda
