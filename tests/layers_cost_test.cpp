// What layers cost and what they see, against figures that were worked out elsewhere for nets everyone knows.
#include <doctest/doctest.h>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/fovea.h>

using namespace fovea;
using namespace fovea::layers;

namespace {

// Shi, Bai & Yao 2015, "An end-to-end trainable neural network for image-based sequence recognition", without biases.
class Crnn : public Module {
 public:
  Crnn()
      : features(add("features", Sequential(Conv2d({.in = 1, .out = 64, .kernel = 3, .padding = 1, .bias = false}), ReLU(), MaxPool2d(2),
                                            Conv2d({.in = 64, .out = 128, .kernel = 3, .padding = 1, .bias = false}), ReLU(), MaxPool2d(2),
                                            Conv2d({.in = 128, .out = 256, .kernel = 3, .padding = 1, .bias = false}), BatchNorm2d(256),
                                            ReLU(), Conv2d({.in = 256, .out = 256, .kernel = 3, .padding = 1, .bias = false}), ReLU(),
                                            MaxPool2d(2, {.stride = {2, 1}, .padding = {0, 1}}),
                                            Conv2d({.in = 256, .out = 512, .kernel = 3, .padding = 1, .bias = false}), BatchNorm2d(512),
                                            ReLU(), Conv2d({.in = 512, .out = 512, .kernel = 3, .padding = 1, .bias = false}), ReLU(),
                                            MaxPool2d(2, {.stride = {2, 1}, .padding = {0, 1}}),
                                            Conv2d({.in = 512, .out = 512, .kernel = 2, .bias = false}), BatchNorm2d(512), ReLU()))),
        rnn1(add("rnn1", LSTM({.input = 512, .hidden = 256, .bias = false, .bidirectional = true}))),
        between(add("between", Linear(512, 256, {.bias = false}))),
        rnn2(add("rnn2", LSTM({.input = 256, .hidden = 256, .bias = false, .bidirectional = true}))),
        head(add("head", Linear(512, 37, {.bias = false}))) {}
  Tensor forward(const Tensor& x) override { return head(rnn2(between(rnn1(permute(squeeze(features(x), 2), {2, 0, 1}))))); }
  Sequential& features;
  LSTM& rnn1;
  Linear& between;
  LSTM& rnn2;
  Linear& head;
};

// Scheidl's SimpleHTR: two directions with two layers each of their own.
class SimpleHtr : public Module {
 public:
  SimpleHtr()
      : features(add("features", Sequential(block(1, 32, 5, {2, 2}), block(32, 64, 5, {2, 2}), block(64, 128, 3, {2, 1}),
                                            block(128, 128, 3, {2, 1}), block(128, 256, 3, {2, 1})))),
        onward(add("onward", LSTM({.input = 256, .hidden = 256, .layers = 2}))),
        backward(add("backward", LSTM({.input = 256, .hidden = 256, .layers = 2}))),
        head(add("head", Linear(512, 80, {.bias = false}))) {}
  Tensor forward(const Tensor& x) override {
    const Tensor sequence = permute(squeeze(features(x), 2), {2, 0, 1});
    return head(concat({onward(sequence), flip(backward(flip(sequence, {0})), {0})}, 2));
  }
  Sequential& features;
  LSTM& onward;
  LSTM& backward;
  Linear& head;

 private:
  static Sequential block(int64_t in, int64_t out, int64_t kernel, Pair pool) {
    return Sequential(Conv2d({.in = in, .out = out, .kernel = kernel, .padding = kernel / 2, .bias = false}), ReLU(), MaxPool2d(pool));
  }
};

Sequential vgg16_features() {
  Sequential net;
  int64_t in = 3;
  const int64_t stages[][2] = {{64, 2}, {128, 2}, {256, 3}, {512, 3}, {512, 3}};
  for (const auto& [out, convs] : stages) {
    for (int64_t i = 0; i < convs; ++i, in = out) net.append(Conv2d({.in = in, .out = out, .kernel = 3, .padding = 1}));
    net.append(MaxPool2d(2));
  }
  return net;
}

Sequential lenet_caffe() {
  return Sequential(Conv2d({.in = 1, .out = 20, .kernel = 5, .bias = false}), MaxPool2d(2),
                    Conv2d({.in = 20, .out = 50, .kernel = 5, .bias = false}), MaxPool2d(2));
}

AxisReach reach(int64_t size, int64_t stride, int64_t offset) { return {.size = size, .stride = stride, .offset = offset}; }

int64_t macs_below(Module& net, const Shape& input, const std::string& prefix) {
  int64_t macs = 0;
  for (const LayerCost& row : net.layer_costs(input))
    if (row.path.rfind(prefix, 0) == 0) macs += row.cost.macs;
  return macs;
}

}  // namespace

