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

// dx of dtype `source`.
Tensor softmax_backward(bool is_log, int axis, const Tensor& gradient, const Tensor& y, DType source) {
  if (grad_mode()) return to(is_log ? gradient - exp(y) * sum_along(gradient, axis) : y * (gradient - sum_along(gradient * y, axis)), source);
  const Tensor dy = contiguous(gradient), dx = empty_like(y, source);
  table_of(y).softmax_backward(queue_of(y), along(y.shape(), axis), is_log, dy.view(), y.view(), dx.mutable_view());
  return dx;
}

Tensor softmax(const char* name, bool is_log, const Tensor& x_any, int64_t axis) {
  const cuda::Range range(name);
  const bool is_widened = detail::widens_result(name, Family::softmax, x_any);
  if (!is_widened)
    if (const detail::Cast cast(name, Family::softmax, {x_any}); cast) return cast.back(softmax(name, is_log, cast(x_any), axis));
  detail::check_real(name, "x", x_any, Family::softmax);
  if (x_any.rank() == 0) return reshape(softmax(name, is_log, reshape(x_any, {1}), axis), {});
  const int at = wrap_axis(axis, x_any.rank(), name);
  const Tensor x = contiguous(x_any), y = empty_like(x, is_widened ? DType::float32 : x.dtype());
  table_of(x).softmax(queue_of(x), along(x.shape(), at), is_log, x.view(), y.mutable_view());
  return record(name, y, {x}, saving(y), [is_log, at, source = x.dtype()](const Saved& s, const Tensor& g) { return grads(softmax_backward(is_log, at, g, s[0], source)); });
}

// --- cross-entropy: labels int64 [rows], scores as CrossEntropyGeometry says; what can be differentiated again has them as [rows, classes] ---

// The weight of each row's label, zero for ignored rows.
Tensor row_weights(const CrossEntropyGeometry& g, const Tensor& labels, const Tensor& weight, DType dtype) {
  const Tensor counts = to(ne(labels, g.ignore_index), dtype);
  if (!weight) return counts;
  const Tensor known = where(eq(labels, g.ignore_index), 0, labels), chosen = empty({labels.size(0)}, {dtype, labels.device()});
  table_of(labels).index_select(queue_of(labels), 0, weight.view(), known.view(), chosen.mutable_view());
  return chosen * counts;
}

// With t the smoothed, weighted target distribution, d loss / d logits = softmax(logits) * sum(t) - t, or -t of log-probabilities. Recorded, so that it can be
// differentiated again.
Tensor differentiable_gradient(const CrossEntropyGeometry& g, const Tensor& logits, const Tensor& labels, const Tensor& weight) {
  const Tensor counts = unsqueeze(to(ne(labels, g.ignore_index), logits.dtype()), 1);
  Tensor target = expand(counts * (g.label_smoothing / static_cast<double>(std::max<int64_t>(g.classes, 1))), {g.rows, g.classes});
  if (weight) target = target * weight;
  const Tensor known = unsqueeze(where(eq(labels, g.ignore_index), 0, labels), 1);
  target = scatter_add(target, 1, known, unsqueeze(row_weights(g, labels, weight, logits.dtype()) * (1 - g.label_smoothing), 1));
  return g.is_normalized ? neg(target) : softmax(logits, 1) * sum_along(target, 1) - target;
}

// What the loss of each row counts for in the result, times the result's gradient: [rows, 1]. Zero for ignored rows, also where a mean is over no rows at all.
Tensor row_gradients(const CrossEntropyGeometry& g, const Tensor& upstream, const Tensor& labels, const Tensor& divisor) {
  const Tensor each = g.reduction == Reduction::mean ? upstream / divisor : upstream;
  return unsqueeze(where(eq(labels, g.ignore_index), 0, expand(each, labels.shape())), 1);
}

// [rows, classes] in the places of the scores.
Tensor like_scores(const CrossEntropyGeometry& g, const Tensor& rows, const Shape& shape) {
  if (g.inner == 1 || g.rows == 0) return reshape(rows, shape);
  return reshape(transpose(reshape(rows, {g.rows / g.inner, g.inner, g.classes}), 1, 2), shape);
}

// [rows] losses, or their sum or mean.
Tensor row_losses(const char* name, const CrossEntropyGeometry& g, const Tensor& logits, const Tensor& labels, const Tensor& weight) {
  const TensorOptions options(detail::wide_dtype(logits), logits.device());
  const Tensor losses = empty(g.reduction == Reduction::none ? labels.shape() : Shape(), options), divisor = g.reduction == Reduction::mean ? empty({}, options) : Tensor();
  table_of(logits).cross_entropy(queue_of(logits), g, logits.view(), labels.view(), detail::view_or_none(weight), losses.mutable_view(), detail::mutable_view_or_none(divisor));
  return record(name, losses, {logits}, saving(logits, labels, weight, divisor), [g](const Saved& s, const Tensor& upstream) {
    if (grad_mode()) {
      const Tensor rows = differentiable_gradient(g, detail::widened(s[0]), s[1], s[2]) * row_gradients(g, upstream, s[1], s[3]);
      return grads(to(like_scores(g, rows, s[0].shape()), s[0].dtype()));
    }
    const Tensor dlogits = empty_like(s[0]);
    table_of(dlogits).cross_entropy_backward(queue_of(dlogits), g, upstream.view(), detail::view_or_none(s[3]), s[0].view(), s[1].view(), detail::view_or_none(s[2]),
                                             dlogits.mutable_view());
    return grads(dlogits);
  });
}

