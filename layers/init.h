// Filling parameters with their first values, in place. Weights are [out, in, ...] as PyTorch lays them out. On meta nothing happens.
#pragma once

#include <fovea/layers/module.h>
#include <fovea/tensor/random.h>

namespace fovea::layers::init {

struct Fans {
  int64_t in = 0, out = 0;                   // size(1) and size(0), times the positions of the kernel
};
Fans fans(const Shape& weight);              // ShapeError below two axes

enum class Nonlinearity { linear, sigmoid, tanh, relu, leaky_relu, selu };
double gain(Nonlinearity nonlinearity, double slope = 0.01);                 // PyTorch's calculate_gain; slope of leaky_relu

enum class Fan { in, out };
struct KaimingOptions {
  double slope = 0;                          // of the leaky ReLU that follows
  Fan mode = Fan::in;
  Nonlinearity nonlinearity = Nonlinearity::leaky_relu;
};

void constant_(const Tensor& x, double value);
inline void zeros_(const Tensor& x) { constant_(x, 0); }
inline void ones_(const Tensor& x) { constant_(x, 1); }
void uniform_(const Tensor& x, double low = 0, double high = 1, Generator& generator = default_generator());
void normal_(const Tensor& x, double mean = 0, double deviation = 1, Generator& generator = default_generator());

// Glorot & Bengio 2010: variance gain^2 * 2 / (fan_in + fan_out).
void xavier_uniform_(const Tensor& weight, double gain = 1, Generator& generator = default_generator());
void xavier_normal_(const Tensor& weight, double gain = 1, Generator& generator = default_generator());
// He et al. 2015: variance gain^2 / fan.
void kaiming_uniform_(const Tensor& weight, KaimingOptions options = {}, Generator& generator = default_generator());
void kaiming_normal_(const Tensor& weight, KaimingOptions options = {}, Generator& generator = default_generator());
// Saxe et al. 2013: rows (or columns, where there are more rows) orthonormal, times gain; axes after the first count as one.
void orthogonal_(const Tensor& weight, double gain = 1, Generator& generator = default_generator());

// An LSTM that begins by remembering: the forget gates' biases (bias_ih*, and 0 in bias_hh*, which is added to it) of every LSTM and
// LSTMCell in the module.
void lstm_forget_bias_(Module& module, double value = 1);

// PyTorch's default for Linear, Conv and ConvTranspose: weight and bias uniform in +-1/sqrt(fan_in).
void linear_default_(const Tensor& weight, const Tensor& bias, Generator& generator = default_generator());

}  // namespace fovea::layers::init
