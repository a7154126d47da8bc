// Running the tape backwards.
#pragma once

#include <functional>
#include <vector>

#include <fovea/autograd/tape.h>

namespace fovea {

struct GradOptions {
  bool retain_graph = false;                 // keep what was saved, so that backward can run again
  bool create_graph = false;                 // record the backward pass itself, for second derivatives (implies retain_graph)
  bool allow_unused = false;                 // an input that the outputs do not depend on gets an undefined gradient instead of an error
};

// Accumulates the gradients of `outputs` into grad() of the leaves. Undefined gradients mean one (for outputs of one element).
void backward(const std::vector<Tensor>& outputs, const std::vector<Tensor>& output_grads = {}, GradOptions options = {});

// The gradients of `outputs` with respect to `inputs` (leaves or not); grad() of the leaves is left alone, and only what leads to the inputs is computed.
std::vector<Tensor> grad(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs, const std::vector<Tensor>& output_grads = {},
                         GradOptions options = {});

// Runs fn without recording and runs it again in the backward pass, trading time for memory (Chen et al. 2016, "Training deep nets with sublinear memory cost").
// The second run draws the same random numbers. Gradients reach the inputs; backward() also reaches the leaves that fn uses besides them, as long as an input
// requires a gradient. grad() does not know of those leaves: it leaves them alone, and is not to be asked for them.
Tensor checkpoint(std::function<Tensor(const std::vector<Tensor>&)> fn, const std::vector<Tensor>& inputs);

}  // namespace fovea
