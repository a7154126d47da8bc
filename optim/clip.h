// Gradient clipping, as torch.nn.utils does it.
#pragma once

#include <fovea/tensor/named_tensors.h>

namespace fovea::optim {

struct ClipOptions {
  double norm_type = 2;                      // 2, or infinity for the largest magnitude
  bool error_if_nonfinite = false;           // ValueError naming the first parameter whose gradient is infinite or NaN; the gradients are then as they were
};

// Scales the gradients of all parameters by max_norm / (norm + 1e-6) where their common norm exceeds max_norm (Pascanu, Mikolov & Bengio 2013).
// Returns the norm before clipping; parameters without a gradient count as zero. Sums of squares are added in float64, in the order of the parameters.
double clip_grad_norm(const NamedTensors& parameters, double max_norm, ClipOptions options = {});

// Cuts each element of the gradients to [-limit, limit].
void clip_grad_value(const NamedTensors& parameters, double limit);

}  // namespace fovea::optim
