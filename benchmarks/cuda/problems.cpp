// Products and what layers are made of; all through the public operations, whose cost on the host is hidden by a graph.
#include <algorithm>
#include <memory>

#include <fovea/fovea.h>

#include "problem.h"

namespace fovea::benchmarks {

Tensor random_input(const Row& row, const Shape& shape) {
  const Tensor x = to(randn(shape), row.element());
  return shape.rank() == 4 && row.is_channels_last() ? channels_last(x) : x;
}

Tensor last(const Tensor& x, int64_t axis, int64_t count) {
  const int64_t size = x.size(axis), taken = std::min(size, count);
  return narrow(x, axis, size - taken, taken);
}

Tensors last_of_each(const Tensors& all, int64_t count) {
  Tensors parts;
  for (const Tensor& x : all) parts.push_back(last(x, 0, count));
  return parts;
}

double bytes_of(const Tensors& tensors) {
  double bytes = 0;
  for (const Tensor& t : tensors) bytes += static_cast<double>(t.nbytes());
  return bytes;
}

Array array_of(const Tensor& x) {
  Array a{.data = x.mutable_view().data, .dtype = x.dtype(), .shape = {}, .strides = {}, .values = {}};
  for (int i = 0; i < x.rank(); ++i) {
    a.shape.push_back(x.size(i));
    a.strides.push_back(x.strides()[i]);
  }
  if (!is_floating(x.dtype())) a.values = x.to_vector<int64_t>();
  return a;
}

std::vector<Array> arrays_of(const Tensors& tensors) {
  std::vector<Array> arrays;
  for (const Tensor& t : tensors) arrays.push_back(t.defined() ? array_of(t) : Array{});
  return arrays;
}

namespace {

using Forward = std::function<Tensor(const Tensors&)>;

double bytes_per_element(const Row& row) { return static_cast<double>(size_of(row.element())); }

Tensor leaf_of(const Tensor& x) {
  Tensor leaf = x.detach();
  return leaf.set_requires_grad();
}

// The forward alone, without recording.
Run forward_run(Tensors inputs, Forward forward) {
  return [inputs = std::move(inputs), forward = std::move(forward)] {
    NoGrad no_grad;
    return Tensors{forward(inputs)};
  };
}

// Forward, and the gradients of the first `count` inputs for the output gradient dy (of ones, where undefined).
Run forward_backward_run(Tensors inputs, size_t count, Forward forward, Tensor dy = {}) {
  for (size_t i = 0; i < count; ++i) inputs[i] = leaf_of(inputs[i]);
  const Tensors leaves(inputs.begin(), inputs.begin() + static_cast<int64_t>(count));
  return [inputs = std::move(inputs), leaves, forward = std::move(forward), dy] {
    const Tensor y = forward(inputs);
    Tensors outputs{y.detach()};
    for (const Tensor& g : grad({y}, leaves, {dy.defined() ? dy : ones_like(y)})) outputs.push_back(g);
    return outputs;
  };
}

// The backward pass alone: the forward is computed and recorded now.
Run backward_run(Tensors inputs, size_t count, const Forward& forward, Tensor dy) {
  for (size_t i = 0; i < count; ++i) inputs[i] = leaf_of(inputs[i]);
  const Tensors leaves(inputs.begin(), inputs.begin() + static_cast<int64_t>(count));
  const Tensor y = forward(inputs);
  return [y, leaves, dy = std::move(dy)] { return grad({y}, leaves, {dy}, {.retain_graph = true}); };
}

}  // namespace

// Inputs: forward x, weight; backward_data dy, weight; backward_weight x, dy. The part that is compared: of the first two the last image, of the last the last two
// channels of input and output, or the last group.
Problem conv_problem(const Row& row) {
  const ConvGeometry g = row.conv();
  const Shape x{g.n, g.c, g.h, g.w}, w{g.k, g.group_c(), g.r, g.s}, y{g.n, g.k, g.out_h(), g.out_w()};
  Problem p;
  p.flops = 2.0 * static_cast<double>(g.macs());
  p.bytes = bytes_per_element(row) * static_cast<double>(g.inputs() + g.weights() + g.outputs());
  if (row.direction == "forward") {
    p.make_inputs = [=] { return Tensors{random_input(row, x), random_input(row, w)}; };
    const Conv2dOptions options{.stride = g.stride_h, .padding = g.pad_h, .dilation = g.dilation_h, .groups = g.groups};
    p.bind = [=](const Tensors& in) { return forward_run(in, [=](const Tensors& t) { return conv2d(t[0], t[1], {}, options); }); };
  } else if (row.direction == "backward_data") {
    p.make_inputs = [=] { return Tensors{random_input(row, y), random_input(row, w)}; };
    p.bind = [=](const Tensors& in) {
      ConvGeometry part = g;
      part.n = in[0].size(0);
      return forward_run(in, [=](const Tensors& t) { return conv2d_backward_data(part, t[0], t[1]); });
    };
  } else {
    check<ValueError>(row.direction == "backward_weight", "shapes: conv2d has no direction \"", row.direction, "\"");
    p.make_inputs = [=] { return Tensors{random_input(row, x), random_input(row, y)}; };
    p.bind = [=](const Tensors& in) {
      ConvGeometry part = g;
      part.c = in[0].size(1);
      part.k = in[1].size(1);
      part.groups = g.groups == 1 ? 1 : part.c / g.group_c();
      return forward_run(in, [=](const Tensors& t) { return conv2d_backward_weight(part, t[0], t[1]); });
    };
    const int64_t channels = g.groups == 1 ? std::min<int64_t>(2, g.c) : g.group_c(), filters = g.groups == 1 ? std::min<int64_t>(2, g.k) : g.group_k();
    const int64_t group_channels = g.groups == 1 ? channels : g.group_c();
    p.sample_inputs = [=](const Tensors& in) { return Tensors{last(in[0], 1, channels), last(in[1], 1, filters)}; };
    p.sample_outputs = [=](const Tensors& out) { return Tensors{last(last(out[0], 0, filters), 1, group_channels)}; };
    return p;
  }
  p.sample_inputs = [](const Tensors& in) { return Tensors{last(in[0], 0, 1), in[1]}; };
  p.sample_outputs = [](const Tensors& out) { return Tensors{last(out[0], 0, 1)}; };
  return p;
}

// Inputs a [batch,m,k], b [batch,k,n] (no batch axis for one); ta=t, tb=t: views of transposed memory. Compared: the last rows of the last product.
Problem gemm_problem(const Row& row) {
  const int64_t batch = row["batch"], m = row["m"], n = row["n"], k = row["k"];
  const auto operand = [=](int64_t rows, int64_t columns, bool is_transposed) {
    const int64_t first = is_transposed ? columns : rows, second = is_transposed ? rows : columns;
    const Tensor x = random_input(row, batch == 1 ? Shape{first, second} : Shape{batch, first, second});
    return is_transposed ? transpose(x) : x;
  };
  const MatmulGeometry g{.batch = batch, .m = m, .n = n, .k = k};
  Problem p;
  p.flops = 2.0 * static_cast<double>(g.macs());
  p.bytes = bytes_per_element(row) / 4 * static_cast<double>(g.cost().bytes);
  p.make_inputs = [=] { return Tensors{operand(m, k, row.text("ta") == "t"), operand(k, n, row.text("tb") == "t")}; };
  p.bind = [](const Tensors& in) { return forward_run(in, [](const Tensors& t) { return matmul(t[0], t[1]); }); };
  const auto product = [=](const Tensor& x) { return batch == 1 ? x : last(x, 0, 1); };
  p.sample_inputs = [=](const Tensors& in) { return Tensors{last(product(in[0]), -2, 16), product(in[1])}; };
  p.sample_outputs = [=](const Tensors& out) { return Tensors{last(product(out[0]), -2, 16)}; };
  return p;
}

namespace {

// int64 on the default device: all `largest`, or from 40 % of it to it, evenly.
Tensor lengths_of(const std::string& kind, int64_t count, int64_t largest) {
  std::vector<int64_t> lengths(static_cast<size_t>(count), largest);
  if (kind == "uniform")
    for (int64_t i = 0; i < count; ++i) lengths[static_cast<size_t>(i)] = std::max<int64_t>(1, largest * (40 * count + 60 * ((i * 7) % count)) / (100 * count));
  return from_vector(lengths, {count});
}

}  // namespace

// Inputs x, dy, lengths (int64 [batch]), then the weights of every layer and direction. Outputs y; forward+backward also the gradients of x and of the weights. Where
// the CPU would take too long for all of it, the last sample of the batch is compared, without the weights' gradients, which depend on all samples.
Problem lstm_problem(const Row& row) {
  const int64_t time = row["time"], batch = row["batch"], input = row["input"], hidden = row["hidden"], layers = row["layers"], directions = row["directions"];
  const bool is_even = row.text("lengths") == "equal", has_backward = row.has_backward();
  Problem p;
  int64_t weights = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const RnnGeometry g{.time = time, .batch = batch, .input_size = layer == 0 ? input : directions * hidden, .hidden_size = hidden, .directions = directions};
    p.flops += (has_backward ? 3 : 1) * (2.0 * static_cast<double>(g.macs()) + static_cast<double>(g.elementwise_flops()));
    weights += g.weights() + 2 * directions * g.gates() * hidden;
  }
  const double in_out = static_cast<double>(time * batch) * static_cast<double>(input + directions * hidden);
  p.bytes = bytes_per_element(row) * (has_backward ? 2.0 : 1.0) * (in_out + static_cast<double>(weights));
  p.make_inputs = [=] {
    const double bound = 1.0 / std::sqrt(static_cast<double>(hidden));
    Tensors in{random_input(row, {time, batch, input}), random_input(row, {time, batch, directions * hidden}), lengths_of(row.text("lengths"), batch, time)};
    const auto weight = [&](const Shape& shape) { in.push_back(to((rand(shape) * 2.0 - 1.0) * bound, row.element())); };
    for (int64_t layer = 0; layer < layers; ++layer) {
      for (int64_t direction = 0; direction < directions; ++direction) {
        weight({4 * hidden, layer == 0 ? input : directions * hidden});
        weight({4 * hidden, hidden});
        weight({4 * hidden});
        weight({4 * hidden});
      }
    }
    return in;
  };
  p.bind = [=](const Tensors& in) {
    Tensors order{in[0]};                                         // what has a gradient comes first
    order.insert(order.end(), in.begin() + 3, in.end());
    const RnnOptions options{.layers = layers, .bidirectional = directions == 2, .lengths = is_even ? Tensor() : in[2]};
    const Forward forward = [=](const Tensors& t) { return lstm(t[0], Tensors(t.begin() + 1, t.end()), options).output; };
    return has_backward ? forward_backward_run(order, order.size(), forward, in[1]) : forward_run(order, forward);
  };
  if (p.flops < 5e9) return p;
  p.sample_inputs = [](const Tensors& in) {
    Tensors part = in;
    part[0] = last(in[0], 1, 1);
    part[1] = last(in[1], 1, 1);
    part[2] = last(in[2], 0, 1);
    return part;
  };
  p.sample_outputs = [has_backward](const Tensors& out) {
    Tensors part{last(out[0], 1, 1)};
    if (has_backward) part.push_back(last(out[1], 1, 1));
    return part;
  };
  return p;
}

