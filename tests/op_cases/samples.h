// Samples that many rows share.
#pragma once

#include "../op_cases.h"

namespace fovea::op_cases {

// One input: rank 0, one element, empty, odd sizes, special values, and something large.
inline std::vector<Sample> unary_samples(double low = -2, double high = 2) {
  return {{{{{}, low, high}}},       {{{{1}, low, high}}},       {{{{0, 3}, low, high}}},        {{{{7}, low, high}}},
          {{{{3, 5}, low, high}}},   {{{{2, 3, 9}, low, high}}}, {{{{10}, 0, 0, Kind::special}}}, {{{{37, 1031}, low, high}}, true}};
}

// Two inputs: equal shapes, broadcasting both ways, a scalar, empty, special values, and something large.
inline std::vector<Sample> binary_samples(double low = -2, double high = 2, double low_b = -2, double high_b = 2) {
  auto pair = [=](const Shape& a, const Shape& b, bool is_large = false) { return Sample{{{a, low, high}, {b, low_b, high_b}}, is_large}; };
  return {pair({}, {}),        pair({5}, {5}),       pair({0, 3}, {1, 3}), pair({3, 5}, {5}),      pair({4, 1}, {3}),
          pair({}, {2, 3}),    pair({2, 3}, {}),     pair({2, 1, 3}, {4, 1}), {{{{10, 1}, 0, 0, Kind::special}, {{10}, 0, 0, Kind::special}}},
          pair({37, 517}, {37, 517}, true),          pair({65, 1, 129}, {33, 1}, true)};
}

// The same shapes for every row that works on a few axes of one tensor.
inline std::vector<Sample> one_input(std::vector<Shape> shapes, double low = -2, double high = 2) {
  std::vector<Sample> samples;
  for (const Shape& shape : shapes) samples.push_back({{{shape, low, high}}, shape.numel() > 400});
  return samples;
}

}  // namespace fovea::op_cases
