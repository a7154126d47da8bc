// Gradient clipping, as torch.nn.utils does it.
#pragma once

#include <fovea/tensor/named_tensors.h>

namespace fovea::optim {

struct ClipOptions {
  double norm_type = 2;                      // 2, or infinity for the largest magnitude
  bool error_if_nonfinite = false;           // ValueError naming the first parameter whose gradient is infinite or NaN; the gradients are then as they were
};

// Scales the gradients of all parameters by max_norm / (norm + 1e-6) where their common norm exceeds max_norm (Pascanu, Mikolov & Bengio 2013).
// Returns the norm before clipping; parameters without a gradient count as zero. On the CPU the sums of squares of the gradients are added in float64, in the order
// of the parameters; on a CUDA device all gradients are summed at once (in one launch, another one scales them), and the call waits for the norm.
double clip_grad_norm(const NamedTensors& parameters, double max_norm, ClipOptions options = {});

// The same without waiting, so that it can be recorded by a cuda::Graph: the norm is a float64 tensor of rank 0 on the gradients' device (the CPU, if there are none).
// Waits all the same if error_if_nonfinite is set or the gradients lie on several devices.
Tensor clip_grad_norm_async(const NamedTensors& parameters, double max_norm, ClipOptions options = {});

// Cuts each element of the gradients to [-limit, limit].
void clip_grad_value(const NamedTensors& parameters, double limit);

}  // namespace fovea::optim
