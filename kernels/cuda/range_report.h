// Note [Values out of range are found late]
// A kernel that meets a bad index, label or length can't throw. It writes what it met into its device's report, which lies in pinned memory, and the host throws the IndexError
// when it waits for the device next: item(), to_vector(), copies that wait, Stream::synchronize(), Event::synchronize(), cuda::synchronize(). Looking there costs the host one
// read. Until then other kernels run on what they have: those that use such a value read zero for it, add nothing, or make their result NaN.
// A report holds one finding, the first of its stream; later ones are dropped until the host has taken it. Not installed.
#pragma once

#include <fovea/kernels/range_check.h>

namespace fovea::kernels::cuda {

struct RangeReport {
  enum State : unsigned { empty, taken, complete };           // taken: a kernel is writing

  unsigned state = empty;
  int64_t position = 0, value = 0;
  RangeCheck check;
  Shape shape;                                                // of the tensor that the value was found in
};

// The device's report, made on first use; kernels and the host reach it at the same address.
RangeReport* range_report_of(int device);
// Throws what kernels have reported, if they have, and empties the report. To be called after waiting for the device.
void throw_reported(int device);

}  // namespace fovea::kernels::cuda
