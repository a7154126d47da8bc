// Activation functions, element by element; integers give float32. Names, defaults and values at the kinks are PyTorch's. NaN stays NaN.
#pragma once

#include <fovea/autograd/tape.h>

namespace fovea {

Tensor relu(const Tensor& x);                                                // max(x, 0)
Tensor relu6(const Tensor& x);                                               // min(max(x, 0), 6)
Tensor leaky_relu(const Tensor& x, double negative_slope = 0.01);
Tensor elu(const Tensor& x, double alpha = 1);                               // x > 0 ? x : alpha (e^x - 1)
Tensor sigmoid(const Tensor& x);                                             // 1 / (1 + e^-x)
Tensor tanh(const Tensor& x);
Tensor softplus(const Tensor& x, double beta = 1, double threshold = 20);    // ln(1 + e^(beta x)) / beta; x itself where beta x > threshold
Tensor silu(const Tensor& x);                                                // x sigmoid(x)
enum class Gelu { erf, tanh };
Tensor gelu(const Tensor& x, Gelu approximation = Gelu::erf);                // x Phi(x), or its tanh approximation
Tensor hardtanh(const Tensor& x, double minimum = -1, double maximum = 1);

}  // namespace fovea
