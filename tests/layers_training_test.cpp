// Every kind of layer can be trained: a handful of samples is learned by heart, and every parameter takes part.
#include <doctest/doctest.h>

#include <functional>

#include <fovea/fovea.h>

using namespace fovea;
using namespace fovea::layers;

namespace {

// Gradient descent with momentum until the loss is below `goal`; returns the last loss.
double descend(const NamedTensors& parameters, const std::function<Tensor()>& loss, double lr, int steps = 2000, double goal = 1e-4) {
  std::vector<Tensor> velocity;
  for (const auto& [name, p] : parameters) velocity.push_back(zeros_like(p));
  double last = 0;
  for (int step = 0; step < steps; ++step) {
    for (const auto& [name, p] : parameters) p.set_grad({});
    const Tensor value = loss();
    last = value.item();
    if (last < goal) break;
    value.backward();
    NoGrad no_grad;
    size_t i = 0;
    for (const auto& [name, p] : parameters) {
      Tensor& v = velocity[i++];
      if (!p.grad()) continue;
      mul_(v, 0.9);
      add_(v, p.grad());
      sub_(p, v, lr);
    }
  }
  return last;
}

// The layer, then a linear head, learn two random numbers for each of the samples in x.
template <class Layer>
void learns(Layer layer, const Tensor& x, double lr = 0.02) {
  Sequential net(std::move(layer), Flatten(1));
  const std::string kind = net[0].type_name();
  CAPTURE(kind);
  net.append(Linear(net.output_shape(x.shape())[1], 2));
  const Tensor target = rand({x.size(0), 2});
  NamedTensors before;
  for (const auto& [name, p] : net.named_parameters()) before.add(name, clone(p.detach()));
  CHECK(descend(net.named_parameters(), [&] { return MSELoss()(net(x), target); }, lr) < 1e-4);
  for (const auto& entry : net.named_parameters()) {       // no structured binding: clang 14 lets no lambda, so no CAPTURE, capture one
    const std::string& name = entry.first;
    const Tensor& p = entry.second;
    CAPTURE(name);
    CHECK(!equal(p.detach(), before[name]));
  }
}

// Layers over sequences [time, batch, features]: the last step's output feeds the head.
void learns_sequence(Module& layer, const Tensor& x, double lr) {
  const std::string kind = layer.tree();
  CAPTURE(kind);
  Linear head(layer.output_shape(x.shape())[2], 2);
  const Tensor target = rand({x.size(1), 2});
  NamedTensors parameters = layer.named_parameters("layer"), before;
  for (const auto& [name, p] : head.named_parameters("head")) parameters.add(name, p);
  for (const auto& [name, p] : parameters) before.add(name, clone(p.detach()));
  CHECK(descend(parameters, [&] { return MSELoss()(head(mean(layer(x), 0)), target); }, lr) < 1e-4);
  for (const auto& entry : parameters) {
    const std::string& name = entry.first;
    const Tensor& p = entry.second;
    CAPTURE(name);
    CHECK(!equal(p.detach(), before[name]));
  }
}

// A cell led over a sequence [batch, time, input] by hand; gives its last h.
template <class Cell>
class Unrolled : public Module {
 public:
  Unrolled(int64_t input, int64_t hidden) : hidden_(hidden), cell_(add("cell", Cell({.input = input, .hidden = hidden}))) {}
  Tensor forward(const Tensor& x) override {
    const Tensor zero = zeros({x.size(0), hidden_}, x.device());
    if constexpr (std::is_same_v<Cell, LSTMCell>) {
      LstmState state{zero, zero};
      for (int64_t t = 0; t < x.size(1); ++t) state = cell_(select(x, 1, t), state);
      return state.h;
    } else {
      Tensor h = zero;
      for (int64_t t = 0; t < x.size(1); ++t) h = cell_(select(x, 1, t), h);
      return h;
    }
  }

 private:
  int64_t hidden_;
  Cell& cell_;
};

}  // namespace

TEST_CASE("training: fully connected and convolutional layers learn by heart") {
  manual_seed(11);
  learns(Linear(6, 5), randn({4, 6}));
  learns(Residual(Linear(6, 6)), randn({4, 6}));
  learns(Conv1d({.in = 2, .out = 3, .kernel = 3, .padding = 1}), randn({4, 2, 7}));
  learns(Conv2d({.in = 2, .out = 3, .kernel = 3, .stride = 2, .padding = 1}), randn({4, 2, 6, 5}));
  learns(ConvTranspose1d({.in = 2, .out = 3, .kernel = 4, .stride = 2}), randn({4, 2, 5}));
  learns(ConvTranspose2d({.in = 2, .out = 3, .kernel = 2, .stride = 2}), randn({4, 2, 3, 4}));
  learns(DepthwiseSeparable({.in = 3, .out = 4}), randn({4, 3, 5, 5}));
  learns(CoordConv({.conv = {.in = 2, .out = 3, .kernel = 3}, .radius = true}), randn({4, 2, 5, 5}));
  Bilinear bilinear(3, 4, 2);
  const Tensor a = randn({4, 3}), b = randn({4, 4}), target = rand({4, 2});
  CHECK(descend(bilinear.named_parameters(), [&] { return MSELoss()(bilinear(a, b), target); }, 0.05) < 1e-4);
}

