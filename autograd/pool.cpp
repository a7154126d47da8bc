// Note [Pooling is linear]
// Average pooling is a matrix, and so is max pooling once its indices are known. Each backward pass here is an operation of its own whose backward pass is the
// forward one again (for max pooling: a gather at the indices), so derivatives of any order need nothing new.
#include <fovea/autograd/pool.h>

#include <optional>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/index.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

using detail::check_defined;
using detail::laid_out;             // see Note [Layouts of images]
using kernels::Family;

// Does every window of the axis meet the input? With a dilation its taps may step over it.
bool all_windows_meet(int64_t size, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  for (int64_t output = 0; output < outputs; ++output) {
    const int64_t start = output * stride - padding, tap = start < 0 ? (dilation - 1 - start) / dilation : 0;      // the first at 0 or after it
    if (tap >= kernel || start + tap * dilation >= size) return false;
  }
  return true;
}

PoolGeometry geometry_of(const char* op, const Tensor& x, Pair kernel, Pair stride, Pair padding, Pair dilation, bool ceil_mode, bool count_include_pad) {
  if (stride == Pair(0)) stride = kernel;
  detail::check_real(op, "x", x, Family::pool);
  check<ShapeError>(x.rank() == 4, op, ": x must have a batch axis or not, channels and positions; got ", x.shape());
  detail::check_pooling(op, kernel, stride, padding, dilation);
  const PoolGeometry g{x.size(0),  x.size(1),  x.size(2),  x.size(3),  kernel.h,   kernel.w,  stride.h,         stride.w,
                       padding.h, padding.w, dilation.h, dilation.w, ceil_mode, count_include_pad};
  const bool fits = g.h > 0 && g.w > 0 && g.out_h() > 0 && g.out_w() > 0 && all_windows_meet(g.h, g.out_h(), g.kernel_h, g.stride_h, g.pad_h, g.dilation_h) &&
                    all_windows_meet(g.w, g.out_w(), g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  check<ShapeError>(fits, op, ": a kernel of ", kernel, " with dilation ", dilation, " does not fit into x ", x.shape(), " with padding ", padding, "; use a smaller kernel");
  return g;
}

Tensor empty_as(const Tensor& x, const Shape& shape) { return detail::empty_laid_out_as(x, shape, x.dtype()); }
// In a backward pass: gradients lie as x does, whatever came out of the operations in between.
Tensor laid_out_as(bool is_last, const Tensor& gradient) { return is_last ? channels_last(gradient) : contiguous(gradient); }
Tensor empty_as(bool is_last, const Tensor& dy, const Shape& shape) {
  const TensorOptions options{dy.dtype(), dy.device()};
  return is_last ? empty_channels_last(shape, options) : empty(shape, options);
}

// --- max ---

// What the backward pass of maxima has to know of the forward one. windows: none where they divide the input, which is contiguous then.
struct MaximaSource {
  Shape shape;
  bool is_last = false;
  std::optional<PoolGeometry> windows;
};

Tensor max_pool_backward(const Tensor& gradient, const Tensor& indices, const MaximaSource& source) {
  const Tensor dy = laid_out_as(source.is_last, gradient), dx = empty_as(source.is_last, dy, source.shape);
  const std::optional<PoolGeometry>& windows = source.windows;
  table_of(dy).max_pool_backward(queue_of(dy), windows ? &*windows : nullptr, dy.view(), indices.view(), dx.mutable_view());
  return record("max_pool_backward", dx, {dy}, saving(indices), [](const Saved& s, const Tensor& g) {
    const Shape shape = s[0].shape();
    const Tensor planes = reshape(g, {shape[0], shape[1], g.shape()[2] * g.shape()[3]});
    return grads(reshape(gather(planes, 2, reshape(s[0], {shape[0], shape[1], shape[2] * shape[3]})), shape));
  });
}

// `run` computes values and (where wanted) indices.
template <class Run>
PooledMaxima maxima(const char* op, const Tensor& x, const Shape& shape, bool wants_indices, const std::optional<PoolGeometry>& windows, const Run& run) {
  const bool has_indices = wants_indices || should_record({x});
  PooledMaxima result{detail::empty_laid_out_as(x, shape, x.dtype()), has_indices ? detail::empty_laid_out_as(x, shape, DType::int64) : Tensor()};
  run(result.values.mutable_view(), has_indices ? result.indices.mutable_view() : View());
  result.values = record(op, result.values, {x}, saving(result.indices), [source = MaximaSource{x.shape(), detail::stays_channels_last(x), windows}](const Saved& s, const Tensor& g) {
    return grads(max_pool_backward(g, s[0], source));
  });
  return result;
}

PooledMaxima max_pool(const char* op, const Tensor& x_any, Pair kernel, const MaxPool2dOptions& o, bool wants_indices) {
  const cuda::Range range(op);
  if (const detail::Cast cast(op, Family::pool, {x_any}); cast) {
    const PooledMaxima wide = max_pool(op, cast(x_any), kernel, o, wants_indices);
    return {cast.back(wide.values), wide.indices};
  }
  if (check_defined(op, "x", x_any).rank() == 3) {
    const PooledMaxima batch = max_pool(op, unsqueeze(x_any, 0), kernel, o, wants_indices);
    return {squeeze(batch.values, 0), batch.indices ? squeeze(batch.indices, 0) : Tensor()};
  }
  const PoolGeometry g = geometry_of(op, x_any, kernel, o.stride, o.padding, o.dilation, o.ceil_mode, true);
  const Tensor x = laid_out(x_any);
  return maxima(op, x, {g.n, g.c, g.out_h(), g.out_w()}, wants_indices, g,
                [&](const View& values, const View& indices) { table_of(x).max_pool(queue_of(x), g, x.view(), values, indices); });
}

// --- average ---

Tensor avg_pool_backward(const PoolGeometry& g, const Tensor& dy, bool is_last);

Tensor avg_pool(const char* op, const PoolGeometry& g, const Tensor& x_any) {
  const Tensor x = laid_out(x_any), y = empty_as(x, {g.n, g.c, g.out_h(), g.out_w()});
  table_of(x).avg_pool(queue_of(x), g, x.view(), y.mutable_view());
  return record(op, y, {x}, saving(), [g, is_last = detail::stays_channels_last(x)](const Saved&, const Tensor& dy) { return grads(avg_pool_backward(g, dy, is_last)); });
}

Tensor avg_pool_backward(const PoolGeometry& g, const Tensor& gradient, bool is_last) {
  const Tensor dy = laid_out_as(is_last, gradient), dx = empty_as(is_last, dy, {g.n, g.c, g.h, g.w});
  table_of(dy).avg_pool_backward(queue_of(dy), g, dy.view(), dx.mutable_view());
  return record("avg_pool_backward", dx, {dy}, saving(), [g](const Saved&, const Tensor& gg) { return grads(avg_pool("avg_pool", g, gg)); });
}

Tensor avg_pool(const char* op, const Tensor& x, Pair kernel, const AvgPool2dOptions& o) {
  const cuda::Range range(op);
  if (const detail::Cast cast(op, Family::pool, {x}); cast) return cast.back(avg_pool(op, cast(x), kernel, o));
  if (check_defined(op, "x", x).rank() == 3) return squeeze(avg_pool(op, unsqueeze(x, 0), kernel, o), 0);
  return avg_pool(op, geometry_of(op, x, kernel, o.stride, o.padding, 1, o.ceil_mode, o.count_include_pad), x);
}

// --- adaptive ---

AdaptivePoolGeometry adaptive_geometry(const char* op, const Tensor& x, Pair output) {
  detail::check_real(op, "x", x, Family::pool);
  check<ShapeError>(x.rank() == 4, op, ": x must have a batch axis or not, channels and positions; got ", x.shape());
  check<ValueError>(output.h >= 0 && output.w >= 0, op, ": the output size cannot be negative, got ", output);
  check<ShapeError>(x.size(2) > 0 && x.size(3) > 0, op, ": x ", x.shape(), " has no positions to pool");
  checked_numel({x.size(0), x.size(1), output.h, output.w}, op);
  return {x.size(0), x.size(1), x.size(2), x.size(3), output.h, output.w};
}

Tensor adaptive_avg_backward(const AdaptivePoolGeometry& g, const Tensor& dy, bool is_last);

Tensor adaptive_avg(const char* op, const AdaptivePoolGeometry& g, const Tensor& x_any) {
  const Tensor x = laid_out(x_any), y = empty_as(x, {g.n, g.c, g.out_h, g.out_w});
  table_of(x).adaptive_avg_pool(queue_of(x), g, x.view(), y.mutable_view());
  return record(op, y, {x}, saving(), [g, is_last = detail::stays_channels_last(x)](const Saved&, const Tensor& dy) { return grads(adaptive_avg_backward(g, dy, is_last)); });
}

Tensor adaptive_avg_backward(const AdaptivePoolGeometry& g, const Tensor& gradient, bool is_last) {
  const Tensor dy = laid_out_as(is_last, gradient), dx = empty_as(is_last, dy, {g.n, g.c, g.h, g.w});
  table_of(dy).adaptive_avg_pool_backward(queue_of(dy), g, dy.view(), dx.mutable_view());
  return record("adaptive_avg_pool_backward", dx, {dy}, saving(), [g](const Saved&, const Tensor& gg) { return grads(adaptive_avg("adaptive_avg_pool", g, gg)); });
}

// Small windows of one size that do not overlap are plain pooling, which runs in vectors.
bool is_plain(const AdaptivePoolGeometry& g) {
  return g.out_h > 0 && g.out_w > 1 && g.h % g.out_h == 0 && g.w % g.out_w == 0 && g.h / g.out_h * (g.w / g.out_w) <= 64;
}

PoolGeometry plain(const AdaptivePoolGeometry& g) {
  const int64_t kernel_h = g.h / g.out_h, kernel_w = g.w / g.out_w;
  return {g.n, g.c, g.h, g.w, kernel_h, kernel_w, kernel_h, kernel_w};
}

Tensor adaptive_avg(const char* op, const Tensor& x, Pair output) {
  const cuda::Range range(op);
  if (const detail::Cast cast(op, Family::pool, {x}); cast) return cast.back(adaptive_avg(op, cast(x), output));
  if (check_defined(op, "x", x).rank() == 3) return squeeze(adaptive_avg(op, unsqueeze(x, 0), output), 0);
  const AdaptivePoolGeometry g = adaptive_geometry(op, x, output);
  return is_plain(g) ? avg_pool(op, plain(g), x) : adaptive_avg(op, g, x);
}

Tensor adaptive_max(const char* op, const Tensor& x_any, Pair output) {
  const cuda::Range range(op);
  if (const detail::Cast cast(op, Family::pool, {x_any}); cast) return cast.back(adaptive_max(op, cast(x_any), output));
  if (check_defined(op, "x", x_any).rank() == 3) return squeeze(adaptive_max(op, unsqueeze(x_any, 0), output), 0);
  const AdaptivePoolGeometry g = adaptive_geometry(op, x_any, output);
  const std::optional<PoolGeometry> windows = is_plain(g) ? std::optional(plain(g)) : std::nullopt;
  const Tensor x = windows ? laid_out(x_any) : contiguous(x_any);
  return maxima(op, x, {g.n, g.c, g.out_h, g.out_w}, false, windows,
                [&](const View& values, const View& indices) {
                  if (windows) table_of(x).max_pool(queue_of(x), *windows, x.view(), values, indices);
                  else table_of(x).adaptive_max_pool(queue_of(x), g, x.view(), values, indices);
                }).values;
}

// --- one axis: an image of height 1 ---

Tensor as_image(const char* op, const Tensor& x) {
  check_defined(op, "x", x);
  check<ShapeError>(x.rank() == 2 || x.rank() == 3, op, ": x must be [n, channels, length] or [channels, length], got ", x.shape());
  return unsqueeze(x, -2);
}

// [n, channels, 1, positions]
Tensor flat_positions(const char* op, const Tensor& x) {
  check_defined(op, "x", x);
  check<ShapeError>(x.rank() >= 2, op, ": x must be [n, channels, ...], got ", x.shape());
  int64_t positions = 1;
  for (int i = 2; i < x.rank(); ++i) positions *= x.shape()[i];
  return reshape(x, {x.size(0), x.size(1), 1, positions});
}

}  // namespace

