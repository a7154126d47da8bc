// Every operation, declared once: its name, the call, and the inputs it is tried on. tests/op_cases_test.cpp runs each row against golden values that PyTorch
// made, against its own gradients and their gradients, on meta tensors, in float32 against float64, with one thread and two, and on memory that is not
// contiguous; the benchmark and docs/operations.md are made from the same rows.
//
// To add an operation:
//   1. a row in its family, tests/op_cases/FAMILY.cpp:  {"name", call, samples}
//   2. the line `"name": torch's function` in tests/golden/ops.py
//   3. build, then  python3 tests/golden/ops.py build/release/tests/op_cases_tool  writes tests/golden/ops.npz and docs/operations.md; commit both.
// A name may carry a variant after a slash: "conv2d/strided".
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <fovea/autograd/gradcheck.h>
#include <fovea/tensor/creation.h>

namespace fovea::op_cases {

enum class Kind {
  values,                                        // of the dtype under test, spread over [low, high], never on a multiple of 1/4096 (where functions have kinks)
  constants,                                     // the same, of inputs that have no gradient (running statistics)
  special,                                       // zeros of both signs, infinities, NaN and a few ordinary numbers
  indices,                                       // int64 in [low, high)
  truth,                                         // bool
};

struct Input {
  Shape shape;
  double low = -2, high = 2;
  Kind kind = Kind::values;
};

struct Sample {
  std::vector<Input> inputs;
  bool is_large = false;                         // too much for golden values and gradcheck; for threads, layouts and precision
};

enum class Gradient { none, once, twice };       // once: the backward has no derivative of its own, and says so

struct Operation {
  std::string name;
  TensorFunction call;
  std::vector<Sample> samples;
  Gradient gradient = Gradient::twice;
  double tolerance = 2e-5;                       // of float32 against float64, relative to the largest value of the result
  std::string family = "";                       // filled in by operations()
};

using Rows = std::vector<Operation>;
using Args = std::vector<Tensor>;                // what a call gets: one tensor for each input

Rows operations();                               // all families; each has its file in tests/op_cases/
Rows shape_operations();
Rows elementwise_operations();
Rows activation_operations();
Rows reduction_operations();
Rows linear_operations();
Rows convolution_operations();
Rows pooling_operations();
Rows image_operations();
Rows norm_operations();
Rows softmax_operations();
Rows index_operations();
Rows recurrent_operations();

// The tensor of an input: the same for the same (input, seed), in float32 as in float64.
Tensor make_input(const Input& input, uint64_t seed, DType dtype);
std::vector<Tensor> make_inputs(const Sample& sample, DType dtype);

}  // namespace fovea::op_cases
