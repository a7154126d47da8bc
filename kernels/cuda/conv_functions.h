// What the convolutions' files (conv*.cu) have in common, and what they call in each other.
#pragma once

#include <numeric>

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
// With unit strides dx is the forward convolution of dy with the mirrored kernel, padded by what the kernel reaches beyond the old padding: its axes.
inline WindowAxis mirrored_vertical_of(const ConvGeometry& g) {
  return {static_cast<int32_t>(g.r), 1, static_cast<int32_t>(g.pad_h - (g.r - 1) * g.dilation_h), static_cast<int32_t>(g.dilation_h), static_cast<int32_t>(g.out_h())};
}
inline WindowAxis mirrored_horizontal_of(const ConvGeometry& g) {
  return {static_cast<int32_t>(g.s), 1, static_cast<int32_t>(g.pad_w - (g.s - 1) * g.dilation_w), static_cast<int32_t>(g.dilation_w), static_cast<int32_t>(g.out_w())};
}

constexpr int32_t far_outside = -(1 << 30);  // a position that stays outside of any image whatever is added to it

// Note [Phases along one axis]
// Pixel h of dx meets row p of dy through tap r when p * stride = h + pad - r * dilation. For the pixels h = first + i * stride of a phase, the taps that come out
// even do not depend on i: r = first_tap + j * tap_step with j < taps. Then p = i + base - j * delta, all whole numbers.
struct PhaseAxis {
  int64_t first = 0, count = 0;              // its first pixel, and how many there are
  int64_t first_tap = 0, tap_step = 1, taps = 0;
  int64_t base = 0, delta = 0;

  PhaseAxis(int64_t phase, int64_t size, int64_t stride, int64_t pad, int64_t dilation, int64_t kernel) : first(phase), count(std::max<int64_t>(0, ceil_div(size - phase, stride))) {
    tap_step = stride / std::gcd(stride, dilation);
    while (first_tap < std::min(tap_step, kernel) && (first + pad - first_tap * dilation) % stride != 0) ++first_tap;
    if (first_tap >= std::min(tap_step, kernel)) return;
    taps = ceil_div(kernel - first_tap, tap_step);
    base = (first + pad - first_tap * dilation) / stride;
    delta = tap_step * dilation / stride;
  }
  WindowAxis window(int64_t outputs) const {
    return {static_cast<int32_t>(taps), 1, static_cast<int32_t>(base), static_cast<int32_t>(-delta), static_cast<int32_t>(outputs)};
  }
};

// n / divisor where that comes out even, else -1.
__device__ inline int32_t whole_quotient(int32_t n, const FastDivide& by) {
  if (n < 0) return -1;
  const int32_t quotient = static_cast<int32_t>(by.quotient(static_cast<uint32_t>(n)));
  return quotient * static_cast<int32_t>(by.divisor) == n ? quotient : -1;
}

// --- tensors of images, which lie [n,c,h,w] or channels-last, [n,h,w,c] ---

template <class Pointer>
struct Images {
  Pointer data = nullptr;
  int64_t image = 0, pixel = 0, channel = 0;           // strides, in elements
  bool is_channels_last() const { return channel == 1 && !is_planar(); }
  bool is_planar() const { return pixel == 1; }
};

// ShapeError naming `op` unless the view [n,c,h,w] is contiguous in one of the two ways. Where it is in both, channels-last it is: pixels of one channel.
template <class V>
auto images_of(const V& v, const char* op, const char* name) {
  const int64_t c = v.size(1), h = v.size(2), w = v.size(3);
  const auto lies = [&](int64_t image, int64_t channel, int64_t row, int64_t column) {
    const int64_t expected[] = {image, channel, row, column};
    for (int axis = 0; axis < 4; ++axis)
      if (v.size(axis) != 1 && v.stride(axis) != expected[axis]) return false;
    return true;
  };
  using Pointer = decltype(v.data);
  if (v.numel() == 0 || lies(c * h * w, 1, w * c, c)) return Images<Pointer>{v.data, c * h * w, c, 1};
  check<ShapeError>(lies(c * h * w, h * w, w, 1), op, ": ", name, " ", v.shape, " must be contiguous or channels-last, got strides ", v.strides);
  return Images<Pointer>{v.data, c * h * w, 1, h * w};
}