TEST_CASE("training: normalisation layers learn by heart") {
  manual_seed(12);
  learns(BatchNorm1d(6), randn({4, 6}));
  learns(Sequential(BatchNorm2d(2), ReLU()), randn({4, 2, 3, 3}));
  learns(LayerNorm(6), randn({4, 6}));
  learns(GroupNorm(2, 4), randn({4, 4, 3, 3}));
  learns(InstanceNorm1d(3, {.affine = true}), randn({4, 3, 5}));
  learns(InstanceNorm2d(3, {.affine = true}), randn({4, 3, 4, 4}));
}

TEST_CASE("training: what has no parameters passes gradients on") {
  manual_seed(13);
  const Tensor image = randn({4, 2, 6, 6});
  auto behind_conv = [&](auto layer) {
    learns(Sequential(Conv2d({.in = 2, .out = 3, .kernel = 3, .padding = 1}), std::move(layer)), image);
  };
  behind_conv(MaxPool2d(2));
  behind_conv(AvgPool2d(3, {.stride = 2, .padding = 1}));
  behind_conv(AdaptiveAvgPool2d({2, 3}));
  behind_conv(AdaptiveMaxPool2d(2));
  behind_conv(GlobalAvgPool());
  behind_conv(GlobalMaxPool());
  behind_conv(Upsample({.scale = 2}));
  behind_conv(Upsample({.size = {5, 4}, .mode = ResizeMode::bilinear}));
  const Tensor line = randn({4, 2, 9});
  learns(Sequential(Conv1d({.in = 2, .out = 3, .kernel = 2}), MaxPool1d(2)), line);
  learns(Sequential(Conv1d({.in = 2, .out = 3, .kernel = 2}), AvgPool1d(2)), line);
  learns(Sequential(Conv1d({.in = 2, .out = 3, .kernel = 2}), AdaptiveAvgPool1d(3)), line);
  const Tensor x = randn({4, 6});
  auto behind_linear = [&](auto layer) { learns(Sequential(Linear(6, 8), std::move(layer)), x); };
  behind_linear(ReLU());
  behind_linear(ReLU6());
  behind_linear(LeakyReLU());
  behind_linear(ELU());
  behind_linear(GELU());
  behind_linear(GELU(Gelu::tanh));
  behind_linear(SiLU());
  behind_linear(Sigmoid());
  behind_linear(Tanh());
  behind_linear(Softplus());
  behind_linear(Hardtanh());
  behind_linear(PReLU());
  behind_linear(Softmax());
  behind_linear(LogSoftmax());
}

TEST_CASE("training: embeddings learn by heart") {
  manual_seed(14);
  learns(Embedding(6, 3), from_vector<int64_t>({0, 1, 2, 3, 4, 5, 0, 2}, {4, 2}));
}

TEST_CASE("training: recurrent layers and attention learn by heart") {
  manual_seed(15);
  const Tensor x = randn({5, 4, 3});
  LSTM lstm({.input = 3, .hidden = 6, .layers = 2, .bidirectional = true});
  learns_sequence(lstm, x, 0.1);
  GRU gru({.input = 3, .hidden = 6, .bidirectional = true});
  learns_sequence(gru, x, 0.1);
  RNN rnn({.input = 3, .hidden = 6});
  learns_sequence(rnn, x, 0.05);
  MultiheadAttention attention({.embed = 6, .heads = 2});
  learns_sequence(attention, randn({5, 4, 6}), 0.1);
  learns(Unrolled<GRUCell>(3, 6), randn({4, 3, 3}), 0.1);
  learns(Unrolled<RNNCell>(3, 6), randn({4, 3, 3}), 0.1);
  learns(Unrolled<LSTMCell>(3, 6), randn({4, 3, 3}), 0.1);
}

TEST_CASE("training: every loss for labels goes to zero on a handful of samples") {
  manual_seed(16);
  const Tensor x = randn({5, 6}), y = from_vector<int64_t>({0, 1, 2, 1, 0}), signs = unsqueeze(tensor({1, -1, 1, -1, 1}), 1);
  auto goes_to_zero = [&](int64_t outputs, const std::function<Tensor(const Tensor&)>& loss, double goal) {
    Sequential net(Linear(6, 16), Tanh(), Linear(16, outputs));
    CHECK(descend(net.named_parameters(), [&] { return loss(net(x)); }, 0.1, 3000, goal) < goal);
  };
  goes_to_zero(3, [&](const Tensor& s) { return CrossEntropyLoss()(s, y); }, 2e-3);
  goes_to_zero(3, [&](const Tensor& s) { return NLLLoss()(log_softmax(s, 1), y); }, 2e-3);
  goes_to_zero(3, [&](const Tensor& s) { return MulticlassHingeLoss()(s, y); }, 1e-6);
  goes_to_zero(3, [&](const Tensor& s) { return MulticlassHingeLoss({.squared = true})(s, y); }, 1e-6);
  goes_to_zero(1, [&](const Tensor& s) { return HingeLoss()(s, signs); }, 1e-6);
  goes_to_zero(1, [&](const Tensor& s) { return BCEWithLogitsLoss()(s, (signs + 1) * 0.5); }, 2e-3);
  goes_to_zero(1, [&](const Tensor& s) { return SmoothL1Loss()(s, signs); }, 1e-5);
  goes_to_zero(
      3,
      [&](const Tensor& s) {
        return KLDivLoss({.batch_mean = true})(log_softmax(s, 1), softmax(x[{ellipsis, slice(0, 3)}], 1));
      },
      1e-5);
}

