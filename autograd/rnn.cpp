#include <fovea/autograd/rnn.h>

#include <algorithm>
#include <array>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/arguments.h>
#include <fovea/autograd/backward.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/matmul.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

using detail::mutable_view_or_none;
using detail::view_or_none;
using kernels::KernelTable;

const char* name_of(RnnCell cell) { return cell == RnnCell::lstm ? "lstm" : cell == RnnCell::gru ? "gru" : "rnn"; }

// weight_ih, weight_hh, bias_ih, bias_hh of the forward direction, then of the reverse one; undefined where there is none.
using LayerWeights = std::array<Tensor, 8>;
constexpr const char* weight_names[4] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"};

// What a layer's node saves, and the order of its inputs.
enum Slot { slot_x, slot_h0, slot_c0, slot_weights, slot_lengths = slot_weights + 8, slot_y, slot_reserve };

KernelTable::RnnWeights weight_views(const LayerWeights& w) {
  const auto view = [&](size_t i) { return view_or_none(w[i]); };
  return {{view(0), view(4)}, {view(1), view(5)}, {view(2), view(6)}, {view(3), view(7)}};
}

KernelTable::RnnGradients gradient_views(const LayerWeights& w) {
  const auto view = [&](size_t i) { return mutable_view_or_none(w[i]); };
  return {{view(0), view(4)}, {view(1), view(5)}, {view(2), view(6)}, {view(3), view(7)}};
}

Tensor contiguous_or_undefined(const Tensor& x) { return x ? contiguous(x) : x; }

// --- the same layer put together from differentiable operations ---

// The states after one step of one direction.
LstmCellResult step(RnnCell cell, const Tensor& x, const LstmCellResult& state, const Tensor* w) {
  if (cell == RnnCell::lstm) return lstm_cell(x, state.h, state.c, w[0], w[1], w[2], w[3]);
  if (cell == RnnCell::gru) return {gru_cell(x, state.h, w[0], w[1], w[2], w[3]), {}};
  return {rnn_cell(x, state.h, w[0], w[1], w[2], w[3], cell == RnnCell::rnn_relu ? RnnActivation::relu : RnnActivation::tanh), {}};
}

// output, h_n and c_n of run_layer() below.
Grads composed_layer(const RnnGeometry& g, const Tensor& x, const Tensor& lengths, const Tensor& h0, const Tensor& c0, const LayerWeights& w) {
  const TensorOptions options{x.dtype(), x.device()};
  std::vector<Tensor> outputs, h_n, c_n;
  for (int64_t d = 0; d < g.directions; ++d) {
    const auto initial = [&](const Tensor& state) { return state ? select(state, 0, d) : zeros({g.batch, g.hidden_size}, options); };
    LstmCellResult state{initial(h0), g.has_cell_state() ? initial(c0) : Tensor()};
    std::vector<Tensor> steps(static_cast<size_t>(g.time));
    for (int64_t i = 0; i < g.time; ++i) {
      const int64_t t = d == 0 ? i : g.time - 1 - i;
      const Tensor is_active = lengths ? unsqueeze(gt(lengths, t), 1) : ones({g.batch, 1}, {DType::boolean, x.device()});
      const LstmCellResult next = step(g.cell, select(x, 0, t), state, w.data() + 4 * d);
      steps[static_cast<size_t>(t)] = where(is_active, next.h, 0);
      state = {where(is_active, next.h, state.h), state.c ? where(is_active, next.c, state.c) : Tensor()};
    }
    outputs.push_back(g.time > 0 ? stack(steps) : zeros({0, g.batch, g.hidden_size}, options));
    h_n.push_back(state.h);
    c_n.push_back(state.c);
  }
  return {concat(outputs, 2), stack(h_n), g.has_cell_state() ? stack(c_n) : Tensor()};
}