TEST_CASE("cost: nets from the literature") {
  Sequential lenet(lenet_caffe(), Flatten(), Linear(800, 500, {.bias = false}), ReLU(), Linear(500, 10, {.bias = false}));
  CHECK(lenet.cost({1, 1, 28, 28}).macs == 2'293'000);
  CHECK(lenet.output_shape({7, 1, 28, 28}) == Shape{7, 10});
  CHECK(lenet.cost({3, 1, 28, 28}).macs == 3 * 2'293'000);
  Sequential lenet5(Conv2d({.in = 1, .out = 6, .kernel = 5, .padding = 2, .bias = false}), Tanh(), AvgPool2d(2),
                    Conv2d({.in = 6, .out = 16, .kernel = 5, .bias = false}), Tanh(), AvgPool2d(2), Flatten(),
                    Linear(400, 120, {.bias = false}), Tanh(), Linear(120, 84, {.bias = false}), Tanh(), Linear(84, 10, {.bias = false}));
  CHECK(lenet5.cost({1, 1, 28, 28}).macs == 416'520);

  Crnn crnn;
  const Shape line{1, 1, 32, 100};
  CHECK(crnn.output_shape(line) == Shape{26, 1, 37});
  CHECK(macs_below(crnn, line, "features") == 633'085'952);
  CHECK(crnn.cost(line).macs == 633'085'952 + 72'057'856);
  CHECK(crnn.cost(line).parameters == crnn.parameter_count());

  SimpleHtr htr;
  CHECK(htr.output_shape({1, 1, 32, 128}) == Shape{32, 1, 80});
  CHECK(macs_below(htr, {1, 1, 32, 128}, "features") == 112'328'704);
  CHECK(htr.cost({1, 1, 32, 128}).macs == 112'328'704 + 68'419'584);
}

TEST_CASE("cost: recurrent layers of the toy sizes, and both conventions") {
  const Shape x{5, 3, 10};
  CHECK(LSTM({.input = 10, .hidden = 20}).cost(x).macs == 36'000);
  CHECK(GRU({.input = 10, .hidden = 20}).cost(x).macs == 27'000);
  CHECK(RNN({.input = 10, .hidden = 20}).cost(x).macs == 9'000);
  const Cost cost = LSTM({.input = 10, .hidden = 20, .bias = false}).cost(x);
  CHECK(cost.flops == 72'000 + 15 * 20 * 9);                                 // gate activations and the cell's own arithmetic come on top
  CHECK(LSTM({.input = 10, .hidden = 20, .batch_first = true}).cost({3, 5, 10}) == LSTM({.input = 10, .hidden = 20}).cost(x));
  // the second bidirectional layer reads both directions
  CHECK(LSTM({.input = 10, .hidden = 20, .layers = 2, .bidirectional = true}).cost(x).macs ==
        2 * 36'000 + 2 * 15 * 4 * (40 * 20 + 20 * 20));
}

TEST_CASE("cost: parameters of the formula are the parameters there are, for every layer") {
  auto same = [](Module&& layer, const Shape& x) {
    CAPTURE(layer.tree());
    CHECK(layer.layer_costs(x).at(0).cost.parameters == layer.parameter_count());
  };
  same(Linear(5, 3), {2, 5});
  same(Bilinear(5, 4, 3), {2, 5});
  same(Conv1d({.in = 4, .out = 6, .kernel = 3, .groups = 2}), {1, 4, 9});
  same(Conv2d({.in = 4, .out = 6, .kernel = {3, 2}, .groups = 2}), {1, 4, 9, 9});
  same(ConvTranspose1d({.in = 4, .out = 6, .kernel = 3, .stride = 2, .groups = 2}), {1, 4, 9});
  same(ConvTranspose2d({.in = 4, .out = 6, .kernel = 3, .stride = 2, .bias = false}), {1, 4, 9, 9});
  same(BatchNorm1d(4), {3, 4});
  same(BatchNorm2d(4), {3, 4, 2, 2});
  same(LayerNorm({3, 4}), {2, 3, 4});
  same(GroupNorm(2, 4), {3, 4, 2, 2});
  same(InstanceNorm1d(4, {.affine = true}), {3, 4, 2});
  same(PReLU(4), {3, 4});
  same(Embedding(7, 3), {2, 5});
  same(RNN({.input = 3, .hidden = 4, .layers = 2, .bidirectional = true}), {5, 2, 3});
  same(GRU({.input = 3, .hidden = 4, .bias = false}), {5, 2, 3});
  same(LSTM({.input = 3, .hidden = 4, .layers = 3}), {5, 2, 3});
  same(LSTMCell({.input = 3, .hidden = 4}), {2, 3});
  same(MultiheadAttention({.embed = 8, .heads = 2}), {5, 2, 8});
}

TEST_CASE("cost: a transposed convolution costs what the convolution it reverses costs") {
  ConvTranspose2d up({.in = 8, .out = 4, .kernel = 4, .stride = 2, .padding = 1, .bias = false});
  Conv2d down({.in = 4, .out = 8, .kernel = 4, .stride = 2, .padding = 1, .bias = false});
  const Shape small{2, 8, 5, 6}, large{2, 4, 10, 12};
  CHECK(up.output_shape(small) == large);
  CHECK(down.output_shape(large) == small);
  CHECK(up.cost(small).macs == down.cost(large).macs);
  CHECK(up.cost(small).bytes == down.cost(large).bytes);
}

TEST_CASE("receptive field: nets from the literature") {
  CHECK(lenet_caffe().receptive_field() == ReceptiveField{reach(16, 4, 0), reach(16, 4, 0)});
  Sequential lenet5(Conv2d({.in = 1, .out = 6, .kernel = 5, .padding = 2}), AvgPool2d(2), Conv2d({.in = 6, .out = 16, .kernel = 5}),
                    AvgPool2d(2));
  CHECK(lenet5.receptive_field().width == reach(16, 4, -2));
  CHECK(vgg16_features().receptive_field() == ReceptiveField{reach(212, 32, -90), reach(212, 32, -90)});
  Crnn crnn;
  CHECK(crnn.features.receptive_field() == ReceptiveField{reach(86, 16, -27), reach(54, 4, -27)});
  SimpleHtr htr;
  CHECK(htr.features.receptive_field() == ReceptiveField{reach(100, 32, -34), reach(40, 4, -18)});
  Sequential laia;
  for (int64_t i = 0; i < 5; ++i) {
    laia.append(Conv2d({.in = 1, .out = 1, .kernel = 3, .padding = 1}));
    if (i < 3) laia.append(MaxPool2d(2));
  }
  CHECK(laia.receptive_field().width == reach(54, 8, -23));
}

// The published field of ResNet-50 is 483, stride 32, padding 239 (Araujo, Norris & Sim 2019): a bottleneck's 3x3 convolution carries the
// stride, in the last block of each of the first three stages, and the shortcut picks every second place; the first pool is not padded.
TEST_CASE("receptive field: ResNet-50, where branches meet in every block") {
  auto block = [](int64_t stride) {
    return Residual(Sequential(Conv2d({.in = 1, .out = 1}), Conv2d({.in = 1, .out = 1, .kernel = 3, .stride = stride, .padding = 1}),
                               Conv2d({.in = 1, .out = 1})),
                    MaxPool2d(1, {.stride = stride}));
  };
  Sequential net(Conv2d({.in = 1, .out = 1, .kernel = 7, .stride = 2, .padding = 3}), MaxPool2d(3, {.stride = 2}));
  const int64_t stages[] = {3, 4, 6, 3};
  for (int stage = 0; stage < 4; ++stage)
    for (int64_t i = 0; i < stages[stage]; ++i) net.append(block(stage < 3 && i == stages[stage] - 1 ? 2 : 1));
  CHECK(net.receptive_field() == ReceptiveField{reach(483, 32, -239), reach(483, 32, -239)});
}

TEST_CASE("receptive field: what sees everything says so") {
  Crnn crnn;
  CHECK(crnn.receptive_field().width.sees_everything());
  CHECK(crnn.receptive_field().height == reach(86, 16, -27));
  const ReceptiveField onward = LSTM({.input = 2, .hidden = 2}).receptive_field();
  CHECK(onward.width.all_before);
  CHECK(!onward.width.all_after);
  CHECK(MultiheadAttention({.embed = 4, .heads = 2}).receptive_field().width.sees_everything());
  CHECK(GlobalAvgPool().receptive_field().sees_everything());
  CHECK(Flatten().receptive_field().sees_everything());
  CHECK(Sequential(Conv2d({.in = 1, .out = 1, .kernel = 3}), AdaptiveAvgPool2d(1)).receptive_field().sees_everything());
}

TEST_CASE("receptive field: branches are united, upsampling goes by fractions") {
  Residual block(
      Sequential(Conv2d({.in = 2, .out = 2, .kernel = 3, .padding = 1}), ReLU(), Conv2d({.in = 2, .out = 2, .kernel = 3, .padding = 1})));
  CHECK(block.receptive_field().width == reach(5, 1, -2));
  const Sequential unet(MaxPool2d(2), Conv2d({.in = 1, .out = 1, .kernel = 3, .padding = 1}), Upsample({.scale = 2}));
  CHECK(unet.receptive_field().width == reach(6, 1, -2));
  CHECK(Upsample({.scale = 2, .mode = ResizeMode::bilinear}).receptive_field().width ==
        AxisReach{.size = 3, .stride = 1, .offset = -1, .upsampling = 2});
}

// The gradient of one output unit of a net whose weights are all one marks exactly what the unit sees.
TEST_CASE("receptive field: equals the box where the gradient is not zero") {
  Sequential net(Conv2d({.in = 1, .out = 1, .kernel = {3, 2}, .stride = 2, .padding = 1, .dilation = {2, 1}}),
                 AvgPool2d({2, 3}, {.stride = {1, 2}}), Conv2d({.in = 1, .out = 1, .kernel = 3, .padding = 1}));
  for (const auto& [name, parameter] : net.named_parameters()) init::ones_(parameter);
  Tensor x = ones({1, 1, 40, 50});
  x.set_requires_grad(true);
  const Tensor y = net(x);
  const int64_t u = y.size(2) / 2, v = y.size(3) / 2;
  select(select(select(select(y, 0, 0), 0, 0), 0, u), 0, v).backward();
  const std::vector<float> g = x.grad().to_vector<float>();
  int64_t top = 40, bottom = -1, left = 50, right = -1;
  for (int64_t i = 0; i < 40; ++i)
    for (int64_t j = 0; j < 50; ++j)
      if (g[static_cast<size_t>(i * 50 + j)] != 0) {
        top = std::min(top, i), bottom = std::max(bottom, i);
        left = std::min(left, j), right = std::max(right, j);
      }
  const ReceptiveField field = net.receptive_field();
  CHECK(top == field.height.offset + u * field.height.stride);
  CHECK(bottom - top + 1 == field.height.size);
  CHECK(left == field.width.offset + v * field.width.stride);
  CHECK(right - left + 1 == field.width.size);
}

TEST_CASE("meta: a forward gives the shape, touches no data and changes nothing in the module") {
  Crnn net;                                                                  // in training mode: running statistics would change
  const StateDict before = state_dict(net);
  std::vector<uint32_t> versions;
  for (const auto& [name, tensor] : before) versions.push_back(tensor.version());
  const uint64_t drawn = default_generator().offset();
  const Tensor y =
      net(empty({1 << 20, 1, 32, 1 << 12}, Device::meta()));  // the activations of a real run would fill the machine many times over
  CHECK(y.is_meta());
  CHECK(y.shape() == Shape{1025, 1 << 20, 37});
  size_t i = 0;
  for (const auto& [name, tensor] : before) CHECK(tensor.version() == versions[i++]);
  CHECK(default_generator().offset() == drawn);

  net.to(Device::meta());
  CHECK(net.output_shape({1, 1, 32, 100}) == Shape{26, 1, 37});
}

// What forward would refuse, the constructor or cost() refuses: no division by zero, no cost of a layer that cannot run.
TEST_CASE("a window that cannot move is refused when the layer is made") {
  CHECK_THROWS_AS(Conv1d({.in = 1, .out = 1, .stride = 0}), ValueError);
  CHECK_THROWS_AS(Conv2d({.in = 1, .out = 1, .stride = 0}), ValueError);
  CHECK_THROWS_AS(Conv2d({.in = 1, .out = 1, .stride = -1}), ValueError);
  CHECK_THROWS_AS(Conv2d({.in = 1, .out = 1, .padding = -5}), ValueError);
  CHECK_THROWS_AS(Conv2d({.in = 1, .out = 1, .dilation = 0}), ValueError);
  CHECK_THROWS_AS(ConvTranspose1d({.in = 1, .out = 1, .stride = 0}), ValueError);
  CHECK_THROWS_AS(ConvTranspose2d({.in = 1, .out = 1, .stride = 0}), ValueError);
  CHECK_THROWS_AS(ConvTranspose2d({.in = 1, .out = 1, .stride = 2, .output_padding = 2}), ValueError);
  CHECK_THROWS_AS(MaxPool2d(2, {.stride = -2}), ValueError);
  CHECK_THROWS_AS(MaxPool2d(2, {.dilation = 0}), ValueError);
  CHECK_THROWS_AS(AvgPool2d(2, {.padding = 2}), ValueError);
  CHECK_THROWS_AS(MaxPool1d(2, {.stride = -1}), ValueError);
  CHECK_THROWS_AS(AvgPool1d(2, {.stride = -2, .padding = -7}), ValueError);
  CHECK(MaxPool2d(2, {.stride = 0}).output_shape({1, 1, 4, 4}) == Shape{1, 1, 2, 2});
}

TEST_CASE("cost: an input that forward would refuse is the same error") {
  CHECK_THROWS_AS(Conv2d({.in = 1, .out = 1, .kernel = 9}).cost({1, 1, 4, 4}), ShapeError);
  CHECK_THROWS_AS(MaxPool2d(9).cost({1, 1, 4, 4}), ShapeError);
  CHECK_THROWS_AS(LSTM({.input = 2, .hidden = 3}).cost({-3, 1, 2}), ShapeError);
  CHECK_THROWS_AS(Linear(2, 2).cost({-3, 2}), ShapeError);
  CHECK_THROWS_AS(Sequential(Linear(2, 2)).cost({3, 4}), ShapeError);
}

TEST_CASE("cost: numbers beyond 64 bits are an error, and no number is negative") {
  constexpr int64_t huge = int64_t{1} << 28;
  CHECK_THROWS_AS(Linear(2, 2).cost({int64_t{1} << 40, int64_t{1} << 40, 2}), ShapeError);
  CHECK_THROWS_AS(Conv2d({.in = 2, .out = 64, .kernel = 3, .padding = 1}).cost({1, 2, huge, huge}), ShapeError);
  CHECK_THROWS_AS(Sequential(Conv2d({.in = 2, .out = 4, .kernel = 7, .padding = 3})).cost({1, 2, huge, huge}), ShapeError);
  CHECK(Conv2d({.in = 2, .out = 2, .kernel = 1}).cost({1, 2, 1 << 20, 1 << 20}).macs == int64_t{4} << 40);
  CHECK(str(Cost{.macs = -96}).find("-96 MACs") == 0);
}

TEST_CASE("cost: losses count their formula over the prediction, and Bilinear says why it cannot stand in a Sequential") {
  CHECK(MSELoss().cost({4, 5}).flops == 60);
  CHECK(MSELoss().cost({4, 5}).bytes == 4 * 40);
  CHECK(BCEWithLogitsLoss().cost({4, 5}).flops == 100);
  CHECK(CrossEntropyLoss().cost({4, 5}).flops == 60);
  CHECK(Bilinear(2, 3, 4).cost({5, 2}).macs == 5 * (2 * 3 * 4 + 3 * 4));
  CHECK_THROWS_WITH_AS(Sequential(Bilinear(2, 2, 2)).cost({5, 2}), doctest::Contains("Bilinear: has no forward of its own for one tensor"), Error);
}
