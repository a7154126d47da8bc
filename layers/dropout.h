// Dropout layers; they do nothing in evaluation.
#pragma once

#include <fovea/layers/module.h>

namespace fovea::layers {

// Each element is zero with probability p, and x / (1 - p) otherwise (Srivastava et al. 2014).
class Dropout : public Module {
 public:
  explicit Dropout(double p = 0.5);
  Tensor forward(const Tensor& x) override;
  std::string options() const override { return str("p=", p_); }

 protected:
  std::optional<Cost> own_cost(const Shape&) const override { return Cost{}; }    // of inference

 private:
  double p_;
};

// The same for whole channels of x [n, channels, ...] (Tompson et al. 2015).
class Dropout2d : public Module {
 public:
  explicit Dropout2d(double p = 0.5);
  Tensor forward(const Tensor& x) override;
  std::string options() const override { return str("p=", p_); }

 protected:
  std::optional<Cost> own_cost(const Shape&) const override { return Cost{}; }

 private:
  double p_;
};

}  // namespace fovea::layers
