#include <fovea/autograd/norm.h>
#include <fovea/autograd/shape.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

// x and a scale and a shift of each of `size` channels (or positions).
Sample scaled(const Shape& x, const Shape& size, bool is_large = false) { return {{{x}, {size, 0.4, 1.6}, {size}}, is_large}; }

Sample with_statistics(const Shape& x, bool is_large = false) {
  const Shape channels = {x[1]};
  return {{{x}, {channels, 0.4, 1.6}, {channels}, {channels, -0.5, 0.5, Kind::constants}, {channels, 0.5, 2, Kind::constants}}, is_large};
}

// The same, each with a residual at the end.
std::vector<Sample> with_residuals(std::vector<Sample> samples) {
  for (Sample& s : samples) s.inputs.push_back({s.inputs[0].shape});
  return samples;
}

}  // namespace

Rows norm_operations() {
  const std::vector<Sample> of_channels = {scaled({2, 3, 2, 2}, {3}), scaled({4, 2}, {2}), scaled({2, 1, 3}, {1}), scaled({6, 10, 13, 9}, {10}, true)};
  const std::vector<Sample> statistics = {with_statistics({2, 3, 2, 2}), with_statistics({1, 2}), with_statistics({0, 2, 3}), with_statistics({6, 10, 13, 9}, true)};
  const std::vector<Sample> bare = one_input({{2, 4, 3}, {1, 2, 2, 2}, {5, 16, 11, 7}});
  return {
      {"batch_norm/training", [](const Args& x) { return batch_norm(x[0], x[1], x[2], {}, {}, true); }, of_channels},
      {"batch_norm/plain", [](const Args& x) { return batch_norm(x[0], {}, {}, {}, {}, true); }, bare},
      {"batch_norm/evaluation", [](const Args& x) { return batch_norm(x[0], x[1], x[2], x[3], x[4], false); }, statistics},
      {"batch_norm_relu/training", [](const Args& x) { return batch_norm_relu(x[0], x[1], x[2], {}, {}, true); }, of_channels},
      {"batch_norm_relu/evaluation", [](const Args& x) { return batch_norm_relu(x[0], x[1], x[2], x[3], x[4], false); }, statistics},
      {"batch_norm_add_relu/training", [](const Args& x) { return batch_norm_add_relu(x[0], x[3], x[1], x[2], {}, {}, true); }, with_residuals(of_channels)},
      {"batch_norm_add_relu/evaluation", [](const Args& x) { return batch_norm_add_relu(x[0], x[5], x[1], x[2], x[3], x[4], false); }, with_residuals(statistics)},
      {"batch_norm_add_relu/channels last",
       [](const Args& x) { return batch_norm_add_relu(channels_last(x[0]), x[3], x[1], x[2], {}, {}, true); },
       with_residuals({scaled({2, 3, 2, 2}, {3}), scaled({3, 2, 1, 3}, {2}), scaled({6, 16, 13, 9}, {16}, true)})},
      {"layer_norm", [](const Args& x) { return layer_norm(x[0], x[1].shape(), x[1], x[2]); },
       {scaled({2, 5}, {5}), scaled({2, 2, 3}, {2, 3}), scaled({3, 4, 2}, {2}), scaled({0, 3}, {3}), scaled({40, 3, 77}, {77}, true)}},
      {"layer_norm/plain", [](const Args& x) { return layer_norm(x[0], {x[0].size(-1)}); }, bare},
      {"group_norm", [](const Args& x) { return group_norm(x[0], 2, x[1], x[2]); }, {scaled({2, 4, 3}, {4}), scaled({1, 2, 2, 2}, {2}), scaled({0, 2, 3}, {2}),
                                                                                       scaled({5, 16, 11, 7}, {16}, true)}},
      {"instance_norm", [](const Args& x) { return instance_norm(x[0], x[1], x[2]); }, {scaled({2, 2, 3}, {2}), scaled({3, 8, 9, 14}, {8}, true)}},
  };
}

}  // namespace fovea::op_cases
