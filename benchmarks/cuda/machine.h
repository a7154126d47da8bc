// What the machine is and what it can do at most.
#pragma once

#include <string>

#include <fovea/kernels/view.h>

#include "vendor.h"

namespace fovea::benchmarks {

// Over the model of tests/host_cuda times mean nothing, and none is ever written.
#ifdef FOVEA_HOST_CUDA
inline constexpr bool is_model = true;
#else
inline constexpr bool is_model = false;
#endif

struct Machine {
  std::string device, driver, runtime;
  int multiprocessors = 0;
  double l2_bytes = 0, memory_bytes = 0;
};
Machine this_machine();
double sm_clock_mhz();                                            // now, as NVML tells it; NaN where it doesn't

// Rates read on this machine: what a roof is computed from. Bytes count reading and writing; products of 8192 x 8192 on random numbers.
struct Ceilings {
  double copy = 0;                                                // bytes a second
  double float32 = 0, tf32 = 0, float16 = 0, bfloat16 = 0;       // operations a second; float32 by fused multiply-adds in registers
  std::string products_by;                                        // whose matrix product it was
  double of(const std::string& dtype) const;
};
Ceilings measure_ceilings(Vendor* cublas);
void write_ceilings(const std::string& path, const Machine& machine, const Ceilings& ceilings, const std::string& commit);
bool read_ceilings(const std::string& path, Ceilings& ceilings);  // false where the file is not there

// Puts fused multiply-adds on the stream, `rounds` times 256 for each of `threads` threads (fma.cu); y has as many elements. Returns the operations.
double run_fused_multiply_adds(void* stream, int64_t threads, int rounds, float* y);

}  // namespace fovea::benchmarks