// The gradients of run_layer(), recorded: of a second run of the layer, made of operations that can be differentiated again.
Grads composed_backward(const RnnGeometry& g, const Saved& s, const Grads& gradients) {
  std::vector<Tensor> inputs(slot_lengths), wanted;
  std::vector<size_t> places;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor input = s[static_cast<int>(i)];
    if (!input) continue;
    inputs[i] = input * 1.0;                 // a place in the graph of its own: inputs that were made of one another must not count for each other
    if (!s.needs(static_cast<int>(i))) continue;
    wanted.push_back(inputs[i]);
    places.push_back(i);
  }
  LayerWeights weights;
  std::copy(inputs.begin() + slot_weights, inputs.end(), weights.begin());
  const Grads outputs = composed_layer(g, inputs[slot_x], s[slot_lengths], inputs[slot_h0], inputs[slot_c0], weights);
  std::vector<Tensor> used, output_gradients;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i]) continue;
    used.push_back(outputs[i]);
    output_gradients.push_back(gradients[i]);
  }
  const std::vector<Tensor> found = grad(used, wanted, output_gradients, {.create_graph = true, .allow_unused = true});
  Grads result(slot_lengths);
  for (size_t i = 0; i < places.size(); ++i) result[places[i]] = found[i];
  return result;
}

Grads layer_backward(const RnnGeometry& g, const Saved& s, const Grads& gradients) {
  if (grad_mode()) return composed_backward(g, s, gradients);
  const Tensor x = s[slot_x], h0 = s[slot_h0], c0 = s[slot_c0], y = s[slot_y], reserve = s[slot_reserve];
  LayerWeights weights, dweights;
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = s[slot_weights + static_cast<int>(i)];
    if (weights[i] && s.needs(slot_weights + static_cast<int>(i))) dweights[i] = empty_like(weights[i]);
  }
  const auto gradient_of = [&](const Tensor& input, int i) { return input && s.needs(i) ? empty_like(input) : Tensor(); };
  const Tensor dx = gradient_of(x, slot_x), dh0 = gradient_of(h0, slot_h0), dc0 = gradient_of(c0, slot_c0);
  const Tensor dy = contiguous_or_undefined(gradients[0]), dh_n = contiguous_or_undefined(gradients[1]);
  const Tensor dc_n = g.has_cell_state() ? contiguous_or_undefined(gradients[2]) : Tensor();
  const Scratch scratch(table_of(x).rnn_workspace(g, x.dtype()), x.device());
  table_of(x).rnn_backward(queue_of(x), g, x.view(), view_or_none(s[slot_lengths]), view_or_none(h0), view_or_none(c0), weight_views(weights), y.view(),
                           {reserve.mutable_view().data, reserve.nbytes()}, view_or_none(dy), view_or_none(dh_n), view_or_none(dc_n), mutable_view_or_none(dx),
                           mutable_view_or_none(dh0), mutable_view_or_none(dc0), gradient_views(dweights), scratch);
  Grads result = {dx, dh0, dc0};
  result.insert(result.end(), dweights.begin(), dweights.end());
  return result;
}

RnnResult run_layer(const RnnGeometry& g, const Tensor& x, const Tensor& lengths, const Tensor& h0, const Tensor& c0, const LayerWeights& w) {
  const TensorOptions options{x.dtype(), x.device()};
  RnnResult r{empty({g.time, g.batch, g.directions * g.hidden_size}, options), empty({g.directions, g.batch, g.hidden_size}, options), {}};
  if (g.has_cell_state()) r.c_n = empty(r.h_n.shape(), options);
  std::vector<Tensor> inputs = {x, h0, c0};
  inputs.insert(inputs.end(), w.begin(), w.end());
  Tensor reserve;
  if (should_record(inputs)) reserve = empty({table_of(x).rnn_reserve(g, x.dtype())}, {DType::uint8, x.device()});
  {
    const Scratch scratch(table_of(x).rnn_workspace(g, x.dtype()), x.device());
    const kernels::Workspace kept = reserve ? kernels::Workspace{reserve.mutable_view().data, reserve.nbytes()} : kernels::Workspace{};
    table_of(x).rnn_forward(queue_of(x), g, x.view(), view_or_none(lengths), view_or_none(h0), view_or_none(c0), weight_views(w), r.output.mutable_view(),
                            r.h_n.mutable_view(), mutable_view_or_none(r.c_n), kept, scratch);
  }
  std::vector<Tensor*> outputs = {&r.output, &r.h_n};
  if (r.c_n) outputs.push_back(&r.c_n);
  record_outputs(name_of(g.cell), std::move(outputs), inputs, saving(x, h0, c0, w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], lengths, r.output, reserve),
                 [g](const Saved& s, const Grads& gradients) { return layer_backward(g, s, gradients); });
  return r;
}

