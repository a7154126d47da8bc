// Indices, labels and lengths are values in tensors: whether they are in range is known only where the tensor is. KernelTable::check_range looks, on the CPU at once; on
// CUDA when its turn comes, so that nobody waits, and the error comes out of whatever waits for the device next (kernels/cuda/range_report.h).
#pragma once

#include <cstdint>
#include <string>

#include <fovea/kernels/view.h>

namespace fovea::kernels {

// What every value has to be, and how a message names it. Plain bytes: a kernel is given a copy, and so is the host, when something is wrong.
struct RangeCheck {
  const char *op = "", *argument = "";       // literals: they are read long after the call
  int64_t low = 0, high = 0;                 // low <= value < high
  bool has_exception = false;
  int64_t exception = 0;                     // allowed, though it is not in the range
  const char* why_forbidden = nullptr;       // a literal, "the blank; targets must not hold blanks"; null: no value is
  int64_t forbidden = 0;                     // not allowed, though it is in the range
  char owner[96] = {};                       // what has that range: "axis 1 of x [2,3]", "10 classes"; longer ones are cut off

  RangeCheck(const char* op, const char* argument, int64_t low, int64_t high, const std::string& owner);

  constexpr bool allows(int64_t value) const {
    if (has_exception && value == exception) return true;
    return value >= low && value < high && !(why_forbidden && value == forbidden);
  }
};

// "gather: index[1,0] is 3, out of range [0, 3) for axis 1 of x [2,3]", of the element at a row-major position of a tensor of this shape.
std::string sentence_of(const RangeCheck& check, int64_t position, int64_t value, const Shape& shape);

}  // namespace fovea::kernels