Tensor max_pool2d(const Tensor& x, Pair kernel, const MaxPool2dOptions& options) { return max_pool("max_pool2d", x, kernel, options, false).values; }

PooledMaxima max_pool2d_with_indices(const Tensor& x, Pair kernel, const MaxPool2dOptions& options) { return max_pool("max_pool2d_with_indices", x, kernel, options, true); }

Tensor max_pool1d(const Tensor& x, int64_t kernel, const MaxPool1dOptions& o) {
  const cuda::Range range("max_pool1d");
  const int64_t stride = o.stride == 0 ? kernel : o.stride;
  const MaxPool2dOptions image{{1, stride}, {0, o.padding}, {1, o.dilation}, o.ceil_mode};
  return squeeze(max_pool("max_pool1d", as_image("max_pool1d", x), {1, kernel}, image, false).values, -2);
}

Tensor avg_pool2d(const Tensor& x, Pair kernel, const AvgPool2dOptions& options) { return avg_pool("avg_pool2d", x, kernel, options); }

Tensor avg_pool1d(const Tensor& x, int64_t kernel, const AvgPool1dOptions& o) {
  const cuda::Range range("avg_pool1d");
  const int64_t stride = o.stride == 0 ? kernel : o.stride;
  return squeeze(avg_pool("avg_pool1d", as_image("avg_pool1d", x), {1, kernel}, {{1, stride}, {0, o.padding}, o.ceil_mode, o.count_include_pad}), -2);
}

