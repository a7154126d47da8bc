// Is a gradient the limit of differences? Compares backward() with central differences, element by element, in float64.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <fovea/autograd/backward.h>

namespace fovea {

struct GradcheckOptions {
  double step = 1e-6;
  double absolute = 1e-5, relative = 1e-3;   // |analytic - numeric| <= absolute + relative * |numeric|
  int64_t max_elements = 400;                // of each input; a larger one is sampled evenly
};

using TensorFunction = std::function<Tensor(const std::vector<Tensor>&)>;

// fn maps float64 inputs to one floating-point output; every input that requires a gradient is checked, with a random weighting of the output. Returns "" if all
// is well, else a sentence that names the worst element. fn must be deterministic and leave its inputs alone.
std::string gradcheck(const TensorFunction& fn, std::vector<Tensor> inputs, GradcheckOptions options = {});

// The same for the gradient of the gradient.
std::string gradgradcheck(const TensorFunction& fn, std::vector<Tensor> inputs, GradcheckOptions options = {});

}  // namespace fovea
