// Note [Three operations that are each other's derivatives]
// y(x, w), dx(dy, w) and dw(x, dy) are each linear in both of their arguments, and the gradient of any one with respect to an argument is one of the other two.
// So second and higher derivatives need nothing new, and a transposed convolution is dx with its arguments renamed.
#include <fovea/autograd/conv.h>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {

using kernels::Family;

namespace {

void check_arguments(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  detail::check_real(op, "x", x, Family::conv);
  detail::check_alike(op, "x", x, "weight", weight);
  if (bias) detail::check_alike(op, "x", x, "bias", bias);
}

void check_options(const char* op, Pair stride, Pair padding, Pair dilation, int64_t groups) {
  detail::check_window(op, stride, padding, dilation);
  check<ValueError>(groups >= 1, op, ": groups must be at least 1, got ", groups);
}

void check_ranks(const char* op, const Tensor& x, const Tensor& weight, int rank) {
  detail::check_defined(op, "x", x);
  detail::check_defined(op, "weight", weight);
  const char* layout_x = rank == 4 ? "[n,c,h,w] or [c,h,w]" : "[n,c,l] or [c,l]";
  check<ShapeError>(x.rank() == rank || x.rank() == rank - 1, op, ": x must be ", layout_x, ", got ", x.shape());
  check<ShapeError>(weight.rank() == rank, op, ": weight must have ", rank, " axes, as [out,in/groups,", rank == 4 ? "r,s" : "s", "], got ", weight.shape());
}

void check_bias(const char* op, const Tensor& bias, int64_t channels) {
  if (bias)
    check<ShapeError>(bias.rank() == 1 && bias.size(0) == channels, op, ": bias must be [", channels, "], one for each output channel, got ", bias.shape());
}

// A kernel goes by the geometry alone: where a caller made it up, it must fit the tensors.
void check_geometry(const char* op, const ConvGeometry& g) {
  detail::check_window(op, {g.stride_h, g.stride_w}, {g.pad_h, g.pad_w}, {g.dilation_h, g.dilation_w});
  check<ValueError>(g.groups >= 1 && g.c % g.groups == 0 && g.k % g.groups == 0, op, ": groups (", g.groups, ") must divide the channels ", g.c, " and ", g.k);
  check<ShapeError>(g.r >= 1 && g.s >= 1, op, ": the kernel must not be empty, got ", Pair(g.r, g.s));
  checked_numel({g.n, g.c, g.h, g.w}, op);
  check<ShapeError>(g.out_h() >= 1 && g.out_w() >= 1, op, ": a kernel of ", Pair(g.r, g.s), " does not fit into x ", Shape{g.n, g.c, g.h, g.w});
}

void check_has_shape(const char* op, const char* name, const Tensor& x, const Shape& expected) {
  check<ShapeError>(x.shape() == expected, op, ": ", name, " must be ", expected, " for this geometry, got ", x.shape());
}

Scratch scratch_for(const ConvGeometry& g, const Tensor& x) { return Scratch(table_of(x).conv2d_workspace(g, x.dtype()), x.device()); }

// Of a tensor [n,c,h,w]: the sum over all but c.
Tensor sum_of_channels(const Tensor& g) { return reshape(sum_to(g, {1, g.size(1), 1, 1}), {g.size(1)}); }

// See Note [Layouts of images]. The gradient of a weight is contiguous.
using detail::laid_out;
Tensor empty_as(const Tensor& x, const Shape& shape) { return detail::empty_laid_out_as(x, shape, x.dtype()); }

// The gradients of weight and bias from one call, where nothing of it is recorded.
struct WeightGradients {
  Tensor weight, bias;
};
WeightGradients weight_gradients(const ConvGeometry& g, const Tensor& x, const Tensor& dy_any, bool has_bias) {
  const Tensor dy = laid_out(dy_any), dweight = empty({g.k, g.group_c(), g.r, g.s}, {x.dtype(), x.device()});
  const Tensor dbias = has_bias ? empty({g.k}, {x.dtype(), x.device()}) : Tensor();
  const Scratch scratch = scratch_for(g, x);
  table_of(x).conv2d_backward_weight(queue_of(x), g, x.view(), dy.view(), dweight.mutable_view(), detail::mutable_view_or_none(dbias), scratch);
  return {dweight, dbias};
}

Tensor forward(const ConvGeometry& g, const Tensor& x_any, const Tensor& weight_any, const Tensor& bias) {
  const Tensor x = laid_out(x_any), weight = laid_out(weight_any);
  const Tensor y = empty_as(x, {g.n, g.k, g.out_h(), g.out_w()});
  const Scratch scratch = scratch_for(g, x);
  table_of(x).conv2d_forward(queue_of(x), g, x.view(), weight.view(), bias ? contiguous(bias.detach()).view() : ConstView(), y.mutable_view(), scratch);
  return record("conv2d", y, {x, weight, bias}, saving(weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()),
                [g](const Saved& s, const Tensor& dy) {
                  Tensor dx, dweight, dbias;
                  if (s.needs(0)) dx = conv2d_backward_data(g, dy, s[1]);
                  if (s.needs(1) && s.needs(2) && !grad_mode()) {
                    const WeightGradients both = weight_gradients(g, s[0], dy, true);
                    return grads(dx, both.weight, both.bias);
                  }
                  if (s.needs(1)) dweight = conv2d_backward_weight(g, s[0], dy);
                  if (s.needs(2)) dbias = sum_of_channels(dy);
                  return grads(dx, dweight, dbias);
                });
}

// dx of the convolution, plus a bias for each of its channels when it is used as a transposed convolution.
Tensor backward_data(const char* name, const ConvGeometry& g, const Tensor& dy_any, const Tensor& weight_any, const Tensor& bias) {
  const Tensor dy = laid_out(dy_any), weight = laid_out(weight_any);
  const Tensor dx = empty_as(dy, {g.n, g.c, g.h, g.w});
  const Scratch scratch = scratch_for(g, dy);
  table_of(dy).conv2d_backward_data(queue_of(dy), g, dy.view(), weight.view(), dx.mutable_view(), scratch);
  if (bias) {
    const Tensor channels = expand(reshape(bias.detach(), {g.c, 1, 1}), dx.shape());
    table_of(dx).binary(queue_of(dx), kernels::Binary::add, {}, dx.view(), channels.view(), dx.mutable_view());
  }
  return record(name, dx, {dy, weight, bias}, saving(weight.requires_grad() ? dy : Tensor(), dy.requires_grad() ? weight : Tensor()),
                [g](const Saved& s, const Tensor& gradient) {
                  Tensor d_dy, dweight, dbias;
                  if (s.needs(0)) d_dy = forward(g, gradient, s[1], {});
                  if (s.needs(1)) dweight = conv2d_backward_weight(g, gradient, s[0]);
                  if (s.needs(2)) dbias = sum_of_channels(gradient);
                  return grads(d_dy, dweight, dbias);
                });
}

Tensor convolution(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, const Conv2dOptions& o) {
  if (x.rank() == 3) return squeeze(convolution(op, unsqueeze(x, 0), weight, bias, o), 0);
  const ConvGeometry g{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), weight.size(2), weight.size(3), o.stride.h, o.stride.w, o.padding.h, o.padding.w,
                       o.dilation.h, o.dilation.w, o.groups};
  check<ShapeError>(g.c == weight.size(1) * g.groups, op, ": x has ", g.c, " channels but weight ", weight.shape(), " expects ", weight.size(1) * g.groups,
                    " (groups = ", g.groups, "); x is ", x.shape());
  check<ShapeError>(g.k % g.groups == 0, op, ": weight ", weight.shape(), " has ", g.k, " output channels, which do not divide into ", g.groups, " groups");
  check<ShapeError>(g.r >= 1 && g.s >= 1, op, ": the kernel must not be empty, got weight ", weight.shape());
  check_bias(op, bias, g.k);
  check<ShapeError>(g.out_h() >= 1 && g.out_w() >= 1, op, ": a kernel of ", Pair(g.r, g.s), " with dilation ", o.dilation, " does not fit into x ", x.shape(),
                    " with padding ", o.padding, "; pad more or use a smaller kernel");
  checked_numel({g.n, g.k, g.out_h(), g.out_w()}, op);
  return forward(g, x, weight, bias);
}

