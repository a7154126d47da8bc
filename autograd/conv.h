// Convolutions (cross-correlations, as in every network library) of float32, float64 or half tensors, with PyTorch's layouts and defaults. Options are filled by name:
//     conv2d(x, weight, bias, {.stride = 2, .padding = {1, 0}})
// Of inputs beyond about FLT_MAX / 8 a 3x3 convolution may give infinities and NaN even where the weights would make the result small (Winograd's sums overflow first).
// All are differentiable as often as you like. A single image without the batch axis may be given; the result then lacks it too.
#pragma once

#include <fovea/autograd/pair.h>
#include <fovea/autograd/tape.h>
#include <fovea/kernels/geometry.h>

namespace fovea {

struct Conv1dOptions {
  int64_t stride = 1, padding = 0, dilation = 1, groups = 1;
};

struct Conv2dOptions {
  Pair stride = 1, padding = 0, dilation = 1;
  int64_t groups = 1;
};

struct ConvTranspose1dOptions {
  int64_t stride = 1, padding = 0, output_padding = 0, groups = 1, dilation = 1;
};

struct ConvTranspose2dOptions {
  Pair stride = 1, padding = 0, output_padding = 0;
  int64_t groups = 1;
  Pair dilation = 1;
};

// x [n,c,l], weight [k,c/groups,s], bias [k] or nothing -> [n,k,out], out = (l + 2 padding - dilation (s - 1) - 1) / stride + 1
Tensor conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, Conv1dOptions options = {});

// x [n,c,h,w], weight [k,c/groups,r,s], bias [k] or nothing -> [n,k,out_h,out_w]; groups == c is a depthwise convolution
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, Conv2dOptions options = {});

// The gradient of a convolution with respect to its input, as an operation: x [n,k,l], weight [k,c/groups,s], bias [c] or nothing -> [n,c,out],
// out = (l - 1) stride - 2 padding + dilation (s - 1) + output_padding + 1
Tensor conv_transpose1d(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, ConvTranspose1dOptions options = {});

// The size of a transposed convolution's result along one axis.
inline int64_t transposed_outputs(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t output_padding, int64_t dilation) {
  return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1;
}

// x [n,k,h,w], weight [k,c/groups,r,s], bias [c] or nothing -> [n,c,out_h,out_w]
Tensor conv_transpose2d(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, ConvTranspose2dOptions options = {});

// The gradients of y = conv2d(x, weight) with the shapes of `geometry`, as differentiable operations. ShapeError where a tensor has another shape than it says.
Tensor conv2d_backward_data(const ConvGeometry& geometry, const Tensor& dy, const Tensor& weight);
Tensor conv2d_backward_weight(const ConvGeometry& geometry, const Tensor& x, const Tensor& dy);

}  // namespace fovea
