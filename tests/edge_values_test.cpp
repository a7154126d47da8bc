// Values at the edges of what a function takes: the right number or an error, never a wrong number without a word.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fovea/fovea.h>

#include "devices.h"
#include "messages.h"
#include "temporary_folder.h"

#if defined(__SANITIZE_ADDRESS__)
#define FOVEA_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FOVEA_ADDRESS_SANITIZER
#endif
#endif

using namespace fovea;
using fovea::testing::contains;
using fovea::testing::error_of;

namespace {

constexpr int64_t largest = std::numeric_limits<int64_t>::max(), smallest = std::numeric_limits<int64_t>::min();
constexpr int64_t beyond_double = (int64_t{1} << 53) + 1;                  // the first integer that a double cannot hold

std::vector<int64_t> whole(const Tensor& x) { return x.to_vector<int64_t>(); }
std::vector<float> floats(const Tensor& x) { return x.to_vector<float>(); }

}  // namespace

TEST_CASE("triangles: a diagonal beyond the matrix keeps all of it or nothing") {
  const Tensor x = ones({2, 3});
  for (const int64_t far : {int64_t{7}, largest}) {
    CHECK(sum(tril(x, far)).item() == 6);
    CHECK(sum(tril(x, far == largest ? smallest : -far)).item() == 0);
    CHECK(sum(triu(x, far)).item() == 0);
    CHECK(sum(triu(x, far == largest ? smallest : -far)).item() == 6);
  }
}

TEST_CASE("triangles: nothing has no rows to go through, however many there are") {
  const Tensor x = zeros({int64_t{1} << 40, 0});
  CHECK(tril(x).shape() == x.shape());
  CHECK(triu(x, 1).shape() == x.shape());
}

TEST_CASE("an integer beside an int64 tensor is exact, however large") {
  const Tensor x = from_vector(std::vector<int64_t>{0, 1});
  CHECK(whole(x + beyond_double) == std::vector<int64_t>{beyond_double, beyond_double + 1});
  CHECK(whole(x - beyond_double) == std::vector<int64_t>{-beyond_double, 1 - beyond_double});
  CHECK(whole(beyond_double - x) == std::vector<int64_t>{beyond_double, beyond_double - 1});
  CHECK(whole(x * beyond_double) == std::vector<int64_t>{0, beyond_double});
  const Tensor big = from_vector(std::vector<int64_t>{beyond_double - 1, beyond_double});
  CHECK(eq(big, beyond_double).to_vector<uint8_t>() == std::vector<uint8_t>{0, 1});
  CHECK(gt(big, beyond_double - 1).to_vector<uint8_t>() == std::vector<uint8_t>{0, 1});
  CHECK(whole(remainder(big, beyond_double)) == std::vector<int64_t>{beyond_double - 1, 0});
  CHECK(whole(where(eq(x, 0), beyond_double, x)) == std::vector<int64_t>{beyond_double, 1});
  const Tensor changed = clone(x);
  add_(changed, beyond_double);
  sub_(changed, 1);
  CHECK(whole(changed) == std::vector<int64_t>{beyond_double - 1, beyond_double});
}

TEST_CASE("a number beside small integers is compared by its value and stored only if it fits") {
  const Tensor x = from_vector(std::vector<uint8_t>{0, 44, 255});
  CHECK(eq(x, 300).to_vector<uint8_t>() == std::vector<uint8_t>{0, 0, 0});       // 300 is 44 in 8 bits
  CHECK(sum(lt(x, 300)).item() == 3);
  CHECK(sum(gt(x, -1)).item() == 3);
  CHECK(contains(error_of<ValueError>([&] { full({2}, 300, DType::uint8); }), "full: 300 does not fit into uint8"));
  CHECK(contains(error_of<ValueError>([&] { fill_(x, -1); }), "fill_"));
  CHECK(contains(error_of<ValueError>([&] { masked_fill(arange(3), arange(3) > 1, -std::numeric_limits<double>::infinity()); }), "masked_fill"));
  CHECK(contains(error_of<ValueError>([&] { where(x > 3, x, 300); }), "where"));
  CHECK_THROWS_AS(layers::init::constant_(x, 300), ValueError);
}