namespace {

// Labels from 1 to classes - 1; with repeats: pairs of equal ones.
Tensor labels_of(const std::string& kind, int64_t batch, int64_t target, int64_t classes) {
  if (kind != "repeats") return randint(1, classes, {batch, target});
  const Tensor half = randint(1, classes, {batch, (target + 1) / 2, 1});
  return contiguous(narrow(reshape(expand(half, {batch, (target + 1) / 2, 2}), {batch, -1}), 1, 0, target));
}

// How many labels each sample has: all `target`; every other one none; or, where lengths vary, a share.
Tensor label_counts(const std::string& kind, int64_t batch, int64_t target) {
  if (kind != "empty") return lengths_of(kind, batch, target);
  std::vector<int64_t> counts(static_cast<size_t>(batch), target);
  for (size_t i = 0; i < counts.size(); i += 2) counts[i] = 0;
  return from_vector(counts, {batch});
}

Tensor step_counts(const std::string& kind, int64_t batch, int64_t time, int64_t target) {
  if (kind != "infeasible") return lengths_of(kind, batch, time);
  std::vector<int64_t> counts(static_cast<size_t>(batch), time);
  for (size_t i = 0; i < counts.size(); i += 2) counts[i] = std::max<int64_t>(1, target / 2);      // too few for the labels
  return from_vector(counts, {batch});
}

}  // namespace