void check_arguments(const char* name, const char* scores, const Tensor& logits, const Tensor& labels, const CrossEntropyOptions& o) {
  detail::check_real(name, scores, logits, Family::softmax);
  detail::check_defined(name, "labels", labels);
  check<ShapeError>(logits.rank() >= 1, name, ": ", scores, " must be [n, classes, ...] or [classes], got ", logits.shape());
  Shape expected = logits.shape();
  expected.erase(logits.rank() == 1 ? 0 : 1);
  check<ShapeError>(labels.shape() == expected, name, ": labels must be ", expected, " for ", scores, " ", logits.shape(), ", got ", labels.shape());
  check<ValueError>(o.label_smoothing >= 0 && o.label_smoothing <= 1, name, ": label_smoothing must be in [0, 1], got ", o.label_smoothing);
  if (!o.weight) return;
  const int64_t classes = logits.size(logits.rank() == 1 ? 0 : 1);
  check<ShapeError>(o.weight.shape() == Shape{classes}, name, ": weight must be [", classes, "] for ", scores, " ", logits.shape(), ", got ", o.weight.shape());
  detail::check_beside(name, "weight", o.weight, scores, logits);
}

// The labels as int64, each in [0, classes) or ignore_index.
Tensor checked_labels(const char* name, const Tensor& logits, const Tensor& labels, int64_t classes, int64_t ignore_index) {
  const DType dtype = labels.dtype();
  check<DTypeError>(!is_floating(dtype) && dtype != DType::boolean, name, ": labels must be int64, got ", dtype, "; convert with to(labels, DType::int64)");
  check<DeviceError>(labels.device() == logits.device(), name, ": labels are on ", labels.device(), " but logits on ", logits.device(), "; copy one with to()");
  check<ShapeError>(classes > 0 || labels.numel() == 0, name, ": logits ", logits.shape(), " have no classes");
  const Tensor wide = contiguous(to(labels.detach(), DType::int64));
  kernels::RangeCheck range(name, "labels", 0, classes, str(classes, " classes"));
  range.has_exception = true;
  range.exception = ignore_index;
  table_of(wide).check_range(queue_of(wide), range, wide.view(), {});
  return wide;
}

// The loss is of logits' dtype, or stays in float32.
Tensor labelled_loss(const char* name, bool is_normalized, const Tensor& logits, const Tensor& labels, const CrossEntropyOptions& o, bool is_widened) {
  check_arguments(name, is_normalized ? "log_probabilities" : "logits", logits, labels, o);
  const int class_axis = logits.rank() == 1 ? 0 : 1;
  CrossEntropyGeometry g;
  g.rows = labels.numel();
  g.classes = logits.shape()[class_axis];
  g.ignore_index = o.ignore_index;
  g.label_smoothing = o.label_smoothing;
  g.reduction = o.reduction;
  g.is_normalized = is_normalized;
  const Tensor checked = checked_labels(name, logits, labels, g.classes, o.ignore_index);
  Tensor scores = logits;
  if (is_normalized) {
    for (int i = 2; i < logits.rank(); ++i) g.inner *= logits.size(i);
  } else {
    std::vector<int64_t> order;                            // the classes last
    for (int i = 0; i < logits.rank(); ++i)
      if (i != class_axis) order.push_back(i);
    order.push_back(class_axis);
    scores = reshape(logits.rank() > 2 ? permute(logits, order) : logits, {g.rows, g.classes});
  }
  const Tensor losses = row_losses(name, g, contiguous(scores), reshape(checked, {g.rows}), o.weight ? contiguous(o.weight.detach()) : Tensor());
  const Tensor shaped = o.reduction == Reduction::none ? reshape(losses, labels.shape()) : losses;
  return is_widened ? shaped : to(shaped, logits.dtype());
}

}  // namespace

Tensor softmax(const Tensor& x, int64_t axis) { return softmax("softmax", false, x, axis); }
Tensor log_softmax(const Tensor& x, int64_t axis) { return softmax("log_softmax", true, x, axis); }

Tensor cross_entropy(const Tensor& logits, const Tensor& labels, const CrossEntropyOptions& o) {
  const cuda::Range range("cross_entropy");
  CrossEntropyOptions options = o;
  options.weight = detail::widened(o.weight);
  const bool is_widened = detail::widens_result("cross_entropy", Family::softmax, logits);
  if (!is_widened)
    if (const detail::Cast cast("cross_entropy", Family::softmax, {logits}); cast) return cast.back(cross_entropy(cast(logits), labels, options));
  return labelled_loss("cross_entropy", false, logits, labels, options, is_widened);
}

Tensor nll_loss(const Tensor& log_probabilities, const Tensor& labels, const CrossEntropyOptions& o) {
  const cuda::Range range("nll_loss");
  check<ValueError>(o.label_smoothing == 0, "nll_loss: takes no label_smoothing, got ", o.label_smoothing, "; cross_entropy does");
  CrossEntropyOptions options = o;
  options.weight = detail::widened(o.weight);
  const bool is_widened = detail::widens_result("nll_loss", Family::softmax, log_probabilities);
  if (!is_widened)
    if (const detail::Cast cast("nll_loss", Family::softmax, {log_probabilities}); cast) return cast.back(nll_loss(cast(log_probabilities), labels, options));
  return labelled_loss("nll_loss", true, log_probabilities, labels, options, is_widened);
}

}  // namespace fovea
