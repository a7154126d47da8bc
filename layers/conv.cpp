#include <fovea/layers/conv.h>

#include <algorithm>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/conv.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/layers/init.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {
namespace {

// The options, once they were looked at: what forward would refuse is refused when the layer is made.
template <class Options>
Options checked(const char* layer, const Options& o) {
  detail::check_window(layer, o.stride, o.padding, o.dilation);
  return o;
}

template <class Options>
Options checked_transposed(const char* layer, const Options& o) {
  const Pair output_padding = o.output_padding, stride = o.stride, dilation = o.dilation;
  const auto is_below = [](int64_t extra, int64_t step, int64_t spread) { return extra >= 0 && extra < std::max(step, spread); };
  checked(layer, o);
  check<ValueError>(is_below(output_padding.h, stride.h, dilation.h) && is_below(output_padding.w, stride.w, dilation.w), layer,
                    ": output_padding must be at least 0 and smaller than stride or dilation, got ", output_padding, " with stride ", stride, " and dilation ",
                    dilation);
  return o;
}

// [out, in / groups, kernel...], or [in, out / groups, kernel...] when transposed; `first` and `second` come in that order. Its values
// are not set yet.
Tensor make_weight(const char* layer, int64_t first, int64_t second, int64_t groups, std::initializer_list<int64_t> kernel) {
  check<ValueError>(first > 0 && second > 0, layer, ": the numbers of channels must be positive, as {.in = 3, .out = 16}");
  check<ValueError>(groups > 0 && first % groups == 0 && second % groups == 0, layer, ": groups (", groups, ") must divide the channels ",
                    first, " and ", second);
  Shape shape{first, second / groups};
  for (int64_t size : kernel) {
    check<ValueError>(size > 0, layer, ": the kernel must be positive, got ", size);
    shape.push_back(size);
  }
  checked_numel(shape, layer);
  return empty(shape);
}

Tensor make_bias(bool has_bias, int64_t out) { return has_bias ? empty({out}) : Tensor(); }

// What differs from the defaults.
std::string describe(int64_t in, int64_t out, Pair kernel, Pair stride, Pair padding, Pair dilation, int64_t groups, bool has_bias) {
  std::string result = str(in, ", ", out, ", kernel=", kernel);
  if (stride != Pair(1)) result += str(", stride=", stride);
  if (padding != Pair(0)) result += str(", padding=", padding);
  if (dilation != Pair(1)) result += str(", dilation=", dilation);
  if (groups != 1) result += ", groups=" + std::to_string(groups);
  if (!has_bias) result += ", no bias";
  return result;
}

// The sizes of x [n, channels, (height,) width] or of a single sample without the batch axis; height 1 where there is none.
struct Image {
  int64_t n, h, w;
};
Image image_of(const Shape& x, int64_t channels, int axes, const char* layer) {
  const int rank = axes + 2;
  check<ShapeError>((x.rank() == rank || x.rank() == rank - 1) && x[x.rank() - axes - 1] == channels, layer, ": takes [n,", channels,
                    axes == 2 ? ",h,w]" : ",length]", ", got ", x);
  return {x.rank() == rank ? x[0] : 1, axes == 2 ? x.back(1) : 1, x.back()};
}

ConvGeometry geometry_of(int64_t n, int64_t c, int64_t h, int64_t w, int64_t k, Pair kernel, Pair stride, Pair padding, Pair dilation,
                         int64_t groups) {
  ConvGeometry g{.n = n, .c = c, .h = h, .w = w, .k = k, .r = kernel.h, .s = kernel.w};
  g.stride_h = stride.h, g.stride_w = stride.w;
  g.pad_h = padding.h, g.pad_w = padding.w;
  g.dilation_h = dilation.h, g.dilation_w = dilation.w;
  g.groups = groups;
  return g;
}

// The position of each of `size` places along an axis: 2 i / (size - 1) - 1, and 0 where there is only one.
Tensor positions(int64_t size, TensorOptions options) { return size > 1 ? linspace(-1, 1, size, options) : zeros({size}, options); }

}  // namespace

// --- Conv1d ---