Tensor transposed_convolution(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvTranspose2dOptions& o) {
  if (x.rank() == 3) return squeeze(transposed_convolution(op, unsqueeze(x, 0), weight, bias, o), 0);
  check<ShapeError>(x.size(1) == weight.size(0), op, ": x has ", x.size(1), " channels but weight ", weight.shape(), " expects ", weight.size(0), "; x is ", x.shape());
  check<ShapeError>(weight.size(0) % o.groups == 0, op, ": weight ", weight.shape(), " has ", weight.size(0), " input channels, which do not divide into ", o.groups, " groups");
  check<ShapeError>(weight.size(2) >= 1 && weight.size(3) >= 1, op, ": the kernel must not be empty, got weight ", weight.shape());
  const auto is_below = [](int64_t output_padding, int64_t stride, int64_t dilation) { return output_padding >= 0 && output_padding < std::max(stride, dilation); };
  check<ValueError>(is_below(o.output_padding.h, o.stride.h, o.dilation.h) && is_below(o.output_padding.w, o.stride.w, o.dilation.w), op,
                    ": output_padding must be at least 0 and smaller than stride or dilation, got ", o.output_padding, " with stride ", o.stride, " and dilation ", o.dilation);
  ConvGeometry g{x.size(0), weight.size(1) * o.groups, 0, 0, weight.size(0), weight.size(2), weight.size(3), o.stride.h, o.stride.w, o.padding.h, o.padding.w,
                 o.dilation.h, o.dilation.w, o.groups};
  g.h = transposed_outputs(x.size(2), g.r, g.stride_h, g.pad_h, o.output_padding.h, g.dilation_h);
  g.w = transposed_outputs(x.size(3), g.s, g.stride_w, g.pad_w, o.output_padding.w, g.dilation_w);
  check<ShapeError>(x.size(2) >= 1 && x.size(3) >= 1 && g.h >= 1 && g.w >= 1, op, ": the result would be ", Pair(g.h, g.w), " for x ", x.shape(), " with padding ", o.padding,
                    "; pad less");
  checked_numel({g.n, g.c, g.h, g.w}, op);
  check_bias(op, bias, g.c);
  // An output_padding of a whole stride (allowed where the dilation is larger) makes room for more of x: zeros.
  const bool is_exact = g.out_h() == x.size(2) && g.out_w() == x.size(3);
  return backward_data(op, g, is_exact ? x : pad(x, {0, g.out_w() - x.size(3), 0, g.out_h() - x.size(2)}), weight, bias);
}

}  // namespace