TEST_CASE("training: a recognizer of sequences learns a few lines by heart") {
  manual_seed(20);
  Sequential net(Linear(4, 8), Tanh(), LSTM({.input = 8, .hidden = 12, .bidirectional = true}), Linear(24, 4));
  const Tensor x = randn({8, 3, 4}), targets = from_vector<int64_t>({1, 2, 3, 2, 2, 0, 3, 0, 0}, {3, 3});
  const Tensor steps = from_vector<int64_t>({8, 7, 5}), lengths = from_vector<int64_t>({3, 2, 1});
  CTCLoss loss;
  CHECK(descend(net.named_parameters(), [&] { return loss(net(x), targets, steps, lengths); }, 0.1, 3000, 5e-3) < 5e-3);
  const std::vector<CtcReading> read = ctc_best_path(net(x), steps);
  CHECK(read[0].labels() == std::vector<int64_t>{1, 2, 3});
  CHECK(read[1].labels() == std::vector<int64_t>{2, 2});
  CHECK(read[2].labels() == std::vector<int64_t>{3});
}

TEST_CASE("training: dropout loses what it should while training, and nothing in evaluation") {
  manual_seed(17);
  const Tensor x = ones({64, 32, 3, 3});
  Dropout dropout(0.25);
  const Tensor y = dropout(x);
  const double kept = mean(to(ne(y, 0), DType::float64)).item();
  CHECK(kept == doctest::Approx(0.75).epsilon(0.02));
  CHECK(max(y).item() == doctest::Approx(1 / 0.75));
  CHECK(equal(dropout.eval()(x), x));
  Dropout2d channels(0.5);
  const Tensor z = channels(x);
  CHECK(equal(amax(z, {2, 3}), amin(z, {2, 3})));                            // a channel is kept or lost as one
  CHECK(mean(z).item() == doctest::Approx(1).epsilon(0.1));
  CHECK(equal(channels.eval()(x), x));
  LSTM lstm({.input = 3, .hidden = 4, .layers = 2, .dropout = 0.5});
  const Tensor sequence = randn({5, 2, 3});
  CHECK(!equal(lstm(sequence), lstm(sequence)));
  lstm.eval();
  CHECK(equal(lstm(sequence), lstm(sequence)));
}

TEST_CASE("training: batch norm remembers what it saw") {
  manual_seed(18);
  BatchNorm1d running(3), average(3, {.momentum = {}});
  const Tensor a = randn({50, 3}) * 2 + 5, b = randn({50, 3}) - 1;
  for (const Tensor& batch : {a, b}) {
    running(batch);
    average(batch);
  }
  CHECK(compare(average.running_mean, (mean(a, 0) + mean(b, 0)) * 0.5, {.rtol = 1e-4, .atol = 1e-5}));
  CHECK(compare(average.running_var, (var(a, 0) + var(b, 0)) * 0.5, {.rtol = 1e-4, .atol = 1e-5}));
  CHECK(compare(running.running_mean, mean(a, 0) * 0.09 + mean(b, 0) * 0.1, {.rtol = 1e-4, .atol = 1e-5}));
  CHECK(running.num_batches_tracked.item<int64_t>() == 2);
  running.eval();
  const Tensor y = running(a);
  CHECK(compare(y, (a - running.running_mean) / sqrt(running.running_var + 1e-5), {.rtol = 1e-4, .atol = 1e-4}));
  CHECK(running.num_batches_tracked.item<int64_t>() == 2);
  BatchNorm1d untracked(3, {.track_running_stats = false});
  CHECK(state_dict(untracked).size() == 2);
  CHECK(equal(untracked.eval()(a), untracked.train()(a)));
}

TEST_CASE("training: frozen layers stay as they are while the rest learns") {
  manual_seed(19);
  Sequential net(Linear(4, 6), Tanh(), Linear(6, 2));
  net[0].freeze();
  const Tensor first = clone(net.layer<Linear>("0").weight), last = clone(net.layer<Linear>("2").weight.detach()), x = randn({3, 4}),
               target = rand({3, 2});
  CHECK(descend(net.named_parameters(), [&] { return MSELoss()(net(x), target); }, 0.1) < 1e-4);
  CHECK(equal(net.layer<Linear>("0").weight, first));
  CHECK(!equal(net.layer<Linear>("2").weight.detach(), last));
}
