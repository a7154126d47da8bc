// Note [Two backward passes of a normalisation]
// Usually the fused kernel runs, with the statistics that the forward pass saved. When the backward pass is itself recorded (create_graph), the statistics are
// functions of x and must be differentiated too: then the same formula is put together from differentiable operations, statistics included.
//
// Note [Layouts of a batch norm]
// Kernels take x contiguous or channels-last, and everything of x's shape as x lies: residual and gradients are brought into x's layout where they come in another.
#include <fovea/autograd/norm.h>

#include <algorithm>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

using detail::mutable_view_or_none;
using detail::view_or_none;
using kernels::KernelTable;

void check_argument(const char* op, const char* name, const Tensor& x, const Tensor& argument, const Shape& shape) {
  if (!argument) return;
  check<ShapeError>(argument.shape() == shape, op, ": ", name, " must be ", shape, " for x ", x.shape(), ", got ", argument.shape());
  detail::check_beside(op, name, argument, "x", x);
}

void check_x(const char* op, const Tensor& x, int least_rank) {
  detail::check_real(op, "x", x, kernels::Family::norm);
  check<ShapeError>(x.rank() >= least_rank, op, ": x must have at least ", least_rank, " axes", least_rank == 2 ? ", [n, channels, ...]" : "", ", got ", x.shape());
}

// Note [Parameters beside a half x]
// Kernels that compute on half types take and give everything with a value a channel in float32. Parameters and running statistics of a half type are widened for them
// (recorded: their gradients are rounded), those of float32 go as they are, as in mixed precision. Kernels that do not get x in float32 too.
Tensor as_computed(const Tensor& x) { return detail::must_widen(x, kernels::Family::norm) ? detail::widened(x) : x; }

bool needs_wider(const Tensor& x, const TensorRefs& parameters) {
  if (!detail::is_half(x)) return false;
  bool is_any_half = detail::must_widen(x, kernels::Family::norm);
  for (size_t i = 0; i < parameters.size(); ++i) is_any_half |= detail::is_half(parameters[i]);
  return is_any_half;
}

// How the differentiable formula sees x, a statistic and the weight: shapes that broadcast against each other.
struct Layout {
  Shape x, statistic, weight;
  Shape parameter;                                         // the weight's own shape
  double share() const {                                   // 1 / elements behind one statistic
    return x.numel() > 0 ? static_cast<double>(statistic.numel()) / static_cast<double>(x.numel()) : 0;
  }
};

enum class Statistics : uint8_t { of_channels, of_groups, of_rows };

struct Norm {
  const char* name;
  Statistics statistics;
  NormGeometry geometry;
  Layout layout;
  bool has_relu = false;
};

// What a normalisation saves, in this order.
struct SavedNorm {
  Tensor x, weight, mean, invstd, y;                       // y: under a ReLU
  explicit SavedNorm(const Saved& s) : x(s[0]), weight(s[1]), mean(s[2]), invstd(s[3]), y(s[4]) {}
};

// x in a layout that kernels take, and another tensor of its shape in the layout of one that has been brought into it.
Tensor laid_out(const Tensor& x) { return is_channels_last(x) ? x : contiguous(x); }
Tensor laid_out_as(const Tensor& x, const Tensor& other) { return x.is_contiguous() ? contiguous(other) : channels_last(other); }

Tensor contiguous_or_none(const Tensor& x) { return x ? contiguous(x) : Tensor(); }

