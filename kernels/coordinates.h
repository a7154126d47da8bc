// From a position in row-major order to an index for each axis.
#pragma once

#include <fovea/kernels/view.h>

namespace fovea {

// Where the element at `position` of a tensor of this shape stands: [2,0,1]. No size may be 0.
inline Shape coordinates_of(int64_t position, const Shape& shape) {
  Shape at = shape;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    at[i] = position % shape[i];
    position /= shape[i];
  }
  return at;
}

}  // namespace fovea
