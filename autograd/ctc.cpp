#include <fovea/autograd/ctc.h>

#include <algorithm>
#include <cmath>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

void check_logits(const char* op, const Tensor& logits, int64_t blank) {
  detail::check_real(op, "logits", logits, kernels::Family::ctc);
  check<ShapeError>(logits.rank() == 3, op, ": logits must be [time, batch, classes], got ", logits.shape());
  check<IndexError>(blank >= 0 && blank < logits.size(2), op, ": blank is ", blank, " but logits ", logits.shape(), " have classes 0 to ", logits.size(2) - 1);
}

Tensor as_int64(const char* op, const char* argument, const Tensor& x) {
  detail::check_defined(op, argument, x);
  check<DTypeError>(!is_floating(x.dtype()) && x.dtype() != DType::boolean, op, ": ", argument, " must be int64, got ", x.dtype(),
                    "; convert with to(x, DType::int64)");
  return contiguous(to(x.detach(), DType::int64));
}

// Lengths of all samples, each in [0, longest]; `of_what` is there `longest` times.
Tensor checked_lengths(const char* op, const char* argument, const Tensor& lengths, int64_t batch, int64_t longest, const char* of_what) {
  const Tensor wide = as_int64(op, argument, lengths);
  check<ShapeError>(wide.shape() == Shape{batch}, op, ": ", argument, " has shape ", wide.shape(), ", expected [", batch, "], one for each sample");
  table_of(wide).check_range(queue_of(wide), {op, argument, 0, longest + 1, str("the ", longest, " ", of_what)}, wide.view(), {});
  return wide;
}

// Targets as the kernel takes them: labels [batch, max_target], of which those past a target's length do not matter, or one after the other; and lengths [batch].
struct Targets {
  Tensor labels, lengths;
  int64_t max_target;
};

// Note [Long targets]
// A target of more labels than there are steps is infeasible whatever it says, so time + 1 labels of it are enough: one very long target in a large batch takes no more
// memory than its share of the logits.

kernels::RangeCheck range_of_labels(const CtcGeometry& g) {
  kernels::RangeCheck range("ctc_loss", "targets", 0, g.classes, str(g.classes, " classes"));
  range.why_forbidden = "the blank; targets must not hold blanks";
  range.forbidden = g.blank;
  return range;
}

// From padded labels, where they are: nobody waits for the device.
Targets padded_targets(const Tensor& labels, const Tensor& lengths, const CtcGeometry& g) {
  table_of(labels).check_range(queue_of(labels), range_of_labels(g), labels.view(), lengths.view());
  const int64_t given = labels.size(1), columns = std::min(given, g.time + 1);
  if (columns == given) return {labels, lengths, columns};
  const Tensor fitting = where(gt(lengths, given), -1, clamp_max(lengths, static_cast<double>(columns)));       // -1: a wrong length stays one
  return {contiguous(narrow(labels, 1, 0, columns)), fitting, columns};
}

// From labels one after the other on a device: they stay as they are, and nobody waits to learn how long the longest is.
Targets concatenated_targets(const Tensor& labels, const Tensor& lengths, const CtcGeometry& g) {
  const int64_t given = labels.size(0);
  const kernels::RangeCheck total("ctc_loss", "the sum of target_lengths", given, given + 1, str("the ", given, " labels that targets hold"));
  table_of(lengths).check_range(queue_of(lengths), total, sum(lengths).view(), {});
  table_of(labels).check_range(queue_of(labels), range_of_labels(g), labels.view(), {});
  return {labels, lengths, std::min(given, g.time + 1)};
}

// The same on the CPU, which can look at once: put into rows.
Targets rows_of_targets(const Tensor& labels, const Tensor& target_lengths, const CtcGeometry& g) {
  const std::vector<int64_t> lengths = target_lengths.to_vector<int64_t>();
  int64_t total = 0, longest = 0;
  for (const int64_t length : lengths) {
    total += length;
    longest = std::max(longest, length);
  }
  check<ShapeError>(labels.size(0) == total, "ctc_loss: targets hold ", labels.size(0), " labels but target_lengths add up to ", total);
  table_of(labels).check_range(queue_of(labels), range_of_labels(g), labels.view(), {});
  const int64_t columns = std::min(longest, g.time + 1);
  Tensor rows = zeros({g.batch, columns}, {DType::int64, Device::cpu()});
  const int64_t* from = labels.data<int64_t>();
  int64_t* row = rows.mutable_data<int64_t>();
  for (const int64_t length : lengths) {
    std::copy(from, from + std::min(length, columns), row);
    from += length;
    row += columns;
  }
  return {rows, longest > columns ? clamp_max(target_lengths, static_cast<double>(columns)) : target_lengths, columns};
}

Targets checked_targets(const Tensor& labels, const Tensor& lengths, const CtcGeometry& g) {
  if (labels.rank() == 2) return padded_targets(labels, lengths, g);
  if (labels.is_meta()) return {labels, lengths, labels.size(0)};
  return labels.device() == Device::cpu() ? rows_of_targets(labels, lengths, g) : concatenated_targets(labels, lengths, g);
}

// The gradients of all samples' losses, each times what reached it: in one pass, whatever the dtype of either.
Tensor scaled(const Tensor& dlogits, const Tensor& upstream) {
  const Tensor dx = empty_like(dlogits);
  const ConstView factors = detail::broadcast_view(unsqueeze(upstream, -1), dlogits.shape());
  table_of(dx).binary(queue_of(dx), kernels::Binary::multiply, {}, dlogits.view(), factors, dx.mutable_view());
  return dx;
}

}  // namespace