Grads fused_backward(const Norm& norm, const Saved& s, const Tensor& gradient) {
  const SavedNorm saved(s);
  const Tensor& x = saved.x;
  const Tensor dy = laid_out_as(x, gradient), weight = contiguous_or_none(saved.weight);
  const TensorOptions options(detail::wide_dtype(dy), dy.device());
  const auto like_x = [&](bool is_needed) { return is_needed ? detail::empty_for(x.shape(), detail::options_of(x), {x}) : Tensor(); };
  const auto like_weight = [&](bool is_needed) { return is_needed ? empty(norm.layout.parameter, options) : Tensor(); };
  const Tensor dx = like_x(s.needs(0)), dweight = like_weight(s.needs(1)), dbias = like_weight(s.needs(2)), dresidual = like_x(s.needs(3) && norm.has_relu);
  const KernelTable& t = table_of(dy);
  if (norm.statistics == Statistics::of_channels) {
    t.batch_norm_backward(queue_of(dy), norm.geometry, norm.has_relu, dy.view(), x.view(), view_or_none(saved.y), view_or_none(weight), saved.mean.view(),
                          saved.invstd.view(), mutable_view_or_none(dx), mutable_view_or_none(dresidual), mutable_view_or_none(dweight), mutable_view_or_none(dbias));
  } else {
    (norm.statistics == Statistics::of_groups ? t.group_norm_backward : t.layer_norm_backward)(
        queue_of(dy), norm.geometry, dy.view(), x.view(), view_or_none(weight), saved.mean.view(), saved.invstd.view(), mutable_view_or_none(dx),
        mutable_view_or_none(dweight), mutable_view_or_none(dbias));
  }
  return grads(dx, dweight, dbias, s.needs(3) && !norm.has_relu ? gradient : dresidual);
}

Tensor stop_at_relu(const Tensor& gradient, const Tensor& y) { return where(le(y, 0.0), 0.0, gradient); }

Grads differentiable_backward(const Norm& norm, const Saved& s, const Tensor& gradient) {
  const SavedNorm saved(s);
  const Layout& layout = norm.layout;
  const double share = layout.share();
  const Tensor let_through = norm.has_relu ? stop_at_relu(gradient, saved.y) : gradient;
  const Tensor x = reshape(detail::widened(saved.x), layout.x), g = reshape(detail::widened(let_through), layout.x);
  const Tensor deviation = x - sum_to(x, layout.statistic) * share;
  const Tensor invstd = rsqrt(sum_to(square(deviation), layout.statistic) * share + norm.geometry.eps);
  const Tensor normal = deviation * invstd;
  Tensor dx, dweight, dbias;
  if (s.needs(0)) {
    const Tensor scaled = saved.weight ? g * reshape(saved.weight, layout.weight) : g;
    const Tensor centred = scaled - sum_to(scaled, layout.statistic) * share - normal * (sum_to(scaled * normal, layout.statistic) * share);
    dx = to(reshape(invstd * centred, saved.x.shape()), gradient.dtype());
  }
  if (s.needs(1)) dweight = reshape(sum_to(g * normal, layout.weight), layout.parameter);
  if (s.needs(2)) dbias = reshape(sum_to(g, layout.weight), layout.parameter);
  return grads(dx, dweight, dbias, s.needs(3) ? let_through : Tensor());
}

Tensor record_norm(const Norm& norm, const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& residual, const Tensor& mean,
                   const Tensor& invstd) {
  return record(norm.name, y, {x, weight, bias, residual}, saving(x, weight, mean, invstd, norm.has_relu ? y : Tensor()),
                [norm](const Saved& s, const Tensor& g) { return grad_mode() ? differentiable_backward(norm, s, g) : fused_backward(norm, s, g); });
}

// --- batch norm ---

int64_t positions(const Tensor& x) {
  int64_t n = 1;
  for (int i = 2; i < x.rank(); ++i) n *= x.shape()[i];
  return n;
}

Norm batch_norm_of(const char* name, const Tensor& x, bool has_relu, double eps) {
  const int64_t channels = x.size(1);
  Shape along_channels = Shape::filled(x.rank(), 1);
  along_channels[1] = channels;
  return {name, Statistics::of_channels, {x.size(0), channels, positions(x), 1, eps}, {x.shape(), along_channels, along_channels, {channels}}, has_relu};
}

void overwrite(const Tensor& target, const Tensor& value) {
  target.storage()->bump_version();
  table_of(target).copy(queue_of(target), value.view(), target.mutable_view());
}

