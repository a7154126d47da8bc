#include <fovea/autograd/softmax.h>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/index.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {

using kernels::Family;

namespace {

AxisGeometry along(const Shape& shape, int axis) {
  AxisGeometry g;
  g.size = shape[axis];
  for (int i = 0; i < axis; ++i) g.outer *= shape[i];
  for (int i = axis + 1; i < shape.rank(); ++i) g.inner *= shape[i];
  return g;
}

Tensor sum_along(const Tensor& x, int axis) {
  Shape shape = x.shape();
  shape[axis] = 1;
  return shape == x.shape() ? x : sum_to(x, shape);
}

Tensor softmax_backward(bool is_log, int axis, const Tensor& gradient, const Tensor& y) {
  if (grad_mode()) return is_log ? gradient - exp(y) * sum_along(gradient, axis) : y * (gradient - sum_along(gradient * y, axis));
  const Tensor dy = contiguous(gradient), dx = empty_like(y);
  table_of(y).softmax_backward(queue_of(y), along(y.shape(), axis), is_log, dy.view(), y.view(), dx.mutable_view());
  return dx;
}

Tensor softmax(const char* name, bool is_log, const Tensor& x_any, int64_t axis) {
  const cuda::Range range(name);
  if (const detail::Cast cast(name, Family::softmax, {x_any}); cast) return cast.back(softmax(name, is_log, cast(x_any), axis));
  detail::check_real(name, "x", x_any, Family::softmax);
  if (x_any.rank() == 0) return reshape(softmax(name, is_log, reshape(x_any, {1}), axis), {});
  const int at = wrap_axis(axis, x_any.rank(), name);
  const Tensor x = contiguous(x_any), y = empty_like(x);
  table_of(x).softmax(queue_of(x), along(x.shape(), at), is_log, x.view(), y.mutable_view());
  return record(name, y, {x}, saving(y), [is_log, at](const Saved& s, const Tensor& g) { return grads(softmax_backward(is_log, at, g, s[0])); });
}

// --- cross-entropy of rows: logits [rows, classes], labels int64 [rows] ---

struct RowLoss {
  int64_t ignore_index;
  double label_smoothing;
};

// Loss of each row, and (where dlogits is given) d loss / d logits.
Tensor run_rows(const RowLoss& loss, const Tensor& logits, const Tensor& labels, const Tensor& weight, const Tensor& dlogits) {
  const Tensor losses = empty({logits.size(0)}, {detail::wide_dtype(logits), logits.device()});
  table_of(logits).cross_entropy(queue_of(logits), loss.label_smoothing, loss.ignore_index, logits.view(), labels.view(), detail::view_or_none(weight),
                                 losses.mutable_view(), detail::mutable_view_or_none(dlogits));
  return losses;
}

// The weight of each row's label, zero for ignored rows.
Tensor row_weights(const RowLoss& loss, const Tensor& labels, const Tensor& weight, DType dtype) {
  const Tensor counts = to(ne(labels, loss.ignore_index), dtype);
  if (!weight) return counts;
  const Tensor known = where(eq(labels, loss.ignore_index), 0, labels), chosen = empty({labels.size(0)}, {dtype, labels.device()});
  table_of(labels).index_select(queue_of(labels), 0, weight.view(), known.view(), chosen.mutable_view());
  return chosen * counts;
}

// With t the smoothed, weighted target distribution, d loss / d logits = softmax(logits) * sum(t) - t. Recorded, so that it can be differentiated again.
Tensor differentiable_gradient(const RowLoss& loss, const Tensor& logits, const Tensor& labels, const Tensor& weight) {
  const int64_t classes = logits.size(1);
  const Tensor counts = unsqueeze(to(ne(labels, loss.ignore_index), logits.dtype()), 1);
  Tensor target = expand(counts * (loss.label_smoothing / static_cast<double>(std::max<int64_t>(classes, 1))), logits.shape());
  if (weight) target = target * weight;
  const Tensor known = unsqueeze(where(eq(labels, loss.ignore_index), 0, labels), 1);
  target = scatter_add(target, 1, known, unsqueeze(row_weights(loss, labels, weight, logits.dtype()) * (1 - loss.label_smoothing), 1));
  return softmax(logits, 1) * sum_along(target, 1) - target;
}

Tensor row_losses(const RowLoss& loss, const Tensor& logits, const Tensor& labels, const Tensor& weight) {
  return record("cross_entropy", run_rows(loss, logits, labels, weight, {}), {logits}, saving(logits, labels, weight), [loss](const Saved& s, const Tensor& upstream) {
    const Tensor g = where(eq(s[1], loss.ignore_index), 0, upstream);       // infinite where the mean is over no rows at all
    if (grad_mode()) return grads(to(differentiable_gradient(loss, detail::widened(s[0]), s[1], s[2]) * unsqueeze(g, 1), s[0].dtype()));
    const Tensor dlogits = empty_like(s[0]);
    run_rows(loss, s[0], s[1], s[2], dlogits);
    const ConstView scale = detail::broadcast_view(unsqueeze(to(g, dlogits.dtype()), 1), dlogits.shape());
    table_of(g).binary(queue_of(g), kernels::Binary::multiply, {}, dlogits.view(), scale, dlogits.mutable_view());
    return grads(dlogits);
  });
}

void check_arguments(const Tensor& logits, const Tensor& labels, const CrossEntropyOptions& o) {
  detail::check_real("cross_entropy", "logits", logits, Family::softmax);
  detail::check_defined("cross_entropy", "labels", labels);
  check<ShapeError>(logits.rank() >= 1, "cross_entropy: logits must be [n, classes, ...] or [classes], got ", logits.shape());
  Shape expected = logits.shape();
  expected.erase(logits.rank() == 1 ? 0 : 1);
  check<ShapeError>(labels.shape() == expected, "cross_entropy: labels must be ", expected, " for logits ", logits.shape(), ", got ", labels.shape());
  check<ValueError>(o.label_smoothing >= 0 && o.label_smoothing <= 1, "cross_entropy: label_smoothing must be in [0, 1], got ", o.label_smoothing);
  if (!o.weight) return;
  const int64_t classes = logits.size(logits.rank() == 1 ? 0 : 1);
  check<ShapeError>(o.weight.shape() == Shape{classes}, "cross_entropy: weight must be [", classes, "] for logits ", logits.shape(), ", got ", o.weight.shape());
  detail::check_beside("cross_entropy", "weight", o.weight, "logits", logits);
}

// The labels as int64, each in [0, classes) or ignore_index.
Tensor checked_labels(const Tensor& logits, const Tensor& labels, int64_t classes, int64_t ignore_index) {
  const DType dtype = labels.dtype();
  check<DTypeError>(!is_floating(dtype) && dtype != DType::boolean, "cross_entropy: labels must be int64, got ", dtype, "; convert with to(labels, DType::int64)");
  check<DeviceError>(labels.device() == logits.device(), "cross_entropy: labels are on ", labels.device(), " but logits on ", logits.device(), "; copy one with to()");
  check<ShapeError>(classes > 0 || labels.numel() == 0, "cross_entropy: logits ", logits.shape(), " have no classes");
  const Tensor wide = contiguous(to(labels.detach(), DType::int64));
  kernels::RangeCheck range("cross_entropy", "labels", 0, classes, str(classes, " classes"));
  range.has_exception = true;
  range.exception = ignore_index;
  table_of(wide).check_range(queue_of(wide), range, wide.view(), {});
  return wide;
}

}  // namespace