Tensor conv2d_backward_data(const ConvGeometry& geometry, const Tensor& dy, const Tensor& weight) {
  const cuda::Range range("conv2d_backward_data");
  constexpr const char* op = "conv2d_backward_data";
  const ConvGeometry& g = geometry;
  check_geometry(op, g);
  detail::check_real(op, "dy", dy, Family::conv);
  detail::check_alike(op, "dy", dy, "weight", weight);
  check_has_shape(op, "dy", dy, {g.n, g.k, g.out_h(), g.out_w()});
  check_has_shape(op, "weight", weight, {g.k, g.group_c(), g.r, g.s});
  return backward_data("conv2d_backward_data", geometry, dy, weight, {});
}

Tensor conv2d_backward_weight(const ConvGeometry& g, const Tensor& x_any, const Tensor& dy_any) {
  const cuda::Range range("conv2d_backward_weight");
  constexpr const char* op = "conv2d_backward_weight";
  check_geometry(op, g);
  detail::check_real(op, "x", x_any, Family::conv);
  detail::check_alike(op, "x", x_any, "dy", dy_any);
  check_has_shape(op, "x", x_any, {g.n, g.c, g.h, g.w});
  check_has_shape(op, "dy", dy_any, {g.n, g.k, g.out_h(), g.out_w()});
  const Tensor x = laid_out(x_any), dy = laid_out(dy_any);
  const Tensor dweight = weight_gradients(g, x, dy, false).weight;
  return record("conv2d_backward_weight", dweight, {x, dy}, saving(dy.requires_grad() ? x : Tensor(), x.requires_grad() ? dy : Tensor()),
                [g](const Saved& s, const Tensor& gradient) {
                  Tensor dx, d_dy;
                  if (s.needs(0)) dx = conv2d_backward_data(g, s[1], gradient);
                  if (s.needs(1)) d_dy = forward(g, s[0], gradient, {});
                  return grads(dx, d_dy);
                });
}

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, Conv2dOptions options) {
  const cuda::Range range("conv2d");
  if (const detail::Cast cast("conv2d", Family::conv, {x, weight, bias}); cast) return cast.back(conv2d(cast(x), cast(weight), cast(bias), options));
  check_ranks("conv2d", x, weight, 4);
  check_arguments("conv2d", x, weight, bias);
  check_options("conv2d", options.stride, options.padding, options.dilation, options.groups);
  return convolution("conv2d", x, weight, bias, options);
}

