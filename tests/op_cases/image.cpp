#include <fovea/autograd/image.h>
#include <fovea/autograd/pool.h>

#include "samples.h"

namespace fovea::op_cases {

Rows pooling_operations() {
  const std::vector<Sample> images = one_input({{1, 2, 4, 5}, {2, 3, 3}, {0, 2, 4, 4}, {3, 7, 21, 26}});
  const std::vector<Sample> sequences = one_input({{1, 2, 7}, {2, 5}, {0, 1, 4}, {3, 20, 70}});
  return {
      {"max_pool2d", [](const Args& x) { return max_pool2d(x[0], 2); }, images},
      {"max_pool2d/overlapping", [](const Args& x) { return max_pool2d(x[0], {3, 2}, {.stride = {1, 2}, .padding = {1, 0}}); }, images},
      {"max_pool2d/dilated", [](const Args& x) { return max_pool2d(x[0], 2, {.stride = 1, .dilation = 2}); }, images},
      {"max_pool2d/ceil", [](const Args& x) { return max_pool2d(x[0], 2, {.ceil_mode = true}); }, images},
      {"max_pool2d/indices", [](const Args& x) { return max_pool2d_with_indices(x[0], 2).indices; }, images, Gradient::none},
      {"max_pool1d", [](const Args& x) { return max_pool1d(x[0], 3, {.stride = 2, .padding = 1}); }, sequences},
      {"avg_pool2d", [](const Args& x) { return avg_pool2d(x[0], 2); }, images},
      {"avg_pool2d/padded", [](const Args& x) { return avg_pool2d(x[0], 3, {.stride = 2, .padding = 1, .ceil_mode = true}); }, images},
      {"avg_pool2d/padding not counted", [](const Args& x) { return avg_pool2d(x[0], 3, {.stride = 1, .padding = 1, .count_include_pad = false}); }, images},
      {"avg_pool1d", [](const Args& x) { return avg_pool1d(x[0], 2); }, sequences},
      {"adaptive_max_pool2d", [](const Args& x) { return adaptive_max_pool2d(x[0], {3, 2}); }, images},
      {"adaptive_avg_pool2d", [](const Args& x) { return adaptive_avg_pool2d(x[0], {3, 2}); }, images},
      {"adaptive_max_pool1d", [](const Args& x) { return adaptive_max_pool1d(x[0], 3); }, sequences},
      {"adaptive_avg_pool1d", [](const Args& x) { return adaptive_avg_pool1d(x[0], 3); }, sequences},
      {"global_avg_pool", [](const Args& x) { return global_avg_pool(x[0]); }, one_input({{1, 2, 4, 5}, {2, 3, 3}, {0, 2, 4, 4}, {3, 7, 21, 26}})},
      {"global_max_pool", [](const Args& x) { return global_max_pool(x[0]); }, one_input({{1, 2, 4, 5}, {2, 3, 3}, {0, 2, 4, 4}, {3, 7, 21, 26}})},
  };
}

Rows image_operations() {
  const std::vector<Sample> images = one_input({{1, 2, 3, 4}, {1, 1, 1, 1}, {0, 2, 3, 4}, {2, 5, 19, 23}});
  const std::vector<Sample> sampled = {{{{{1, 2, 3, 4}}, {{1, 2, 3, 2}, -1.2, 1.2}}}, {{{{2, 1, 2, 2}}, {{2, 1, 1, 2}, -1, 1}}}, {{{{2, 4, 19, 23}}, {{2, 17, 13, 2}, -1.2, 1.2}}, true}};
  return {
      {"interpolate/nearest", [](const Args& x) { return interpolate(x[0], {5, 3}); }, images},
      {"interpolate/bilinear", [](const Args& x) { return interpolate(x[0], {5, 3}, {.mode = ResizeMode::bilinear}); }, images},
      {"interpolate/corners", [](const Args& x) { return interpolate(x[0], {5, 3}, {.mode = ResizeMode::bilinear, .align_corners = true}); }, images},
      {"grid_sample", [](const Args& x) { return grid_sample(x[0], x[1]); }, sampled, Gradient::once},
      {"grid_sample/corners", [](const Args& x) { return grid_sample(x[0], x[1], true); }, sampled, Gradient::once},
      {"affine_grid", [](const Args& x) { return affine_grid(x[0], {3, 4}); }, one_input({{2, 2, 3}, {0, 2, 3}})},
      {"affine_grid/corners", [](const Args& x) { return affine_grid(x[0], {3, 4}, true); }, one_input({{2, 2, 3}})},
  };
}

}  // namespace fovea::op_cases
