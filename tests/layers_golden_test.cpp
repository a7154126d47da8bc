// Nets whose weights, outputs and gradients PyTorch wrote (tests/golden/layers.py): its state dicts load as they are, and give the same numbers.
#include <doctest/doctest.h>

#include <cmath>

#include <fovea/fovea.h>

using namespace fovea;
using namespace fovea::layers;

namespace {

std::string golden(const std::string& name) { return std::string(FOVEA_SOURCE_DIR) + "/tests/golden/layers/" + name + ".safetensors"; }
NamedTensors values_of(const std::string& name) { return load_safetensors(golden(name + ".values")).tensors; }

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
  for (const auto& [name, parameter] : net.named_parameters()) check_close("gradient of " + name, parameter.grad(), values["grad." + name], 1e-4);
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
  check_close("PReLU", PReLU(1, 0.3)(x), values["PReLU"]);
}

TEST_CASE("golden: single layers") {
  check_layer("conv1d", Conv1d({.in = 4, .out = 6, .kernel = 3, .stride = 2, .padding = 2, .dilation = 2, .groups = 2}));
  check_layer("conv2d", Conv2d({.in = 3, .out = 4, .kernel = {3, 2}, .stride = {2, 1}, .padding = {1, 2}, .dilation = {1, 2}}));
  check_layer("conv_transpose1d", ConvTranspose1d({.in = 3, .out = 4, .kernel = 4, .stride = 2, .padding = 1}));
  check_layer("conv_transpose2d", ConvTranspose2d({.in = 4, .out = 6, .kernel = 3, .stride = 2, .padding = 1, .output_padding = 1, .groups = 2}));
  check_layer("linear", Linear(5, 3));
  check_layer("layer_norm", LayerNorm(6));
  check_layer("layer_norm_2", LayerNorm({3, 6}));
  check_layer("group_norm", GroupNorm(2, 6));
  check_layer("instance_norm1d", InstanceNorm1d(3, {.affine = true}));
  check_layer("instance_norm2d", InstanceNorm2d(3, {.affine = true}));
  check_layer("batch_norm1d", BatchNorm1d(4));
  check_layer("batch_norm1d_3", BatchNorm1d(4));
}
