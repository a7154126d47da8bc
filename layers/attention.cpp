#include <fovea/layers/attention.h>

#include <cmath>
#include <limits>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/matmul.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/autograd/softmax.h>
#include <fovea/autograd/random.h>
#include <fovea/layers/init.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {

namespace {

// The shape of in_proj_weight, of options that have been looked at before memory is asked for.
Shape checked_weight(const MultiheadAttention::Options& o) {
  check<ValueError>(o.embed > 0 && o.heads > 0 && o.embed % o.heads == 0, "MultiheadAttention: embed (", o.embed,
                    ") must be a positive multiple of heads (", o.heads, ")");
  check<ValueError>(o.dropout >= 0 && o.dropout < 1, "MultiheadAttention: dropout must be in [0, 1), got ", o.dropout);
  checked_numel({3, o.embed, o.embed}, "MultiheadAttention");
  return {3 * o.embed, o.embed};
}

}  // namespace

MultiheadAttention::MultiheadAttention(Options o)
    : in_proj_weight(param("in_proj_weight", empty(checked_weight(o)))),
      in_proj_bias(param("in_proj_bias", o.bias ? zeros({3 * o.embed}) : Tensor())),
      out_proj(add("out_proj", Linear(o.embed, o.embed, {.bias = o.bias}))),
      options_(o) {
  init::xavier_uniform_(in_proj_weight);
  if (o.bias) init::zeros_(out_proj.bias);
}

Tensor MultiheadAttention::forward(const Tensor& x) { return forward(x, x, x).output; }

AttentionOutput MultiheadAttention::forward(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionMasks& masks) {
  const Sizes sizes = check_inputs(query, key, value);
  const int64_t heads = options_.heads, size = options_.embed / heads;
  const Tensor q = project(query, 0) * (1 / std::sqrt(static_cast<double>(size))), k = project(key, 1), v = project(value, 2);
  const Tensor weights = softmax(masked(matmul(q, transpose(k)), masks, sizes), -1);
  const Tensor kept = options_.dropout > 0 && is_training() && !query.is_meta() ? dropout(weights, options_.dropout) : weights;
  const Tensor context = reshape(matmul(kept, v), {sizes.batch, heads, sizes.queries, size});
  const Tensor merged = options_.batch_first ? permute(context, {0, 2, 1, 3}) : permute(context, {2, 0, 1, 3});
  AttentionOutput result;
  result.output = out_proj(reshape(merged, query.shape()));
  result.weights = mean(reshape(weights, {sizes.batch, heads, sizes.queries, sizes.keys}), {1});
  return result;
}

MultiheadAttention::Sizes MultiheadAttention::check_inputs(const Tensor& query, const Tensor& key, const Tensor& value) const {
  const char* layout = options_.batch_first ? "[batch, time, embed]" : "[time, batch, embed]";
  for (const Tensor* x : {&query, &key, &value})
    check<ShapeError>(x->rank() == 3 && x->size(2) == options_.embed, "MultiheadAttention: query, key and value are ", layout,
                      " with embed = ", options_.embed, ", got ", x->shape());
  const int batch_axis = options_.batch_first ? 0 : 1, time_axis = 1 - batch_axis;
  check<ShapeError>(key.shape() == value.shape() && key.size(batch_axis) == query.size(batch_axis), "MultiheadAttention: key ", key.shape(),
                    " and value ", value.shape(), " must agree, and have the batch of query ", query.shape());
  return {query.size(batch_axis), query.size(time_axis), key.size(time_axis)};
}

Tensor MultiheadAttention::project(const Tensor& x, int64_t part) const {
  const int64_t embed = options_.embed, heads = options_.heads;
  const Tensor weight = narrow(alongside(x, in_proj_weight), 0, part * embed, embed);
  const Tensor bias = in_proj_bias ? narrow(alongside(x, in_proj_bias), 0, part * embed, embed) : Tensor();
  const Tensor split = reshape(linear(x, weight, bias), {x.size(0), x.size(1), heads, embed / heads});
  const Tensor ordered = options_.batch_first ? permute(split, {0, 2, 1, 3}) : permute(split, {1, 2, 0, 3});
  return reshape(ordered, {ordered.size(0) * heads, ordered.size(2), embed / heads});
}

Tensor MultiheadAttention::masked(Tensor scores, const AttentionMasks& masks, const Sizes& sizes) const {
  const double nothing = -std::numeric_limits<double>::infinity();
  if (const Tensor& mask = masks.attention_mask) {
    const Shape plain{sizes.queries, sizes.keys}, full{sizes.batch * options_.heads, sizes.queries, sizes.keys};
    check<ShapeError>(mask.shape() == plain || mask.shape() == full, "MultiheadAttention: attention_mask must be ", plain, " or ", full,
                      ", got ", mask.shape());
    check<DTypeError>(mask.dtype() == DType::boolean || mask.dtype() == scores.dtype(), "MultiheadAttention: attention_mask must be bool (true: not attended to) or ",
                      scores.dtype(), " (added to the scores), got ", mask.dtype());
    scores = mask.dtype() == DType::boolean ? where(mask, nothing, scores) : scores + mask;
  }
  if (const Tensor& mask = masks.key_padding_mask) {
    check<ShapeError>(mask.shape() == Shape{sizes.batch, sizes.keys},
                      "MultiheadAttention: key_padding_mask must be [batch, keys] = ", Shape{sizes.batch, sizes.keys}, ", got ",
                      mask.shape());
    check<DTypeError>(mask.dtype() == DType::boolean, "MultiheadAttention: key_padding_mask must be bool, got ", mask.dtype());
    const Tensor each_head = reshape(scores, {sizes.batch, options_.heads, sizes.queries, sizes.keys});
    scores = reshape(where(reshape(mask, {sizes.batch, 1, 1, sizes.keys}), nothing, each_head), scores.shape());
  }
  return scores;
}

std::string MultiheadAttention::options() const {
  return str(options_.embed, ", heads=", options_.heads, options_.batch_first ? ", batch_first" : "");
}

std::optional<Cost> MultiheadAttention::own_cost(const Shape& input) const {
  check<ShapeError>(input.rank() == 3, "MultiheadAttention: cost takes a shape of three axes, got ", input);
  const int64_t batch = input[options_.batch_first ? 0 : 1], time = input[options_.batch_first ? 1 : 0];
  return AttentionGeometry{.batch = batch, .queries = time, .keys = time, .embed = options_.embed, .heads = options_.heads}.cost(
      options_.bias);
}

}  // namespace fovea::layers