// The statistics that a training pass moves.
struct RunningTensors {
  Tensor mean, var;                          // undefined where none are kept
  std::optional<double> momentum;
  Tensor batches;

  // For the kernel, which writes to them.
  kernels::RunningUpdate update() const {
    for (const Tensor& x : {mean, var, batches})
      if (x && !x.is_meta()) x.storage()->bump_version();
    return {mutable_view_or_none(mean), mutable_view_or_none(var), momentum.value_or(0), !momentum, mutable_view_or_none(batches)};
  }
};

Tensor batch_norm_train(const Norm& norm, const Tensor& x_any, const Tensor& residual_any, const Tensor& weight_any, const Tensor& bias, const RunningTensors& running) {
  check<ValueError>(norm.geometry.n * norm.geometry.spatial != 1, norm.name, ": training needs more than one value a channel, x is ", x_any.shape(),
                    "; use a larger batch, or training = false");
  const Tensor x = laid_out(x_any), weight = contiguous_or_none(weight_any), shift = contiguous_or_none(bias ? bias.detach() : bias);
  const Tensor residual = residual_any ? laid_out_as(x, residual_any) : residual_any;
  const TensorOptions options(detail::wide_dtype(x), x.device());
  const Tensor y = detail::empty_for(x.shape(), detail::options_of(x), {x});
  const Tensor mean = empty({norm.geometry.channels}, options), invstd = empty({norm.geometry.channels}, options);
  table_of(x).batch_norm_train(queue_of(x), norm.geometry, norm.has_relu, x.view(), view_or_none(residual), view_or_none(weight), view_or_none(shift), y.mutable_view(),
                               mean.mutable_view(), invstd.mutable_view(), running.update());
  return record_norm(norm, y, x, weight, bias, residual, mean, invstd);
}

// With fixed statistics: y = scale * (x - mean) + bias, linear in x.
Tensor batch_norm_eval(const Norm& norm, const Tensor& x_any, const Tensor& residual_any, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                       const Tensor& running_var) {
  const Tensor x = laid_out(x_any), scale = contiguous_or_none(weight ? weight.detach() : weight), shift = contiguous_or_none(bias ? bias.detach() : bias);
  const Tensor residual = residual_any ? laid_out_as(x, residual_any) : residual_any;
  const Tensor mean = contiguous(running_mean.detach()), variance = contiguous(running_var.detach());
  const Tensor y = detail::empty_for(x.shape(), detail::options_of(x), {x});
  table_of(x).batch_norm_eval(queue_of(x), norm.geometry, norm.has_relu, x.view(), view_or_none(residual), view_or_none(scale), view_or_none(shift), mean.view(),
                              variance.view(), y.mutable_view());
  // Copies: a later batch may change the running statistics before the backward pass comes.
  const bool is_recorded = should_record({x, weight, bias, residual});
  const Tensor mean_then = is_recorded ? clone(mean) : Tensor(), variance_then = is_recorded ? clone(variance) : Tensor();
  return record(norm.name, y, {x, weight, bias, residual},
                saving(weight && weight.requires_grad() ? x : Tensor(), weight, mean_then, variance_then, norm.has_relu ? y : Tensor()),
                [norm](const Saved& s, const Tensor& gradient) {
                  const Tensor let_through = norm.has_relu ? stop_at_relu(gradient, s[4]) : gradient, g = detail::widened(let_through);
                  const Tensor invstd = reshape(rsqrt(s[3] + norm.geometry.eps), norm.layout.weight);
                  Tensor dx, dweight, dbias;
                  if (s.needs(0)) dx = to(g * (s[1] ? invstd * reshape(s[1], norm.layout.weight) : invstd), gradient.dtype());
                  if (s.needs(1)) {
                    const Tensor normal = (detail::widened(s[0]) - reshape(s[2], norm.layout.weight)) * invstd;
                    dweight = reshape(sum_to(g * normal, norm.layout.weight), norm.layout.parameter);
                  }
                  if (s.needs(2)) dbias = reshape(sum_to(g, norm.layout.weight), norm.layout.parameter);
                  return grads(dx, dweight, dbias, s.needs(3) ? let_through : Tensor());
                });
}

