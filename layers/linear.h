// Fully connected layers.
#pragma once

#include <fovea/layers/module.h>

namespace fovea::layers {

struct LinearOptions {
  bool bias = true;
};

// y = x W^T + b over the last axis. weight [out, in], bias [out].
class Linear : public Module {
 public:
  Linear(int64_t in, int64_t out, LinearOptions options = {});
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight, bias;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
};

// y_o = a^T W_o b + c_o over the last axes of a [.., in1] and b [.., in2]. weight [out, in1, in2], bias [out].
class Bilinear : public Module {
 public:
  Bilinear(int64_t in1, int64_t in2, int64_t out, LinearOptions options = {});
  using Module::forward;                     // of one input: an error that says so
  Tensor forward(const Tensor& a, const Tensor& b);
  Tensor operator()(const Tensor& a, const Tensor& b) {
    Call call(*this, a);
    return forward(a, b);
  }
  std::string options() const override;
  Tensor weight, bias;

 protected:
  std::optional<Cost> own_cost(const Shape& first) const override;          // of the first input
  void check_cost_input(const Shape&) override {}                           // own_cost looks at the one input it is told of
};

}  // namespace fovea::layers
