// Changing the shape between layers.
#pragma once

#include <fovea/autograd/shape.h>
#include <fovea/layers/module.h>

namespace fovea::layers {

// Axes first to last as one. What comes after it knows no places any more: it counts as seeing everything.
class Flatten : public Module {
 public:
  explicit Flatten(int64_t first_axis = 1, int64_t last_axis = -1) : first_axis_(first_axis), last_axis_(last_axis) {}
  Tensor forward(const Tensor& x) override { return flatten(x, first_axis_, last_axis_); }
  std::string options() const override { return str("first_axis=", first_axis_, ", last_axis=", last_axis_); }

 protected:
  std::optional<Cost> own_cost(const Shape&) const override { return Cost{}; }
  std::optional<ReceptiveField> own_field() const override { return ReceptiveField::everything(); }

 private:
  int64_t first_axis_, last_axis_;
};

// One axis as several: Unflatten(1, {4, 3}) makes [2, 12] into [2, 4, 3]. One size may be -1.
class Unflatten : public Module {
 public:
  Unflatten(int64_t axis, const Shape& sizes) : axis_(axis), sizes_(sizes) {}
  Tensor forward(const Tensor& x) override;
  std::string options() const override { return str("axis=", axis_, ", sizes=", sizes_); }

 protected:
  std::optional<Cost> own_cost(const Shape&) const override { return Cost{}; }

 private:
  int64_t axis_;
  Shape sizes_;
};

}  // namespace fovea::layers