Tensor batch_norm(const char* name, bool has_relu, const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                  const Tensor& running_var, bool training, std::optional<double> momentum, double eps, const Tensor& batches) {
  if (needs_wider(x, {weight, bias, running_mean, running_var})) {
    const Tensor mean = detail::widened(running_mean), variance = detail::widened(running_var);
    const Tensor y = batch_norm(name, has_relu, as_computed(x), residual ? as_computed(residual) : residual, detail::widened(weight), detail::widened(bias), mean, variance,
                                training, momentum, eps, batches);
    if (training && detail::is_half(running_mean)) overwrite(running_mean, mean);
    if (training && detail::is_half(running_var)) overwrite(running_var, variance);
    return to(y, x.dtype());
  }
  check_x(name, x, 2);
  if (residual) {
    check<ShapeError>(residual.shape() == x.shape(), name, ": residual must have x's shape ", x.shape(), ", got ", residual.shape());
    detail::check_alike(name, "residual", residual, "x", x);
  }
  const Shape channels{x.size(1)};
  check_argument(name, "weight", x, weight, channels);
  check_argument(name, "bias", x, bias, channels);
  check_argument(name, "running_mean", x, running_mean, channels);
  check_argument(name, "running_var", x, running_var, channels);
  const Norm norm = batch_norm_of(name, x, has_relu, eps);
  check<ValueError>(running_mean.defined() == running_var.defined(), name, ": running_mean and running_var must be given together, or neither");
  if (running_mean)
    check<ValueError>(running_mean.is_meta() || running_mean.storage() != running_var.storage() || running_mean.offset() != running_var.offset(), name,
                      ": running_mean and running_var are the same memory; give each a tensor of its own");
  check<ValueError>(eps >= 0, name, ": eps must not be negative, got ", eps);
  check<ValueError>(momentum || batches, name, ": without a momentum, `batches` must count them for the mean over all batches; give either");
  if (batches) {
    check<DTypeError>(batches.dtype() == DType::int64, name, ": batches must be int64, got ", batches.dtype(), "; convert with to(x, DType::int64)");
    check<ShapeError>(batches.numel() == 1, name, ": batches must be one number, got ", batches.shape());
    check<DeviceError>(batches.device() == x.device(), name, ": batches is on ", batches.device(), " but x is on ", x.device(), "; copy one with to()");
  }
  if (training) return batch_norm_train(norm, x, residual, weight, bias, {running_mean, running_var, momentum, batches});
  check<ValueError>(running_mean.defined() && running_var.defined(), name, ": without training, running_mean and running_var must be given");
  return batch_norm_eval(norm, x, residual, weight, bias, running_mean, running_var);
}

// --- statistics of each sample ---

Tensor sample_norm(const Norm& norm, const Tensor& x_any, const Tensor& weight_any, const Tensor& bias) {
  const Tensor x = contiguous(x_any), weight = contiguous_or_none(weight_any), shift = contiguous_or_none(bias ? bias.detach() : bias);
  const TensorOptions options(detail::wide_dtype(x), x.device());
  const Shape statistics{norm.geometry.n, norm.geometry.groups};
  const bool is_recorded = should_record({x, weight, bias});
  const Tensor y = empty_like(x), mean = is_recorded ? empty(statistics, options) : Tensor(), invstd = is_recorded ? empty(statistics, options) : Tensor();
  const KernelTable& t = table_of(x);
  (norm.statistics == Statistics::of_groups ? t.group_norm : t.layer_norm)(queue_of(x), norm.geometry, x.view(), view_or_none(weight), view_or_none(shift),
                                                                           y.mutable_view(), mutable_view_or_none(mean), mutable_view_or_none(invstd));
  return record_norm(norm, y, x, weight, bias, {}, mean, invstd);
}

