#include <fovea/autograd/rnn.h>
#include <fovea/autograd/shape.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

// x [time,batch,input] and the weights of one layer, as PyTorch orders them.
Sample one_layer(int64_t time, int64_t batch, int64_t input, int64_t hidden, int64_t gates, bool is_large = false) {
  const int64_t rows = gates * hidden;
  return {{{{time, batch, input}}, {{rows, input}, -0.7, 0.7}, {{rows, hidden}, -0.7, 0.7}, {{rows}}, {{rows}}}, is_large};
}

// Two directions.
Sample both_directions(int64_t time, int64_t batch, int64_t input, int64_t hidden, int64_t gates, bool is_large = false) {
  Sample sample = one_layer(time, batch, input, hidden, gates, is_large);
  for (int i = 1; i <= 4; ++i) sample.inputs.push_back(sample.inputs[static_cast<size_t>(i)]);
  return sample;
}

std::vector<Sample> one_layer_samples(int64_t gates) {
  return {one_layer(3, 2, 2, 3, gates), one_layer(1, 1, 1, 1, gates), one_layer(2, 0, 2, 2, gates), one_layer(9, 17, 20, 33, gates, true)};
}

std::vector<Tensor> weights_of(const Args& x) { return {x.begin() + 1, x.end()}; }

// Output and last states in one tensor.
Tensor joined(const RnnResult& r) { return r.c_n ? concat({r.output, r.h_n, r.c_n}) : concat({r.output, r.h_n}); }

}  // namespace

Rows recurrent_operations() {
  const RnnOptions both = {.bidirectional = true};
  return {
      {"lstm", [](const Args& x) { return joined(lstm(x[0], weights_of(x))); }, one_layer_samples(4)},
      {"gru", [](const Args& x) { return joined(gru(x[0], weights_of(x))); }, one_layer_samples(3)},
      {"rnn", [](const Args& x) { return joined(rnn(x[0], weights_of(x))); }, one_layer_samples(1)},
      {"rnn/relu", [](const Args& x) { return joined(rnn(x[0], weights_of(x), RnnActivation::relu)); }, one_layer_samples(1)},
      {"lstm/bidirectional", [both](const Args& x) { return lstm(x[0], weights_of(x), both).output; }, {both_directions(3, 2, 2, 2, 4), both_directions(6, 5, 9, 18, 4, true)}},
      {"gru/bidirectional", [both](const Args& x) { return gru(x[0], weights_of(x), both).output; }, {both_directions(3, 2, 2, 2, 3), both_directions(6, 5, 9, 18, 3, true)}},
  };
}

}  // namespace fovea::op_cases
