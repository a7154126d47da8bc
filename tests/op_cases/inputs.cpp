#include "../op_cases.h"

#include <cmath>
#include <limits>

#include <fovea/autograd/shape.h>

namespace fovea::op_cases {
namespace {

// In [0, 1): a Weyl sequence with a step of its own for each seed, so that two inputs of an operation have nothing to do with each other.
double spread(uint64_t i, uint64_t seed) {
  const uint32_t step = 2654435769u + 2u * 40503u * static_cast<uint32_t>(seed);
  return static_cast<uint32_t>(static_cast<uint32_t>(i + 1) * step + 77777u * static_cast<uint32_t>(seed)) / 4294967296.0;
}

double value_of(const Input& input, uint64_t i, uint64_t seed) {
  static const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  static const double specials[] = {0.0, -0.0, infinity, -infinity, nan, 1, -1, 20, -20, 0.5};
  const double u = spread(i, seed);
  switch (input.kind) {
    // Exact in float32, and half a step away from every multiple of 1/4096.
    case Kind::values:
    case Kind::constants: return (std::floor((input.low + (input.high - input.low) * u) * 4096) + 0.5) / 4096;
    case Kind::special: return specials[i % 10];
    case Kind::indices: return std::floor(input.low + (input.high - input.low) * u);
    case Kind::truth: return u < 0.5;
  }
  return 0;
}

}  // namespace

Tensor make_input(const Input& input, uint64_t seed, DType dtype) {
  std::vector<double> values;
  for (int64_t i = 0; i < input.shape.numel(); ++i) values.push_back(value_of(input, static_cast<uint64_t>(i), seed));
  const Tensor x = from_vector(values, input.shape);
  if (input.kind == Kind::indices) return to(x, DType::int64);
  if (input.kind == Kind::truth) return to(x, DType::boolean);
  return to(x, dtype);
}

std::vector<Tensor> make_inputs(const Sample& sample, DType dtype) {
  std::vector<Tensor> inputs;
  for (size_t i = 0; i < sample.inputs.size(); ++i) inputs.push_back(make_input(sample.inputs[i], i, dtype));
  return inputs;
}

Rows operations() {
  Rows all;
  auto add = [&](const char* family, Rows rows) {
    for (Operation& row : rows) {
      row.family = family;
      all.push_back(std::move(row));
    }
  };
  add("Shape", shape_operations());
  add("Elementwise", elementwise_operations());
  add("Activations", activation_operations());
  add("Reductions", reduction_operations());
  add("Matrix products", linear_operations());
  add("Convolutions", convolution_operations());
  add("Pooling", pooling_operations());
  add("Images", image_operations());
  add("Normalisation", norm_operations());
  add("Softmax and cross-entropy", softmax_operations());
  add("Indexing and order", index_operations());
  add("Recurrent networks", recurrent_operations());
  return all;
}

}  // namespace fovea::op_cases