Tensor ctc_loss(const Tensor& logits, const Tensor& targets, const Tensor& input_lengths, const Tensor& target_lengths, const CtcOptions& options) {
  const cuda::Range range("ctc_loss");
  const char* op = "ctc_loss";
  const bool is_widened = detail::widens_result(op, kernels::Family::ctc, logits);
  if (!is_widened)
    if (const detail::Cast cast(op, kernels::Family::ctc, {logits}); cast) return cast.back(ctc_loss(cast(logits), targets, input_lengths, target_lengths, options));
  check_logits(op, logits, options.blank);
  CtcGeometry g{logits.size(0), logits.size(1), logits.size(2), 0, options.blank, options.zero_infinity, options.reduction};
  const Tensor labels = as_int64(op, "targets", targets);
  check<ShapeError>(labels.rank() == 1 || (labels.rank() == 2 && labels.size(0) == g.batch), op, ": targets must be [", g.batch, ", longest target] or [sum of lengths], got ",
                    targets.shape());
  detail::check_defined(op, "input_lengths", input_lengths);
  detail::check_defined(op, "target_lengths", target_lengths);
  for (const Tensor* t : {&targets, &input_lengths, &target_lengths})
    check<DeviceError>(t->device() == logits.device(), op, ": logits are on ", logits.device(), " but targets or lengths on ", t->device(), "; copy them with to()");
  const bool is_padded = labels.rank() == 2;
  const Tensor times = checked_lengths(op, "input_lengths", input_lengths, g.batch, g.time, "steps of logits");
  const Tensor lengths = checked_lengths(op, "target_lengths", target_lengths, g.batch, labels.size(-1), is_padded ? "columns of targets" : "labels given");
  const Targets kept = checked_targets(labels, lengths, g);
  g.max_target = kept.max_target;

  const Tensor scores = contiguous(logits);
  const TensorOptions of_losses(detail::wide_dtype(logits), logits.device());
  const bool is_recorded = should_record({logits}), is_reduced = options.reduction != Reduction::none;
  const Tensor losses = empty(is_reduced ? Shape() : Shape{g.batch}, of_losses), dlogits = is_recorded ? empty_like(scores) : Tensor();
  const Tensor weights = is_recorded && options.reduction == Reduction::mean ? empty({g.batch}, of_losses) : Tensor();
  {
    const Scratch scratch(table_of(logits).ctc_workspace(g, logits.dtype()), logits.device());
    table_of(logits).ctc_loss(queue_of(logits), g, scores.view(), kept.labels.view(), times.view(), kept.lengths.view(), losses.mutable_view(),
                              detail::mutable_view_or_none(weights), detail::mutable_view_or_none(dlogits), scratch);
  }
  const Tensor recorded = record(op, losses, {logits}, saving(dlogits, weights), [](const Saved& s, const Tensor& gradient) {
    check<AutogradError>(!grad_mode(), "ctc_loss: its backward pass cannot be differentiated again; there are no second derivatives of this loss");
    return grads(scaled(s[0], s[1] ? gradient * s[1] : gradient));
  });
  return is_widened ? recorded : to(recorded, logits.dtype());
}

std::vector<int64_t> CtcReading::labels() const {
  std::vector<int64_t> list;
  for (const CtcCharacter& c : characters) list.push_back(c.label);
  return list;
}

std::vector<CtcReading> ctc_best_path(const Tensor& logits, const Tensor& input_lengths, int64_t blank) {
  const char* op = "ctc_best_path";
  if (logits && detail::must_widen(logits, kernels::Family::ctc)) return ctc_best_path(detail::widened(logits.detach()), input_lengths, blank);
  check_logits(op, logits, blank);
  check<DeviceError>(!logits.is_meta(), op, ": logits are on meta, which holds shapes without data");
  if (input_lengths) detail::check_same_device(op, "input_lengths", input_lengths, "logits", logits);
  const int64_t time = logits.size(0), batch = logits.size(1);
  NoGrad no_grad;
  const Tensor scores = logits.detach();
  const Extremes top = max(scores, 2);
  // Labels, their log-probabilities and the lengths side by side, so that the host waits once.
  const Tensor found = empty({2 * time + 1, batch}, {DType::float64, logits.device()});
  copy_(narrow(found, 0, 0, time), top.indices);
  copy_(narrow(found, 0, time, time), top.values - logsumexp(scores, {2}));
  if (input_lengths) copy_(select(found, 0, 2 * time), checked_lengths(op, "input_lengths", input_lengths, batch, time, "steps of logits"));
  else fill_(select(found, 0, 2 * time), static_cast<double>(time));
  const std::vector<double> all = found.to_vector<double>();
  const double *best = all.data(), *log_probability = best + time * batch, *lengths = log_probability + time * batch;

  std::vector<CtcReading> readings(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    CtcReading& reading = readings[static_cast<size_t>(b)];
    const int64_t length = static_cast<int64_t>(lengths[b]);
    double total = 0;
    for (int64_t t = 0, previous = blank; t < length; ++t) {
      const int64_t at = t * batch + b, label = static_cast<int64_t>(best[at]);
      const double probability = std::exp(log_probability[at]);
      total += log_probability[at];
      if (label != blank && label != previous) reading.characters.push_back({label, probability, t, t});
      if (label != blank && label == previous) {
        CtcCharacter& c = reading.characters.back();
        c.confidence = std::max(c.confidence, probability);
        c.last_step = t;
      }
      previous = label;
    }
    if (length > 0) reading.confidence = std::exp(total / static_cast<double>(length));
  }
  return readings;
}

}  // namespace fovea
