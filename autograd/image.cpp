#include <fovea/autograd/image.h>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/matmul.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

using detail::options_of;
using kernels::Family;

// --- resizing: the backward pass is linear too, and its own backward pass is the resizing again ---

struct Resize {
  ResizeGeometry geometry;
  ResizeMode mode;
  Shape source, result;
};

Tensor resize_backward(const Resize& r, const Tensor& dy);

Tensor resize(const Resize& r, const Tensor& x_any) {
  const Tensor x = contiguous(x_any), y = empty(r.result, options_of(x));
  if (y.numel() > 0) {
    const auto& t = table_of(x);
    (r.mode == ResizeMode::nearest ? t.resize_nearest : t.resize_bilinear)(queue_of(x), r.geometry, x.view(), y.mutable_view());
  }
  return record("interpolate", y, {x}, saving(), [r](const Saved&, const Tensor& g) { return grads(resize_backward(r, g)); });
}

Tensor resize_backward(const Resize& r, const Tensor& gradient) {
  const Tensor dy = contiguous(gradient), dx = empty(r.source, options_of(dy));
  if (dx.numel() > 0) {
    const auto& t = table_of(dy);
    (r.mode == ResizeMode::nearest ? t.resize_nearest_backward : t.resize_bilinear_backward)(queue_of(dy), r.geometry, dy.view(), dx.mutable_view());
  }
  return record("interpolate_backward", dx, {dy}, saving(), [r](const Saved&, const Tensor& g) { return grads(resize(r, g)); });
}

Grads grid_sample_backward(const Saved& s, const Tensor& gradient, bool align_corners) {
  check<AutogradError>(!grad_mode(), "grid_sample: a second derivative is not offered; call backward() or grad() without create_graph");
  const Tensor dy = contiguous(gradient), x = s[0], grid = s[1];
  const Tensor dx = s.needs(0) ? empty_like(x) : Tensor(), dgrid = s.needs(1) ? empty_like(grid) : Tensor();
  table_of(x).grid_sample_backward(queue_of(x), align_corners, dy.view(), x.view(), grid.view(), detail::mutable_view_or_none(dx), detail::mutable_view_or_none(dgrid));
  return grads(dx, dgrid);
}

// Where the pixels of an axis lie in [-1, 1].
Tensor pixel_positions(int64_t size, bool align_corners, TensorOptions options) {
  if (align_corners) return size > 1 ? linspace(-1, 1, size, options) : zeros({size}, options);
  const double step = 2.0 / static_cast<double>(std::max<int64_t>(size, 1));
  return linspace(-1 + step / 2, 1 - step / 2, size, options);
}

}  // namespace

Tensor interpolate(const Tensor& x, Pair output, const InterpolateOptions& o) {
  const cuda::Range range("interpolate");
  if (const detail::Cast cast("interpolate", Family::image, {x}); cast) return cast.back(interpolate(cast(x), output, o));
  detail::check_real("interpolate", "x", x, Family::image);
  check<ShapeError>(x.rank() == 4, "interpolate: x must be [n, channels, h, w], got ", x.shape());
  check<ValueError>(output.h >= 1 && output.w >= 1, "interpolate: the output size must be at least 1, got ", output);
  check<ShapeError>(x.size(2) >= 1 && x.size(3) >= 1, "interpolate: x ", x.shape(), " has no pixels");
  checked_numel({x.size(0), x.size(1), output.h, output.w}, "interpolate");
  check<ValueError>(!o.align_corners || o.mode == ResizeMode::bilinear, "interpolate: align_corners is for ResizeMode::bilinear only");
  const ResizeGeometry g{x.size(0) * x.size(1), x.size(2), x.size(3), output.h, output.w, o.align_corners};
  return resize({g, o.mode, x.shape(), {x.size(0), x.size(1), output.h, output.w}}, x);
}

Tensor grid_sample(const Tensor& x_any, const Tensor& grid_any, bool align_corners) {
  const cuda::Range range("grid_sample");
  detail::check_defined("grid_sample", "grid", grid_any);
  if (const detail::Cast cast("grid_sample", Family::image, {x_any, grid_any}); cast) return cast.back(grid_sample(cast(x_any), cast(grid_any), align_corners));
  detail::check_real("grid_sample", "x", x_any, Family::image);
  check<ShapeError>(x_any.rank() == 4, "grid_sample: x must be [n, channels, h, w], got ", x_any.shape());
  check<ShapeError>(grid_any.rank() == 4 && grid_any.size(3) == 2 && grid_any.size(0) == x_any.size(0), "grid_sample: grid must be [", x_any.size(0),
                    ", out_h, out_w, 2] for x ", x_any.shape(), ", got ", grid_any.shape());
  detail::check_alike("grid_sample", "grid", grid_any, "x", x_any);
  const Tensor x = contiguous(x_any), grid = contiguous(grid_any);
  const Tensor y = empty({x.size(0), x.size(1), grid.size(1), grid.size(2)}, options_of(x));
  table_of(x).grid_sample(queue_of(x), align_corners, x.view(), grid.view(), y.mutable_view());
  return record("grid_sample", y, {x, grid}, saving(x, grid),
                [align_corners](const Saved& s, const Tensor& g) { return grid_sample_backward(s, g, align_corners); });
}

Tensor affine_grid(const Tensor& theta, Pair size, bool align_corners) {
  const cuda::Range range("affine_grid");
  if (detail::is_half(theta)) return to(affine_grid(detail::widened(theta), size, align_corners), theta.dtype());
  detail::check_real("affine_grid", "theta", theta, Family::matmul);
  check<ShapeError>(theta.rank() == 3 && theta.size(1) == 2 && theta.size(2) == 3, "affine_grid: theta must be [n, 2, 3], got ", theta.shape());
  check<ValueError>(size.h >= 0 && size.w >= 0, "affine_grid: the size cannot be negative, got ", size);
  checked_numel({theta.size(0), size.h, size.w, 3}, "affine_grid");
  Autocast off = Autocast::disabled();                   // pixel positions need more digits than bfloat16 has
  const TensorOptions options = options_of(theta);
  const Tensor x = expand(reshape(pixel_positions(size.w, align_corners, options), {1, size.w}), {size.h, size.w});
  const Tensor y = expand(reshape(pixel_positions(size.h, align_corners, options), {size.h, 1}), {size.h, size.w});
  const Tensor points = reshape(stack({x, y, ones({size.h, size.w}, options)}, 2), {size.h * size.w, 3});
  return reshape(matmul(points, transpose(theta, 1, 2)), {theta.size(0), size.h, size.w, 2});
}

}  // namespace fovea