TEST_CASE("random numbers: what is drawn fits the dtype") {
  CHECK_THROWS_AS(rand({3}, DType::int64), DTypeError);
  CHECK_THROWS_AS(randn({3}, DType::boolean), DTypeError);
  CHECK_THROWS_AS(randint(0, 1000, {5}, DType::uint8), ValueError);
  CHECK_THROWS_AS(randint(-1, 10, {5}, DType::uint8), ValueError);
  CHECK_THROWS_AS(randint(0, 3, {5}, DType::boolean), ValueError);
  CHECK_THROWS_AS(randint(smallest, largest, {3}), ValueError);
  CHECK_THROWS_AS(layers::init::normal_(zeros({3}, DType::int64)), DTypeError);
  CHECK(max(randint(0, 256, {1000}, DType::uint8)).item() > 200);
  const Tensor wide = randint(-(int64_t{1} << 53), int64_t{1} << 53, {64});
  CHECK(max(wide).item() > 0);
  CHECK(min(wide).item() < 0);
}

TEST_CASE("in place: a fraction of an integer tensor is refused") {
  const Tensor x = ones({2}, DType::int64);
  CHECK(contains(error_of<DTypeError>([&] { add_(x, ones({2}, DType::int64), 0.5); }), "add_: alpha is 0.5"));
  CHECK(whole(x) == std::vector<int64_t>{1, 1});
  add_(x, ones({2}, DType::int64), 3);
  CHECK(whole(x) == std::vector<int64_t>{4, 4});
}

TEST_CASE("index: masks of rank 0 and huge index tensors") {
  const Tensor x = ones({2, 2});
  CHECK_THROWS_AS(x[scalar(0, DType::boolean)], IndexError);
  {
    const testing::MemoryLimit limit(int64_t{1} << 30);
    CHECK_THROWS_AS((x[{zeros({100000, 1}, DType::int64), zeros({1, 100000}, DType::int64)}]), MemoryError);
  }
#if !defined(FOVEA_ADDRESS_SANITIZER)              // which ends the program instead of throwing std::bad_alloc
  CHECK(contains(error_of<MemoryError>([&] { expand(ones({1}), {int64_t{1} << 50}).to_vector<float>(); }), "out of memory"));
#endif
}

TEST_CASE("differences of bool tensors are refused, as PyTorch does") {
  const Tensor yes = ones({2}, DType::boolean);
  CHECK(contains(error_of<DTypeError>([&] { yes - yes; }), "logical_xor"));
}

TEST_CASE("gradients that are zero are zeros, not missing") {
  const Tensor x = tensor({-1.5, 0.5, 2}).set_requires_grad();
  for (Tensor (*step)(const Tensor&) : {floor, ceil, round, sign}) {
    CHECK(floats(grad({sum(step(x))}, {x})[0]) == std::vector<float>{0, 0, 0});
    x.set_grad({});
    sum(step(x)).backward();
    CHECK(floats(x.grad()) == std::vector<float>{0, 0, 0});
  }
  CHECK(floats(grad({sum(pow(x, 0))}, {x})[0]) == std::vector<float>{0, 0, 0});
  const Tensor first = grad({sum(relu(x))}, {x}, {}, {.create_graph = true})[0];
  CHECK(floats(grad({sum(first)}, {x})[0]) == std::vector<float>{0, 0, 0});
  const Tensor apart = ones({2}).set_requires_grad();
  CHECK_THROWS_AS(grad({sum(floor(x))}, {apart}), AutogradError);            // no way leads there: still an error
}

TEST_CASE("stddev of equal numbers has gradient 0, of others the formula's") {
  const Tensor x = ones({3}, DType::float64).set_requires_grad();
  stddev(x).backward();
  CHECK(x.grad().to_vector<double>() == std::vector<double>{0, 0, 0});
  const Tensor y = randn({2, 4}, DType::float64).set_requires_grad();
  CHECK(gradcheck([](const std::vector<Tensor>& in) { return stddev(in[0], {1}); }, {y}) == "");
  CHECK(gradgradcheck([](const std::vector<Tensor>& in) { return stddev(in[0], {1}); }, {y}) == "");
}

