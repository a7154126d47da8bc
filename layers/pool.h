// Pooling layers, for x [n, channels, height, width] or [n, channels, length]. The options stand in autograd/pool.h;
// stride 0 means: as large as the kernel.
#pragma once

#include <fovea/autograd/pool.h>
#include <fovea/layers/module.h>

namespace fovea::layers {

class MaxPool2d : public Module {
 public:
  explicit MaxPool2d(Pair kernel, MaxPool2dOptions options = {});
  Tensor forward(const Tensor& x) override;
  std::string options() const override;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  Pair kernel_;
  MaxPool2dOptions options_;
};

class AvgPool2d : public Module {
 public:
  explicit AvgPool2d(Pair kernel, AvgPool2dOptions options = {});
  Tensor forward(const Tensor& x) override;
  std::string options() const override;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  Pair kernel_;
  AvgPool2dOptions options_;
};

class MaxPool1d : public Module {
 public:
  explicit MaxPool1d(int64_t kernel, MaxPool1dOptions options = {});
  Tensor forward(const Tensor& x) override;
  std::string options() const override;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  int64_t kernel_;
  MaxPool1dOptions options_;
};

class AvgPool1d : public Module {
 public:
  explicit AvgPool1d(int64_t kernel, AvgPool1dOptions options = {});
  Tensor forward(const Tensor& x) override;
  std::string options() const override;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  int64_t kernel_;
  AvgPool1dOptions options_;
};

// Windows that fit the input to a given output size. They depend on the input, so that the field is everything (see receptive_field.h).
class AdaptivePool2d : public Module {
 public:
  std::string options() const override;

 protected:
  explicit AdaptivePool2d(Pair size);
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override { return ReceptiveField::everything(); }
  Pair size_;
};

class AdaptiveAvgPool2d : public AdaptivePool2d {
 public:
  explicit AdaptiveAvgPool2d(Pair size) : AdaptivePool2d(size) {}
  Tensor forward(const Tensor& x) override;
};

class AdaptiveMaxPool2d : public AdaptivePool2d {
 public:
  explicit AdaptiveMaxPool2d(Pair size) : AdaptivePool2d(size) {}
  Tensor forward(const Tensor& x) override;
};

class AdaptivePool1d : public Module {
 public:
  std::string options() const override { return str(size_); }

 protected:
  explicit AdaptivePool1d(int64_t size);
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override { return ReceptiveField{{}, AxisReach::everything()}; }
  int64_t size_;
};

class AdaptiveAvgPool1d : public AdaptivePool1d {
 public:
  explicit AdaptiveAvgPool1d(int64_t size) : AdaptivePool1d(size) {}
  Tensor forward(const Tensor& x) override;
};

class AdaptiveMaxPool1d : public AdaptivePool1d {
 public:
  explicit AdaptiveMaxPool1d(int64_t size) : AdaptivePool1d(size) {}
  Tensor forward(const Tensor& x) override;
};

// Average or maximum over all places: [n, channels, ...] to [n, channels].
class GlobalAvgPool : public Module {
 public:
  Tensor forward(const Tensor& x) override;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override { return ReceptiveField::everything(); }
};

class GlobalMaxPool : public Module {
 public:
  Tensor forward(const Tensor& x) override;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override { return ReceptiveField::everything(); }
};

}  // namespace fovea::layers