Conv1d::Conv1d(Options o)
    : weight(param("weight", make_weight("Conv1d", o.out, o.in, o.groups, {o.kernel}))),
      bias(param("bias", make_bias(o.bias, o.out))),
      options_(checked("Conv1d", o)) {
  init::linear_default_(weight, bias);
}

Tensor Conv1d::forward(const Tensor& x) {
  const Options& o = options_;
  return conv1d(x, alongside(x, weight), alongside(x, bias),
                {.stride = o.stride, .padding = o.padding, .dilation = o.dilation, .groups = o.groups});
}

std::string Conv1d::options() const {
  const Options& o = options_;
  return describe(o.in, o.out, o.kernel, o.stride, o.padding, o.dilation, o.groups, o.bias);
}

std::optional<Cost> Conv1d::own_cost(const Shape& input) const {
  const Options& o = options_;
  const Image x = image_of(input, o.in, 1, "Conv1d");
  return geometry_of(x.n, o.in, x.h, x.w, o.out, {1, o.kernel}, {1, o.stride}, {0, o.padding}, {1, o.dilation}, o.groups).cost(o.bias);
}

std::optional<ReceptiveField> Conv1d::own_field() const {
  const Options& o = options_;
  return ReceptiveField{{}, AxisReach::window(AxisField::window(o.kernel, o.stride, o.padding, o.dilation))};
}

// --- Conv2d ---

Conv2d::Conv2d(Options o)
    : weight(param("weight", make_weight("Conv2d", o.out, o.in, o.groups, {o.kernel.h, o.kernel.w}))),
      bias(param("bias", make_bias(o.bias, o.out))),
      options_(checked("Conv2d", o)) {
  init::linear_default_(weight, bias);
}

Tensor Conv2d::forward(const Tensor& x) {
  const Options& o = options_;
  return conv2d(x, alongside(x, weight), alongside(x, bias),
                {.stride = o.stride, .padding = o.padding, .dilation = o.dilation, .groups = o.groups});
}

std::string Conv2d::options() const {
  const Options& o = options_;
  return describe(o.in, o.out, o.kernel, o.stride, o.padding, o.dilation, o.groups, o.bias);
}

std::optional<Cost> Conv2d::own_cost(const Shape& input) const {
  const Options& o = options_;
  const Image x = image_of(input, o.in, 2, "Conv2d");
  return geometry_of(x.n, o.in, x.h, x.w, o.out, o.kernel, o.stride, o.padding, o.dilation, o.groups).cost(o.bias);
}

std::optional<ReceptiveField> Conv2d::own_field() const {
  const Options& o = options_;
  return ReceptiveField{AxisReach::window(AxisField::window(o.kernel.h, o.stride.h, o.padding.h, o.dilation.h)),
                        AxisReach::window(AxisField::window(o.kernel.w, o.stride.w, o.padding.w, o.dilation.w))};
}

// --- ConvTranspose1d ---

ConvTranspose1d::ConvTranspose1d(Options o)
    : weight(param("weight", make_weight("ConvTranspose1d", o.in, o.out, o.groups, {o.kernel}))),
      bias(param("bias", make_bias(o.bias, o.out))),
      options_(checked_transposed("ConvTranspose1d", o)) {
  init::linear_default_(weight, bias);
}

Tensor ConvTranspose1d::forward(const Tensor& x) {
  const Options& o = options_;
  return conv_transpose1d(
      x, alongside(x, weight), alongside(x, bias),
      {.stride = o.stride, .padding = o.padding, .output_padding = o.output_padding, .groups = o.groups, .dilation = o.dilation});
}

std::string ConvTranspose1d::options() const {
  const Options& o = options_;
  return describe(o.in, o.out, o.kernel, o.stride, o.padding, o.dilation, o.groups, o.bias);
}

// The convolution that this one is the reverse of; its input is our output.
std::optional<Cost> ConvTranspose1d::own_cost(const Shape& input) const {
  const Options& o = options_;
  const Image x = image_of(input, o.in, 1, "ConvTranspose1d");
  const int64_t out_w = transposed_outputs(x.w, o.kernel, o.stride, o.padding, o.output_padding, o.dilation);
  return geometry_of(x.n, o.out, 1, out_w, o.in, {1, o.kernel}, {1, o.stride}, {0, o.padding}, {1, o.dilation}, o.groups)
      .transposed_cost(o.bias);
}

