// Enlarging images.
#pragma once

#include <fovea/autograd/image.h>
#include <fovea/layers/module.h>

namespace fovea::layers {

// x [n, channels, h, w] to a fixed size, or by whole factors; one of the two is given. Positions are PyTorch's.
class Upsample : public Module {
 public:
  struct Options {
    Pair size = 0, scale = 0;
    ResizeMode mode = ResizeMode::nearest;
    bool align_corners = false;
  };
  explicit Upsample(Options options);
  Tensor forward(const Tensor& x) override;
  std::string options() const override;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;                 // everything where the window depends on the input's size

 private:
  Pair output_of(const Shape& x) const;

  Options options_;
};

}  // namespace fovea::layers
