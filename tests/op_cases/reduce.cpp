#include <cmath>

#include <fovea/autograd/reduce.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

using Reduction = Tensor (*)(const Tensor&, const Axes&, bool);

// Over everything, and over axes of a stack of matrices (some empty, where the reduction has a value for no elements).
void add_reduction(Rows& rows, const std::string& name, Reduction f, bool takes_nothing, Gradient gradient = Gradient::twice) {
  std::vector<Sample> everything = one_input({{2, 3}, {}, {1}, {37, 129}}), axes = one_input({{2, 3, 2}, {1, 1, 1}, {0, 2, 3}, {11, 150, 13}});
  if (takes_nothing) {
    everything.push_back(one_input({{0, 2}})[0]);
    axes.push_back(one_input({{2, 0, 3}})[0]);
  }
  everything.push_back({{{{10}, 0, 0, Kind::special}}});
  rows.push_back({name, [f](const Args& x) { return f(x[0], {}, false); }, everything, gradient});
  rows.push_back({name + "/last axis", [f](const Args& x) { return f(x[0], {-1}, false); }, axes, gradient});
  rows.push_back({name + "/first axis", [f](const Args& x) { return f(x[0], {0}, true); }, one_input({{4, 3}, {1, 1}, {5, 1, 2}, {300, 20}}), gradient});
  rows.push_back({name + "/axes", [f](const Args& x) { return f(x[0], {0, -1}, true); }, one_input({{2, 3, 2}, {1, 1, 1}, {6, 21, 33}}), gradient});
}

}  // namespace

Rows reduction_operations() {
  Rows rows;
  add_reduction(rows, "sum", sum, true);
  add_reduction(rows, "mean", mean, false);
  add_reduction(rows, "prod", prod, true);
  add_reduction(rows, "amax", amax, false);
  add_reduction(rows, "amin", amin, false);
  add_reduction(rows, "logsumexp", logsumexp, false);
  add_reduction(rows, "any", any, true, Gradient::none);
  add_reduction(rows, "all", all, true, Gradient::none);
  add_reduction(rows, "norm", [](const Tensor& x, const Axes& axes, bool keepdims) { return norm(x, 2, axes, keepdims); }, true);
  add_reduction(rows, "norm/1", [](const Tensor& x, const Axes& axes, bool keepdims) { return norm(x, 1, axes, keepdims); }, true);
  add_reduction(rows, "norm/3", [](const Tensor& x, const Axes& axes, bool keepdims) { return norm(x, 3, axes, keepdims); }, true);
  const std::vector<Sample> matrices = one_input({{2, 3}, {5, 2}, {1, 4}, {20, 150}});
  const std::vector<Sample> stacks = one_input({{2, 3, 2}, {1, 1, 1}, {2, 1, 3}, {9, 60, 8}});
  auto add = [&](const char* name, TensorFunction f, const std::vector<Sample>& samples, Gradient gradient = Gradient::twice) {
    rows.push_back({name, std::move(f), samples, gradient});
  };
  add("norm/infinity", [](const Args& x) { return norm(x[0], INFINITY, {-1}); }, matrices);
  add("var", [](const Args& x) { return var(x[0], {-1}); }, matrices);
  add("var/biased", [](const Args& x) { return var(x[0], {0, 2}, true, 0); }, stacks);
  add("stddev", [](const Args& x) { return stddev(x[0], {}, false); }, matrices);
  add("max/axis", [](const Args& x) { return max(x[0], 1).values; }, stacks);
  add("min/axis", [](const Args& x) { return min(x[0], -1, true).values; }, stacks);
  add("max/indices", [](const Args& x) { return max(x[0], 1).indices; }, stacks, Gradient::none);
  add("argmax", [](const Args& x) { return argmax(x[0]); }, matrices, Gradient::none);
  add("argmin", [](const Args& x) { return argmin(x[0]); }, matrices, Gradient::none);
  add("argmax/axis", [](const Args& x) { return argmax(x[0], 1); }, stacks, Gradient::none);
  add("argmin/axis", [](const Args& x) { return argmin(x[0], 0, true); }, stacks, Gradient::none);
  add("cumsum", [](const Args& x) { return cumsum(x[0], 1); }, one_input({{2, 3, 2}, {2, 0}, {1, 1}, {9, 60, 8}}));
  return rows;
}

}  // namespace fovea::op_cases