// --- conv_depthwise.cu: groups == c; everything contiguous [n,c,h,w] ---

void depthwise_forward(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y);
void depthwise_backward_data(Queue queue, const ConvGeometry& g, const ConstView& dy, const ConstView& weight, const View& dx);
// Sums in float32 for the half types, else in the element type, one share for each of `splits` parts of the images, weights() elements apart.
void depthwise_backward_weight(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& dy, DType dtype, int64_t splits, void* sums);

// --- conv_depthwise_last.cu: everything but the weight channels-last, weight contiguous ---

// Are these tensors, x and y or their gradients, what its kernels take?
bool takes_depthwise_last(const ConvGeometry& g, const ConstView& x, const ConstView& y);
void depthwise_last_forward(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y);
void depthwise_last_backward_data(Queue queue, const ConvGeometry& g, const ConstView& dy, const ConstView& weight, const View& dx);
// Sums as depthwise_backward_weight's, but for parts of the pixels.
void depthwise_last_backward_weight(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& dy, int64_t splits, void* sums);

// --- conv_layout.cu: what the tensor cores' kernels read (Note [What the tensor cores' kernels read]) ---

// Is `images` of `groups` groups of `c` channels what a kernel can read as if it had been copied?
bool needs_copy(const Images<const void*>& images, const void* first, int64_t size, int64_t groups, int64_t c, int64_t padded);
// to [count, pixels, groups, padded] from images with `pixels` pixels and groups * c channels.
void copy_channels(Queue queue, int64_t size, const Images<const void*>& from, int64_t count, int64_t pixels, int64_t groups, int64_t c, int64_t padded, void* to);
// Must the forward pass's weights be copied, or do they lie so already?
bool needs_weight_copy(const ConvGeometry& g, const ConvLayout& layout, const ConstView& weight);
// to [groups, rows, weight_row] from weight [k,c/groups,r,s] of any strides; rows are y's channels in the forward pass, and x's in backward_data.
void copy_weights(Queue queue, const ConvGeometry& g, const ConvLayout& layout, ConvPass pass, const ConstView& weight, void* to);

// For conv_plain.cu: to [group, r, s, channel, row] from weight [k,c/groups,r,s], contiguous; rows and channels as above, and `pitch` elements for each channel's rows, the
// last of them zeros. Elements of `size` bytes: 4 or 8.
void pack_weights(Queue queue, const ConvGeometry& g, ConvPass pass, int64_t size, int64_t pitch, const void* weight, void* to);

// --- conv_plain.cu, conv_plain_weight.cu: float32 and float64; everything contiguous [n,c,h,w] ---

template <class T>
void plain_forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* x, const T* weight, const T* bias, T* y, Workspace);
template <class T>
void plain_backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* dy, const T* weight, T* dx, Workspace);
// Sums in T, one share for each of plan.splits parts of the pixels, weights() elements apart.
template <class T>
void plain_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* x, const T* dy, T* sums);

// --- conv_direct.cu: float32 in small groups; backward_data with strides of one or two; everything contiguous [n,c,h,w] ---

void direct_forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* x, const float* weight, const float* bias, float* y);
void direct_backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* dy, const float* weight, float* dx);

// --- conv_direct_weight.cu: the same of kernels of 3 x 3 with strides of one or two ---

// Sums as plain_backward_weight's.
void direct_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* x, const float* dy, float* sums);

// --- conv_grouped.cu: the half types, small groups; backward_data with strides of up to four phases ---

void grouped_forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y, Workspace);
void grouped_backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& dy, const ConstView& weight, const View& dx, Workspace);

// --- conv_grouped_weight.cu: the half types, small groups with as many channels of x as of y ---

void grouped_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& dy,
                             const View& dweight, Workspace);

// --- conv_tensor.cu, conv_tensor_weight.cu: the half types, and float32 where TF32 is allowed ---

void tensor_forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y, Workspace);
void tensor_backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& dy, const ConstView& weight, const View& dx, Workspace);
void tensor_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& dy, const View& dweight, Workspace);
// The last step of tensor_backward_weight and grouped_backward_weight: dweight = the sum of plan.splits parts, each [k, r, s, x_channels]
// with rows of layout.weight_row elements.
void add_weight_parts(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* parts, const View& dweight);

}  // namespace fovea::kernels::cuda
