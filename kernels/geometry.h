// Everything a kernel needs to know of the shapes, worked out once on the host. The size, cost and receptive-field formulas live here
// and nowhere else; kernels, layers and benchmarks all read them from these structs.
#pragma once

#include <algorithm>
#include <cstdint>

#include <fovea/kernels/error.h>

namespace fovea {

// What one axis of a layer sees. Unit u of the output sees inputs [offset + u * stride, offset + u * stride + size - 1].
// Composition of layers: see then().   Source: Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural networks".
struct AxisField {
  int64_t size = 1, stride = 1, offset = 0;

  static AxisField window(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation = 1) {
    return {(kernel - 1) * dilation + 1, stride, -padding};
  }
  // The field of `next` after this one, in this one's input coordinates.
  AxisField then(const AxisField& next) const {
    return {size + (next.size - 1) * stride, stride * next.stride, offset + next.offset * stride};
  }
  bool operator==(const AxisField&) const = default;
};

// A number of operations, elements or bytes while it is worked out. One that does not fit into 64 bits is a ShapeError, never a wrong number.
class Count {
 public:
  Count(int64_t value) : value_(value) {}
  int64_t value() const { return value_; }
  friend Count operator*(Count a, Count b) {
    int64_t product = 0;
    check<ShapeError>(!__builtin_mul_overflow(a.value_, b.value_, &product), too_many);
    return product;
  }
  friend Count operator+(Count a, Count b) {
    int64_t sum = 0;
    check<ShapeError>(!__builtin_add_overflow(a.value_, b.value_, &sum), too_many);
    return sum;
  }

 private:
  static constexpr const char* too_many = "cost: the numbers of operations and bytes do not fit into 64 bits; ask for a smaller input";
  int64_t value_;
};

// What a layer costs for one forward pass. macs counts the multiply-adds of products (matrix, convolution, recurrent); flops counts each of them as two, and
// besides them every addition of a bias and every elementwise operation as one.
struct Cost {
  int64_t macs = 0, flops = 0;
  int64_t bytes = 0;             // least memory traffic: inputs and parameters read once, outputs written once (float32)
  int64_t parameters = 0;
  Cost& operator+=(const Cost& other) {
    macs = (Count(macs) + other.macs).value();
    flops = (Count(flops) + other.flops).value();
    bytes = (Count(bytes) + other.bytes).value();
    parameters = (Count(parameters) + other.parameters).value();
    return *this;
  }
  bool operator==(const Cost&) const = default;

  // `elements` are the inputs, outputs and parameters that go through memory once.
  static Cost of(Count macs, Count other_flops, Count elements, Count parameters = 0) {
    return {macs.value(), (2 * macs + other_flops).value(), (4 * elements).value(), parameters.value()};
  }
};

// (size - window + 2 padding) / stride + 1, where window = (kernel - 1) * dilation + 1; at most 0 if the window does not fit.
inline int64_t window_outputs(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil_mode = false) {
  const int64_t room = size + 2 * padding - ((kernel - 1) * dilation + 1);
  if (room < 0) return 0;
  int64_t outputs = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (outputs - 1) * stride >= size + padding) --outputs;      // a window must start inside the input or its left padding
  return outputs;
}

// y[b,m,n] = alpha * sum_k a[b,m,k] b[b,k,n] + beta * y[b,m,n]
struct MatmulGeometry {
  int64_t batch = 1, m = 0, n = 0, k = 0;
  int64_t macs() const { return (Count(batch) * m * n * k).value(); }
  Cost cost() const { return Cost::of(macs(), 0, Count(batch) * (Count(m) * k + Count(k) * n + Count(m) * n)); }
  // y = x W^T + b with the weight [n, k] and the bias as parameters; batch is 1.
  Cost linear_cost(bool has_bias) const {
    const Count parameters = Count(n) * k + (has_bias ? n : 0), outputs = Count(m) * n;
    return Cost::of(macs(), has_bias ? outputs : 0, Count(m) * k + outputs + parameters, parameters);
  }
};

// f(x), element by element, at so many operations each; activations count as one, as everyone counts them.
struct ElementwiseGeometry {
  int64_t numel = 0, flops_per_element = 1;
  int64_t parameters = 0;
  Cost cost() const { return Cost::of(0, Count(flops_per_element) * numel, Count(2) * numel + parameters, parameters); }
};

// Rows of a table of `count` rows, picked `lookups` times.
struct EmbeddingGeometry {
  int64_t lookups = 0, count = 0, size = 0;
  Cost cost() const { return Cost::of(0, 0, lookups * (1 + Count(2) * size), Count(count) * size); }
};

