#include <fovea/autograd/conv.h>
#include <fovea/autograd/matmul.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

Sample inputs_of(std::vector<Shape> shapes, bool is_large = false) {
  Sample sample;
  for (const Shape& shape : shapes) sample.inputs.push_back({shape});
  sample.is_large = is_large;
  return sample;
}

}  // namespace

Rows linear_operations() {
  return {
      {"matmul", [](const Args& x) { return matmul(x[0], x[1]); },
       {inputs_of({{2, 3}, {3, 4}}), inputs_of({{1, 1}, {1, 1}}), inputs_of({{3}, {3}}), inputs_of({{2, 3}, {3}}), inputs_of({{3}, {3, 2}}),
        inputs_of({{2, 2, 3}, {2, 3, 2}}), inputs_of({{2, 1, 2, 3}, {3, 3, 2}}), inputs_of({{2, 3, 2}, {2, 4}}), inputs_of({{3}, {2, 3, 2}}), inputs_of({{0, 3}, {3, 2}}),
        inputs_of({{2, 0}, {0, 3}}), inputs_of({{0, 2, 3}, {3, 1}}), inputs_of({{67, 131}, {131, 75}}, true), inputs_of({{3, 33, 17}, {17, 49}}, true)},
       Gradient::twice, 1e-5},
      {"dot", [](const Args& x) { return dot(x[0], x[1]); }, {inputs_of({{5}, {5}}), inputs_of({{1}, {1}}), inputs_of({{0}, {0}}), inputs_of({{3001}, {3001}}, true)}},
      {"outer", [](const Args& x) { return outer(x[0], x[1]); }, {inputs_of({{3}, {4}}), inputs_of({{1}, {1}}), inputs_of({{0}, {2}}), inputs_of({{70}, {90}}, true)}},
      {"linear", [](const Args& x) { return linear(x[0], x[1], x[2]); },
       {inputs_of({{2, 3}, {4, 3}, {4}}), inputs_of({{3}, {2, 3}, {2}}), inputs_of({{2, 2, 3}, {1, 3}, {1}}), inputs_of({{0, 3}, {2, 3}, {2}}),
        inputs_of({{70, 33}, {65, 33}, {65}}, true)}},
      {"linear/no bias", [](const Args& x) { return linear(x[0], x[1]); }, {inputs_of({{2, 3}, {4, 3}}), inputs_of({{5, 6, 30}, {20, 30}}, true)}},
  };
}

Rows convolution_operations() {
  return {
      {"conv1d", [](const Args& x) { return conv1d(x[0], x[1], x[2], {.stride = 2, .padding = 1, .dilation = 2}); },
       {inputs_of({{2, 2, 9}, {3, 2, 3}, {3}}), inputs_of({{2, 6}, {2, 2, 2}, {2}}), inputs_of({{0, 2, 9}, {3, 2, 3}, {3}}), inputs_of({{3, 8, 70}, {9, 8, 5}, {9}}, true)}},
      {"conv2d", [](const Args& x) { return conv2d(x[0], x[1], x[2], {.padding = 1}); },
       {inputs_of({{1, 2, 4, 5}, {3, 2, 3, 3}, {3}}), inputs_of({{1, 1, 1, 1}, {1, 1, 1, 1}, {1}}), inputs_of({{2, 3, 4}, {2, 2, 3, 2}, {2}}),
        inputs_of({{0, 2, 4, 4}, {3, 2, 3, 3}, {3}}), inputs_of({{2, 20, 19, 17}, {33, 20, 3, 3}, {33}}, true)}},
      {"conv2d/no bias", [](const Args& x) { return conv2d(x[0], x[1]); }, {inputs_of({{2, 2, 3, 4}, {2, 2, 1, 1}}), inputs_of({{2, 2, 3, 4}, {2, 2, 3, 4}}),
                                                                               inputs_of({{2, 40, 11, 9}, {50, 40, 1, 1}}, true)}},
      {"conv2d/strided", [](const Args& x) { return conv2d(x[0], x[1], x[2], {.stride = {2, 3}, .padding = {0, 2}, .dilation = {2, 1}}); },
       {inputs_of({{1, 2, 6, 7}, {2, 2, 2, 3}, {2}}), inputs_of({{2, 3, 33, 31}, {16, 3, 7, 7}, {16}}, true)}},
      {"conv2d/groups", [](const Args& x) { return conv2d(x[0], x[1], x[2], {.padding = 1, .groups = 2}); },
       {inputs_of({{1, 4, 3, 4}, {6, 2, 3, 3}, {6}}), inputs_of({{2, 12, 14, 15}, {18, 6, 3, 3}, {18}}, true)}},
      {"conv2d/depthwise", [](const Args& x) { return conv2d(x[0], x[1], {}, {.stride = 2, .padding = 1, .groups = x[0].size(-3)}); },
       {inputs_of({{2, 3, 4, 5}, {3, 1, 3, 3}}), inputs_of({{2, 24, 15, 20}, {24, 1, 3, 3}}, true)}},
      {"conv_transpose1d", [](const Args& x) { return conv_transpose1d(x[0], x[1], x[2], {.stride = 2, .padding = 1, .output_padding = 1}); },
       {inputs_of({{2, 2, 4}, {2, 3, 3}, {3}}), inputs_of({{0, 2, 4}, {2, 3, 3}, {3}}), inputs_of({{2, 9, 40}, {9, 10, 4}, {10}}, true)}},
      {"conv_transpose2d", [](const Args& x) { return conv_transpose2d(x[0], x[1], x[2], {.stride = {2, 1}, .padding = 1, .output_padding = {1, 0}}); },
       {inputs_of({{1, 2, 3, 3}, {2, 3, 3, 2}, {3}}), inputs_of({{2, 2, 2}, {2, 1, 4, 4}, {1}}), inputs_of({{2, 16, 9, 8}, {16, 12, 4, 4}, {12}}, true)}},
      {"conv_transpose2d/groups", [](const Args& x) { return conv_transpose2d(x[0], x[1], {}, {.groups = 2, .dilation = 2}); },
       {inputs_of({{1, 4, 2, 3}, {4, 1, 2, 2}}), inputs_of({{2, 8, 9, 8}, {8, 5, 3, 3}}, true)}},
  };
}

}  // namespace fovea::op_cases
