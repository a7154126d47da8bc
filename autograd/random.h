// Operations that draw random numbers. The backward pass draws the same numbers again from the same key, so no mask is kept.
#pragma once

#include <fovea/autograd/tape.h>
#include <fovea/tensor/random.h>

namespace fovea {

// Each element is zero with probability p and x / (1 - p) otherwise (Srivastava et al. 2014).
Tensor dropout(const Tensor& x, double p, Generator& generator = default_generator());
// The same, but whole channels at a time: x [n, c, ...] keeps or loses x[i, j] as one (Tompson et al. 2015).
Tensor feature_dropout(const Tensor& x, double p, Generator& generator = default_generator());

}  // namespace fovea
