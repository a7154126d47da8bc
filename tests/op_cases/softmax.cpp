#include <fovea/autograd/ctc.h>
#include <fovea/autograd/softmax.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

// Scores and labels below `classes`.
Sample labelled(const Shape& logits, const Shape& labels, int64_t classes, bool is_large = false) {
  return {{{logits, -3, 3}, {labels, 0, static_cast<double>(classes), Kind::indices}}, is_large};
}

// Scores [time,batch,classes], targets without the blank 0, and lengths: every sample has steps enough for its target.
Sample sequences(int64_t time, int64_t batch, int64_t classes, int64_t longest, bool is_large = false) {
  const auto t = static_cast<double>(time), c = static_cast<double>(classes), l = static_cast<double>(longest);
  return {{{{time, batch, classes}, -3, 3}, {{batch, longest}, 1, c, Kind::indices}, {{batch}, 2 * l, t + 1, Kind::indices}, {{batch}, 0, l + 1, Kind::indices}}, is_large};
}

Tensor ctc(const Args& x, const CtcOptions& options) { return ctc_loss(x[0], x[1], x[2], x[3], options); }

}  // namespace

Rows softmax_operations() {
  const std::vector<Sample> tensors = one_input({{2, 5}, {1}, {0, 3}, {2, 3, 4}, {1, 1}, {30, 7, 130}}, -4, 4);
  const std::vector<Sample> scores = {labelled({3, 4}, {3}, 4), labelled({4}, {}, 4), labelled({2, 3, 2}, {2, 2}, 3), labelled({1, 1}, {1}, 1), labelled({200, 97}, {200}, 97, true)};
  return {
      {"softmax", [](const Args& x) { return softmax(x[0]); }, tensors},
      {"softmax/first axis", [](const Args& x) { return softmax(x[0], 0); }, tensors},
      {"log_softmax", [](const Args& x) { return log_softmax(x[0]); }, tensors},
      {"log_softmax/axis", [](const Args& x) { return log_softmax(x[0], -2); }, one_input({{2, 5}, {2, 3, 4}, {30, 7, 130}}, -4, 4)},
      {"cross_entropy", [](const Args& x) { return cross_entropy(x[0], x[1]); }, scores},
      {"cross_entropy/each", [](const Args& x) { return cross_entropy(x[0], x[1], {.reduction = Reduction::none}); }, scores},
      {"cross_entropy/smoothed", [](const Args& x) { return cross_entropy(x[0], x[1], {.reduction = Reduction::sum, .label_smoothing = 0.2}); }, scores},
      {"cross_entropy/ignored", [](const Args& x) { return cross_entropy(x[0], x[1], {.ignore_index = 1}); }, {labelled({6, 3}, {6}, 3), labelled({200, 9}, {200}, 9, true)}},
      {"nll_loss", [](const Args& x) { return nll_loss(x[0], x[1], {.ignore_index = 1}); }, scores},
      {"nll_loss/weighted", [](const Args& x) { return nll_loss(x[0], x[1], {.weight = x[2], .reduction = Reduction::sum}); },
       {{{{{5, 3}}, {{5}, 0, 3, Kind::indices}, {{3}, 0.5, 2, Kind::constants}}}, {{{{2, 3, 70}}, {{2, 70}, 0, 3, Kind::indices}, {{3}, 0.5, 2, Kind::constants}}, true}}},
      {"nll_loss/each", [](const Args& x) { return nll_loss(x[0], x[1], {.reduction = Reduction::none}); }, scores},
      {"ctc_loss", [](const Args& x) { return ctc(x, {}); }, {sequences(5, 3, 4, 2), sequences(7, 2, 2, 3), sequences(40, 9, 30, 15, true)}, Gradient::once},
      {"ctc_loss/each", [](const Args& x) { return ctc(x, {.reduction = Reduction::none}); }, {sequences(5, 3, 4, 2), sequences(1, 2, 3, 0)}, Gradient::once},
      {"cross_entropy/weighted", [](const Args& x) { return cross_entropy(x[0], x[1], {.weight = x[2]}); },
       {{{{{5, 3}}, {{5}, 0, 3, Kind::indices}, {{3}, 0.5, 2, Kind::constants}}}, {{{{90, 30}}, {{90}, 0, 30, Kind::indices}, {{30}, 0.5, 2, Kind::constants}}, true}}},
  };
}

}  // namespace fovea::op_cases
