// Scaled dot-product attention with several heads (Vaswani et al. 2017, "Attention is all you need", 3.2), in PyTorch's layout.
#pragma once

#include <fovea/layers/linear.h>

namespace fovea::layers {

struct AttentionMasks {
  // bool [batch, keys]: true keys are not attended to.
  Tensor key_padding_mask;
  // [queries, keys] or [batch * heads, queries, keys]: bool (true is not attended to) or floating point (added to the scores).
  Tensor attention_mask;
};

struct AttentionOutput {
  Tensor output;                             // [queries, batch, embed], or [batch, queries, embed] with batch_first
  Tensor weights;                            // [batch, queries, keys], the mean over the heads
};

// softmax(q k^T / sqrt(embed / heads)) v in each head. Parameters: in_proj_weight [3 embed, embed] (q, k, v), in_proj_bias,
// out_proj.weight, out_proj.bias. A query that is kept from every key gives NaN, as in PyTorch.
class MultiheadAttention : public Module {
 public:
  struct Options {
    int64_t embed = 0, heads = 1;
    double dropout = 0;                      // of the attention weights, while training
    bool bias = true;
    bool batch_first = false;
  };
  explicit MultiheadAttention(Options options);
  Tensor forward(const Tensor& x) override;                                  // self-attention, without masks
  AttentionOutput forward(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionMasks& masks = {});
  using Module::operator();
  AttentionOutput operator()(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionMasks& masks = {}) {
    Call call(*this, query);
    return forward(query, key, value, masks);
  }
  std::string options() const override;
  Tensor in_proj_weight, in_proj_bias;
  Linear& out_proj;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override;           // of self-attention
  std::optional<ReceptiveField> own_field() const override { return ReceptiveField{{}, AxisReach::everything()}; }

 private:
  struct Sizes {
    int64_t batch, queries, keys;
  };
  Sizes check_inputs(const Tensor& query, const Tensor& key, const Tensor& value) const;
  Tensor project(const Tensor& x, int64_t part) const;                       // [batch * heads, time, embed / heads]
  Tensor masked(Tensor scores, const AttentionMasks& masks, const Sizes& sizes) const;

  Options options_;
};

}  // namespace fovea::layers
