// Recurrent layers over whole sequences, and their cells for one step. Names, gate order (LSTM i f g o, GRU r z n) and defaults are
// PyTorch's.
//
//     LSTM lstm({.input = 512, .hidden = 256, .layers = 2, .bidirectional = true});
//     Tensor y = lstm(x);                                           // the output alone, from zero states: goes into a Sequential
//     RnnResult r = lstm(x, {.lengths = lengths, .h0 = h, .c0 = c}); // r.output, r.h_n, r.c_n
#pragma once

#include <fovea/autograd/rnn.h>
#include <fovea/layers/module.h>

namespace fovea::layers {

// What a recurrent layer may be given besides x.
struct RnnInputs {
  Tensor lengths = {};                       // int64 [batch], in any order; undefined: all sequences are as long as x
  Tensor h0 = {}, c0 = {};                   // [layers * directions, batch, hidden]; undefined: zero. c0 is the LSTM's alone
};

// What LSTM, GRU and RNN have in common. x is [time, batch, input], or [batch, time, input] with batch_first; the output has directions *
// hidden in place of input. Parameters of layer k: weight_ih_lk, weight_hh_lk, bias_ih_lk, bias_hh_lk, and those of the reverse direction
// with _reverse after them.
class Recurrent : public Module {
 public:
  struct Options {
    int64_t input = 0, hidden = 0, layers = 1;
    bool bias = true;
    bool batch_first = false;
    double dropout = 0;                      // of the output of every layer but the last, while training
    bool bidirectional = false;
  };
  Tensor forward(const Tensor& x) override { return forward(x, RnnInputs{}).output; }
  RnnResult forward(const Tensor& x, const RnnInputs& inputs);
  using Module::operator();
  RnnResult operator()(const Tensor& x, const RnnInputs& inputs) {
    Call call(*this, x);
    return forward(x, inputs);
  }
  std::string options() const override;

 protected:
  Recurrent(RnnCell cell, Options options);
  std::optional<Cost> own_cost(const Shape& input) const override;
  std::optional<ReceptiveField> own_field() const override;

 private:
  RnnGeometry layer_geometry(int64_t layer) const;             // without time and batch

  RnnCell cell_;
  Options options_;
  std::vector<Tensor> weights_;              // in the order of the operations in autograd/rnn.h
};

class LSTM : public Recurrent {
 public:
  explicit LSTM(Options options) : Recurrent(RnnCell::lstm, options) {}
};

class GRU : public Recurrent {
 public:
  explicit GRU(Options options) : Recurrent(RnnCell::gru, options) {}
};

class RNN : public Recurrent {
 public:
  explicit RNN(Options options, RnnActivation activation = RnnActivation::tanh)
      : Recurrent(activation == RnnActivation::tanh ? RnnCell::rnn_tanh : RnnCell::rnn_relu, options) {}
};

// One step. x [batch, input], states [batch, hidden]; parameters weight_ih, weight_hh, bias_ih, bias_hh. Second derivatives follow.
// forward(x) starts from zero and gives h.
class RecurrentCell : public Module {
 public:
  struct Options {
    int64_t input = 0, hidden = 0;
    bool bias = true;
  };
  std::string options() const override;
  Tensor weight_ih, weight_hh, bias_ih, bias_hh;

 protected:
  RecurrentCell(RnnCell cell, Options options);
  std::optional<Cost> own_cost(const Shape& input) const override;
  Tensor zero_state(const Tensor& x) const;
  RnnCell cell() const { return cell_; }

 private:
  RnnCell cell_;
};

using LstmState = LstmCellResult;            // h and c

// c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').
class LSTMCell : public RecurrentCell {
 public:
  explicit LSTMCell(Options options) : RecurrentCell(RnnCell::lstm, options) {}
  Tensor forward(const Tensor& x) override { return forward(x, {zero_state(x), zero_state(x)}).h; }
  LstmState forward(const Tensor& x, const LstmState& state);
  using Module::operator();
  LstmState operator()(const Tensor& x, const LstmState& state) {
    Call call(*this, x);
    return forward(x, state);
  }
};

// n = tanh(x_n + r h_n), h' = (1 - z) n + z h.
class GRUCell : public RecurrentCell {
 public:
  explicit GRUCell(Options options) : RecurrentCell(RnnCell::gru, options) {}
  Tensor forward(const Tensor& x) override { return forward(x, zero_state(x)); }
  Tensor forward(const Tensor& x, const Tensor& h);
  using Module::operator();
  Tensor operator()(const Tensor& x, const Tensor& h) {
    Call call(*this, x);
    return forward(x, h);
  }
};

// h' = tanh(W_ih x + W_hh h), or relu.
class RNNCell : public RecurrentCell {
 public:
  explicit RNNCell(Options options, RnnActivation activation = RnnActivation::tanh)
      : RecurrentCell(activation == RnnActivation::tanh ? RnnCell::rnn_tanh : RnnCell::rnn_relu, options) {}
  Tensor forward(const Tensor& x) override { return forward(x, zero_state(x)); }
  Tensor forward(const Tensor& x, const Tensor& h);
  using Module::operator();
  Tensor operator()(const Tensor& x, const Tensor& h) {
    Call call(*this, x);
    return forward(x, h);
  }
};

}  // namespace fovea::layers