Tensor softmax(const Tensor& x, int64_t axis) { return softmax("softmax", false, x, axis); }
Tensor log_softmax(const Tensor& x, int64_t axis) { return softmax("log_softmax", true, x, axis); }

Tensor cross_entropy(const Tensor& logits, const Tensor& labels, const CrossEntropyOptions& o) {
  const cuda::Range range("cross_entropy");
  if (const detail::Cast cast("cross_entropy", Family::softmax, {logits}); cast || detail::is_half(o.weight)) {
    CrossEntropyOptions options = o;
    options.weight = detail::widened(o.weight);
    return cast.back(cross_entropy(cast(logits), labels, options));
  }
  check_arguments(logits, labels, o);
  const int class_axis = logits.rank() == 1 ? 0 : 1;
  const int64_t classes = logits.shape()[class_axis];
  const Tensor checked = reshape(checked_labels(logits, labels, classes, o.ignore_index), {labels.numel()});
  std::vector<int64_t> order;                              // the classes last
  for (int i = 0; i < logits.rank(); ++i)
    if (i != class_axis) order.push_back(i);
  order.push_back(class_axis);
  const Tensor rows = contiguous(reshape(logits.rank() > 2 ? permute(logits, order) : logits, {labels.numel(), classes}));
  const Tensor weight = o.weight ? contiguous(o.weight.detach()) : Tensor();
  const RowLoss loss{o.ignore_index, o.label_smoothing};
  const Tensor losses = row_losses(loss, rows, checked, weight);
  if (o.reduction == Reduction::none) return to(reshape(losses, labels.shape()), logits.dtype());
  const Tensor total = sum_to(losses, Shape());
  if (o.reduction == Reduction::sum) return to(total, logits.dtype());
  return to(total / sum_to(row_weights(loss, checked, weight, losses.dtype()), Shape()), logits.dtype());
}

}  // namespace fovea
