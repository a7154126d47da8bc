#include <fovea/kernels/range_check.h>

#include <algorithm>
#include <cstring>

#include <fovea/kernels/coordinates.h>

namespace fovea::kernels {

RangeCheck::RangeCheck(const char* op, const char* argument, int64_t low, int64_t high, const std::string& owner_text) : op(op), argument(argument), low(low), high(high) {
  std::memcpy(owner, owner_text.data(), std::min(owner_text.size(), sizeof(owner) - 1));
}

std::string sentence_of(const RangeCheck& c, int64_t position, int64_t value, const Shape& shape) {
  const std::string found = str(c.op, ": ", c.argument, shape.rank() > 0 ? str(coordinates_of(position, shape)) : "", " is ", value, ", ");
  if (c.why_forbidden && value == c.forbidden) return found + c.why_forbidden;
  return str(found, "out of range [", c.low, ", ", c.high, ") for ", c.owner);
}

}  // namespace fovea::kernels