TEST_CASE("losses over ignored labels alone: the loss is 0 / 0, the gradient 0") {
  const Tensor labels = full({2}, -100, DType::int64);
  const Tensor logits = randn({2, 3}).set_requires_grad();
  const Tensor loss = cross_entropy(logits, labels);
  CHECK(std::isnan(loss.item()));
  loss.backward();
  CHECK(floats(logits.grad()) == std::vector<float>(6, 0.0f));
  const Tensor again = randn({2, 3}).set_requires_grad();
  layers::NLLLoss()(log_softmax(again, 1), labels).backward();
  CHECK(floats(again.grad()) == std::vector<float>(6, 0.0f));
}

TEST_CASE("PReLU at 0 has the slope of its weight") {
  layers::PReLU layer;
  const Tensor x = tensor({-2, 0, 2}).set_requires_grad();
  const Tensor y = layer(x);
  CHECK(floats(y) == std::vector<float>{-0.5f, 0, 2});
  sum(y).backward();
  CHECK(floats(x.grad()) == std::vector<float>{0.25f, 0.25f, 1});
  CHECK(floats(layer.weight.grad()) == std::vector<float>{-2});
}

TEST_CASE("first values that make no sense, and states without tensors, are refused") {
  const Tensor x = zeros({3});
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(contains(error_of<ValueError>([&] { layers::init::uniform_(x, 1, 0); }), "init: uniform numbers lie between"));
  CHECK(contains(error_of<ValueError>([&] { layers::init::uniform_(x, nan, 1); }), "init: uniform numbers lie between"));
  CHECK(contains(error_of<ValueError>([&] { layers::init::normal_(x, 0, -1); }), "init: normal numbers have a mean"));
  CHECK(contains(error_of<ValueError>([&] { layers::init::normal_({}); }), "init: the tensor is undefined"));
  layers::Linear layer(2, 2, {.bias = false});
  layers::StateDict state;
  state.add("weight", Tensor());
  CHECK(contains(error_of<ValueError>([&] { layers::load_state_dict(layer, state); }), "\"weight\" is an undefined tensor"));
}

TEST_CASE("a state that is another view of the module's own memory is copied") {
  layers::Linear layer(2, 2, {.bias = false});
  {
    NoGrad no_grad;
    copy_(layer.weight, tensor({{1, 2}, {3, 4}}));
  }
  layers::StateDict state;
  state.add("weight", transpose(layer.weight.detach()));
  layers::load_state_dict(layer, state);
  CHECK(floats(layer.weight) == std::vector<float>{1, 3, 2, 4});
}

TEST_CASE("tensors of rank 0 have one element along axis 0 and -1") {
  const Tensor x = scalar(3).set_requires_grad();
  CHECK(softmax(x, 0).item() == 1);
  CHECK(log_softmax(x, -1).item() == 0);
  const Ordered sorted = sort(x, -1);
  CHECK(sorted.values.item() == 3);
  CHECK(sorted.indices.item() == 0);
  CHECK(gather(x, 0, scalar(0, DType::int64)).item() == 3);
  CHECK(gather(x, 0, scalar(0, DType::int64)).shape() == Shape{});
  CHECK_THROWS_AS(softmax(x, 1), IndexError);
}

