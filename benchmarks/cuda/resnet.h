// ResNet-50 (He et al. 2016, "Deep residual learning for image recognition"), with the stride in the 3x3 convolution as torchvision has it: 161 parameters, 25.6 million
// numbers.
#pragma once

#include <fovea/fovea.h>

namespace fovea::benchmarks {

// 1x1 to `width` channels, 3x3, 1x1 to 4 * width; x is added before the last ReLU, through a 1x1 convolution where its shape differs.
class Bottleneck : public layers::Module {
 public:
  Bottleneck(int64_t in, int64_t width, int64_t stride);
  Tensor forward(const Tensor& x) override;

 private:
  layers::Sequential& body_;
  layers::BatchNorm2d& norm_;                                   // with the sum and the last ReLU in one pass
  layers::Sequential& shortcut_;                                // empty where x is added as it is
};

class ResNet50 : public layers::Module {
 public:
  explicit ResNet50(int64_t classes = 1000);
  Tensor forward(const Tensor& x) override;                     // [n,3,h,w] -> [n,classes]

 private:
  static layers::Sequential make_body();

  layers::Sequential& body_;
  layers::Linear& head_;
};

}  // namespace fovea::benchmarks