void check_like(const char* op, const std::string& argument, const Tensor& t, const Shape& shape, const Tensor& x) {
  check<ShapeError>(t.defined(), op, ": ", argument, " is an undefined tensor, expected shape ", shape);
  check<ShapeError>(t.shape() == shape, op, ": ", argument, " has shape ", t.shape(), ", expected ", shape, " (x is ", x.shape(), ")");
  detail::check_alike(op, argument.c_str(), t, "x", x);
}

// The lengths as kernels take them: contiguous, each in [0, time].
Tensor checked_lengths(const char* op, const Tensor& lengths, const Tensor& x) {
  const int64_t time = x.size(0), batch = x.size(1);
  check<DTypeError>(lengths.dtype() == DType::int64, op, ": lengths must be int64, got ", lengths.dtype());
  check<ShapeError>(lengths.shape() == Shape{batch}, op, ": lengths has shape ", lengths.shape(), ", expected [", batch, "], one for each sample");
  check<DeviceError>(lengths.device() == x.device(), op, ": lengths are on ", lengths.device(), " but x is on ", x.device(), "; copy one with to()");
  table_of(lengths).check_range(queue_of(lengths), {op, "lengths", 0, time + 1, str("the ", time, " steps of x")}, lengths.view(), {});
  if (lengths.device().kind == Device::Kind::cpu) return contiguous(lengths);
  return clamp(lengths, 0.0, static_cast<double>(time));     // a wrong one is found later, and must not lead kernels out of memory until then
}

// The weights of one layer, checked, and made contiguous.
LayerWeights layer_weights(const RnnGeometry& g, const std::vector<Tensor>& weights, int64_t layer, size_t per_direction, const Tensor& x) {
  const int64_t rows = g.gates() * g.hidden_size;
  const Shape shapes[4] = {{rows, g.input_size}, {rows, g.hidden_size}, {rows}, {rows}};
  LayerWeights result;
  for (size_t d = 0; d < static_cast<size_t>(g.directions); ++d)
    for (size_t i = 0; i < per_direction; ++i) {
      const Tensor& w = weights[(static_cast<size_t>(layer * g.directions) + d) * per_direction + i];
      check_like(name_of(g.cell), str(weight_names[i], "_l", layer, d == 1 ? "_reverse" : ""), w, shapes[i], x);
      result[d * 4 + i] = contiguous(w);
    }
  return result;
}

// How many weights a layer has for each direction: four, or two without biases.
size_t weights_per_direction(const char* op, const std::vector<Tensor>& weights, const RnnOptions& options) {
  constexpr int64_t most_layers = 1 << 20;   // products of it fit
  check<ValueError>(options.layers >= 1 && options.layers <= most_layers, op, ": layers must be at least 1 and at most ", most_layers, ", got ", options.layers);
  const size_t units = static_cast<size_t>(options.layers) * (options.bidirectional ? 2 : 1);
  check<ValueError>(weights.size() == 4 * units || weights.size() == 2 * units, op, ": got ", weights.size(), " weights, expected ", 4 * units,
                    " (weight_ih, weight_hh, bias_ih, bias_hh for each of ", units, " layers and directions) or ", 2 * units, " without biases");
  return weights.size() / units;
}

RnnResult run_layers(RnnCell cell, const Tensor& input, const std::vector<Tensor>& weights, const RnnOptions& options);

