// Nets whose weights, outputs and gradients PyTorch wrote (tests/golden/layers.py): its state dicts load as they are, and give the same
// numbers.
#include <doctest/doctest.h>

#include <cmath>

#include <fovea/fovea.h>

#include "devices.h"
#include "source_folder.h"

using namespace fovea;
using namespace fovea::layers;

namespace {

std::string golden(const std::string& name) { return testing::source_folder() + "/tests/golden/layers/" + name + ".safetensors"; }
NamedTensors values_of(const std::string& name) { return testing::on_default_device(load_safetensors(golden(name + ".values")).tensors); }

void check_close(const std::string& what, const Tensor& got, const Tensor& expected, double tolerance = 2e-5) {
  CAPTURE(what);
  REQUIRE(got.defined());
  REQUIRE(got.shape() == expected.shape());
  const std::vector<double> a = got.to_vector<double>(), b = expected.to_vector<double>();
  for (size_t i = 0; i < a.size(); ++i) {
    CAPTURE(i);
    REQUIRE(std::abs(a[i] - b[i]) <= tolerance * (1 + std::abs(b[i])));
  }
}

Tensor leaf(const Tensor& value) {
  Tensor x = clone(value);
  x.set_requires_grad(true);
  return x;
}

// The entries whose names begin with `prefix`, without it.
NamedTensors below(const NamedTensors& values, const std::string& prefix) {
  NamedTensors result;
  for (const auto& [name, tensor] : values)
    if (name.rfind(prefix, 0) == 0) result.add(name.substr(prefix.size()), tensor);
  return result;
}

// Output and all gradients of sum(y * weighting).
void check_backward(Module& net, const Tensor& y, const NamedTensors& values, const NamedTensors& inputs) {
  check_close("y", y, values["y"]);
  sum(y * values["weighting"]).backward();
  for (const auto& [name, x] : inputs)
    if (const Tensor* expected = values.find("grad." + name)) check_close("gradient of " + name, x.grad(), *expected, 1e-4);
  for (const auto& [name, parameter] : net.named_parameters())
    check_close("gradient of " + name, parameter.grad(), values["grad." + name], 1e-4);
}

void check_net(const std::string& name, Module& net, bool is_training = false) {
  const NamedTensors values = values_of(name);
  load_state_dict(net, load_safetensors(golden(name)).tensors);
  net.train(is_training);
  const Tensor x = leaf(values["x"]);
  check_backward(net, net(x), values, {{"x", x}});
  const NamedTensors buffers = net.named_buffers();
  for (const auto& [buffer, expected] : below(values, "after.")) check_close(buffer, buffers[buffer], expected);
}

class Crnn : public Module {
 public:
  Crnn()
      : features(add("features", Sequential(Conv2d({.in = 1, .out = 4, .kernel = 3, .padding = 1}), BatchNorm2d(4), ReLU(), MaxPool2d(2),
                                            Conv2d({.in = 4, .out = 6, .kernel = 3, .padding = 1, .bias = false}), BatchNorm2d(6),
                                            LeakyReLU(0.1), MaxPool2d({4, 1})))),
        rnn(add("rnn", LSTM({.input = 6, .hidden = 5, .layers = 2, .bidirectional = true}))),
        head(add("head", Linear(10, 7))) {}
  Tensor forward(const Tensor& x) override { return head(rnn(permute(squeeze(features(x), 2), {2, 0, 1}))); }
  Sequential& features;
  LSTM& rnn;
  Linear& head;
};

Sequential small_cnn() {
  return Sequential(Conv2d({.in = 2, .out = 4, .kernel = 3, .stride = 2, .padding = 1}), BatchNorm2d(4), ReLU(),
                    Conv2d({.in = 4, .out = 4, .kernel = 3, .padding = 1, .groups = 4}), Conv2d({.in = 4, .out = 6}), GELU(), MaxPool2d(2),
                    AdaptiveAvgPool2d(1), Flatten(), Linear(6, 3));
}

void check_recurrent(const std::string& name, Recurrent& net) {
  const NamedTensors values = values_of(name);
  load_state_dict(net, load_safetensors(golden(name)).tensors);
  const Tensor x = leaf(values["x"]), h0 = leaf(values["h0"]), c0 = values.contains("c0") ? leaf(values["c0"]) : Tensor();
  const RnnResult result = net(x, {.lengths = values["lengths"], .h0 = h0, .c0 = c0});
  check_close("h_n", result.h_n, values["h_n"]);
  if (c0) check_close("c_n", result.c_n, values["c_n"]);
  NamedTensors inputs{{"x", x}, {"h0", h0}};
  if (c0) inputs.add("c0", c0);
  check_backward(net, result.output, values, inputs);
}

// One layer of misc.values, with its weights under NAME.state.
void check_layer(const std::string& name, Module&& layer) {
  CAPTURE(name);
  static const NamedTensors all = values_of("misc");
  const NamedTensors values = below(all, name + ".");
  load_state_dict(layer, below(values, "state."));
  const Tensor x = leaf(values["x"]);
  const Tensor y = layer(x);
  CHECK(layer.output_shape(x.shape()) == y.shape());
  check_backward(layer, y, values, {{"x", x}});
  const NamedTensors buffers = layer.named_buffers();
  for (const auto& [buffer, expected] : below(values, "after.")) check_close(buffer, buffers[buffer], expected);
}

}  // namespace

