#include <fovea/layers/loss.h>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/index.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {
namespace {

void check_same_shape(const char* loss, const Tensor& x, const Tensor& target) {
  check<ShapeError>(x.shape() == target.shape(), loss, ": the prediction is ", x.shape(), ", the target ", target.shape(),
                    "; they must agree");
  check<DTypeError>(is_floating(x.dtype()), loss, ": takes a floating-point prediction, got ", x.dtype(), "; convert it with to(x, DType::float32)");
}

void check_labels(const char* loss, const Tensor& labels) {
  const DType dtype = labels.dtype();
  check<DTypeError>(!is_floating(dtype) && dtype != DType::boolean, loss, ": labels must be int64, got ", dtype, "; convert with to(labels, DType::int64)");
}

}  // namespace

Tensor Loss::operator()(const Tensor& prediction, const Tensor& target) {
  if (prediction && target && prediction.device() != target.device()) detail::check_same_device(type_name().c_str(), "the target", target, "the prediction", prediction);
  return forward(does_autocast() ? prediction : detail::autocast("Loss", prediction), target);
}

Tensor Loss::reduced(const Tensor& losses) const {
  switch (reduction_) {
    case Reduction::mean: return mean(losses);
    case Reduction::sum: return sum(losses);
    default: return losses;
  }
}

CrossEntropyLoss::CrossEntropyLoss(CrossEntropyOptions options)
    : Loss(options.reduction), weight(buffer("weight", options.weight)), options_(options) {}

Tensor CrossEntropyLoss::forward(const Tensor& logits, const Tensor& labels) {
  CrossEntropyOptions options = options_;
  options.weight = alongside(logits, weight);
  return cross_entropy(logits, labels, options);
}

NLLLoss::NLLLoss(NLLLossOptions options)
    : Loss(options.reduction), weight(buffer("weight", options.weight)), ignore_index_(options.ignore_index) {}

Tensor NLLLoss::forward(const Tensor& log_probabilities, const Tensor& labels) {
  return nll_loss(log_probabilities, labels, {.weight = alongside(log_probabilities, weight), .ignore_index = ignore_index_, .reduction = reduction()});
}

Tensor MSELoss::forward(const Tensor& prediction, const Tensor& target) {
  check_same_shape("MSELoss", prediction, target);
  return reduced(square(prediction - target));
}

Tensor L1Loss::forward(const Tensor& prediction, const Tensor& target) {
  check_same_shape("L1Loss", prediction, target);
  return reduced(abs(prediction - target));
}

SmoothL1Loss::SmoothL1Loss(SmoothL1Options options) : Loss(options.reduction), beta_(options.beta) {
  check<ValueError>(beta_ > 0, "SmoothL1Loss: beta must be positive, got ", beta_, "; L1Loss is what it becomes at 0");
}

Tensor SmoothL1Loss::forward(const Tensor& prediction, const Tensor& target) {
  check_same_shape("SmoothL1Loss", prediction, target);
  const Tensor difference = prediction - target, distance = abs(difference);
  return reduced(where(distance < beta_, square(difference) * (0.5 / beta_), distance - 0.5 * beta_));
}

BCEWithLogitsLoss::BCEWithLogitsLoss(BCEWithLogitsOptions options)
    : Loss(options.reduction), weight(buffer("weight", options.weight)), positive_weight(buffer("pos_weight", options.positive_weight)) {}

// (1 - y) x + (1 + (p - 1) y) ln(1 + e^-x), with the positive weight p.
Tensor BCEWithLogitsLoss::forward(const Tensor& logits, const Tensor& target) {
  check_same_shape("BCEWithLogitsLoss", logits, target);
  for (const Tensor& factor : {weight, positive_weight})
    check<ShapeError>(!factor || broadcast_shapes(factor.shape(), logits.shape(), "BCEWithLogitsLoss: weight and logits") == logits.shape(), "BCEWithLogitsLoss: a weight of ",
                      factor ? factor.shape() : Shape{}, " cannot be broadcast to logits ", logits.shape());
  constexpr double exact_in_double = 40;                                     // beyond it ln(1 + e^x) is x
  const Tensor tail = softplus(-logits, 1, exact_in_double);
  const Tensor scaled = positive_weight ? (1 + (alongside(logits, positive_weight) - 1) * target) * tail : tail;
  const Tensor losses = (1 - target) * logits + scaled;
  return reduced(weight ? losses * alongside(logits, weight) : losses);
}

Tensor HingeLoss::forward(const Tensor& scores, const Tensor& signs) {
  check_same_shape("HingeLoss", scores, signs);
  const Tensor shortfall = relu(options_.margin - scores * signs);
  return reduced(options_.squared ? square(shortfall) : shortfall);
}

Tensor MulticlassHingeLoss::forward(const Tensor& scores, const Tensor& labels) {
  check<ShapeError>(scores.rank() == 2 && labels.shape() == Shape{scores.size(0)},
                    "MulticlassHingeLoss: takes scores [n,classes] and labels [n], got ", scores.shape(), " and ", labels.shape());
  check_labels("MulticlassHingeLoss", labels);
  detail::checked_index("MulticlassHingeLoss", "labels", labels, scores, scores.size(1), str(scores.size(1), " classes"));
  const Tensor column = unsqueeze(labels, 1), own = gather(scores, 1, column);
  const Tensor shortfall = relu(scores - own + options_.margin), losses = options_.squared ? square(shortfall) : shortfall;
  const Tensor is_label = ne(one_hot(labels, scores.size(1)), 0);
  return reduced(sum(where(is_label, 0.0, losses), 1));
}

Tensor KLDivLoss::forward(const Tensor& log_probabilities, const Tensor& target) {
  const Tensor& x = log_probabilities;
  check_same_shape("KLDivLoss", x, target);
  Tensor losses;
  if (options_.log_target) {
    losses = exp(target) * (target - x);
  } else {
    const Tensor is_positive = target > 0;
    losses = where(is_positive, target * log(where(is_positive, target, 1.0)), 0.0) - target * x;
  }
  if (!options_.batch_mean) return reduced(losses);
  check<ShapeError>(x.rank() >= 1 && x.size(0) > 0, "KLDivLoss: batch_mean needs a batch axis, got ", x.shape());
  return sum(losses) / static_cast<double>(x.size(0));
}

}  // namespace fovea::layers
