// Recurrent networks over whole sequences: LSTM, GRU and plain RNN with PyTorch's weights, names and gate order (LSTM i f g o, GRU r z n).
//
//     RnnResult r = lstm(x, {weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0}, {.lengths = lengths});
#pragma once

#include <functional>
#include <vector>

#include <fovea/autograd/tape.h>

namespace fovea {

struct RnnOptions {
  int64_t layers = 1;
  bool bidirectional = false;
  bool batch_first = false;                  // x and output are [batch, time, ..] instead of [time, batch, ..]; the states are not concerned
  Tensor lengths = {};                       // int64 [batch], in any order, each in [0, time]; undefined: all are `time`. On CUDA the IndexError comes from whatever waits next
  Tensor h0 = {}, c0 = {};                   // [layers * directions, batch, hidden]; undefined: zero. c0 is the LSTM's alone
  std::function<Tensor(const Tensor&)> between_layers = {};   // applied to the output of every layer but the last (dropout)
};

struct RnnResult {
  Tensor output;                             // [time, batch, directions * hidden]; zero past a sample's length
  Tensor h_n, c_n;                           // [layers * directions, batch, hidden], after each sample's last step; c_n is the LSTM's alone
};

// x [time, batch, input]. weights: for each layer and, within it, each direction: weight_ih [gates * hidden, input], weight_hh [gates * hidden, hidden] and,
// unless the network has no biases at all, bias_ih and bias_hh [gates * hidden]. The input of a layer above the first is directions * hidden wide.
// What x holds past a sample's length does not matter as long as it is finite. ShapeError, DTypeError and IndexError name the argument that does not fit.
// Differentiable as often as you like; second derivatives run the layer again step by step, which takes much longer than the fused first ones.
RnnResult lstm(const Tensor& x, const std::vector<Tensor>& weights, const RnnOptions& options = {});
RnnResult gru(const Tensor& x, const std::vector<Tensor>& weights, const RnnOptions& options = {});
enum class RnnActivation { tanh, relu };
RnnResult rnn(const Tensor& x, const std::vector<Tensor>& weights, RnnActivation activation = RnnActivation::tanh, const RnnOptions& options = {});

// One step, put together from differentiable operations. x [batch, input], states [batch, hidden], weights as above (biases may be undefined).
struct LstmCellResult {
  Tensor h, c;
};
LstmCellResult lstm_cell(const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih = {},
                         const Tensor& bias_hh = {});
Tensor gru_cell(const Tensor& x, const Tensor& h, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih = {}, const Tensor& bias_hh = {});
Tensor rnn_cell(const Tensor& x, const Tensor& h, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih = {}, const Tensor& bias_hh = {},
                RnnActivation activation = RnnActivation::tanh);

}  // namespace fovea