// With all arguments converted.
RnnResult run_layers_cast(const detail::Cast& cast, RnnCell cell, const Tensor& input, std::vector<Tensor> weights, RnnOptions options) {
  for (Tensor& w : weights) w = cast(w);
  options.h0 = cast(options.h0);
  options.c0 = cast(options.c0);
  const RnnResult r = run_layers(cell, cast(input), weights, options);
  return {cast.back(r.output), cast.back(r.h_n), cast.back(r.c_n)};
}

RnnResult run_layers(RnnCell cell, const Tensor& input, const std::vector<Tensor>& weights, const RnnOptions& options) {
  const char* op = name_of(cell);
  std::vector<Tensor> arguments = {input, options.h0, options.c0};
  arguments.insert(arguments.end(), weights.begin(), weights.end());
  if (const detail::Cast cast(op, kernels::Family::rnn, arguments); cast) return run_layers_cast(cast, cell, input, weights, options);
  detail::check_defined(op, "x", input);
  check<ShapeError>(input.rank() == 3, op, ": x must be ", options.batch_first ? "[batch, time, input]" : "[time, batch, input]", ", got ", input.shape());
  detail::check_real(op, "x", input, kernels::Family::rnn);
  const size_t per_direction = weights_per_direction(op, weights, options);
  detail::check_defined(op, "weight_hh_l0", weights[1]);
  check<ShapeError>(weights[1].rank() == 2, op, ": weight_hh_l0 must be a matrix [gates * hidden, hidden], got ",
                    weights[1].shape());
  Tensor x = options.batch_first ? transpose(input, 0, 1) : input;
  const int64_t directions = options.bidirectional ? 2 : 1, hidden = weights[1].size(1);
  const Shape states{options.layers * directions, x.size(1), hidden};
  if (options.h0) check_like(op, "h0", options.h0, states, x);
  if (options.c0) check_like(op, "c0", options.c0, states, x);
  check<ValueError>(!options.c0 || cell == RnnCell::lstm, op, ": has no cell state, but c0 was given");
  const Tensor lengths = options.lengths ? checked_lengths(op, options.lengths, x) : Tensor();

  std::vector<Tensor> h_n, c_n;
  for (int64_t layer = 0; layer < options.layers; ++layer) {
    const RnnGeometry g{cell, x.size(0), x.size(1), x.size(2), hidden, directions};
    const auto state = [&](const Tensor& all) { return all ? contiguous(narrow(all, 0, layer * directions, directions)) : Tensor(); };
    const RnnResult r = run_layer(g, contiguous(x), lengths, state(options.h0), state(options.c0), layer_weights(g, weights, layer, per_direction, x));
    x = options.between_layers && layer + 1 < options.layers ? options.between_layers(r.output) : r.output;
    h_n.push_back(r.h_n);
    c_n.push_back(r.c_n);
  }
  const auto joined = [&](const std::vector<Tensor>& list) { return list.size() == 1 ? list[0] : concat(list); };
  return {options.batch_first ? transpose(x, 0, 1) : x, joined(h_n), cell == RnnCell::lstm ? joined(c_n) : Tensor()};
}

}  // namespace

namespace {

// [batch, input] and [batch, hidden] states with weights of `gates` times hidden rows.
void check_cell(const char* op, int64_t gates, const Tensor& x, const Tensor& h, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih, const Tensor& bias_hh) {
  detail::check_defined(op, "x", x);
  detail::check_defined(op, "weight_hh", weight_hh);
  check<DTypeError>(is_floating(x.dtype()), op, ": takes floating-point tensors, got ", x.dtype(), "; convert with to(x, DType::float32)");
  check<ShapeError>(x.rank() == 2, op, ": x must be [batch, input], got ", x.shape());
  check<ShapeError>(weight_hh.rank() == 2, op, ": weight_hh must be [", gates, " * hidden, hidden], got ", weight_hh.shape());
  const int64_t hidden = weight_hh.size(1);
  check_like(op, "h", h, {x.size(0), hidden}, x);
  check_like(op, "weight_ih", weight_ih, {gates * hidden, x.size(1)}, x);
  check_like(op, "weight_hh", weight_hh, {gates * hidden, hidden}, x);
  if (bias_ih) check_like(op, "bias_ih", bias_ih, {gates * hidden}, x);
  if (bias_hh) check_like(op, "bias_hh", bias_hh, {gates * hidden}, x);
}

// The gates of [batch, count * hidden], one after the other; chunk() would give fewer where hidden is 0.
std::vector<Tensor> gates_of(const Tensor& sums, int64_t count) { return split(sums, std::vector<int64_t>(static_cast<size_t>(count), sums.size(1) / count), 1); }

}  // namespace

