// Losses: how far a prediction is from its target. Each takes (prediction, target) and gives one number, or one for each sample or element
// with Reduction::none. cost() takes the prediction's shape and counts the formula's operations element by element.
#pragma once

#include <fovea/autograd/ctc.h>
#include <fovea/autograd/softmax.h>
#include <fovea/layers/module.h>

namespace fovea::layers {

class Loss : public Module {
 public:
  virtual Tensor forward(const Tensor& prediction, const Tensor& target) = 0;
  Tensor operator()(const Tensor& prediction, const Tensor& target);         // forward, in float32 where Autocast would have it

 protected:
  explicit Loss(Reduction reduction) : reduction_(reduction) {}
  Tensor reduced(const Tensor& losses) const;
  Reduction reduction() const { return reduction_; }
  std::optional<Cost> own_cost(const Shape& prediction) const override {
    return ElementwiseGeometry{.numel = prediction.numel(), .flops_per_element = flops_per_element()}.cost();
  }
  void check_cost_input(const Shape&) override {}                            // the target, which forward would look at too, is not known
  virtual int64_t flops_per_element() const { return 3; }                    // a difference, a function of it and the sum over all
  virtual bool does_autocast() const { return false; }                       // forward() is an operation that Autocast knows

 private:
  using Module::forward;
  Reduction reduction_;
};

// -log softmax(logits)[label]: logits [n, classes] or [n, classes, ...], labels of integers [n] or [n, ...]. Options: autograd/softmax.h
// (weight, ignore_index, reduction, label_smoothing).
class CrossEntropyLoss : public Loss {
 public:
  explicit CrossEntropyLoss(CrossEntropyOptions options = {});
  Tensor forward(const Tensor& logits, const Tensor& labels) override;
  Tensor weight;

 protected:
  bool does_autocast() const override { return true; }

 private:
  CrossEntropyOptions options_;
};

struct NLLLossOptions {
  Tensor weight = {};                        // [classes]
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;     // mean: divided by the sum of the samples' weights
};

// nll_loss(): log_probabilities [n,classes], [n,classes,...] or [classes], as LogSoftmax gives them.
class NLLLoss : public Loss {
 public:
  explicit NLLLoss(NLLLossOptions options = {});
  Tensor forward(const Tensor& log_probabilities, const Tensor& labels) override;
  Tensor weight;

 protected:
  int64_t flops_per_element() const override { return 0; }                   // a look-up
  bool does_autocast() const override { return true; }

 private:
  int64_t ignore_index_;
};

class MSELoss : public Loss {                // (x - y)^2
 public:
  explicit MSELoss(Reduction reduction = Reduction::mean) : Loss(reduction) {}
  Tensor forward(const Tensor& prediction, const Tensor& target) override;
};

class L1Loss : public Loss {                 // |x - y|
 public:
  explicit L1Loss(Reduction reduction = Reduction::mean) : Loss(reduction) {}
  Tensor forward(const Tensor& prediction, const Tensor& target) override;
};

struct SmoothL1Options {
  double beta = 1;
  Reduction reduction = Reduction::mean;
};

class SmoothL1Loss : public Loss {           // d^2 / (2 beta) where d = |x - y| < beta, d - beta / 2 elsewhere (Girshick 2015)
 public:
  explicit SmoothL1Loss(SmoothL1Options options = {});
  Tensor forward(const Tensor& prediction, const Tensor& target) override;

 private:
  double beta_;
};

struct BCEWithLogitsOptions {
  Tensor weight = {};                        // of each element; broadcast
  Tensor positive_weight = {};               // of the positive part, [classes] or broadcast: PyTorch's pos_weight
  Reduction reduction = Reduction::mean;
};

// -(y log sigmoid(x) + (1 - y) log(1 - sigmoid(x))) for targets y in [0, 1], without overflow for any x.
class BCEWithLogitsLoss : public Loss {
 public:
  explicit BCEWithLogitsLoss(BCEWithLogitsOptions options = {});
  Tensor forward(const Tensor& logits, const Tensor& target) override;
  Tensor weight, positive_weight;

 protected:
  int64_t flops_per_element() const override { return 5; }                   // softplus, the two products, their sum and the sum over all
};

struct HingeOptions {
  double margin = 1;
  bool squared = false;
  Reduction reduction = Reduction::mean;
};

// Binary form: max(0, margin - y x), or its square, for each element; y is -1 or 1 and has x's shape.
class HingeLoss : public Loss {
 public:
  explicit HingeLoss(HingeOptions options = {}) : Loss(options.reduction), options_(options) {}
  Tensor forward(const Tensor& scores, const Tensor& signs) override;

 private:
  HingeOptions options_;
};

// Multi-class form, the multi-class SVM (Weston & Watkins 1999): for scores [n, classes] and labels [n], the sum over the other classes j
// of max(0, margin + score_j - score_label), or of its square, for each sample. PyTorch's multi_margin_loss is this divided by the number
// of classes.
class MulticlassHingeLoss : public Loss {
 public:
  explicit MulticlassHingeLoss(HingeOptions options = {}) : Loss(options.reduction), options_(options) {}
  Tensor forward(const Tensor& scores, const Tensor& labels) override;

 private:
  HingeOptions options_;
};

struct KLDivOptions {
  bool log_target = false;                   // targets are log-probabilities too
  bool batch_mean = false;  // the sum divided by the first axis: the divergence itself, where mean also divides by the classes
  Reduction reduction = Reduction::mean;
};

// target (log target - x) for log-probabilities x; 0 where the target is 0.
class KLDivLoss : public Loss {
 public:
  explicit KLDivLoss(KLDivOptions options = {}) : Loss(options.reduction), options_(options) {}
  Tensor forward(const Tensor& log_probabilities, const Tensor& target) override;

 private:
  KLDivOptions options_;
};

// Connectionist temporal classification, for scores [time, batch, classes] (logits or log-probabilities) and targets without an alignment; see autograd/ctc.h for
// the arguments and the options (blank, reduction, zero_infinity).
class CTCLoss : public Module {
 public:
  explicit CTCLoss(CtcOptions options = {}) : options_(options) {}
  Tensor forward(const Tensor& scores, const Tensor& targets, const Tensor& input_lengths, const Tensor& target_lengths) {
    return ctc_loss(scores, targets, input_lengths, target_lengths, options_);
  }
  Tensor operator()(const Tensor& scores, const Tensor& targets, const Tensor& input_lengths, const Tensor& target_lengths) {
    return forward(scores, targets, input_lengths, target_lengths);
  }

 private:
  using Module::forward;
  CtcOptions options_;
};

}  // namespace fovea::layers
