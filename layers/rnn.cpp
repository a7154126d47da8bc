#include <fovea/layers/rnn.h>

#include <cmath>

#include <fovea/autograd/random.h>
#include <fovea/layers/init.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {
namespace {

constexpr int64_t most_units = 1 << 30;     // products of it with the number of gates fit

// PyTorch's: uniform in +-1/sqrt(hidden).
Tensor random_weight(const Shape& shape, int64_t hidden) {
  const Tensor weight = empty(shape);
  const double bound = 1 / std::sqrt(static_cast<double>(hidden));
  init::uniform_(weight, -bound, bound);
  return weight;
}

}  // namespace

Recurrent::Recurrent(RnnCell cell, Options o) : cell_(cell), options_(o) {
  check<ValueError>(o.input > 0 && o.hidden > 0 && o.layers > 0, "recurrent layer: input, hidden and layers must be positive, got ",
                    o.input, ", ", o.hidden, " and ", o.layers, "; give them as {.input = 64, .hidden = 128}");
  check<ValueError>(o.input <= most_units && o.hidden <= most_units, "recurrent layer: input and hidden must be at most ", most_units, ", got ", o.input, " and ", o.hidden);
  check<ValueError>(o.dropout >= 0 && o.dropout < 1, "recurrent layer: dropout must be in [0, 1), got ", o.dropout);
  constexpr int64_t most_layers = 1024;
  check<ValueError>(o.layers <= most_layers, "recurrent layer: layers must be at most ", most_layers, ", got ", o.layers);
  for (int64_t layer = 0; layer < o.layers; ++layer) {
    const RnnGeometry g = layer_geometry(layer);
    const int64_t rows = g.gates() * o.hidden;
    for (int64_t direction = 0; direction < g.directions; ++direction) {
      const std::string ending = str("_l", layer, direction ? "_reverse" : "");
      weights_.push_back(param("weight_ih" + ending, random_weight({rows, g.input_size}, o.hidden)));
      weights_.push_back(param("weight_hh" + ending, random_weight({rows, o.hidden}, o.hidden)));
      if (!o.bias) continue;
      weights_.push_back(param("bias_ih" + ending, random_weight({rows}, o.hidden)));
      weights_.push_back(param("bias_hh" + ending, random_weight({rows}, o.hidden)));
    }
  }
}

RnnResult Recurrent::forward(const Tensor& x, const RnnInputs& inputs) {
  fovea::RnnOptions options;
  options.layers = options_.layers;
  options.bidirectional = options_.bidirectional;
  options.batch_first = options_.batch_first;
  options.lengths = alongside(x, inputs.lengths);
  options.h0 = alongside(x, inputs.h0);
  options.c0 = alongside(x, inputs.c0);
  const double p = options_.dropout;
  if (p > 0 && is_training() && !x.is_meta()) options.between_layers = [p](const Tensor& y) { return dropout(y, p); };
  std::vector<Tensor> weights;
  for (const Tensor& weight : weights_) weights.push_back(alongside(x, weight));
  switch (cell_) {
    case RnnCell::lstm: return lstm(x, weights, options);
    case RnnCell::gru: return gru(x, weights, options);
    case RnnCell::rnn_tanh: return rnn(x, weights, RnnActivation::tanh, options);
    default: return rnn(x, weights, RnnActivation::relu, options);
  }
}

std::string Recurrent::options() const {
  const Options& o = options_;
  std::string text = str(o.input, ", ", o.hidden);
  if (o.layers != 1) text += str(", layers=", o.layers);
  if (cell_ == RnnCell::rnn_relu) text += ", relu";
  if (o.bidirectional) text += ", bidirectional";
  if (o.batch_first) text += ", batch_first";
  if (o.dropout > 0) text += str(", dropout=", o.dropout);
  if (!o.bias) text += ", no bias";
  return text;
}

