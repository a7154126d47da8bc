// What conv.cu and conv_depthwise.cu have in common.
#pragma once

#include <fovea/kernels/cuda/conv_plan.h>
#include <fovea/kernels/cuda/planes.h>

namespace fovea::kernels::cuda {

// One axis of the windows: output (or input) `i` and tap `t` meet at step * i + base + delta * t, if that is in [0, size).
struct WindowAxis {
  int32_t taps = 1, step = 1, base = 0, delta = 1, size = 1;
};

// The axes of a forward convolution: from pixels of y and taps to pixels of x.
inline WindowAxis vertical_of(const ConvGeometry& g) {
  return {static_cast<int32_t>(g.r), static_cast<int32_t>(g.stride_h), static_cast<int32_t>(-g.pad_h), static_cast<int32_t>(g.dilation_h), static_cast<int32_t>(g.h)};
}
inline WindowAxis horizontal_of(const ConvGeometry& g) {
  return {static_cast<int32_t>(g.s), static_cast<int32_t>(g.stride_w), static_cast<int32_t>(-g.pad_w), static_cast<int32_t>(g.dilation_w), static_cast<int32_t>(g.w)};
}

// Groups == c (conv_depthwise.cu); conv.cu says what is computed. dweight gets one share for each of `splits` parts of the images, weights() elements apart.
void depthwise_forward(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y);
void depthwise_backward_data(Queue queue, const ConvGeometry& g, const ConstView& dy, const ConstView& weight, const View& dx);
void depthwise_backward_weight(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& dy, DType dtype, int64_t splits, void* dweight);

}  // namespace fovea::kernels::cuda