// Inputs logits, targets, input_lengths, target_lengths. Outputs the losses [batch] and the gradient of their sum by the logits. Compared: the last four samples.
Problem ctc_problem(const Row& row) {
  const int64_t time = row["time"], batch = row["batch"], classes = row["classes"], target = row["target"];
  const std::string kind = row.text("lengths");
  Problem p;
  p.bytes = 2.0 * bytes_per_element(row) * static_cast<double>(time * batch) * static_cast<double>(classes);      // the logits read, their gradient written
  p.make_inputs = [=] {
    return Tensors{random_input(row, {time, batch, classes}), labels_of(kind, batch, target, classes), step_counts(kind, batch, time, target),
                   label_counts(kind, batch, target)};
  };
  p.bind = [](const Tensors& in) {
    return forward_backward_run(in, 1, [](const Tensors& t) { return ctc_loss(t[0], t[1], t[2], t[3], {.reduction = Reduction::none}); });
  };
  p.sample_inputs = [](const Tensors& in) { return Tensors{last(in[0], 1, 4), last(in[1], 0, 4), last(in[2], 0, 4), last(in[3], 0, 4)}; };
  p.sample_outputs = [](const Tensors& out) { return Tensors{last(out[0], 0, 4), last(out[1], 1, 4)}; };
  return p;
}