TEST_CASE("golden: a convolutional net, in evaluation and in training") {
  Sequential net = small_cnn();
  check_net("cnn", net);
  Sequential trained = small_cnn();
  check_net("cnn_train", trained, true);
}

TEST_CASE("golden: convolutions, a bidirectional LSTM and a linear layer") {
  Crnn net;
  check_net("crnn", net);
}

TEST_CASE("golden: recurrent layers over sequences of several lengths, with initial states") {
  LSTM lstm({.input = 3, .hidden = 4, .layers = 2, .bidirectional = true});
  check_recurrent("lstm", lstm);
  GRU gru({.input = 3, .hidden = 4, .layers = 2, .batch_first = true, .bidirectional = true});
  check_recurrent("gru", gru);
  RNN rnn({.input = 3, .hidden = 4, .bias = false}, RnnActivation::relu);
  check_recurrent("rnn", rnn);
}

TEST_CASE("golden: recurrent cells") {
  const NamedTensors values = values_of("cells");
  LSTMCell lstm({.input = 3, .hidden = 4});
  load_state_dict(lstm, below(values, "lstm.state."));
  const LstmState state = lstm(values["lstm.x"], {values["lstm.h"], values["lstm.c"]});
  check_close("lstm h", state.h, values["lstm.h1"]);
  check_close("lstm c", state.c, values["lstm.c1"]);
  GRUCell gru({.input = 3, .hidden = 4});
  load_state_dict(gru, below(values, "gru.state."));
  check_close("gru h", gru(values["gru.x"], values["gru.h"]), values["gru.h1"]);
  RNNCell rnn({.input = 3, .hidden = 4}, RnnActivation::relu);
  load_state_dict(rnn, below(values, "rnn.state."));
  check_close("rnn h", rnn(values["rnn.x"], values["rnn.h"]), values["rnn.h1"]);
}

TEST_CASE("golden: attention with masks") {
  const NamedTensors values = values_of("attention");
  MultiheadAttention net({.embed = 8, .heads = 2, .batch_first = true});
  load_state_dict(net, load_safetensors(golden("attention")).tensors);
  const Tensor q = leaf(values["q"]), k = leaf(values["k"]), v = leaf(values["v"]);
  const AttentionOutput out = net(q, k, v, {.key_padding_mask = values["key_padding_mask"], .attention_mask = values["attn_mask"]});
  check_close("weights", out.weights, values["weights"]);
  check_backward(net, out.output, values, {{"q", q}, {"k", k}, {"v", v}});
}

