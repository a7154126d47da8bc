// Arguments that nobody should give: each is an error that names the operation, never a crash, a huge allocation or a wrong answer.
#include <doctest/doctest.h>

#include <fovea/fovea.h>

#include "messages.h"

using namespace fovea;
using fovea::testing::contains;
using fovea::testing::error_of;

TEST_CASE("sizes that overflow are refused before memory is asked for") {
  const Tensor x = ones({1, 1, 4, 4}), w = ones({1, 1, 2, 2});
  constexpr int64_t huge = int64_t{1} << 40;
  CHECK_THROWS_AS(conv2d(x, w, {}, {.padding = Pair(huge)}), ValueError);
  CHECK_THROWS_AS(conv2d(x, w, {}, {.dilation = Pair(huge)}), ValueError);
  CHECK_THROWS_AS(max_pool2d(x, Pair(huge)), Error);
  CHECK_THROWS_AS(pad(x, {huge, int64_t{1} << 61}), ShapeError);
  CHECK_THROWS_AS(reshape(x, {huge, huge, huge}), ShapeError);
  CHECK_THROWS_AS(layers::Embedding(huge, huge), ShapeError);
  CHECK_THROWS_AS(layers::MultiheadAttention({.embed = huge, .heads = 1}), Error);
}

TEST_CASE("recurrent networks: numbers whose products overflow are refused") {
  constexpr int64_t huge = int64_t{1} << 62;                   // four times that is 0
  CHECK(contains(error_of<ValueError>([&] { lstm(ones({2, 1, 3}), {}, {.layers = huge}); }), "lstm: layers must be at least 1 and at most"));
  CHECK(contains(error_of<ValueError>([&] { layers::LSTM({.input = 3, .hidden = huge}); }), "recurrent layer: input and hidden must be at most"));
  CHECK(contains(error_of<ValueError>([&] { layers::GRUCell({.input = huge, .hidden = 3}); }), "recurrent cell: input and hidden must be at most"));
}

TEST_CASE("a step longer than the axis takes one element") {
  const Tensor x = arange(5);
  CHECK(slice(x, 0, 1, 5, int64_t{1} << 62).to_vector<int64_t>() == std::vector<int64_t>{1});
  CHECK(slice(x, 0, -1, -6, -(int64_t{1} << 62)).to_vector<int64_t>() == std::vector<int64_t>{4});
}

TEST_CASE("cells name the argument that is missing or does not fit") {
  const Tensor x = ones({2, 3}), h = ones({2, 4}), w_ih = ones({16, 3}), w_hh = ones({16, 4});
  CHECK(contains(error_of<Error>([&] { lstm_cell(x, h, {}, w_ih, w_hh, {}, {}); }), "lstm_cell"));
  CHECK(contains(error_of<Error>([&] { lstm_cell(x, ones({2, 5}), h, w_ih, w_hh, {}, {}); }), "lstm_cell: h"));
  CHECK(contains(error_of<Error>([&] { gru_cell(x, h, w_ih, w_hh, {}, {}); }), "gru_cell"));
}

TEST_CASE("the gradient given to backward must be of the output's kind") {
  const Tensor y = ones({2}).set_requires_grad() * 2;
  CHECK_THROWS_AS(y.backward(ones({2}, DType::float64)), DTypeError);
  CHECK_THROWS_AS(y.backward(ones({3})), ShapeError);
}

TEST_CASE("checkpoint puts the random state back when the function throws in the backward pass") {
  int calls = 0;
  const Tensor x = ones({3}).set_requires_grad();
  const Tensor y = checkpoint([&](const std::vector<Tensor>& in) {
    check<ValueError>(++calls < 2, "the second run fails");
    return in[0] * 2;
  }, {x});
  manual_seed(5);
  rand({3});
  const uint64_t before = default_generator().offset();
  CHECK_THROWS_AS(sum(y).backward(), ValueError);
  CHECK(default_generator().offset() == before);
}

TEST_CASE("checkpoint says so when the function does not do the same again") {
  int calls = 0;
  const Tensor x = ones({3}).set_requires_grad();
  const Tensor y = checkpoint([&](const std::vector<Tensor>& in) { return calls++ == 0 ? in[0] * ones({2, 3}) : in[0] * 1.0; }, {x});
  CHECK(contains(error_of<ValueError>([&] { sum(y).backward(); }), "checkpoint: run again, the function returned another shape"));
}

TEST_CASE("half-precision slices gather their gradients in float32") {
  const Tensor w = to(ones({2, 2}), DType::float16).set_requires_grad();
  const Tensor rows = index_select(w, 0, from_vector(std::vector<int64_t>{1, 1, 1}));
  sum(to(rows, DType::float32)).backward();
  CHECK(w.grad().to_vector<float>() == std::vector<float>{0, 0, 3, 3});
}

TEST_CASE("an undefined tensor: the error names the operation and the argument") {
  const Tensor x = ones({1, 2, 4, 4}), none;
  CHECK(error_of<ValueError>([&] { conv2d(x, none); }) == "conv2d: weight is an undefined tensor");
  CHECK(error_of<ValueError>([&] { layer_norm(none, {4}); }) == "layer_norm: x is an undefined tensor");
  CHECK(error_of<ValueError>([&] { x + none; }) == "add: b is an undefined tensor");
  CHECK(error_of<ValueError>([&] { contiguous(none); }) == "contiguous: x is an undefined tensor");
  CHECK(error_of<ValueError>([&] { concat({x, none}); }) == "concat: a part is an undefined tensor");
  CHECK(error_of<ValueError>([&] { add_(x, none); }) == "add_: b is an undefined tensor");
  CHECK(error_of<ValueError>([&] { copy_(x, none); }) == "copy_: the operand is an undefined tensor");
  CHECK(error_of<ValueError>([&] { dropout(none, 0.5); }) == "dropout: x is an undefined tensor");
  CHECK(error_of<ValueError>([&] { none[0]; }) == "index: x is an undefined tensor");
  CHECK(error_of<ValueError>([&] { masked_select(x, none); }) == "masked_select: mask is an undefined tensor");
  CHECK(error_of<ValueError>([&] { where(x > 0, none, 1); }) == "where: a is an undefined tensor");
  CHECK(error_of<ValueError>([&] { where(none, x, x); }) == "where: condition is an undefined tensor");
  CHECK(error_of<ValueError>([&] { none.backward(); }) == "backward: output 0 is an undefined tensor");
}

