#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/index.h>
#include <fovea/autograd/indexing.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

Input index(const Shape& shape, int64_t size) { return {shape, 0, static_cast<double>(size), Kind::indices}; }
Input truth(const Shape& shape) { return {shape, 0, 1, Kind::truth}; }

}  // namespace

Rows index_operations() {
  const std::vector<Sample> ordered = one_input({{2, 5}, {7}, {1}, {0, 3}, {2, 3, 4}, {60, 90}});
  return {
      {"gather", [](const Args& x) { return gather(x[0], 1, x[1]); },
       {{{{{2, 4}}, index({2, 3}, 4)}}, {{{{3, 2, 2}}, index({2, 5, 1}, 2)}}, {{{{2, 3}}, index({0, 2}, 3)}}, {{{{40, 90}}, index({35, 130}, 90)}, true}}},
      {"take_along", [](const Args& x) { return take_along(x[0], x[1], 0); }, {{{{{4, 2}}, index({3, 1}, 4)}}, {{{{90, 40}}, index({77, 40}, 90)}, true}}},
      {"scatter_add", [](const Args& x) { return scatter_add(x[0], 0, x[1], x[2]); },
       {{{{{3, 4}}, index({5, 4}, 3), {{5, 4}}}}, {{{{3, 4}}, index({2, 2}, 3), {{2, 2}}}}, {{{{3}}, index({0}, 3), {{0}}}}, {{{{30, 50}}, index({200, 50}, 30), {{200, 50}}}, true}}},
      {"index_select", [](const Args& x) { return index_select(x[0], 1, x[1]); },
       {{{{{2, 4}}, index({6}, 4)}}, {{{{2, 3, 2}}, index({1}, 3)}}, {{{{2, 3}}, index({0}, 3)}}, {{{{40, 90, 3}}, index({130}, 90)}, true}}},
      {"index_add", [](const Args& x) { return index_add(x[0], 0, x[1], x[2]); },
       {{{{{3, 2}}, index({4}, 3), {{4, 2}}}}, {{{{3, 2}}, index({0}, 3), {{0, 2}}}}, {{{{30, 20}}, index({200}, 30), {{200, 20}}}, true}}},
      {"embedding", [](const Args& x) { return embedding(x[0], x[1]); }, {{{index({2, 3}, 4), {{4, 2}}}}, {{index({}, 4), {{4, 2}}}}, {{index({0, 2}, 4), {{4, 2}}}},
                                                                            {{index({50, 40}, 70), {{70, 33}}}, true}}},
      {"one_hot", [](const Args& x) { return one_hot(x[0], 5); }, {{{index({2, 3}, 5)}}, {{index({0}, 5)}}, {{index({}, 5)}}}, Gradient::none},
      {"masked_fill", [](const Args& x) { return masked_fill(x[0], x[1], -3); }, {{{{{2, 3}}, truth({2, 3})}}, {{{{2, 3}}, truth({3})}}, {{{{0, 3}}, truth({3})}},
                                                                                   {{{{70, 90}}, truth({70, 1})}, true}}},
      {"sort", [](const Args& x) { return sort(x[0]).values; }, ordered},
      {"sort/descending", [](const Args& x) { return sort(x[0], 0, true).values; }, ordered},
      {"argsort", [](const Args& x) { return argsort(x[0]); }, ordered, Gradient::none},
      {"topk", [](const Args& x) { return topk(x[0], 2, 1).values; }, one_input({{2, 5}, {0, 3}, {2, 3, 4}, {60, 90}})},
      {"topk/smallest", [](const Args& x) { return topk(x[0], 3, -1, false).values; }, one_input({{2, 5}, {7}, {60, 90}})},
      {"topk/indices", [](const Args& x) { return topk(x[0], 2, 1).indices; }, one_input({{2, 5}, {2, 3, 4}, {60, 90}}), Gradient::none},
      {"index/slices", [](const Args& x) { return x[0][{0, slice(1, 5, 2), ellipsis, newaxis}]; }, one_input({{2, 6}, {2, 5, 3}, {3, 40, 50}})},
      {"index/tensors", [](const Args& x) { return x[0][{x[1], slice(), x[2]}]; },
       {{{{{3, 2, 4}}, index({2, 2}, 3), index({2}, 4)}}, {{{{3, 2, 4}}, index({0}, 3), index({0}, 4)}}, {{{{30, 20, 40}}, index({300}, 30), index({300}, 40)}, true}}},
  };
}

}  // namespace fovea::op_cases