Tensor conv_transpose2d(const Tensor& x, const Tensor& weight, const Tensor& bias, ConvTranspose2dOptions options) {
  const cuda::Range range("conv_transpose2d");
  if (const detail::Cast cast("conv_transpose2d", Family::conv, {x, weight, bias}); cast) return cast.back(conv_transpose2d(cast(x), cast(weight), cast(bias), options));
  check_ranks("conv_transpose2d", x, weight, 4);
  check_arguments("conv_transpose2d", x, weight, bias);
  check_options("conv_transpose2d", options.stride, options.padding, options.dilation, options.groups);
  return transposed_convolution("conv_transpose2d", x, weight, bias, options);
}

// In one dimension: images of one row. The new axis is the second to last.
Tensor conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, Conv1dOptions o) {
  const cuda::Range range("conv1d");
  if (const detail::Cast cast("conv1d", Family::conv, {x, weight, bias}); cast) return cast.back(conv1d(cast(x), cast(weight), cast(bias), o));
  check_ranks("conv1d", x, weight, 3);
  check_arguments("conv1d", x, weight, bias);
  check_options("conv1d", o.stride, o.padding, o.dilation, o.groups);
  const Conv2dOptions options{{1, o.stride}, {0, o.padding}, {1, o.dilation}, o.groups};
  return squeeze(convolution("conv1d", unsqueeze(x, -2), unsqueeze(weight, -2), bias, options), -2);
}

Tensor conv_transpose1d(const Tensor& x, const Tensor& weight, const Tensor& bias, ConvTranspose1dOptions o) {
  const cuda::Range range("conv_transpose1d");
  if (const detail::Cast cast("conv_transpose1d", Family::conv, {x, weight, bias}); cast) return cast.back(conv_transpose1d(cast(x), cast(weight), cast(bias), o));
  check_ranks("conv_transpose1d", x, weight, 3);
  check_arguments("conv_transpose1d", x, weight, bias);
  check_options("conv_transpose1d", o.stride, o.padding, o.dilation, o.groups);
  const ConvTranspose2dOptions options{{1, o.stride}, {0, o.padding}, {0, o.output_padding}, o.groups, {1, o.dilation}};
  return squeeze(transposed_convolution("conv_transpose1d", unsqueeze(x, -2), unsqueeze(weight, -2), bias, options), -2);
}

}  // namespace fovea