namespace {

enum class NormKind { plain, relu, add_relu };

// in: x, gamma, beta, [residual], mean, variance
Tensor normalized(const Tensors& in, NormKind kind, bool is_training) {
  const Tensor &x = in[0], &gamma = in[1], &beta = in[2], &mean = in[in.size() - 2], &variance = in[in.size() - 1];
  if (kind == NormKind::plain) return batch_norm(x, gamma, beta, mean, variance, is_training);
  if (kind == NormKind::relu) return batch_norm_relu(x, gamma, beta, mean, variance, is_training);
  return batch_norm_add_relu(x, in[3], gamma, beta, mean, variance, is_training);
}

}  // namespace

// Inputs x, gamma, beta, [residual], mean, variance, [dy]; all of one value a channel are float32, as mixed precision has it. Outputs y, or dx, dgamma, dbeta,
// [dresidual]. Compared: the last two channels.
Problem batch_norm_problem(const Row& row) {
  const Shape shape{row["n"], row["c"], row["h"], row["w"]}, channels{row["c"]};
  const NormKind kind = row.op == "batch_norm" ? NormKind::plain : row.op == "batch_norm_relu" ? NormKind::relu : NormKind::add_relu;
  check<ValueError>(kind != NormKind::add_relu || row.op == "batch_norm_add_relu", "shapes: ", row.op, " is no operation of the batch norm family");
  const bool is_backward = row.direction == "backward", has_residual = kind == NormKind::add_relu;
  const double planes = is_backward ? 3 + has_residual + (kind != NormKind::plain) : 2 + has_residual;     // dy, x, [y] read, dx, [dresidual] written; x, [residual] read, y written
  Problem p;
  p.bytes = planes * bytes_per_element(row) * static_cast<double>(shape.numel());
  p.make_inputs = [=] {
    Tensors in{random_input(row, shape), rand(channels) + 0.5, randn(channels)};
    if (has_residual) in.push_back(random_input(row, shape));
    in.push_back(randn(channels) * 0.1);
    in.push_back(rand(channels) + 0.5);
    if (is_backward) in.push_back(random_input(row, shape));
    return in;
  };
  p.bind = [=, is_training = row.direction != "eval"](const Tensors& in) {
    const Forward forward = [=](const Tensors& t) { return normalized(t, kind, is_training); };
    if (!is_backward) return forward_run(in, forward);
    return backward_run(Tensors(in.begin(), in.end() - 1), has_residual ? 4 : 3, forward, in.back());
  };
  const auto last_channels = [](const Tensors& all) {
    Tensors part;
    for (const Tensor& t : all) part.push_back(last(t, t.rank() == 1 ? 0 : 1, 2));
    return part;
  };
  p.sample_inputs = last_channels;
  p.sample_outputs = last_channels;
  return p;
}

