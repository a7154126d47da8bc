// Normalisation: each takes out the mean and divides by the standard deviation of a set of elements, then scales and shifts by learned numbers.
//     y = weight * (x - mean) / sqrt(var + eps) + bias        var: the biased variance
// weight and bias may be left out (undefined). float32, float64 or a half type, all arguments of one dtype and device;
// beside a half x, the others may be float32. Differentiable twice.
#pragma once

#include <optional>

#include <fovea/autograd/tape.h>

namespace fovea {

// x [n, channels, ...]; weight, bias, running_mean, running_var [channels]. With `training` the statistics are each channel's over the batch and all positions, and
// running = (1 - momentum) * running + momentum * batch (with the unbiased variance, as PyTorch) if there are running statistics; otherwise those are used, and must
// be there. batches (int64, one element; may be left out) counts the batches of training; without a momentum, 1 / batches takes its place, and the running statistics are
// the mean over all batches. Nobody waits for the device, and all of it is done by the kernels that find the batch's statistics.
// ValueError when training on a single value a channel. A channels-last x (autograd/shape.h) has a channels-last result and gradient.
// Source: Ioffe & Szegedy 2015.
Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean, const Tensor& running_var, bool training,
                  std::optional<double> momentum = 0.1, double eps = 1e-5, const Tensor& batches = {});
// relu(batch_norm(...)) in one pass over memory.
Tensor batch_norm_relu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean, const Tensor& running_var, bool training,
                       std::optional<double> momentum = 0.1, double eps = 1e-5, const Tensor& batches = {});
// relu(batch_norm(...) + residual) in one pass over memory, the end of a residual block. residual: of x's shape and dtype.   Source: He et al. 2016.
Tensor batch_norm_add_relu(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, const Tensor& running_mean, const Tensor& running_var,
                           bool training, std::optional<double> momentum = 0.1, double eps = 1e-5, const Tensor& batches = {});

// Statistics over the last axes, which must have the sizes `normalized_shape`; weight and bias have that shape.   Source: Ba, Kiros & Hinton 2016.
Tensor layer_norm(const Tensor& x, const Shape& normalized_shape, const Tensor& weight = {}, const Tensor& bias = {}, double eps = 1e-5);

// x [n, channels, ...]: statistics of each sample over each of `groups` groups of channels and all positions; weight, bias [channels].   Source: Wu & He 2018.
Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight = {}, const Tensor& bias = {}, double eps = 1e-5);

// Group norm with a group for each channel.   Source: Ulyanov, Vedaldi & Lempitsky 2016.
Tensor instance_norm(const Tensor& x, const Tensor& weight = {}, const Tensor& bias = {}, double eps = 1e-5);

}  // namespace fovea