LstmCellResult lstm_cell(const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih, const Tensor& bias_hh) {
  const cuda::Range range("lstm_cell");
  if (const detail::Cast cast("lstm_cell", {}, {x, h, c, weight_ih, weight_hh, bias_ih, bias_hh}); cast)
    return lstm_cell(cast(x), cast(h), cast(c), cast(weight_ih), cast(weight_hh), cast(bias_ih), cast(bias_hh));
  check_cell("lstm_cell", 4, x, h, weight_ih, weight_hh, bias_ih, bias_hh);
  check_like("lstm_cell", "c", c, h.shape(), x);
  const std::vector<Tensor> gates = gates_of(linear(x, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh), 4);
  const Tensor next = sigmoid(gates[1]) * c + sigmoid(gates[0]) * tanh(gates[2]);
  return {sigmoid(gates[3]) * tanh(next), next};
}

Tensor gru_cell(const Tensor& x, const Tensor& h, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih, const Tensor& bias_hh) {
  const cuda::Range range("gru_cell");
  if (const detail::Cast cast("gru_cell", {}, {x, h, weight_ih, weight_hh, bias_ih, bias_hh}); cast)
    return gru_cell(cast(x), cast(h), cast(weight_ih), cast(weight_hh), cast(bias_ih), cast(bias_hh));
  check_cell("gru_cell", 3, x, h, weight_ih, weight_hh, bias_ih, bias_hh);
  const std::vector<Tensor> input = gates_of(linear(x, weight_ih, bias_ih), 3), state = gates_of(linear(h, weight_hh, bias_hh), 3);
  const Tensor r = sigmoid(input[0] + state[0]), z = sigmoid(input[1] + state[1]), n = tanh(input[2] + r * state[2]);
  return n + z * (h - n);
}

Tensor rnn_cell(const Tensor& x, const Tensor& h, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih, const Tensor& bias_hh,
                RnnActivation activation) {
  const cuda::Range range("rnn_cell");
  if (const detail::Cast cast("rnn_cell", {}, {x, h, weight_ih, weight_hh, bias_ih, bias_hh}); cast)
    return rnn_cell(cast(x), cast(h), cast(weight_ih), cast(weight_hh), cast(bias_ih), cast(bias_hh), activation);
  check_cell("rnn_cell", 1, x, h, weight_ih, weight_hh, bias_ih, bias_hh);
  const Tensor sum = linear(x, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh);
  return activation == RnnActivation::tanh ? tanh(sum) : relu(sum);
}

RnnResult lstm(const Tensor& x, const std::vector<Tensor>& weights, const RnnOptions& options) {
  const cuda::Range range("lstm");
  return run_layers(RnnCell::lstm, x, weights, options);
}

RnnResult gru(const Tensor& x, const std::vector<Tensor>& weights, const RnnOptions& options) {
  const cuda::Range range("gru");
  return run_layers(RnnCell::gru, x, weights, options);
}

RnnResult rnn(const Tensor& x, const std::vector<Tensor>& weights, RnnActivation activation, const RnnOptions& options) {
  const cuda::Range range("rnn");
  return run_layers(activation == RnnActivation::relu ? RnnCell::rnn_relu : RnnCell::rnn_tanh, x, weights, options);
}

}  // namespace fovea