Tensor adaptive_max_pool2d(const Tensor& x, Pair output) { return adaptive_max("adaptive_max_pool2d", x, output); }
Tensor adaptive_avg_pool2d(const Tensor& x, Pair output) { return adaptive_avg("adaptive_avg_pool2d", x, output); }
Tensor adaptive_max_pool1d(const Tensor& x, int64_t output) { return squeeze(adaptive_max("adaptive_max_pool1d", as_image("adaptive_max_pool1d", x), {1, output}), -2); }
Tensor adaptive_avg_pool1d(const Tensor& x, int64_t output) { return squeeze(adaptive_avg("adaptive_avg_pool1d", as_image("adaptive_avg_pool1d", x), {1, output}), -2); }

Tensor global_avg_pool(const Tensor& x) {
  const cuda::Range range("global_avg_pool");
  if (const detail::Cast cast("global_avg_pool", Family::pool, {x}); cast) return cast.back(global_avg_pool(cast(x)));
  detail::check_real("global_avg_pool", "x", x, Family::pool);
  const Tensor planes = flat_positions("global_avg_pool", x);
  const int64_t n = planes.size(0), channels = planes.size(1);
  if (detail::is_half(x) && planes.size(3) > 0) return reshape(adaptive_avg("global_avg_pool", planes, 1), {n, channels});      // a sum of float16 may overflow
  return reshape(sum_to(planes, {n, channels, 1, 1}), {n, channels}) / static_cast<double>(planes.size(3));
}

Tensor global_max_pool(const Tensor& x) {
  const cuda::Range range("global_max_pool");
  const Tensor planes = flat_positions("global_max_pool", x);
  return reshape(adaptive_max("global_max_pool", planes, 1), {planes.size(0), planes.size(1)});
}

}  // namespace fovea
