// Tensors as text, laid out as NumPy prints arrays: columns aligned, long axes cut to "..." above a threshold.
//
//     [[1.     2.5   ]
//      [3.1416 4.    ]]
//
// The dtype follows unless it is float32; the shape follows where the brackets do not show it (empty tensors, and tensors on meta, which have no elements).
#pragma once

#include <iosfwd>
#include <string>

#include <fovea/tensor/tensor.h>

namespace fovea {

struct PrintOptions {
  int precision = 4;                         // most digits after the point; fewer where they tell the number from its neighbours
  int64_t threshold = 1000;                  // tensors with more elements are summarised
  int64_t edge_items = 3;                    // of each long axis, at its start and its end, in a summary
  int line_width = 75;
};

std::string to_string(const Tensor& x, PrintOptions options = {});
std::ostream& operator<<(std::ostream& out, const Tensor& x);

// The shortest text that reads back as the same number of this type; nan, inf, -inf.
std::string to_text(float value);
std::string to_text(double value);

}  // namespace fovea