TEST_CASE("an operation that is made of others gives its own name in errors") {
  const Tensor x = ones({2, 3}), whole = ones({2, 3}, DType::int64);
  CHECK(error_of<IndexError>([&] { split(x, 2, 5); }) == "split: axis 5 is out of range for a tensor of rank 2");
  CHECK(error_of<IndexError>([&] { chunk(x, 2, 5); }) == "chunk: axis 5 is out of range for a tensor of rank 2");
  CHECK(error_of<IndexError>([&] { argsort(x, 5); }) == "argsort: axis 5 is out of range for a tensor of rank 2");
  CHECK(contains(error_of<DTypeError>([&] { stddev(whole); }), "stddev: takes a floating-point tensor"));
  CHECK(contains(error_of<IndexError>([&] { stddev(x, 5); }), "stddev: axis 5"));
  CHECK(contains(error_of<ShapeError>([&] { take_along(x, ones({3, 1}, DType::int64), 1); }), "take_along: "));
  CHECK(contains(error_of<DTypeError>([&] { add_(whole, x, 2); }), "add_: the result is float32"));
  CHECK(contains(error_of<DTypeError>([&] { sub_(whole, x, 2); }), "sub_: the result is float32"));
  CHECK(contains(error_of<DTypeError>([&] { sub_(whole, whole, 0.5); }), "sub_: alpha is 0.5"));
  CHECK(contains(error_of<ShapeError>([&] { add_(expand(ones({1}), {3}), ones({3}), -1); }), "add_: x [3] repeats elements"));
}

TEST_CASE("cells without hidden units have results without elements") {
  const Tensor x = ones({2, 3}), h = ones({2, 0}), lstm_ih = ones({0, 3}), w_hh = ones({0, 0});
  const LstmCellResult next = lstm_cell(x, h, h, lstm_ih, w_hh);
  CHECK(next.h.shape() == Shape{2, 0});
  CHECK(next.c.shape() == Shape{2, 0});
  CHECK(gru_cell(x, h, lstm_ih, w_hh).shape() == Shape{2, 0});
  CHECK(rnn_cell(x, h, lstm_ih, w_hh).shape() == Shape{2, 0});
}

TEST_CASE("a gradient cannot be put on another device than its tensor") {
  const Tensor x = ones({2}).set_requires_grad();
  CHECK(contains(error_of<DeviceError>([&] { x.set_grad(ones({2}, Device::meta())); }), "set_grad: the gradient is on meta"));
  CHECK(!x.grad().defined());
  sum(x).backward();
  CHECK(x.grad().to_vector<float>() == std::vector<float>{1, 1});
}

TEST_CASE("an empty function is refused by whoever would call it") {
  const Tensor x = ones({2}, DType::float64).set_requires_grad();
  CHECK(contains(error_of<ValueError>([&] { register_hook(x, nullptr); }), "register_hook"));
  CHECK(contains(error_of<ValueError>([&] { register_accumulate_hook(x, nullptr); }), "register_accumulate_hook"));
  CHECK(contains(error_of<ValueError>([&] { checkpoint(nullptr, {x}); }), "checkpoint"));
  CHECK(contains(error_of<ValueError>([&] { gradcheck(nullptr, {x}); }), "gradcheck"));
  CHECK(contains(error_of<ValueError>([&] { gradgradcheck(nullptr, {x}); }), "gradgradcheck"));
  CHECK(contains(error_of<ValueError>([&] { layers::Linear(2, 2).apply(nullptr); }), "apply"));
}

TEST_CASE("the gradients of a convolution are given only for tensors of the geometry's shapes") {
  const Tensor x = ones({1, 2, 4, 4}), dy = ones({1, 3, 2, 2}), w = ones({3, 2, 3, 3});
  const ConvGeometry fits{.n = 1, .c = 2, .h = 4, .w = 4, .k = 3, .r = 3, .s = 3};
  CHECK(conv2d_backward_weight(fits, x, dy).shape() == w.shape());
  CHECK(conv2d_backward_data(fits, dy, w).shape() == x.shape());
  ConvGeometry wrong = fits;
  wrong.h = wrong.w = 4000;
  CHECK_THROWS_AS(conv2d_backward_weight(wrong, x, dy), ShapeError);
  CHECK_THROWS_AS(conv2d_backward_data(wrong, dy, w), ShapeError);
  wrong = fits;
  wrong.stride_h = 0;
  CHECK_THROWS_AS(conv2d_backward_weight(wrong, x, dy), ValueError);
  CHECK_THROWS_AS(conv2d_backward_data(wrong, dy, w), ValueError);
  wrong = fits;
  wrong.groups = 0;
  CHECK_THROWS_AS(conv2d_backward_data(wrong, dy, w), ValueError);
  CHECK_THROWS_AS(conv2d_backward_weight(fits, x, ones({1, 3, 2, 2}, DType::float64)), DTypeError);
}
