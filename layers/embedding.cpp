#include <fovea/layers/embedding.h>

#include <fovea/autograd/index.h>
#include <fovea/autograd/shape.h>
#include <fovea/layers/init.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {

Embedding::Embedding(int64_t count, int64_t size, EmbeddingOptions o) : padding_idx_(o.padding_idx) {
  check<ValueError>(count > 0 && size > 0, "Embedding: count and size must be positive, got ", count, " and ", size);
  check<IndexError>(!padding_idx_ || (*padding_idx_ >= -count && *padding_idx_ < count), "Embedding: there is no row ", padding_idx_.value_or(0), " for padding_idx in a table of ",
                    count);
  checked_numel({count, size}, "Embedding");
  weight = param("weight", empty({count, size}));
  init::normal_(weight);
  if (!padding_idx_) return;
  NoGrad no_grad;
  init::zeros_(select(weight, 0, *padding_idx_));
}

// On meta, a shape is all there is to an index: its dtype need not be one of integers.
Tensor Embedding::forward(const Tensor& x) {
  const Tensor indices = x.is_meta() && is_floating(x.dtype()) ? fovea::to(x, DType::int64) : x;
  return embedding(indices, alongside(x, weight), padding_idx_);
}

std::string Embedding::options() const {
  return str(weight.size(0), ", ", weight.size(1), padding_idx_ ? str(", padding_idx=", *padding_idx_) : "");
}

std::optional<Cost> Embedding::own_cost(const Shape& input) const {
  return EmbeddingGeometry{.lookups = input.numel(), .count = weight.size(0), .size = weight.size(1)}.cost();
}

}  // namespace fovea::layers