Tensor group_norm(const char* name, const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias, double eps) {
  const int64_t n = x.size(0), channels = x.size(1), spatial = positions(x);
  check_argument(name, "weight", x, weight, {channels});
  check_argument(name, "bias", x, bias, {channels});
  const int64_t width = channels / std::max<int64_t>(groups, 1);
  return sample_norm({name, Statistics::of_groups, {n, channels, spatial, groups, eps}, {{n, groups, width, spatial}, {n, groups, 1, 1}, {1, groups, width, 1}, {channels}}},
                     x, weight, bias);
}

}  // namespace

Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean, const Tensor& running_var, bool training, std::optional<double> momentum,
                  double eps, const Tensor& batches) {
  const cuda::Range range("batch_norm");
  return batch_norm("batch_norm", false, x, {}, weight, bias, running_mean, running_var, training, momentum, eps, batches);
}

Tensor batch_norm_relu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean, const Tensor& running_var, bool training,
                       std::optional<double> momentum, double eps, const Tensor& batches) {
  const cuda::Range range("batch_norm_relu");
  return batch_norm("batch_norm_relu", true, x, {}, weight, bias, running_mean, running_var, training, momentum, eps, batches);
}

Tensor batch_norm_add_relu(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, const Tensor& running_mean, const Tensor& running_var,
                           bool training, std::optional<double> momentum, double eps, const Tensor& batches) {
  const cuda::Range range("batch_norm_add_relu");
  detail::check_defined("batch_norm_add_relu", "residual", residual);
  return batch_norm("batch_norm_add_relu", true, x, residual, weight, bias, running_mean, running_var, training, momentum, eps, batches);
}

Tensor layer_norm(const Tensor& x, const Shape& normalized_shape, const Tensor& weight, const Tensor& bias, double eps) {
  const cuda::Range range("layer_norm");
  if (needs_wider(x, {weight, bias})) return to(layer_norm(as_computed(x), normalized_shape, detail::widened(weight), detail::widened(bias), eps), x.dtype());
  check_x("layer_norm", x, 1);
  const int added = x.rank() - normalized_shape.rank();
  bool fits = added >= 0 && normalized_shape.rank() >= 1;
  for (int i = 0; fits && i < normalized_shape.rank(); ++i) fits = x.shape()[added + i] == normalized_shape[i];
  check<ShapeError>(fits, "layer_norm: the last axes of x ", x.shape(), " must be ", normalized_shape);
  check_argument("layer_norm", "weight", x, weight, normalized_shape);
  check_argument("layer_norm", "bias", x, bias, normalized_shape);
  int64_t rows = 1;
  for (int i = 0; i < added; ++i) rows *= x.shape()[i];
  const int64_t size = normalized_shape.numel();
  return sample_norm({"layer_norm", Statistics::of_rows, {rows, 1, size, 1, eps}, {{rows, size}, {rows, 1}, {1, size}, normalized_shape}}, x, weight, bias);
}

Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias, double eps) {
  const cuda::Range range("group_norm");
  if (needs_wider(x, {weight, bias})) return to(group_norm(as_computed(x), groups, detail::widened(weight), detail::widened(bias), eps), x.dtype());
  check_x("group_norm", x, 2);
  check<ValueError>(groups >= 1, "group_norm: groups must be at least 1, got ", groups);
  check<ShapeError>(x.size(1) % groups == 0, "group_norm: the ", x.size(1), " channels of x ", x.shape(), " do not divide into ", groups, " groups");
  return group_norm("group_norm", x, groups, weight, bias, eps);
}

Tensor instance_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const cuda::Range range("instance_norm");
  if (needs_wider(x, {weight, bias})) return to(instance_norm(as_computed(x), detail::widened(weight), detail::widened(bias), eps), x.dtype());
  check_x("instance_norm", x, 3);
  check<ValueError>(positions(x) != 1, "instance_norm: needs more than one value in each channel of a sample, x is ", x.shape());
  return group_norm("instance_norm", x, std::max<int64_t>(x.size(1), 1), weight, bias, eps);
}

}  // namespace fovea
