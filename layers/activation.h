// Activation functions as layers. Names and defaults are PyTorch's; the formulas stand in autograd/activations.h.
#pragma once

#include <fovea/autograd/activations.h>
#include <fovea/autograd/softmax.h>
#include <fovea/layers/module.h>

namespace fovea::layers {

// A function of one element: it costs an operation an element, and sees one.
class Activation : public Module {
 protected:
  std::optional<Cost> own_cost(const Shape& input) const override { return ElementwiseGeometry{.numel = input.numel()}.cost(); }
};

class ReLU : public Activation {
 public:
  Tensor forward(const Tensor& x) override { return relu(x); }
};

class ReLU6 : public Activation {
 public:
  Tensor forward(const Tensor& x) override { return relu6(x); }
};

class LeakyReLU : public Activation {
 public:
  explicit LeakyReLU(double negative_slope = 0.01) : negative_slope_(negative_slope) {}
  Tensor forward(const Tensor& x) override { return leaky_relu(x, negative_slope_); }
  std::string options() const override { return str("negative_slope=", negative_slope_); }

 private:
  double negative_slope_;
};

class ELU : public Activation {
 public:
  explicit ELU(double alpha = 1) : alpha_(alpha) {}
  Tensor forward(const Tensor& x) override { return elu(x, alpha_); }
  std::string options() const override { return str("alpha=", alpha_); }

 private:
  double alpha_;
};

class GELU : public Activation {
 public:
  explicit GELU(Gelu approximation = Gelu::erf) : approximation_(approximation) {}
  Tensor forward(const Tensor& x) override { return gelu(x, approximation_); }
  std::string options() const override { return approximation_ == Gelu::tanh ? "tanh" : ""; }

 private:
  Gelu approximation_;
};

class SiLU : public Activation {
 public:
  Tensor forward(const Tensor& x) override { return silu(x); }
};

class Sigmoid : public Activation {
 public:
  Tensor forward(const Tensor& x) override { return sigmoid(x); }
};

class Tanh : public Activation {
 public:
  Tensor forward(const Tensor& x) override { return tanh(x); }
};

class Softplus : public Activation {
 public:
  explicit Softplus(double beta = 1, double threshold = 20) : beta_(beta), threshold_(threshold) {}
  Tensor forward(const Tensor& x) override { return softplus(x, beta_, threshold_); }
  std::string options() const override { return str("beta=", beta_, ", threshold=", threshold_); }

 private:
  double beta_, threshold_;
};

class Hardtanh : public Activation {
 public:
  explicit Hardtanh(double minimum = -1, double maximum = 1) : minimum_(minimum), maximum_(maximum) {}
  Tensor forward(const Tensor& x) override { return hardtanh(x, minimum_, maximum_); }
  std::string options() const override { return str(minimum_, ", ", maximum_); }

 private:
  double minimum_, maximum_;
};

// x where it is positive, weight * x elsewhere; one learned weight, or one a channel (axis 1).
class PReLU : public Activation {
 public:
  explicit PReLU(int64_t channels = 1, double first_value = 0.25);
  Tensor forward(const Tensor& x) override;
  std::string options() const override { return str(weight.numel()); }
  Tensor weight;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override {
    return ElementwiseGeometry{.numel = input.numel(), .parameters = weight.numel()}.cost();
  }
};

class Softmax : public Module {
 public:
  explicit Softmax(int64_t axis = -1) : axis_(axis) {}
  Tensor forward(const Tensor& x) override { return softmax(x, axis_); }
  std::string options() const override { return str("axis=", axis_); }

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;

 private:
  int64_t axis_;
};

class LogSoftmax : public Module {
 public:
  explicit LogSoftmax(int64_t axis = -1) : axis_(axis) {}
  Tensor forward(const Tensor& x) override { return log_softmax(x, axis_); }
  std::string options() const override { return str("axis=", axis_); }

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;

 private:
  int64_t axis_;
};

}  // namespace fovea::layers
