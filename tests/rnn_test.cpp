// LSTM, GRU and plain RNN: what must hold of any of them (padding, order, batch and threads change nothing), gradients against differences, and PyTorch's numbers.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/rnn.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/npz.h>

#include "devices.h"
#include "messages.h"
#include "source_folder.h"
#include "tensor_helpers.h"

using namespace fovea;
using testing::distance;
using testing::random_tensor;

namespace {

constexpr RnnCell all_cells[] = {RnnCell::lstm, RnnCell::gru, RnnCell::rnn_tanh, RnnCell::rnn_relu};

const char* cell_name(RnnCell cell) {
  constexpr const char* names[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
  return names[static_cast<int>(cell)];
}

RnnResult run(RnnCell cell, const Tensor& x, const std::vector<Tensor>& weights, const RnnOptions& options) {
  switch (cell) {
    case RnnCell::lstm: return lstm(x, weights, options);
    case RnnCell::gru: return gru(x, weights, options);
    default: return rnn(x, weights, cell == RnnCell::rnn_relu ? RnnActivation::relu : RnnActivation::tanh, options);
  }
}

// Weights about as large as PyTorch draws them.
std::vector<Tensor> random_weights(RnnCell cell, int64_t input, int64_t hidden, const RnnOptions& options, DType dtype, bool has_biases = true) {
  const int64_t directions = options.bidirectional ? 2 : 1, rows = RnnGeometry{cell}.gates() * hidden;
  std::vector<Tensor> weights;
  unsigned seed = 100;
  const auto add = [&](const Shape& shape) {
    weights.push_back(random_tensor(shape, dtype, seed++) * (1 / std::sqrt(static_cast<double>(hidden))));
  };
  for (int64_t layer = 0; layer < options.layers; ++layer)
    for (int64_t d = 0; d < directions; ++d) {
      add({rows, layer == 0 ? input : directions * hidden});
      add({rows, hidden});
      if (!has_biases) continue;
      add({rows});
      add({rows});
    }
  return weights;
}

struct Everything {
  RnnResult result;
  std::vector<Tensor> gradients;             // of x, h0, c0 (LSTM), weights
};

// Outputs, and gradients for fixed random gradients of the outputs (zero past the end, so that a sequence alone gets the same).
Everything run_both_ways(RnnCell cell, const Tensor& x, std::vector<Tensor> weights, RnnOptions options, const std::vector<Tensor>& cotangents) {
  std::vector<Tensor> inputs = {x.detach()};
  if (options.h0) inputs.push_back(options.h0 = options.h0.detach());
  if (options.c0) inputs.push_back(options.c0 = options.c0.detach());
  for (Tensor& w : weights) inputs.push_back(w = w.detach());
  for (Tensor& t : inputs) t.set_requires_grad();
  const RnnResult r = run(cell, inputs[0], weights, options);
  std::vector<Tensor> outputs = {r.output, r.h_n};
  if (r.c_n) outputs.push_back(r.c_n);
  return {r, grad(outputs, inputs, {cotangents.begin(), cotangents.begin() + static_cast<int64_t>(outputs.size())})};
}

struct Setup {
  RnnOptions options;
  Tensor x;
  std::vector<Tensor> weights, cotangents;
};

Setup random_setup(RnnCell cell, int64_t time, int64_t batch, int64_t input, int64_t hidden, int64_t layers, bool bidirectional, DType dtype) {
  Setup s;
  s.options.layers = layers;
  s.options.bidirectional = bidirectional;
  const int64_t directions = bidirectional ? 2 : 1;
  s.x = random_tensor({time, batch, input}, dtype, 1);
  s.options.h0 = random_tensor({layers * directions, batch, hidden}, dtype, 2);
  if (cell == RnnCell::lstm) s.options.c0 = random_tensor({layers * directions, batch, hidden}, dtype, 3);
  s.weights = random_weights(cell, input, hidden, s.options, dtype);
  s.cotangents = {random_tensor({time, batch, directions * hidden}, dtype, 4), random_tensor({layers * directions, batch, hidden}, dtype, 5),
                  random_tensor({layers * directions, batch, hidden}, dtype, 6)};
  return s;
}

double largest(const Tensor& x) {
  double most = 0;
  for (const double v : testing::values(x)) most = std::max(most, std::abs(v));
  return most;
}

}  // namespace

TEST_CASE("rnn: a padded batch equals each sequence alone, in values and gradients, whatever the order of lengths") {
  const std::vector<int64_t> lengths = {4, 7, 1, 6, 7, 2, 0, 5, 3, 7};
  for (const RnnCell cell : all_cells)
    for (const bool bidirectional : {false, true}) {
      CAPTURE(cell_name(cell));
      CAPTURE(bidirectional);
      Setup s = random_setup(cell, 7, 10, 3, 5, 2, bidirectional, DType::float64);
      s.options.lengths = from_vector(lengths);
      const Everything together = run_both_ways(cell, s.x, s.weights, s.options, s.cotangents);
      std::vector<std::vector<double>> weight_sums(s.weights.size());
      const size_t states = cell == RnnCell::lstm ? 2 : 1;
      for (int64_t b = 0; b < 10; ++b) {
        CAPTURE(b);
        const int64_t length = lengths[static_cast<size_t>(b)];
        const auto alone_of = [&](const Tensor& t, bool has_time) { return clone(narrow(has_time ? narrow(t, 0, 0, length) : t, 1, b, 1)); };
        RnnOptions options = s.options;
        options.lengths = {};
        options.h0 = alone_of(s.options.h0, false);
        if (options.c0) options.c0 = alone_of(s.options.c0, false);
        const std::vector<Tensor> cotangents = {alone_of(s.cotangents[0], true), alone_of(s.cotangents[1], false), alone_of(s.cotangents[2], false)};
        const Everything alone = run_both_ways(cell, alone_of(s.x, true), s.weights, options, cotangents);
        CHECK(distance(alone_of(together.result.output, true), alone.result.output) <= 1e-14);
        CHECK(distance(alone_of(together.result.h_n, false), alone.result.h_n) <= 1e-14);
        if (alone.result.c_n) CHECK(distance(alone_of(together.result.c_n, false), alone.result.c_n) <= 1e-14);
        CHECK(largest(narrow(narrow(together.result.output, 1, b, 1), 0, length, 7 - length)) == 0);
        CHECK(distance(alone_of(together.gradients[0], true), alone.gradients[0]) <= 1e-13);
        CHECK(largest(narrow(narrow(together.gradients[0], 1, b, 1), 0, length, 7 - length)) == 0);
        for (size_t i = 1; i <= states; ++i) CHECK(distance(alone_of(together.gradients[i], false), alone.gradients[i]) <= 1e-13);
        for (size_t i = 0; i < s.weights.size(); ++i) {
          const std::vector<double> part = testing::values(alone.gradients[1 + states + i]);
          weight_sums[i].resize(part.size());
          for (size_t k = 0; k < part.size(); ++k) weight_sums[i][k] += part[k];
        }
      }
      for (size_t i = 0; i < s.weights.size(); ++i) CHECK(distance(together.gradients[1 + states + i], weight_sums[i]) <= 1e-12);
    }
}

TEST_CASE("rnn: outputs, final states and all gradients are PyTorch's, with two layers, two directions, lengths and initial states") {
  const NamedTensors golden = testing::on_default_device(load_npz(testing::source_folder() + "/tests/golden/rnn.npz"));
  for (const RnnCell cell : all_cells) {
    const std::string name = cell_name(cell);
    CAPTURE(name);
    const auto at = [&](const std::string& key) { return golden[name + "." + key]; };
    const bool is_lstm = cell == RnnCell::lstm;
    RnnOptions options{.layers = 2, .bidirectional = true, .lengths = at("lengths"), .h0 = at("h0")};
    std::vector<Tensor> weights, cotangents = {at("d_output"), at("d_h_n")};
    if (is_lstm) {
      options.c0 = at("c0");
      cotangents.push_back(at("d_c_n"));
    }
    for (int i = 0; i < 16; ++i) weights.push_back(at("weight" + std::to_string(i)));
    const Everything ours = run_both_ways(cell, at("x"), weights, options, cotangents);
    CHECK(distance(ours.result.output, at("output")) <= 1e-13);
    CHECK(distance(ours.result.h_n, at("h_n")) <= 1e-13);
    if (is_lstm) CHECK(distance(ours.result.c_n, at("c_n")) <= 1e-13);
    size_t i = 0;
    CHECK(distance(ours.gradients[i++], at("grad_x")) <= 1e-12);
    CHECK(distance(ours.gradients[i++], at("grad_h0")) <= 1e-12);
    if (is_lstm) CHECK(distance(ours.gradients[i++], at("grad_c0")) <= 1e-12);
    for (int w = 0; w < 16; ++w) CHECK(distance(ours.gradients[i++], at("grad_weight" + std::to_string(w))) <= 1e-12);
  }
}

TEST_CASE("rnn: float32 is close to float64, for sizes that fill no vector and no tile") {
  for (const RnnCell cell : all_cells)
    for (const int64_t hidden : {1, 13, 67}) {
      CAPTURE(cell_name(cell));
      CAPTURE(hidden);
      const Setup wide = random_setup(cell, 9, 11, 6, hidden, 1, true, DType::float64);
      const auto narrowed = [](const Tensor& t) { return t ? to(t, DType::float32) : t; };
      Setup s = wide;
      s.x = narrowed(s.x);
      s.options.h0 = narrowed(s.options.h0);
      s.options.c0 = narrowed(s.options.c0);
      for (Tensor& w : s.weights) w = narrowed(w);
      for (Tensor& c : s.cotangents) c = narrowed(c);
      const Everything exact = run_both_ways(cell, wide.x, wide.weights, wide.options, wide.cotangents);
      const Everything ours = run_both_ways(cell, s.x, s.weights, s.options, s.cotangents);
      CHECK(distance(to(ours.result.output, DType::float64), exact.result.output) <= 1e-5);
      for (size_t i = 0; i < exact.gradients.size(); ++i)
        CHECK(distance(to(ours.gradients[i], DType::float64), exact.gradients[i]) <= 2e-5 * (1 + largest(exact.gradients[i])));
    }
}

TEST_CASE("rnn: the gradient is the limit of differences") {
  for (const RnnCell cell : all_cells) {
    CAPTURE(cell_name(cell));
    for (const bool batch_first : {false, true}) {
      RnnOptions options{.layers = 2, .bidirectional = true, .batch_first = batch_first, .lengths = from_vector<int64_t>({2, 4, 3})};
      const Shape states{4, 3, 3};
      std::vector<Tensor> inputs = {random_tensor(batch_first ? Shape{3, 4, 2} : Shape{4, 3, 2}), random_tensor(states, DType::float64, 2), random_tensor(states, DType::float64, 3)};
      for (const Tensor& w : random_weights(cell, 2, 3, options, DType::float64)) inputs.push_back(w);
      for (Tensor& t : inputs) t.set_requires_grad();
      if (cell != RnnCell::lstm) inputs[2].set_requires_grad(false);
      const auto all_outputs = [&](const std::vector<Tensor>& in) {
        RnnOptions here = options;
        here.h0 = in[1];
        if (cell == RnnCell::lstm) here.c0 = in[2];
        const RnnResult r = run(cell, in[0], {in.begin() + 3, in.end()}, here);
        std::vector<Tensor> flat = {reshape(r.output, {-1}), reshape(r.h_n, {-1})};
        if (r.c_n) flat.push_back(reshape(r.c_n, {-1}));
        return concat(flat);
      };
      CHECK(gradcheck(all_outputs, inputs) == "");
    }
  }
}

TEST_CASE("rnn: no biases are biases of zero, no states are states of zero, and batch_first swaps axes") {
  for (const RnnCell cell : all_cells) {
    CAPTURE(cell_name(cell));
    const RnnOptions options{.layers = 2, .bidirectional = true};
    const Tensor x = random_tensor({4, 3, 6});
    const std::vector<Tensor> bare = random_weights(cell, 6, 5, options, DType::float64, false);
    std::vector<Tensor> full;
    for (size_t i = 0; i < bare.size(); i += 2) {
      full.insert(full.end(), {bare[i], bare[i + 1], zeros({bare[i].size(0)}, DType::float64), zeros({bare[i].size(0)}, DType::float64)});
    }
    const RnnResult without = run(cell, x, bare, options);
    RnnOptions zero_states = options;
    zero_states.h0 = zeros({4, 3, 5}, DType::float64);
    if (cell == RnnCell::lstm) zero_states.c0 = zero_states.h0;
    const RnnResult with = run(cell, x, full, zero_states);
    CHECK(distance(without.output, with.output) == 0);
    CHECK(distance(without.h_n, with.h_n) == 0);
    RnnOptions batch_first = options;
    batch_first.batch_first = true;
    const RnnResult swapped = run(cell, clone(transpose(x, 0, 1)), bare, batch_first);
    CHECK(distance(transpose(swapped.output, 0, 1), without.output) == 0);
    CHECK(distance(swapped.h_n, without.h_n) == 0);
  }
}

TEST_CASE("rnn: the number of threads changes nothing, and neither does recording") {
  for (const RnnCell cell : all_cells)
    for (const bool bidirectional : {false, true}) {
      CAPTURE(cell_name(cell));
      Setup s = random_setup(cell, 12, 29, 17, 33, 2, bidirectional, DType::float32);
      std::vector<int64_t> lengths;
      for (int64_t b = 0; b < 29; ++b) lengths.push_back(b * 7 % 13);
      s.options.lengths = from_vector(lengths);
      const Everything one = [&] { testing::Threads t(1); return run_both_ways(cell, s.x, s.weights, s.options, s.cotangents); }();
      for (const int threads : {2, 5}) {
        testing::Threads t(threads);
        const Everything more = run_both_ways(cell, s.x, s.weights, s.options, s.cotangents);
        CHECK(distance(one.result.output, more.result.output) == 0);
        CHECK(distance(one.result.h_n, more.result.h_n) == 0);
        for (size_t i = 0; i < one.gradients.size(); ++i) CHECK(distance(one.gradients[i], more.gradients[i]) == 0);
      }
      NoGrad no_grad;
      const RnnResult plain = run(cell, s.x, s.weights, s.options);
      CHECK(distance(one.result.output, plain.output) == 0);
      CHECK(distance(one.result.h_n, plain.h_n) == 0);
      if (plain.c_n) CHECK(distance(one.result.c_n, plain.c_n) == 0);
    }
}

TEST_CASE("rnn: sequences without steps, batches without samples") {
  for (const RnnCell cell : all_cells)
    for (const auto& sizes : {std::pair<int64_t, int64_t>{0, 3}, {4, 0}, {0, 0}}) {
      const int64_t time = sizes.first, batch = sizes.second;
      CAPTURE(cell_name(cell));
      CAPTURE(time);
      CAPTURE(batch);
      const Setup s = random_setup(cell, time, batch, 3, 5, 2, true, DType::float32);
      const Everything e = run_both_ways(cell, s.x, s.weights, s.options, s.cotangents);
      CHECK(e.result.output.shape() == Shape{time, batch, 10});
      CHECK(distance(e.result.h_n, s.options.h0) == 0);
      CHECK(distance(e.gradients[1], s.cotangents[1]) == 0);
      const size_t states = cell == RnnCell::lstm ? 2 : 1;
      for (size_t i = 1 + states; i < e.gradients.size(); ++i) CHECK(largest(e.gradients[i]) == 0);
    }
}

TEST_CASE("rnn: only what is asked for gets a gradient, and gradients of single outputs add up") {
  const Setup s = random_setup(RnnCell::lstm, 5, 4, 3, 6, 1, false, DType::float64);
  const Everything all = run_both_ways(RnnCell::lstm, s.x, s.weights, s.options, s.cotangents);
  std::vector<Tensor> weights = s.weights;
  weights[1] = weights[1].detach();
  weights[1].set_requires_grad();
  std::vector<double> total(static_cast<size_t>(weights[1].numel()), 0);
  for (size_t output = 0; output < 3; ++output) {
    const RnnResult r = lstm(s.x, weights, s.options);
    const Tensor y = output == 0 ? r.output : output == 1 ? r.h_n : r.c_n;
    const std::vector<double> part = testing::values(grad({y}, {weights[1]}, {s.cotangents[output]})[0]);
    for (size_t i = 0; i < part.size(); ++i) total[i] += part[i];
  }
  CHECK(distance(all.gradients[4], total) <= 1e-13);
}

TEST_CASE("rnn: between_layers sees every layer's output but the last") {
  const RnnOptions plain{.layers = 3, .bidirectional = false};
  const std::vector<Tensor> weights = random_weights(RnnCell::gru, 4, 4, plain, DType::float64);
  const Tensor x = random_tensor({3, 2, 4});
  int calls = 0;
  RnnOptions options = plain;
  options.between_layers = [&](const Tensor& y) {
    ++calls;
    return zeros_like(y);
  };
  const RnnResult r = gru(x, weights, options);
  CHECK(calls == 2);
  const RnnResult top = gru(zeros({3, 2, 4}, DType::float64), {weights.begin() + 8, weights.end()});
  CHECK(distance(r.output, top.output) == 0);
}

TEST_CASE("rnn: errors name the argument and what was expected") {
  const RnnOptions one;
  const Tensor x = random_tensor({4, 3, 6}, DType::float32);
  const std::vector<Tensor> weights = random_weights(RnnCell::lstm, 6, 5, one, DType::float32);
  const auto message = [&](const Tensor& input, const std::vector<Tensor>& w, const RnnOptions& options) {
    return testing::error_of([&] { lstm(input, w, options); });
  };
  CHECK(message(x, weights, one) == "");
  CHECK(message(random_tensor({3, 6}, DType::float32), weights, one).find("[time, batch, input]") != std::string::npos);
  CHECK(message(random_tensor({4, 3, 7}, DType::float32), weights, one).find("weight_ih_l0 has shape [20,6], expected [20,7]") != std::string::npos);
  CHECK(message(to(x, DType::float64), weights, one).find("weight_ih_l0 is float32 but x is float64") != std::string::npos);
  CHECK(message(x, {weights[0], weights[1], weights[2]}, one).find("got 3 weights, expected 4") != std::string::npos);
  CHECK(message(x, weights, {.layers = 3}).find("got 4 weights, expected 12") != std::string::npos);
  CHECK(message(x, weights, {.lengths = from_vector<int64_t>({1, 5, 2})}).find("lengths[1] is 5, out of range [0, 5) for the 4 steps of x") != std::string::npos);
  CHECK(message(x, weights, {.lengths = from_vector<int64_t>({1, 2})}).find("lengths has shape [2], expected [3]") != std::string::npos);
  CHECK(message(x, weights, {.h0 = random_tensor({1, 3, 4}, DType::float32)}).find("h0 has shape [1,3,4], expected [1,3,5]") != std::string::npos);
  CHECK_THROWS_AS(gru(x, random_weights(RnnCell::gru, 6, 5, one, DType::float32), {.c0 = random_tensor({1, 3, 5}, DType::float32)}), ValueError);
}

TEST_CASE("rnn: the gradient has a gradient") {
  for (const RnnCell cell : all_cells) {
    CAPTURE(cell_name(cell));
    const RnnOptions options{.bidirectional = true, .lengths = from_vector<int64_t>({1, 3})};
    const Shape states{2, 2, 2};
    std::vector<Tensor> inputs = {random_tensor({3, 2, 2}), random_tensor(states, DType::float64, 2), random_tensor(states, DType::float64, 3)};
    for (const Tensor& w : random_weights(cell, 2, 2, options, DType::float64)) inputs.push_back(w);
    for (Tensor& t : inputs) t.set_requires_grad();
    if (cell != RnnCell::lstm) inputs[2].set_requires_grad(false);
    const auto all_outputs = [&](const std::vector<Tensor>& in) {
      RnnOptions here = options;
      here.h0 = in[1];
      if (cell == RnnCell::lstm) here.c0 = in[2];
      const RnnResult r = run(cell, in[0], {in.begin() + 3, in.end()}, here);
      return r.c_n ? concat({reshape(r.output, {-1}), reshape(r.h_n, {-1}), reshape(r.c_n, {-1})}) : concat({reshape(r.output, {-1}), reshape(r.h_n, {-1})});
    };
    CHECK(gradgradcheck(all_outputs, inputs) == "");
  }
}

TEST_CASE("rnn: a cell taken step by step is the layer") {
  const Tensor x = random_tensor({5, 3, 4});
  for (const bool has_biases : {true, false})
    for (const RnnCell cell : all_cells) {
      CAPTURE(cell_name(cell));
      std::vector<Tensor> w = random_weights(cell, 4, 6, {}, DType::float64, has_biases);
      const RnnResult layer = run(cell, x, w, {});
      w.resize(4);
      Tensor h = zeros({3, 6}, DType::float64), c = h;
      for (int64_t t = 0; t < 5; ++t) {
        const Tensor step = select(x, 0, t);
        if (cell == RnnCell::lstm) {
          const LstmCellResult r = lstm_cell(step, h, c, w[0], w[1], w[2], w[3]);
          h = r.h;
          c = r.c;
        } else if (cell == RnnCell::gru) {
          h = gru_cell(step, h, w[0], w[1], w[2], w[3]);
        } else {
          h = rnn_cell(step, h, w[0], w[1], w[2], w[3], cell == RnnCell::rnn_relu ? RnnActivation::relu : RnnActivation::tanh);
        }
        CHECK(distance(h, select(layer.output, 0, t)) <= 1e-14);
      }
      if (cell == RnnCell::lstm) CHECK(distance(c, select(layer.c_n, 0, 0)) <= 1e-14);
    }
}

TEST_CASE("rnn: float32 sigmoid and tanh are good to the last places, at both ends and for NaN") {
  std::vector<float> points = {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-6f, 0.49999f, 0.50001f, -88, 88, -200, 200, 1e30f, -1e30f};
  for (int i = -4000; i <= 4000; ++i) points.push_back(static_cast<float>(i) * 0.0051f);
  for (int i = 0; i < 400; ++i) points.push_back(std::ldexp(1.3f, -i % 40) * (i % 2 ? 1.0f : -1.0f));
  const int64_t n = static_cast<int64_t>(points.size());
  const Tensor x = from_vector(points, {1, n, 1}), one = ones({1, 1}), zero = zeros({1, 1});
  const std::vector<float> tanhs = rnn(x, {one, zero}).output.to_vector<float>();
  // c = f c0 + i tanh(0) = sigmoid(x) for a forget gate that sees x alone.
  const Tensor gates = from_vector<float>({0, 1, 0, 0}, {4, 1});
  const std::vector<float> sigmoids = lstm(x, {gates, zeros({4, 1})}, {.c0 = ones({1, n, 1})}).c_n.to_vector<float>();
  for (size_t i = 0; i < points.size(); ++i) {
    const double p = points[i], t = std::tanh(p), s = 1 / (1 + std::exp(-p));
    CAPTURE(p);
    CHECK(std::abs(tanhs[i] - t) <= 3.6e-7 * std::abs(t));
    CHECK(std::abs(tanhs[i]) <= 1);
    CHECK(std::abs(sigmoids[i] - s) <= 3.6e-7 * s + 2e-38);
    CHECK(sigmoids[i] <= 1);
  }
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> special = rnn(from_vector<float>({infinity, -infinity, nan}, {1, 3, 1}), {one, zero}).output.to_vector<float>();
  CHECK(special[0] == 1);
  CHECK(special[1] == -1);
  CHECK(std::isnan(special[2]));
  CHECK(std::isnan(lstm(from_vector<float>({nan}, {1, 1, 1}), {gates, zeros({4, 1})}, {.c0 = ones({1, 1, 1})}).c_n.item()));
}
