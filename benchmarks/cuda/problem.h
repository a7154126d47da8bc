// What a row computes: its inputs, our way to compute it, and which part of it is compared with float64 on the CPU.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <fovea/tensor/tensor.h>

#include "row.h"
#include "vendor.h"

namespace fovea::benchmarks {

using Tensors = std::vector<Tensor>;
using Run = std::function<Tensors()>;                             // computes once, and returns the outputs

struct Problem {
  // One set of random inputs on the default device. Several sets are made, so that a run does not find the inputs of the one before in the cache.
  std::function<Tensors()> make_inputs;
  // Our computation, bound to inputs: on the GPU to all of them, on the CPU in float64 to a part of them. What a backward pass needs of the forward one is
  // computed here, outside of what is timed.
  std::function<Run(const Tensors& inputs)> bind;
  // A part of the inputs, and the part of the outputs that depends on nothing else (scaled to be what the part alone would give). Where there is none: all of them.
  std::function<Tensors(const Tensors& inputs)> sample_inputs = [](const Tensors& inputs) { return inputs; };
  std::function<Tensors(const Tensors& outputs)> sample_outputs = [](const Tensors& outputs) { return outputs; };

  double flops = 0, bytes = 0;                                    // least work: multiplications and additions; each input read and each output written once
  DType reference_dtype = DType::float64;                         // of floating-point inputs on the CPU
  bool works_in_place = false;                                    // outputs are inputs: they can be neither poisoned nor computed twice
  int compared_runs = 1;                                          // outputs of this run are compared: a second training step depends on all of the first
  bool compares_samples = false;                                  // the part is computed by itself on the GPU too: its outputs depend on the whole batch
};

// ValueError for an operation that is none of the family's.
Problem conv_problem(const Row& row);
Problem gemm_problem(const Row& row);
Problem lstm_problem(const Row& row);
Problem ctc_problem(const Row& row);
Problem batch_norm_problem(const Row& row);
Problem pooling_problem(const Row& row);
Problem softmax_problem(const Row& row);
Problem elementwise_problem(const Row& row);
Problem optimizer_problem(const Row& row);
Problem step_problem(const Row& row);                             // a whole training step
Problem problem_of(const Row& row);

// Standard normal numbers of a row's dtype; of rank 4 with channels last where the row says so. Never zeros: they are multiplied faster.
Tensor random_input(const Row& row, const Shape& shape);
Tensor last(const Tensor& x, int64_t axis, int64_t count);        // the last `count` along an axis, where tails of kernels' tiles lie; all, if there are fewer
double bytes_of(const Tensors& tensors);

// As a vendor gets them. Integers are copied to the host; an undefined tensor is an empty Array.
Array array_of(const Tensor& x);
std::vector<Array> arrays_of(const Tensors& tensors);
// The row's task without memory: of inputs and outputs only shapes, strides and dtypes, and integers' values. Needs no device.
Task described_task(const Row& row);

}  // namespace fovea::benchmarks
