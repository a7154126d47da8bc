#include <fovea/layers/pool.h>

#include <fovea/autograd/arguments.h>

namespace fovea::layers {
namespace {

void check_image(const Shape& x, const char* layer) {
  check<ShapeError>(x.rank() == 4 || x.rank() == 3, layer, ": takes [n,channels,h,w] or [channels,h,w], got ", x);
}

void check_line(const Shape& x, const char* layer) {
  check<ShapeError>(x.rank() == 3 || x.rank() == 2, layer, ": takes [n,channels,length] or [channels,length], got ", x);
}

// Geometry of pooling x along its last `axes` axes; whatever stands before them counts as channels.
PoolGeometry over(const Shape& x, int axes) {
  PoolGeometry g{.n = 1, .c = 1, .h = axes == 2 ? x.back(1) : 1, .w = x.back()};
  for (int i = 0; i < x.rank() - axes; ++i) g.c *= x[i];
  return g;
}

template <class Options>
PoolGeometry image_geometry(PoolGeometry g, Pair kernel, const Options& o) {
  const Pair stride = o.stride == Pair(0) ? kernel : o.stride;
  g.kernel_h = kernel.h, g.kernel_w = kernel.w;
  g.stride_h = stride.h, g.stride_w = stride.w;
  g.pad_h = o.padding.h, g.pad_w = o.padding.w;
  g.ceil_mode = o.ceil_mode;
  return g;
}

template <class Options>
PoolGeometry line_geometry(PoolGeometry g, int64_t kernel, const Options& o) {
  g.kernel_w = kernel;
  g.stride_w = o.stride ? o.stride : kernel;
  g.pad_w = o.padding;
  g.ceil_mode = o.ceil_mode;
  return g;
}

ReceptiveField field_of(const PoolGeometry& g) { return {AxisReach::window(g.field_h()), AxisReach::window(g.field_w())}; }

template <class Size, class Options>
std::string describe(Size kernel, const Options& o) {
  std::string result = str("kernel=", kernel);
  if (o.stride != Size(0) && o.stride != kernel) result += str(", stride=", o.stride);
  if (o.padding != Size(0)) result += str(", padding=", o.padding);
  if (o.ceil_mode) result += ", ceil_mode";
  return result;
}

// The options, once they were looked at: what forward would refuse is refused when the layer is made.
template <class Options>
Options checked(const char* layer, Pair kernel, const Options& o, Pair dilation = 1) {
  const Pair stride = o.stride;
  detail::check_pooling(layer, kernel, stride == Pair(0) ? kernel : stride, o.padding, dilation);
  return o;
}

// An operation for each input, and one output for each plane.
Cost global_cost(const Shape& x) {
  check<ShapeError>(x.rank() >= 2, "global pooling: takes [n,channels,...], got ", x);
  const int64_t planes = x[0] * x[1];
  return AdaptivePoolGeometry{.n = 1, .c = planes, .h = 1, .w = planes > 0 ? x.numel() / planes : 0}.cost();
}

}  // namespace

// --- windows of an image ---

MaxPool2d::MaxPool2d(Pair kernel, MaxPool2dOptions options) : kernel_(kernel), options_(checked("MaxPool2d", kernel, options, options.dilation)) {}
Tensor MaxPool2d::forward(const Tensor& x) { return max_pool2d(x, kernel_, options_); }
std::string MaxPool2d::options() const { return describe(kernel_, options_); }

std::optional<Cost> MaxPool2d::own_cost(const Shape& input) const {
  check_image(input, "MaxPool2d");
  PoolGeometry g = image_geometry(over(input, 2), kernel_, options_);
  g.dilation_h = options_.dilation.h, g.dilation_w = options_.dilation.w;
  return g.cost();
}

std::optional<ReceptiveField> MaxPool2d::own_field() const {
  PoolGeometry g = image_geometry({}, kernel_, options_);
  g.dilation_h = options_.dilation.h, g.dilation_w = options_.dilation.w;
  return field_of(g);
}

AvgPool2d::AvgPool2d(Pair kernel, AvgPool2dOptions options) : kernel_(kernel), options_(checked("AvgPool2d", kernel, options)) {}
Tensor AvgPool2d::forward(const Tensor& x) { return avg_pool2d(x, kernel_, options_); }
std::string AvgPool2d::options() const { return describe(kernel_, options_); }

std::optional<Cost> AvgPool2d::own_cost(const Shape& input) const {
  check_image(input, "AvgPool2d");
  return image_geometry(over(input, 2), kernel_, options_).cost();
}

std::optional<ReceptiveField> AvgPool2d::own_field() const { return field_of(image_geometry({}, kernel_, options_)); }

// --- windows of a line ---

MaxPool1d::MaxPool1d(int64_t kernel, MaxPool1dOptions options) : kernel_(kernel), options_(checked("MaxPool1d", kernel, options, options.dilation)) {}
Tensor MaxPool1d::forward(const Tensor& x) { return max_pool1d(x, kernel_, options_); }
std::string MaxPool1d::options() const { return describe(kernel_, options_); }

std::optional<Cost> MaxPool1d::own_cost(const Shape& input) const {
  check_line(input, "MaxPool1d");
  PoolGeometry g = line_geometry(over(input, 1), kernel_, options_);
  g.dilation_w = options_.dilation;
  return g.cost();
}

std::optional<ReceptiveField> MaxPool1d::own_field() const {
  PoolGeometry g = line_geometry({}, kernel_, options_);
  g.dilation_w = options_.dilation;
  return field_of(g);
}

AvgPool1d::AvgPool1d(int64_t kernel, AvgPool1dOptions options) : kernel_(kernel), options_(checked("AvgPool1d", kernel, options)) {}
Tensor AvgPool1d::forward(const Tensor& x) { return avg_pool1d(x, kernel_, options_); }
std::string AvgPool1d::options() const { return describe(kernel_, options_); }

std::optional<Cost> AvgPool1d::own_cost(const Shape& input) const {
  check_line(input, "AvgPool1d");
  return line_geometry(over(input, 1), kernel_, options_).cost();
}

std::optional<ReceptiveField> AvgPool1d::own_field() const { return field_of(line_geometry({}, kernel_, options_)); }

// --- to a given size ---

AdaptivePool2d::AdaptivePool2d(Pair size) : size_(size) {
  check<ValueError>(size.h > 0 && size.w > 0, "adaptive pooling: the output size must be positive, got ", size);
}

std::string AdaptivePool2d::options() const { return str(size_); }

std::optional<Cost> AdaptivePool2d::own_cost(const Shape& input) const {
  check_image(input, "adaptive pooling");
  const PoolGeometry g = over(input, 2);
  return AdaptivePoolGeometry{.n = g.n, .c = g.c, .h = g.h, .w = g.w, .out_h = size_.h, .out_w = size_.w}.cost();
}

Tensor AdaptiveAvgPool2d::forward(const Tensor& x) { return adaptive_avg_pool2d(x, size_); }
Tensor AdaptiveMaxPool2d::forward(const Tensor& x) { return adaptive_max_pool2d(x, size_); }

AdaptivePool1d::AdaptivePool1d(int64_t size) : size_(size) {
  check<ValueError>(size > 0, "adaptive pooling: the output size must be positive, got ", size);
}

std::optional<Cost> AdaptivePool1d::own_cost(const Shape& input) const {
  check_line(input, "adaptive pooling");
  const PoolGeometry g = over(input, 1);
  return AdaptivePoolGeometry{.n = g.n, .c = g.c, .h = 1, .w = g.w, .out_h = 1, .out_w = size_}.cost();
}

Tensor AdaptiveAvgPool1d::forward(const Tensor& x) { return adaptive_avg_pool1d(x, size_); }
Tensor AdaptiveMaxPool1d::forward(const Tensor& x) { return adaptive_max_pool1d(x, size_); }

Tensor GlobalAvgPool::forward(const Tensor& x) { return global_avg_pool(x); }
Tensor GlobalMaxPool::forward(const Tensor& x) { return global_max_pool(x); }
std::optional<Cost> GlobalAvgPool::own_cost(const Shape& input) const { return global_cost(input); }
std::optional<Cost> GlobalMaxPool::own_cost(const Shape& input) const { return global_cost(input); }

}  // namespace fovea::layers
