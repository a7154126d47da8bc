#include <fovea/autograd/softmax.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

// Scores and labels below `classes`.
Sample labelled(const Shape& logits, const Shape& labels, int64_t classes, bool is_large = false) {
  return {{{logits, -3, 3}, {labels, 0, static_cast<double>(classes), Kind::indices}}, is_large};
}

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
      {"cross_entropy/weighted", [](const Args& x) { return cross_entropy(x[0], x[1], {.weight = x[2]}); },
       {{{{{5, 3}}, {{5}, 0, 3, Kind::indices}, {{3}, 0.5, 2, Kind::constants}}}, {{{{90, 30}}, {{90}, 0, 30, Kind::indices}, {{30}, 0.5, 2, Kind::constants}}, true}}},
  };
}

}  // namespace fovea::op_cases
