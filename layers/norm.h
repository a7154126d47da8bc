// Normalisation layers. Parameters weight (ones) and bias (zeros); eps is added to the variance.
#pragma once

#include <fovea/layers/module.h>

namespace fovea::layers {

struct BatchNormOptions {
  double eps = 1e-5;
  std::optional<double> momentum = 0.1;  // running = (1 - momentum) * running + momentum * batch; nothing: the mean over all batches so far
  bool affine = true;
  bool track_running_stats = true;           // false: the batch's own statistics in evaluation too
};

// Each channel (axis 1) over the batch and all places (Ioffe & Szegedy 2015). While training it uses the batch's statistics and updates
// running_mean, running_var (unbiased) and num_batches_tracked; in evaluation it uses the running ones.
class BatchNorm : public Module {
 public:
  Tensor forward(const Tensor& x) override;
  Tensor forward_relu(const Tensor& x);      // relu(forward(x)) in one pass over memory; Sequential uses it where a ReLU follows
  Tensor forward_add_relu(const Tensor& x, const Tensor& residual);   // relu(forward(x) + residual) in one pass: the end of a residual block
  std::string options() const override;
  Tensor weight, bias, running_mean, running_var, num_batches_tracked;

 protected:
  BatchNorm(int64_t channels, BatchNormOptions options);
  std::optional<Cost> own_cost(const Shape& input) const override;
  virtual void check_input(const Shape& x) const = 0;
  int64_t channels() const { return channels_; }

 private:
  Tensor normalize(const Tensor& x, const Tensor& residual, bool has_relu);

  int64_t channels_;
  BatchNormOptions options_;
};

class BatchNorm1d : public BatchNorm {       // of [n, channels] or [n, channels, length]
 public:
  explicit BatchNorm1d(int64_t channels, BatchNormOptions options = {}) : BatchNorm(channels, options) {}

 protected:
  void check_input(const Shape& x) const override;
};

class BatchNorm2d : public BatchNorm {       // of [n, channels, height, width]
 public:
  explicit BatchNorm2d(int64_t channels, BatchNormOptions options = {}) : BatchNorm(channels, options) {}

 protected:
  void check_input(const Shape& x) const override;
};

struct LayerNormOptions {
  double eps = 1e-5;
  bool affine = true;
  bool bias = true;
};

// Over the last axes, which have the sizes `normalized` (Ba, Kiros & Hinton 2016).
class LayerNorm : public Module {
 public:
  explicit LayerNorm(const Shape& normalized, LayerNormOptions options = {});
  explicit LayerNorm(int64_t size, LayerNormOptions options = {}) : LayerNorm(Shape{size}, options) {}
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight, bias;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;

 private:
  Shape normalized_;
  double eps_;
};

struct GroupNormOptions {
  double eps = 1e-5;
  bool affine = true;
};

// Each sample and group of channels (axis 1) over the group's channels and all places (Wu & He 2018).
class GroupNorm : public Module {
 public:
  GroupNorm(int64_t groups, int64_t channels, GroupNormOptions options = {});
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight, bias;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;

 private:
  void check_input(const Shape& x) const;

  int64_t groups_, channels_;
  double eps_;
};

struct InstanceNormOptions {
  double eps = 1e-5;
  bool affine = false;
};

// Each sample and channel over all places (Ulyanov, Vedaldi & Lempitsky 2016): group norm with a group for each channel.
class InstanceNorm : public Module {
 public:
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight, bias;

 protected:
  InstanceNorm(int64_t channels, int rank, InstanceNormOptions options);
  std::optional<Cost> own_cost(const Shape& input) const override;

 private:
  void check_input(const Shape& x) const;

  int64_t channels_;
  int rank_;
  double eps_;
};

class InstanceNorm1d : public InstanceNorm {  // of [n, channels, length]
 public:
  explicit InstanceNorm1d(int64_t channels, InstanceNormOptions options = {}) : InstanceNorm(channels, 3, options) {}
};

class InstanceNorm2d : public InstanceNorm {  // of [n, channels, height, width]
 public:
  explicit InstanceNorm2d(int64_t channels, InstanceNormOptions options = {}) : InstanceNorm(channels, 4, options) {}
};

}  // namespace fovea::layers
