// Convolution layers. Weights are PyTorch's: [out, in / groups, height, width], transposed [in, out / groups, height, width]; bias [out].
#pragma once

#include <fovea/autograd/pair.h>
#include <fovea/layers/module.h>

namespace fovea::layers {

class Conv1d : public Module {               // x [n, in, length]
 public:
  struct Options {
    int64_t in = 0, out = 0, kernel = 1, stride = 1, padding = 0, dilation = 1, groups = 1;
    bool bias = true;
  };
  explicit Conv1d(Options options);
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight, bias;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  Options options_;
};

class Conv2d : public Module {               // x [n, in, height, width]
 public:
  struct Options {
    int64_t in = 0, out = 0;
    Pair kernel = 1, stride = 1, padding = 0, dilation = 1;
    int64_t groups = 1;
    bool bias = true;
  };
  explicit Conv2d(Options options);
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight, bias;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  Options options_;
};

// Output length: (length - 1) * stride - 2 padding + (kernel - 1) * dilation + 1 + output_padding.
class ConvTranspose1d : public Module {
 public:
  struct Options {
    int64_t in = 0, out = 0, kernel = 1, stride = 1, padding = 0, output_padding = 0, dilation = 1, groups = 1;
    bool bias = true;
  };
  explicit ConvTranspose1d(Options options);
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight, bias;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  Options options_;
};

class ConvTranspose2d : public Module {
 public:
  struct Options {
    int64_t in = 0, out = 0;
    Pair kernel = 1, stride = 1, padding = 0, output_padding = 0, dilation = 1;
    int64_t groups = 1;
    bool bias = true;
  };
  explicit ConvTranspose2d(Options options);
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight, bias;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  Options options_;
};

// A convolution of each channel by itself, then one of 1x1 across them (Howard et al. 2017, MobileNets).
// Children "depthwise" and "pointwise".
class DepthwiseSeparable : public Module {
 public:
  struct Options {
    int64_t in = 0, out = 0;
    Pair kernel = 3, stride = 1, padding = 1, dilation = 1;
    bool bias = true;
  };
  explicit DepthwiseSeparable(Options options);
  Tensor forward(const Tensor& x) override { return pointwise(depthwise(x)); }
  Conv2d& depthwise;
  Conv2d& pointwise;
};

// A convolution that is told where it is: the channels y and x = 2 i / (size - 1) - 1 are put behind the input's, and with `radius` their
// distance from the centre (Liu et al. 2018, "An intriguing failing of convolutional neural networks and the CoordConv solution").
// Child "conv".
class CoordConv : public Module {
 public:
  struct Options {
    Conv2d::Options conv;                    // conv.in counts x's channels alone
    bool radius = false;
  };
  explicit CoordConv(Options options);
  Tensor forward(const Tensor& x) override;
  std::string options() const override { return has_radius_ ? "radius" : ""; }
  Conv2d& conv;

 private:
  bool has_radius_;
};

}  // namespace fovea::layers
