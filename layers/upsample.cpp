#include <fovea/layers/upsample.h>

namespace fovea::layers {
namespace {

// By a factor f, unit u takes the nearest of input u / f, or (bilinear) the two around (u + 0.5) / f - 0.5. Over the f units of one input
// those are three at most.
AxisReach enlarged(int64_t factor, ResizeMode mode) {
  if (factor == 1) return {};
  if (mode == ResizeMode::nearest) return {.upsampling = factor};
  return {.size = 3, .offset = -1, .upsampling = factor};
}

}  // namespace

Upsample::Upsample(Options o) : options_(o) {
  const bool has_size = o.size.h > 0 && o.size.w > 0, has_scale = o.scale.h > 0 && o.scale.w > 0;
  check<ValueError>(has_size != has_scale, "Upsample: give either a size or a scale, both positive, as {.scale = 2}");
  check<ValueError>(!o.align_corners || o.mode == ResizeMode::bilinear, "Upsample: align_corners goes with ResizeMode::bilinear");
}

Pair Upsample::output_of(const Shape& x) const {
  check<ShapeError>(x.rank() == 4, "Upsample: takes [n,channels,h,w], got ", x);
  if (options_.scale.h == 0) return options_.size;
  const Pair scale = options_.scale;
  int64_t h = 0, w = 0;
  const bool overflows = __builtin_mul_overflow(x[2], scale.h, &h) || __builtin_mul_overflow(x[3], scale.w, &w);
  check<ShapeError>(!overflows, "Upsample: ", x, " enlarged by ", scale, " is more than memory can address");
  return {h, w};
}

Tensor Upsample::forward(const Tensor& x) {
  return interpolate(x, output_of(x.shape()), {.mode = options_.mode, .align_corners = options_.align_corners});
}

std::string Upsample::options() const {
  const Options& o = options_;
  return str(o.scale.h > 0 ? "scale=" : "size=", o.scale.h > 0 ? o.scale : o.size,
             o.mode == ResizeMode::bilinear ? ", bilinear" : ", nearest", o.align_corners ? ", align_corners" : "");
}

std::optional<Cost> Upsample::own_cost(const Shape& input) const {
  const Pair output = output_of(input);
  return ResizeGeometry{.planes = input[0] * input[1],
                        .h = input[2],
                        .w = input[3],
                        .out_h = output.h,
                        .out_w = output.w,
                        .align_corners = options_.align_corners}
      .cost(options_.mode == ResizeMode::bilinear);
}

std::optional<ReceptiveField> Upsample::own_field() const {
  if (options_.scale.h == 0 || options_.align_corners) return ReceptiveField::everything();
  return ReceptiveField{enlarged(options_.scale.h, options_.mode), enlarged(options_.scale.w, options_.mode)};
}

}  // namespace fovea::layers