TEST_CASE("flip, split and norms name themselves") {
  const Tensor x = ones({2, 3});
  CHECK(contains(error_of<ValueError>([&] { flip(x, {0, 0}); }), "flip: axis 0 comes twice"));
  CHECK(contains(error_of<ValueError>([&] { split(x, std::vector<int64_t>{-2, 5}, 1); }), "split: sizes cannot be negative"));
  CHECK(contains(error_of<ShapeError>([&] { split(x, std::vector<int64_t>{largest, largest, 5}, 1); }), "split"));
  CHECK(split(x, largest, 1).size() == 1);
  CHECK(contains(error_of<ValueError>([&] { norm(zeros({0}), std::numeric_limits<double>::infinity()); }), "norm: x [0]"));
  CHECK(contains(error_of<ShapeError>([&] { zeros({largest, 4}); }), "zeros: "));
  CHECK(contains(error_of<ShapeError>([&] { eye(int64_t{1} << 40); }), "eye: "));
  CHECK(contains(error_of<ShapeError>([&] { one_hot(arange(3), int64_t{1} << 60); }), "one_hot: "));
  const Tensor full_rank = ones({1, 1, 1, 1, 1, 1, 1, 1});
  CHECK(contains(error_of<ShapeError>([&] { unsqueeze(full_rank, 0); }), "unsqueeze: "));
  CHECK(contains(error_of<ShapeError>([&] { stack({full_rank}); }), "stack: "));
  CHECK(contains(error_of<ShapeError>([&] { one_hot(to(full_rank, DType::int64), 2); }), "one_hot: "));
  CHECK(contains(error_of<ShapeError>([&] { full_rank[newaxis]; }), "index: "));
  CHECK(contains(error_of<ShapeError>([&] { layers::Embedding(2, 2)(to(full_rank, DType::int64)); }), "embedding: "));
  CHECK(contains(error_of<ShapeError>([&] { pad(zeros({1, 0}), {1, 1}, PadMode::replicate); }), "pad: replication"));
  CHECK(contains(error_of<IndexError>([&] { layers::NLLLoss()(ones({1, 2}), from_vector(std::vector<int64_t>{2})); }), "nll_loss: labels"));
  CHECK(contains(error_of<DTypeError>([&] { layers::NLLLoss()(ones({1, 2}), ones({1})); }), "nll_loss: labels"));
  CHECK(contains(error_of<IndexError>([&] { layers::MulticlassHingeLoss()(ones({1, 2}), from_vector(std::vector<int64_t>{2})); }), "MulticlassHingeLoss"));
  CHECK(contains(error_of<ShapeError>([&] { layers::Upsample({.scale = int64_t{1} << 62})(ones({1, 1, 4, 4})); }), "Upsample: "));
  CHECK(contains(error_of<ValueError>([&] { layers::LSTM({.input = 1, .hidden = 1, .layers = int64_t{1} << 40}); }), "layers must be at most"));
}

TEST_CASE("statistics and masks that make no sense are refused") {
  const Tensor x = randn({4, 2}), mean = zeros({2}), var = ones({2});
  CHECK_THROWS_AS(batch_norm(x, {}, {}, mean, {}, true), ValueError);
  CHECK_THROWS_AS(batch_norm(x, {}, {}, mean, mean, true), ValueError);
  CHECK_THROWS_AS(batch_norm(x, {}, {}, mean, var, true, 0.1, -1), ValueError);
  CHECK_THROWS_AS(layers::BatchNorm1d(2, {.eps = -1}), ValueError);
  layers::MultiheadAttention attention({.embed = 4, .heads = 2});
  const Tensor q = randn({3, 1, 4});
  for (const DType dtype : {DType::int64, DType::float64}) {
    layers::AttentionMasks masks;
    masks.attention_mask = ones({3, 3}, dtype);
    CHECK_THROWS_AS(attention(q, q, q, masks), DTypeError);
  }
}

TEST_CASE("optimizers take leaves; their checkpoints go back to the same kind") {
  CHECK_THROWS_AS(optim::SGD({{"a", Tensor()}}, {.lr = 0.1}), ValueError);
  const Tensor w = ones({2}).set_requires_grad();
  CHECK_THROWS_AS(optim::SGD({{"a", w * 2}}, {.lr = 0.1}), ValueError);
  const TemporaryFolder folder;
  layers::Linear model(2, 2);
  optim::Adam adam(model.named_parameters(), {.lr = 0.1});
  optim::AdamW adamw(model.named_parameters(), {.lr = 0.1});
  optim::save_checkpoint(folder / "c", model, adam, {});
  CHECK(contains(error_of<ValueError>([&] { optim::load_checkpoint(folder / "c", model, adamw); }), "was saved by Adam, and this run has AdamW"));
  optim::load_checkpoint(folder / "c", model, adam);
}

