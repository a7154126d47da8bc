// Runs of elements copied from one dtype to another: what copies, elementwise kernels and reductions use to read and write any layout.
#pragma once

#include <fovea/kernels/view.h>

namespace fovea::kernels {

// y[i] = x[i] for i in [0, n); strides in bytes (any sign, zero repeats one element). Floating to integer truncates; anything to bool is x
// != 0 (NaN is true).
using ConvertRun = void (*)(const void* x, int64_t x_stride, void* y, int64_t y_stride, int64_t n);

ConvertRun convert_run(DType from, DType to);

}  // namespace fovea::kernels