TEST_CASE("golden: activations") {
  const NamedTensors values = values_of("activations");
  const Tensor x = values["x"];
  check_close("ReLU", ReLU()(x), values["ReLU"]);
  check_close("ReLU6", ReLU6()(x), values["ReLU6"]);
  check_close("LeakyReLU", LeakyReLU(0.2)(x), values["LeakyReLU"]);
  check_close("ELU", ELU(1.3)(x), values["ELU"]);
  check_close("GELU", GELU()(x), values["GELU"]);
  check_close("GELU tanh", GELU(Gelu::tanh)(x), values["GELU_tanh"]);
  check_close("SiLU", SiLU()(x), values["SiLU"]);
  check_close("Sigmoid", Sigmoid()(x), values["Sigmoid"]);
  check_close("Tanh", Tanh()(x), values["Tanh"]);
  check_close("Softplus", Softplus(2, 5)(x), values["Softplus"]);
  check_close("Hardtanh", Hardtanh(-2, 3)(x), values["Hardtanh"]);
  check_close("Softmax", Softmax(0)(x), values["Softmax"]);
  check_close("LogSoftmax", LogSoftmax(0)(x), values["LogSoftmax"]);
  check_close("PReLU", PReLU(1, 0.3)(x), values["PReLU"]);
}

TEST_CASE("golden: every other layer by itself") {
  check_layer("conv1d", Conv1d({.in = 4, .out = 6, .kernel = 3, .stride = 2, .padding = 2, .dilation = 2, .groups = 2}));
  check_layer("conv2d", Conv2d({.in = 3, .out = 4, .kernel = {3, 2}, .stride = {2, 1}, .padding = {1, 2}, .dilation = {1, 2}}));
  check_layer("conv_transpose1d", ConvTranspose1d({.in = 3, .out = 4, .kernel = 4, .stride = 2, .padding = 1}));
  check_layer("conv_transpose2d",
              ConvTranspose2d({.in = 4, .out = 6, .kernel = 3, .stride = 2, .padding = 1, .output_padding = 1, .groups = 2}));
  check_layer("linear", Linear(5, 3));
  check_layer("layer_norm", LayerNorm(6));
  check_layer("layer_norm_2", LayerNorm({3, 6}));
  check_layer("group_norm", GroupNorm(2, 6));
  check_layer("instance_norm1d", InstanceNorm1d(3, {.affine = true}));
  check_layer("instance_norm2d", InstanceNorm2d(3, {.affine = true}));
  check_layer("batch_norm1d", BatchNorm1d(4));
  check_layer("batch_norm1d_3", BatchNorm1d(4));
  check_layer("max_pool", MaxPool2d(3, {.stride = 2, .padding = 1, .ceil_mode = true}));
  check_layer("avg_pool", AvgPool2d({2, 3}, {.stride = {2, 1}, .padding = {0, 1}, .count_include_pad = false}));
  check_layer("max_pool1d", MaxPool1d(3, {.stride = 2}));
  check_layer("avg_pool1d", AvgPool1d(2));
  check_layer("adaptive_avg", AdaptiveAvgPool2d({2, 3}));
  check_layer("adaptive_max", AdaptiveMaxPool2d(2));
  check_layer("adaptive_avg1d", AdaptiveAvgPool1d(4));
  check_layer("upsample_nearest", Upsample({.scale = 2}));
  check_layer("upsample_bilinear", Upsample({.size = {5, 9}, .mode = ResizeMode::bilinear}));
  check_layer("upsample_corners", Upsample({.scale = 2, .mode = ResizeMode::bilinear, .align_corners = true}));
}

TEST_CASE("golden: bilinear and embedding") {
  const NamedTensors values = values_of("misc");
  Bilinear bilinear(3, 4, 2);
  load_state_dict(bilinear, below(values, "bilinear.state."));
  check_close("bilinear", bilinear(values["bilinear.a"], values["bilinear.b"]), values["bilinear.y"]);
  Embedding embedding(6, 3, {.padding_idx = 0});
  load_state_dict(embedding, below(values, "embedding.state."));
  const Tensor y = embedding(values["embedding.x"]);
  check_close("embedding", y, values["embedding.y"]);
  sum(y * values["embedding.weighting"]).backward();
  check_close("gradient of the embedding", embedding.weight.grad(), values["embedding.grad"]);
}