// 2-D convolution (cross-correlation), x [n,c,h,w], weight [k,c/groups,r,s], y [n,k,out_h,out_w]. 1-D has h = r = 1.
struct ConvGeometry {
  int64_t n = 0, c = 0, h = 0, w = 0, k = 0, r = 1, s = 1;
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1, groups = 1;

  int64_t out_h() const { return window_outputs(h, r, stride_h, pad_h, dilation_h); }
  int64_t out_w() const { return window_outputs(w, s, stride_w, pad_w, dilation_w); }
  int64_t group_c() const { return c / groups; }
  int64_t group_k() const { return k / groups; }
  bool is_depthwise() const { return groups == c && groups > 1; }
  int64_t macs() const { return (Count(outputs()) * group_c() * r * s).value(); }
  int64_t inputs() const { return (Count(n) * c * h * w).value(); }
  int64_t outputs() const { return (Count(n) * k * out_h() * out_w()).value(); }
  int64_t weights() const { return (Count(k) * group_c() * r * s).value(); }
  Cost cost(bool has_bias) const {
    const Count parameters = Count(weights()) + (has_bias ? k : 0);
    return Cost::of(macs(), has_bias ? outputs() : 0, inputs() + (outputs() + parameters), parameters);
  }
  // Of the transposed convolution, which is this one run backwards: its input is this one's output, and each of its elements meets every weight of its group once.
  Cost transposed_cost(bool has_bias) const {
    const Count parameters = Count(weights()) + (has_bias ? c : 0);
    return Cost::of(macs(), has_bias ? inputs() : 0, inputs() + (outputs() + parameters), parameters);
  }
  AxisField field_h() const { return AxisField::window(r, stride_h, pad_h, dilation_h); }
  AxisField field_w() const { return AxisField::window(s, stride_w, pad_w, dilation_w); }
};

// Max and average pooling, x [n,c,h,w], y [n,c,out_h,out_w].
struct PoolGeometry {
  int64_t n = 0, c = 0, h = 0, w = 0, kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  bool ceil_mode = false;
  bool count_include_pad = true;             // average pooling divides by the whole window, padding included

  int64_t out_h() const { return window_outputs(h, kernel_h, stride_h, pad_h, dilation_h, ceil_mode); }
  int64_t out_w() const { return window_outputs(w, kernel_w, stride_w, pad_w, dilation_w, ceil_mode); }
  Cost cost() const {                                                                                  // an operation for each input
    const Count planes = Count(n) * c, inputs = planes * h * w;
    return Cost::of(0, inputs, inputs + planes * out_h() * out_w());
  }
  AxisField field_h() const { return AxisField::window(kernel_h, stride_h, pad_h, dilation_h); }
  AxisField field_w() const { return AxisField::window(kernel_w, stride_w, pad_w, dilation_w); }
};

// Adaptive pooling: output i averages (or takes the maximum of) inputs [floor(i * in / out), ceil((i + 1) * in / out)).
struct AdaptivePoolGeometry {
  int64_t n = 0, c = 0, h = 0, w = 0, out_h = 1, out_w = 1;
  Cost cost() const {
    const Count planes = Count(n) * c, inputs = planes * h * w;
    return Cost::of(0, inputs, inputs + planes * out_h * out_w);
  }
  static int64_t start(int64_t i, int64_t in, int64_t out) { return i * in / out; }
  static int64_t end(int64_t i, int64_t in, int64_t out) { return ((i + 1) * in + out - 1) / out; }
};

// Normalisation over x seen as [n, channels, spatial]. Batch norm takes its statistics over n and spatial for each channel; group norm over
// channels / groups and spatial for each sample and group (groups = channels is instance norm). Layer norm: rows of `spatial` elements, channels 1.
struct NormGeometry {
  int64_t n = 0, channels = 1, spatial = 1, groups = 1;
  double eps = 1e-5;
  int64_t numel() const { return (Count(n) * channels * spatial).value(); }
  // A scale and a shift an element with known statistics (batch norm in evaluation), 5 operations where they have to be found first.
  Cost cost(bool finds_statistics, int64_t parameters) const { return Cost::of(0, Count(finds_statistics ? 5 : 2) * numel(), Count(2) * numel() + parameters, parameters); }
};

// What becomes of the losses of a batch.
enum class Reduction { none, mean, sum };

// The cross-entropy of scores and labels: rows = outer * inner, scores [outer, classes, inner], labels [outer, inner].
struct CrossEntropyGeometry {
  int64_t rows = 0, classes = 0;
  int64_t inner = 1;                         // 1 unless is_normalized
  int64_t ignore_index = -100;               // a row with this label counts for nothing
  double label_smoothing = 0;
  Reduction reduction = Reduction::none;     // mean: divided by the sum of the rows' weights
  bool is_normalized = false;                // the scores are log-probabilities already (and label_smoothing is 0)
};