// Inputs x, [dy]. Outputs y, or dx. Compared: the last image.
Problem pooling_problem(const Row& row) {
  const PoolGeometry g = row.pool();
  const Pair kernel{g.kernel_h, g.kernel_w}, stride{g.stride_h, g.stride_w}, padding{g.pad_h, g.pad_w};
  const bool is_max = row.op == "max_pool2d", is_backward = row.direction == "backward";
  check<ValueError>(is_max || row.op == "avg_pool2d", "shapes: ", row.op, " is no operation of the pooling family");
  const Shape x{g.n, g.c, g.h, g.w}, y{g.n, g.c, g.out_h(), g.out_w()};
  Problem p;
  p.bytes = bytes_per_element(row) * static_cast<double>(x.numel() + y.numel());
  p.make_inputs = [=] {
    Tensors in{random_input(row, x)};
    if (is_backward) in.push_back(random_input(row, y));
    return in;
  };
  p.bind = [=](const Tensors& in) {
    const Forward forward = [=](const Tensors& t) {
      return is_max ? max_pool2d(t[0], kernel, {.stride = stride, .padding = padding}) : avg_pool2d(t[0], kernel, {.stride = stride, .padding = padding});
    };
    return is_backward ? backward_run({in[0]}, 1, forward, in[1]) : forward_run(in, forward);
  };
  p.sample_inputs = p.sample_outputs = [](const Tensors& all) { return last_of_each(all, 1); };
  return p;
}

// softmax: inputs x, dy; outputs y, [dx]. cross_entropy: inputs logits, labels; outputs the mean loss and its gradient by the logits. Compared: the last 64 rows.
Problem softmax_problem(const Row& row) {
  const int64_t n = row["n"], classes = row["classes"], part = std::min<int64_t>(64, n);
  const double matrix = bytes_per_element(row) * static_cast<double>(n) * static_cast<double>(classes);
  Problem p;
  if (row.op == "softmax") {
    p.bytes = (row.has_backward() ? 5 : 2) * matrix;              // x read, y written; dy and y read, dx written
    p.make_inputs = [=] { return Tensors{random_input(row, {n, classes}), random_input(row, {n, classes})}; };
    p.bind = [backward = row.has_backward()](const Tensors& in) {
      const Forward forward = [](const Tensors& t) { return softmax(t[0]); };
      return backward ? forward_backward_run({in[0]}, 1, forward, in[1]) : forward_run({in[0]}, forward);
    };
    p.sample_inputs = p.sample_outputs = [](const Tensors& all) { return last_of_each(all, 64); };
    return p;
  }
  check<ValueError>(row.op == "cross_entropy", "shapes: ", row.op, " is no operation of the softmax family");
  p.bytes = 2 * matrix;                                           // logits read, gradient written
  p.make_inputs = [=] { return Tensors{random_input(row, {n, classes}), randint(0, classes, {n})}; };
  p.bind = [](const Tensors& in) { return forward_backward_run(in, 1, [](const Tensors& t) { return cross_entropy(t[0], t[1]); }); };
  p.sample_inputs = [](const Tensors& in) { return Tensors{last(in[0], 0, 64), last(in[1], 0, 64)}; };
  // A gradient of the mean over n rows is n / part times as small as that of the mean over a part; the loss itself belongs to all rows and cannot be compared.
  p.sample_outputs = [=](const Tensors& out) { return Tensors{Tensor(), to(last(out[1], 0, part), DType::float32) * (static_cast<double>(n) / static_cast<double>(part))}; };
  return p;
}

