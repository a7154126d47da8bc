#include <fovea/autograd/shape.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

// Of an axis without elements there is only one part.
Tensor second_of(const std::vector<Tensor>& parts) { return parts[parts.size() > 1 ? 1 : 0]; }

}  // namespace

Rows shape_operations() {
  const std::vector<Sample> matrices = one_input({{3, 5}, {1, 1}, {0, 4}, {2, 3, 4}, {40, 70}});
  const std::vector<Sample> stacks = one_input({{2, 3, 4}, {1, 1, 1}, {2, 0, 3}, {5, 30, 40}});
  const std::vector<Sample> pairs = {{{{{2, 3}}, {{4, 3}}}}, {{{{0, 3}}, {{2, 3}}}}, {{{{1, 1}}, {{1, 1}}}}, {{{{60, 33}}, {{9, 33}}}, true}};
  return {
      {"transpose", [](const Args& x) { return transpose(x[0]); }, matrices},
      {"transpose/axes", [](const Args& x) { return transpose(x[0], 0, -1); }, stacks},
      {"permute", [](const Args& x) { return permute(x[0], {2, 0, 1}); }, stacks},
      {"expand", [](const Args& x) { return expand(x[0], {4, 3, 5}); }, one_input({{3, 1}, {1, 5}, {3, 5}, {4, 1, 5}, {}})},
      {"unsqueeze", [](const Args& x) { return unsqueeze(x[0], -1); }, matrices},
      {"squeeze", [](const Args& x) { return squeeze(x[0], 1); }, one_input({{3, 1, 4}, {0, 1}, {1, 1}})},
      {"squeeze/all", [](const Args& x) { return squeeze(x[0]); }, one_input({{1, 3, 1, 4}, {1}, {0, 1}})},
      {"narrow", [](const Args& x) { return narrow(x[0], 1, 1, 2); }, one_input({{2, 4}, {3, 3, 2}, {0, 3}, {50, 40}})},
      {"slice", [](const Args& x) { return slice(x[0], -1, 1, 9, 3); }, one_input({{2, 10}, {5}, {0, 7}, {3, 0}, {50, 40}})},
      {"slice/backwards", [](const Args& x) { return slice(x[0], 0, -1, -100, -2); }, one_input({{5, 2}, {6}, {0}, {50, 40}})},
      {"select", [](const Args& x) { return select(x[0], 1, -1); }, one_input({{3, 4}, {2, 1, 3}, {0, 2}, {50, 40}})},
      {"flip", [](const Args& x) { return flip(x[0], {0, -1}); }, matrices},
      {"diagonal", [](const Args& x) { return diagonal(x[0]); }, one_input({{3, 5}, {5, 3}, {2, 3, 3}, {0, 4}, {60, 50}})},
      {"split", [](const Args& x) { return concat({second_of(split(x[0], 2, 1)), split(x[0], 2, 1)[0]}, 1); }, one_input({{2, 5}, {3, 4, 2}, {0, 4}, {40, 70}})},
      {"chunk", [](const Args& x) { return second_of(chunk(x[0], 3, 0)); }, one_input({{7, 2}, {3}, {40, 70}})},
      {"reshape", [](const Args& x) { return reshape(x[0], {-1, 6}); }, one_input({{3, 4}, {2, 3, 2}, {6}, {0, 6}, {40, 66}})},
      {"flatten", [](const Args& x) { return flatten(x[0], 1); }, stacks},
      {"contiguous", [](const Args& x) { return contiguous(transpose(x[0])); }, matrices},
      {"clone", [](const Args& x) { return clone(x[0]); }, matrices},
      {"channels_last", [](const Args& x) { return channels_last(x[0]); }, one_input({{2, 3, 2, 2}, {1, 4, 3, 1}, {0, 2, 3, 3}, {3, 17, 9, 20}})},
      {"concat", [](const Args& x) { return concat({x[0], x[1], x[0]}); }, pairs},
      {"concat/last axis", [](const Args& x) { return concat({transpose(x[0]), transpose(x[1])}, -1); }, pairs},
      {"stack", [](const Args& x) { return stack({x[0], x[0], x[0]}, 1); }, matrices},
      {"repeat", [](const Args& x) { return repeat(x[0], {2, 1, 3}); }, one_input({{2, 3}, {1}, {0, 2}, {4, 2, 3}})},
      {"roll", [](const Args& x) { return roll(x[0], 2, -1); }, matrices},
      {"pad", [](const Args& x) { return pad(x[0], {1, 2, 0, 3}, PadMode::constant, 0.5); }, one_input({{2, 3}, {1, 2, 2}, {0, 4}, {30, 40}})},
      {"pad/cut", [](const Args& x) { return pad(x[0], {-1, 2, 1, -1}); }, one_input({{2, 3}, {1, 2, 2}, {30, 40}})},
      {"pad/reflect", [](const Args& x) { return pad(x[0], {2, 1}, PadMode::reflect); }, one_input({{2, 3}, {2, 2, 5}, {30, 40}})},
      {"pad/replicate", [](const Args& x) { return pad(x[0], {2, 1}, PadMode::replicate); }, one_input({{2, 3}, {2, 2, 1}, {30, 40}})},
      {"tril", [](const Args& x) { return tril(x[0], 1); }, matrices},
      {"triu", [](const Args& x) { return triu(x[0], -1); }, matrices},
      {"to/float64", [](const Args& x) { return to(x[0], DType::float64); }, unary_samples()},
      {"sum_to", [](const Args& x) { return sum_to(x[0], {3, 1}); }, one_input({{3, 4}, {2, 3, 1}, {2, 3, 5}, {0, 3, 1}, {9, 3, 70}})},
  };
}

}  // namespace fovea::op_cases