TEST_CASE("resizing to a size that no memory holds says so at once") {
  CHECK_THROWS_AS(data::resize_image(ones({1, 2, 5}), int64_t{1} << 40, int64_t{1} << 40), ShapeError);
}

TEST_CASE("init: the forget gate's biases become the value, all others stay") {
  layers::LSTM lstm({.input = 2, .hidden = 3, .layers = 2});
  const layers::StateDict before = layers::state_dict(lstm);
  NamedTensors old;
  for (const auto& [name, tensor] : before) old.add(name, clone(tensor));
  layers::init::lstm_forget_bias_(lstm, 1.5);
  for (const auto& [name, tensor] : layers::state_dict(lstm)) {
    const std::string& parameter = name;           // clang 14 lets no lambda, so no CAPTURE, use a structured binding
    CAPTURE(parameter);
    Tensor expected = clone(old[name]);
    if (name.rfind("bias_", 0) == 0) fill_(narrow(expected, 0, 3, 3), name.rfind("bias_ih", 0) == 0 ? 1.5 : 0);     // gates i f g o
    CHECK(floats(tensor) == floats(expected));
  }
}

TEST_CASE("layers: adaptive and global maxima, whole channels dropped") {
  const Tensor x = reshape(arange(0, 12, 1), {1, 2, 6});
  layers::AdaptiveMaxPool1d pool(3);
  CHECK(floats(pool(x)) == std::vector<float>{1, 3, 5, 7, 9, 11});
  CHECK(pool.output_shape({4, 2, 7}) == Shape{4, 2, 3});
  CHECK(layers::AdaptiveMaxPool2d(1)(reshape(x, {1, 2, 2, 3})).to_vector<float>() == std::vector<float>{5, 11});
  layers::GlobalMaxPool global;
  CHECK(floats(global(reshape(x, {1, 2, 2, 3}))) == std::vector<float>{5, 11});
  CHECK(global.output_shape({3, 2, 5, 5}) == Shape{3, 2});
  CHECK(global.cost({3, 2, 5, 5}).flops == 150);
  layers::Dropout2d dropout(0.5);
  const std::vector<float> sums = floats(sum(dropout(ones({8, 8, 3, 3})), {2, 3}));
  for (const float total : sums) CHECK((total == 0 || total == 18));          // a channel is dropped as a whole, or scaled by 2
  CHECK(std::count(sums.begin(), sums.end(), 0.0f) > 0);
  CHECK(std::count(sums.begin(), sums.end(), 18.0f) > 0);
  dropout.eval();
  CHECK(floats(dropout(x)) == floats(x));
}

TEST_CASE("a separable convolution is a depthwise one, then a pointwise one") {
  layers::DepthwiseSeparable layer({.in = 3, .out = 4});
  const Tensor x = randn({2, 3, 5, 6});
  const Tensor middle = conv2d(x, layer.depthwise.weight, layer.depthwise.bias, {.padding = 1, .groups = 3});
  CHECK(compare(layer(x), conv2d(middle, layer.pointwise.weight, layer.pointwise.bias), {.rtol = 1e-5, .atol = 1e-6}));
  CHECK(layer.depthwise.weight.shape() == Shape{3, 1, 3, 3});
  CHECK(layer.cost({2, 3, 5, 6}).macs == 2 * 30 * (3 * 9 + 3 * 4));
  CHECK(layer.receptive_field().width == layers::AxisReach{.size = 3, .stride = 1, .offset = -1});
}

TEST_CASE("a result in place may be kept, and an element is written with copy_") {
  const Tensor& y = relu_(tensor({-1, 2}) * 1);
  CHECK(floats(y) == std::vector<float>{0, 2});
  const Tensor& leaf = ones({2}).set_requires_grad();
  CHECK(leaf.requires_grad());
  static_assert(!std::is_assignable_v<Tensor, Tensor>, "x[0] = y must not compile: it would not change x");
  static_assert(std::is_assignable_v<Tensor&, Tensor>);
  const Tensor x = zeros({2, 2});
  copy_(x[0], ones({2}));
  CHECK(floats(x) == std::vector<float>{1, 1, 0, 0});
}