std::optional<ReceptiveField> ConvTranspose1d::own_field() const {
  const Options& o = options_;
  return ReceptiveField{{}, AxisReach::transposed(o.kernel, o.stride, o.padding, o.dilation)};
}

// --- ConvTranspose2d ---

ConvTranspose2d::ConvTranspose2d(Options o)
    : weight(param("weight", make_weight("ConvTranspose2d", o.in, o.out, o.groups, {o.kernel.h, o.kernel.w}))),
      bias(param("bias", make_bias(o.bias, o.out))),
      options_(checked_transposed("ConvTranspose2d", o)) {
  init::linear_default_(weight, bias);
}

Tensor ConvTranspose2d::forward(const Tensor& x) {
  const Options& o = options_;
  return conv_transpose2d(
      x, alongside(x, weight), alongside(x, bias),
      {.stride = o.stride, .padding = o.padding, .output_padding = o.output_padding, .groups = o.groups, .dilation = o.dilation});
}

std::string ConvTranspose2d::options() const {
  const Options& o = options_;
  return describe(o.in, o.out, o.kernel, o.stride, o.padding, o.dilation, o.groups, o.bias);
}

std::optional<Cost> ConvTranspose2d::own_cost(const Shape& input) const {
  const Options& o = options_;
  const Image x = image_of(input, o.in, 2, "ConvTranspose2d");
  const int64_t out_h = transposed_outputs(x.h, o.kernel.h, o.stride.h, o.padding.h, o.output_padding.h, o.dilation.h);
  const int64_t out_w = transposed_outputs(x.w, o.kernel.w, o.stride.w, o.padding.w, o.output_padding.w, o.dilation.w);
  return geometry_of(x.n, o.out, out_h, out_w, o.in, o.kernel, o.stride, o.padding, o.dilation, o.groups).transposed_cost(o.bias);
}

std::optional<ReceptiveField> ConvTranspose2d::own_field() const {
  const Options& o = options_;
  return ReceptiveField{AxisReach::transposed(o.kernel.h, o.stride.h, o.padding.h, o.dilation.h),
                        AxisReach::transposed(o.kernel.w, o.stride.w, o.padding.w, o.dilation.w)};
}

// --- made of convolutions ---

namespace {

Conv2d::Options depthwise_options(const DepthwiseSeparable::Options& o) {
  return {.in = o.in, .out = o.in, .kernel = o.kernel, .stride = o.stride, .padding = o.padding, .dilation = o.dilation, .groups = o.in,
          .bias = o.bias};
}

Conv2d::Options with_coordinates(CoordConv::Options o) {
  o.conv.in += o.radius ? 3 : 2;
  return o.conv;
}

}  // namespace

DepthwiseSeparable::DepthwiseSeparable(Options o)
    : depthwise(add("depthwise", Conv2d(depthwise_options(o)))),
      pointwise(add("pointwise", Conv2d({.in = o.in, .out = o.out, .bias = o.bias}))) {}

CoordConv::CoordConv(Options o) : conv(add("conv", Conv2d(with_coordinates(o)))), has_radius_(o.radius) {}

Tensor CoordConv::forward(const Tensor& x) {
  check<ShapeError>(x.rank() == 4, "CoordConv: takes [n,c,h,w], got ", x.shape());
  const Shape plane{x.size(0), 1, x.size(2), x.size(3)};
  const TensorOptions options{x.dtype(), x.device()};
  const Tensor rows = reshape(positions(x.size(2), options), {1, 1, x.size(2), 1}),
               columns = reshape(positions(x.size(3), options), {1, 1, 1, x.size(3)});
  std::vector<Tensor> channels{x, expand(rows, plane), expand(columns, plane)};
  if (has_radius_) channels.push_back(expand(sqrt(square(rows) + square(columns)), plane));
  return conv(concat(channels, 1));
}

}  // namespace fovea::layers