// x [outer, size, inner]: an operation along one axis of a contiguous tensor.
struct AxisGeometry {
  int64_t outer = 1, size = 0, inner = 1;
  int64_t softmax_flops() const { return (Count(outer) * inner * std::max<int64_t>(3 * size - 1, 0)).value(); }      // exp, sum and division
  Cost softmax_cost() const { return Cost::of(0, softmax_flops(), Count(2) * outer * size * inner); }
};

// Resizing [n*c, h, w] to [n*c, out_h, out_w]. scale is input pixels per output pixel along an axis, as PyTorch computes it.
struct ResizeGeometry {
  int64_t planes = 0, h = 0, w = 0, out_h = 0, out_w = 0;
  bool align_corners = false;
  double scale_h() const { return scale(h, out_h); }
  double scale_w() const { return scale(w, out_w); }
  Cost cost(bool is_bilinear) const { return Cost::of(0, Count(is_bilinear ? 4 : 0) * planes * out_h * out_w, planes * (Count(h) * w + Count(out_h) * out_w)); }

 private:
  double scale(int64_t in, int64_t out) const {
    if (align_corners) return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
    return static_cast<double>(in) / static_cast<double>(out);
  }
};

enum class RnnCell : uint8_t { lstm, gru, rnn_tanh, rnn_relu };

// One layer of a recurrent network, one or both directions, over a whole sequence. x is [time, batch, input_size]; y is [time, batch, directions * hidden_size].
// Gate order is PyTorch's: LSTM i f g o, GRU r z n. Weights: w_ih [gates*hidden, input], w_hh [gates*hidden, hidden], b_ih, b_hh [gates*hidden].
struct RnnGeometry {
  RnnCell cell = RnnCell::lstm;
  int64_t time = 0, batch = 0, input_size = 0, hidden_size = 0, directions = 1;

  int64_t gates() const { return cell == RnnCell::lstm ? 4 : cell == RnnCell::gru ? 3 : 1; }
  bool has_cell_state() const { return cell == RnnCell::lstm; }
  int64_t macs() const { return (Count(time) * batch * weights()).value(); }
  // Of each unit in each step: its activations (one each), and c = f c + i g, h = o tanh(c) for the LSTM, r h~ and the blend (1 - z) n + z h for the GRU.
  int64_t elementwise_flops() const {
    const Count units = Count(time) * batch * directions * hidden_size;
    switch (cell) {
      case RnnCell::lstm: return (units * (4 + 5)).value();
      case RnnCell::gru: return (units * (4 + 3)).value();
      default: return units.value();
    }
  }
  int64_t weights() const { return (Count(directions) * gates() * hidden_size * (Count(input_size) + hidden_size)).value(); }
  Cost cost(bool has_bias) const {
    const Count steps = Count(time) * batch, biases = has_bias ? Count(2) * directions * gates() * hidden_size : Count(0), parameters = weights() + biases;
    return Cost::of(macs(), elementwise_flops() + steps * biases, steps * (input_size + Count(directions) * hidden_size) + parameters, parameters);
  }
};

// Attention of `heads` heads over an embedding of `embed` values: queries [batch, queries, embed], keys and values [batch, keys, embed].
struct AttentionGeometry {
  int64_t batch = 0, queries = 0, keys = 0, embed = 0, heads = 1;
  // The four projections, then q k^T, softmax and the weighted sum of v.
  Cost cost(bool has_bias) const {
    Cost total;
    total += MatmulGeometry{.batch = 1, .m = (Count(batch) * queries).value(), .n = embed, .k = embed}.linear_cost(has_bias);
    total += MatmulGeometry{.batch = 1, .m = (Count(batch) * keys).value(), .n = 2 * embed, .k = embed}.linear_cost(has_bias);
    total += MatmulGeometry{.batch = batch * heads, .m = queries, .n = keys, .k = embed / heads}.cost();
    total += AxisGeometry{.outer = batch * heads * queries, .size = keys}.softmax_cost();
    total += MatmulGeometry{.batch = batch * heads, .m = queries, .n = embed / heads, .k = keys}.cost();
    total += MatmulGeometry{.batch = 1, .m = (Count(batch) * queries).value(), .n = embed, .k = embed}.linear_cost(has_bias);
    return total;
  }
};

// Connectionist temporal classification. Scores are [time, batch, classes].
struct CtcGeometry {
  int64_t time = 0, batch = 0, classes = 0, max_target = 0;
  int64_t blank = 0;
  bool zero_infinity = false;                // infeasible samples: loss 0 instead of infinity (their gradient is zero either way)
  Reduction reduction = Reduction::none;     // mean: over the batch, each loss divided by its target's length
  int64_t states() const { return 2 * max_target + 1; }
};

}  // namespace fovea
