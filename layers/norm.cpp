#include <fovea/layers/norm.h>

#include <fovea/autograd/norm.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {
namespace {

Tensor when(bool condition, const Tensor& x) { return condition ? x : Tensor(); }

NormGeometry geometry_of(const Shape& x) {
  const int64_t n = x[0], channels = x[1];
  return {.n = n, .channels = channels, .spatial = n * channels > 0 ? x.numel() / (n * channels) : 0};
}

void check_eps(const char* layer, double eps) { check<ValueError>(eps >= 0, layer, ": eps must not be negative, got ", eps); }

int64_t parameters_of(const Tensor& weight, const Tensor& bias) { return (weight ? weight.numel() : 0) + (bias ? bias.numel() : 0); }

}  // namespace

// --- batch norm ---

BatchNorm::BatchNorm(int64_t channels, BatchNormOptions o) : channels_(channels), options_(o) {
  check<ValueError>(channels > 0, "BatchNorm: channels must be positive, got ", channels);
  check_eps("BatchNorm", o.eps);
  weight = param("weight", when(o.affine, ones({channels})));
  bias = param("bias", when(o.affine, zeros({channels})));
  running_mean = buffer("running_mean", when(o.track_running_stats, zeros({channels})));
  running_var = buffer("running_var", when(o.track_running_stats, ones({channels})));
  num_batches_tracked = buffer("num_batches_tracked", when(o.track_running_stats, zeros({}, DType::int64)));
}

Tensor BatchNorm::forward(const Tensor& x) { return normalize(x, {}, false); }
Tensor BatchNorm::forward_relu(const Tensor& x) { return normalize(x, {}, true); }

Tensor BatchNorm::forward_add_relu(const Tensor& x, const Tensor& residual) {
  check<ValueError>(residual.defined(), type_name(), ": residual is an undefined tensor");
  return normalize(x, residual, true);
}

// Under a ReLU, with a residual where there is one.
Tensor BatchNorm::normalize(const Tensor& x, const Tensor& residual, bool has_relu) {
  check_input(x.shape());
  const bool has_statistics = running_mean.defined(), uses_batch = is_training() || !has_statistics;
  const Tensor scale = alongside(x, weight), shift = alongside(x, bias), mean = alongside(x, running_mean), variance = alongside(x, running_var);
  const Tensor batches = alongside(x, num_batches_tracked);
  const std::optional<double> momentum = has_statistics ? options_.momentum : 0.0;
  const double eps = options_.eps;
  if (residual) return batch_norm_add_relu(x, residual, scale, shift, mean, variance, uses_batch, momentum, eps, batches);
  return (has_relu ? batch_norm_relu : batch_norm)(x, scale, shift, mean, variance, uses_batch, momentum, eps, batches);
}

std::string BatchNorm::options() const {
  return str(channels_, options_.affine ? "" : ", no weights", options_.track_running_stats ? "" : ", no running statistics");
}

std::optional<Cost> BatchNorm::own_cost(const Shape& input) const {
  check_input(input);
  return geometry_of(input).cost(!options_.track_running_stats, parameters_of(weight, bias));       // of inference
}

void BatchNorm1d::check_input(const Shape& x) const {
  check<ShapeError>((x.rank() == 2 || x.rank() == 3) && x[1] == channels(), "BatchNorm1d: takes [n,", channels(), "] or [n,", channels(),
                    ",length], got ", x);
}

void BatchNorm2d::check_input(const Shape& x) const {
  check<ShapeError>(x.rank() == 4 && x[1] == channels(), "BatchNorm2d: takes [n,", channels(), ",h,w], got ", x);
}

// --- layer norm ---

LayerNorm::LayerNorm(const Shape& normalized, LayerNormOptions o)
    : normalized_(normalized), eps_(o.eps) {
  check<ValueError>(normalized.rank() > 0 && checked_numel(normalized, "LayerNorm") > 0,
                    "LayerNorm: takes the sizes of the last axes, all positive, got ", normalized);
  check_eps("LayerNorm", o.eps);
  weight = param("weight", when(o.affine, ones(normalized)));
  bias = param("bias", when(o.affine && o.bias, zeros(normalized)));
}

Tensor LayerNorm::forward(const Tensor& x) { return layer_norm(x, normalized_, alongside(x, weight), alongside(x, bias), eps_); }
std::string LayerNorm::options() const { return str(normalized_, weight ? "" : ", no weights"); }

std::optional<Cost> LayerNorm::own_cost(const Shape& input) const {
  const int64_t size = normalized_.numel();
  return NormGeometry{.n = input.numel() / size, .channels = 1, .spatial = size}.cost(true, parameters_of(weight, bias));
}

// --- group and instance norm ---

GroupNorm::GroupNorm(int64_t groups, int64_t channels, GroupNormOptions o) : groups_(groups), channels_(channels), eps_(o.eps) {
  check<ValueError>(groups > 0 && channels > 0 && channels % groups == 0, "GroupNorm: groups (", groups, ") must divide channels (",
                    channels, ")");
  check_eps("GroupNorm", o.eps);
  weight = param("weight", when(o.affine, ones({channels})));
  bias = param("bias", when(o.affine, zeros({channels})));
}

void GroupNorm::check_input(const Shape& x) const {
  check<ShapeError>(x.rank() >= 2 && x[1] == channels_, "GroupNorm: takes [n,", channels_, ",...], got ", x);
}

Tensor GroupNorm::forward(const Tensor& x) {
  check_input(x.shape());
  return group_norm(x, groups_, alongside(x, weight), alongside(x, bias), eps_);
}

std::string GroupNorm::options() const { return str(groups_, ", ", channels_, weight ? "" : ", no weights"); }

std::optional<Cost> GroupNorm::own_cost(const Shape& input) const {
  check_input(input);
  return geometry_of(input).cost(true, parameters_of(weight, bias));
}

InstanceNorm::InstanceNorm(int64_t channels, int rank, InstanceNormOptions o) : channels_(channels), rank_(rank), eps_(o.eps) {
  check<ValueError>(channels > 0, "InstanceNorm: channels must be positive, got ", channels);
  check_eps("InstanceNorm", o.eps);
  weight = param("weight", when(o.affine, ones({channels})));
  bias = param("bias", when(o.affine, zeros({channels})));
}

void InstanceNorm::check_input(const Shape& x) const {
  check<ShapeError>(x.rank() == rank_ && x[1] == channels_, type_name(), ": takes [n,", channels_, rank_ == 4 ? ",h,w]" : ",length]",
                    ", got ", x);
}

Tensor InstanceNorm::forward(const Tensor& x) {
  check_input(x.shape());
  return instance_norm(x, alongside(x, weight), alongside(x, bias), eps_);
}

std::string InstanceNorm::options() const { return str(channels_, weight ? "" : ", no weights"); }

std::optional<Cost> InstanceNorm::own_cost(const Shape& input) const {
  check_input(input);
  return geometry_of(input).cost(true, parameters_of(weight, bias));
}

}  // namespace fovea::layers
