// A learned vector for each of a number of things.
#pragma once

#include <fovea/layers/module.h>

namespace fovea::layers {

struct EmbeddingOptions {
  std::optional<int64_t> padding_idx = {};     // this row is zero at first and gets no gradient; negative counts from the back
};

// weight [count, size], standard normal. x holds indices (int64, int32 or uint8) in [0, count); y is [.., size].
class Embedding : public Module {
 public:
  Embedding(int64_t count, int64_t size, EmbeddingOptions options = {});
  Tensor forward(const Tensor& x) override;
  std::string options() const override;
  Tensor weight;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;
  void check_cost_input(const Shape&) override {}                           // indices of any shape

 private:
  std::optional<int64_t> padding_idx_;
};

}  // namespace fovea::layers