RnnGeometry Recurrent::layer_geometry(int64_t layer) const {
  const int64_t directions = options_.bidirectional ? 2 : 1;
  return {.cell = cell_,
          .input_size = layer == 0 ? options_.input : directions * options_.hidden,
          .hidden_size = options_.hidden,
          .directions = directions};
}

std::optional<Cost> Recurrent::own_cost(const Shape& input) const {
  check<ShapeError>(input.rank() == 3 && input[2] == options_.input, type_name(), ": takes ",
                    options_.batch_first ? "[batch,time," : "[time,batch,", options_.input, "], got ", input);
  Cost total;
  for (int64_t layer = 0; layer < options_.layers; ++layer) {
    RnnGeometry g = layer_geometry(layer);
    g.time = input[options_.batch_first ? 1 : 0];
    g.batch = input[options_.batch_first ? 0 : 1];
    total += g.cost(options_.bias);
  }
  return total;
}

std::optional<ReceptiveField> Recurrent::own_field() const {
  return ReceptiveField{{}, {.all_before = true, .all_after = options_.bidirectional}};
}

// --- cells ---

RecurrentCell::RecurrentCell(RnnCell cell, Options o) : cell_(cell) {
  check<ValueError>(o.input > 0 && o.hidden > 0, "recurrent cell: input and hidden must be positive, got ", o.input, " and ", o.hidden);
  check<ValueError>(o.input <= most_units && o.hidden <= most_units, "recurrent cell: input and hidden must be at most ", most_units, ", got ", o.input, " and ", o.hidden);
  const int64_t rows = RnnGeometry{.cell = cell}.gates() * o.hidden;
  weight_ih = param("weight_ih", random_weight({rows, o.input}, o.hidden));
  weight_hh = param("weight_hh", random_weight({rows, o.hidden}, o.hidden));
  bias_ih = param("bias_ih", o.bias ? random_weight({rows}, o.hidden) : Tensor());
  bias_hh = param("bias_hh", o.bias ? random_weight({rows}, o.hidden) : Tensor());
}

std::string RecurrentCell::options() const {
  return str(weight_ih.size(1), ", ", weight_hh.size(1), cell_ == RnnCell::rnn_relu ? ", relu" : "", bias_ih ? "" : ", no bias");
}

std::optional<Cost> RecurrentCell::own_cost(const Shape& input) const {
  check<ShapeError>(input.rank() == 2 && input[1] == weight_ih.size(1), type_name(), ": takes [batch,", weight_ih.size(1), "], got ",
                    input);
  return RnnGeometry{
      .cell = cell_, .time = 1, .batch = input[0], .input_size = weight_ih.size(1), .hidden_size = weight_hh.size(1), .directions = 1}
      .cost(bias_ih.defined());
}

Tensor RecurrentCell::zero_state(const Tensor& x) const {
  check<ShapeError>(x.rank() == 2, type_name(), ": takes x of [batch,", weight_ih.size(1), "], got ", x.shape());
  return zeros({x.size(0), weight_hh.size(1)}, {x.dtype(), x.device()});
}

LstmState LSTMCell::forward(const Tensor& x, const LstmState& state) {
  return lstm_cell(x, state.h, state.c, alongside(x, weight_ih), alongside(x, weight_hh), alongside(x, bias_ih), alongside(x, bias_hh));
}

Tensor GRUCell::forward(const Tensor& x, const Tensor& h) {
  return gru_cell(x, h, alongside(x, weight_ih), alongside(x, weight_hh), alongside(x, bias_ih), alongside(x, bias_hh));
}

Tensor RNNCell::forward(const Tensor& x, const Tensor& h) {
  const RnnActivation activation = cell() == RnnCell::rnn_tanh ? RnnActivation::tanh : RnnActivation::relu;
  return rnn_cell(x, h, alongside(x, weight_ih), alongside(x, weight_hh), alongside(x, bias_ih), alongside(x, bias_hh), activation);
}

}  // namespace fovea::layers