// Inputs and outputs as the operation's; n elements, or an axis of [outer,size,inner]. Compared: the first and the last elements, or everything that a reduction leaves.
Problem elementwise_problem(const Row& row) {
  Problem p;
  const double element = bytes_per_element(row);
  if (row.op == "sum_axis") {
    const Shape x{row["outer"], row["size"], row["inner"]};
    p.bytes = element * static_cast<double>(x.numel() + x[0] * x[2]);
    p.make_inputs = [=] { return Tensors{random_input(row, x)}; };
    p.bind = [](const Tensors& in) { return forward_run(in, [](const Tensors& t) { return sum(t[0], 1); }); };
    const auto corner = [](const Tensors& all) { return Tensors{last(last(all[0], 0, 8), -1, 8)}; };
    p.sample_inputs = corner;
    p.sample_outputs = corner;
    return p;
  }
  if (row.op == "transpose") {
    const Shape x{row["rows"], row["columns"]};
    p.bytes = 2 * element * static_cast<double>(x.numel());
    p.make_inputs = [=] { return Tensors{random_input(row, x)}; };
    p.bind = [](const Tensors& in) { return forward_run(in, [](const Tensors& t) { return contiguous(transpose(t[0])); }); };
    p.sample_inputs = [](const Tensors& in) { return Tensors{last(in[0], 0, 40)}; };
    p.sample_outputs = [](const Tensors& out) { return Tensors{last(out[0], 1, 40)}; };
    return p;
  }
  if (row.op == "add_bias") {
    const Shape x{row["n"], row["c"], row["h"], row["w"]}, b{1, row["c"], 1, 1};
    p.bytes = element * static_cast<double>(2 * x.numel() + b.numel());
    p.make_inputs = [=] { return Tensors{random_input(row, x), random_input(row, b)}; };
    p.bind = [](const Tensors& in) { return forward_run(in, [](const Tensors& t) { return t[0] + t[1]; }); };
    p.sample_inputs = [](const Tensors& in) { return Tensors{last(in[0], 0, 1), in[1]}; };
    p.sample_outputs = [](const Tensors& out) { return Tensors{last(out[0], 0, 1)}; };
    return p;
  }
  struct Kind {
    const char* name;
    size_t inputs;
    bool reduces;
    Forward forward;
  };
  static const std::vector<Kind> kinds{
      {"copy", 1, false, [](const Tensors& t) { return clone(t[0]); }},
      {"add", 2, false, [](const Tensors& t) { return t[0] + t[1]; }},
      {"relu", 1, false, [](const Tensors& t) { return relu(t[0]); }},
      {"gelu", 1, false, [](const Tensors& t) { return gelu(t[0]); }},
      {"sigmoid", 1, false, [](const Tensors& t) { return sigmoid(t[0]); }},
      {"add_relu", 2, false, [](const Tensors& t) { return relu(t[0] + t[1]); }},
      {"sum", 1, true, [](const Tensors& t) { return sum(t[0]); }},
      {"max", 1, true, [](const Tensors& t) { return max(t[0]); }},
      {"relu_backward", 2, false, [](const Tensors& t) { return relu(t[0]); }},
  };
  const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const Kind& k) { return row.op == k.name; });
  check<ValueError>(kind != kinds.end(), "shapes: ", row.op, " is no operation of the elementwise family");
  const int64_t n = row["n"];
  p.bytes = element * static_cast<double>(n) * static_cast<double>(kind->inputs + (kind->reduces ? 0 : 1));
  p.make_inputs = [=, count = kind->inputs] {
    Tensors in;
    while (in.size() < count) in.push_back(random_input(row, {n}));
    return in;
  };
  if (row.op == "relu_backward") p.bind = [f = kind->forward](const Tensors& in) { return backward_run({in[0]}, 1, f, in[1]); };
  else p.bind = [f = kind->forward](const Tensors& in) { return forward_run(in, f); };
  if (kind->reduces) return p;
  const auto ends = [](const Tensors& all) {
    constexpr int64_t some = 4096;
    Tensors part;
    for (const Tensor& t : all) part.push_back(concat({narrow(t, 0, 0, std::min(some, t.size(0))), last(t, 0, some)}));
    return part;
  };
  p.sample_inputs = ends;
  p.sample_outputs = ends;
  return p;
}

Problem problem_of(const Row& row) {
  if (row.family == "conv") return conv_problem(row);
  if (row.family == "gemm") return gemm_problem(row);
  if (row.family == "lstm") return lstm_problem(row);
  if (row.family == "ctc") return ctc_problem(row);
  if (row.family == "batchnorm") return batch_norm_problem(row);
  if (row.family == "pooling") return pooling_problem(row);
  if (row.family == "softmax") return softmax_problem(row);
  if (row.family == "elementwise") return elementwise_problem(row);
  if (row.family == "optimizer") return optimizer_problem(row);
  if (row.family == "steps") return step_problem(row);
  fail<ValueError>("there is no family \"", row.family, "\"; there are conv, gemm, lstm, batchnorm, ctc, pooling, softmax, optimizer, elementwise and steps");
}

}  // namespace fovea::benchmarks
