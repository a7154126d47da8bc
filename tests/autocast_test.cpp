// Autocast: what a scope does to dtypes, gradients and parameters. tests/op_cases_test.cpp compares every operation with its rule.
#include <doctest/doctest.h>

#include <stdexcept>
#include <thread>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/autocast.h>
#include <fovea/autograd/backward.h>
#include <fovea/autograd/conv.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/matmul.h>
#include <fovea/autograd/norm.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/rnn.h>
#include <fovea/autograd/shape.h>
#include <fovea/autograd/softmax.h>
#include <fovea/layers/activation.h>
#include <fovea/layers/container.h>
#include <fovea/layers/conv.h>
#include <fovea/layers/flatten.h>
#include <fovea/layers/linear.h>
#include <fovea/layers/loss.h>
#include <fovea/layers/norm.h>
#include <fovea/tensor/creation.h>

#include "messages.h"

using namespace fovea;
using fovea::testing::error_of;

namespace {

constexpr DType bf16 = DType::bfloat16;

Tensor numbers(const Shape& shape, uint64_t seed) {
  Generator generator(seed);
  return randn(shape, {}, generator);
}

Tensor parameter(const Shape& shape, uint64_t seed) { return numbers(shape, seed).set_requires_grad(); }

double largest_difference(const Tensor& a, const Tensor& b) { return amax(abs(to(a.detach(), DType::float64) - to(b.detach(), DType::float64))).item(); }

}  // namespace

TEST_CASE("autocast: scopes nest, the innermost counts, and exceptions unwind them") {
  CHECK(!Autocast::dtype());
  {
    Autocast outer(DType::float16);
    CHECK(Autocast::dtype() == DType::float16);
    {
      Autocast inner(bf16);
      CHECK(Autocast::dtype() == bf16);
      {
        Autocast off = Autocast::disabled();
        CHECK(!Autocast::dtype());
      }
      CHECK(Autocast::dtype() == bf16);
    }
    try {
      Autocast inner(bf16);
      matmul(numbers({2, 3}, 1), numbers({2, 3}, 2));
      FAIL("the shapes do not fit");
    } catch (const ShapeError&) {
    }
    CHECK(Autocast::dtype() == DType::float16);
  }
  CHECK(!Autocast::dtype());
  CHECK(error_of<DTypeError>([] { Autocast scope(DType::float32); }) == "Autocast: takes float16 or bfloat16, got float32; Autocast::disabled() turns it off");
  CHECK(!Autocast::dtype());
}

TEST_CASE("autocast: a scope is its thread's own") {
  const Tensor x = numbers({2, 3}, 1), w = numbers({4, 3}, 2);
  Autocast scope(bf16);
  DType elsewhere = DType::boolean;
  std::thread([&] { elsewhere = linear(x, w).dtype(); }).join();
  CHECK(elsewhere == DType::float32);
  CHECK(linear(x, w).dtype() == bf16);
}

TEST_CASE("autocast: products in the half type, losses in float32, gradients in the parameters' dtype") {
  const Tensor x = numbers({4, 3}, 1), w = parameter({5, 3}, 2), b = parameter({5}, 3);
  const Tensor labels = to(from_vector(std::vector<int64_t>{0, 4, 2, 1}), x.device());
  Tensor logits, loss;
  {
    Autocast scope(bf16);
    logits = linear(x, w, b);
    loss = cross_entropy(logits, labels);
  }
  CHECK(logits.dtype() == bf16);
  CHECK(loss.dtype() == DType::float32);
  loss.backward();
  CHECK(w.grad().dtype() == DType::float32);
  CHECK(b.grad().dtype() == DType::float32);
  const Tensor w32 = parameter({5, 3}, 2), b32 = parameter({5}, 3), exact = cross_entropy(linear(x, w32, b32), labels);
  exact.backward();
  CHECK(std::abs(loss.item() - exact.item()) < 0x1p-6 * exact.item());
  CHECK(largest_difference(w.grad(), w32.grad()) < 0x1p-6 * amax(abs(w32.grad())).item());
  CHECK(largest_difference(w.grad(), w32.grad()) > 0);                         // it was rounded somewhere
}

TEST_CASE("autocast: the result is that of converted arguments, bit for bit") {
  const Tensor x = numbers({2, 3, 6, 5}, 1), w = numbers({4, 3, 3, 3}, 2);
  Tensor y;
  {
    Autocast scope(DType::float16);
    y = conv2d(x, w);
  }
  const Tensor same = conv2d(to(x, DType::float16), to(w, DType::float16));
  CHECK(y.dtype() == DType::float16);
  CHECK(largest_difference(y, same) == 0);
}

TEST_CASE("autocast: float64 among the arguments turns it off for the call") {
  const Tensor x = to(numbers({2, 3}, 1), DType::float64), w = to(numbers({4, 3}, 2), DType::float64);
  Autocast scope(bf16);
  CHECK(linear(x, w).dtype() == DType::float64);
  CHECK(sum(x).dtype() == DType::float64);
}

TEST_CASE("autocast: a parameter is converted once a scope, and anew after it was changed in place") {
  Tensor w = parameter({3, 2}, 1);
  const long held = w.impl_pointer().use_count();
  {
    Autocast scope(bf16);
    const Tensor first = detail::autocast_copy(w, bf16), again = detail::autocast_copy(w, bf16);
    CHECK(first.storage() == again.storage());
    {
      Autocast inner(bf16);
      CHECK(detail::autocast_copy(w, bf16).storage() == first.storage());     // the outermost scope's
    }
    CHECK(detail::autocast_copy(w, bf16).storage() == first.storage());
    {
      NoGrad no_grad;
      mul_(w, 2.0);
    }
    const Tensor changed = detail::autocast_copy(w, bf16);
    CHECK(changed.storage() != first.storage());
    CHECK(largest_difference(changed, to(w, bf16)) == 0);
    const Tensor other = detail::autocast_copy(w, DType::float16);
    CHECK(other.dtype() == DType::float16);
    CHECK(detail::autocast_copy(w.detach(), bf16).storage() != detail::autocast_copy(w.detach(), bf16).storage());      // not a parameter: nothing is kept
  }
  CHECK(w.impl_pointer().use_count() == held);                                // nor anything of the parameter after the scope
}

TEST_CASE("autocast: a parameter that was given other memory within the scope is converted anew") {
  layers::Linear layer(3, 2);
  const Tensor x = ones({1, 3});
  const Autocast scope(DType::bfloat16);
  layer.to(DType::float64).to(DType::float32);
  layer(x);
  {
    NoGrad no_grad;
    fill_(layer.weight, 2), fill_(layer.bias, 1);
  }
  layer.to(DType::float64).to(DType::float32);
  CHECK(layer(x).to_vector<float>() == std::vector<float>{7, 7});
}

TEST_CASE("autocast: uses of one copy do not depend on each other") {
  const Tensor x = numbers({4, 3}, 1), w = parameter({5, 3}, 2);
  Tensor first, second;
  {
    Autocast scope(bf16);
    {
      NoGrad no_grad;
      CHECK(!linear(x, w).requires_grad());
    }
    first = sum(linear(x, w));
    second = sum(linear(x, w));
    CHECK(first.requires_grad());
    first.backward();                                                         // frees its graph, inside of the scope
    const Tensor once = clone(w.grad());
    second.backward();
    CHECK(largest_difference(w.grad(), once * 2) == 0);
    sum(linear(x, w)).backward();                                             // a use after a backward pass
    CHECK(largest_difference(w.grad(), once * 3) == 0);
  }
}

TEST_CASE("autocast: a backward pass inside of a scope computes in the forward pass's dtypes") {
  const Tensor x = parameter({4, 3}, 1), w = parameter({5, 3}, 2), upstream = numbers({4, 5}, 3);
  const Tensor y = linear(x, w);
  Autocast scope(bf16);
  y.backward(upstream);
  CHECK(x.grad().dtype() == DType::float32);
  Autocast off = Autocast::disabled();
  CHECK(largest_difference(x.grad(), matmul(upstream, w)) == 0);              // nothing was rounded to bfloat16
}

TEST_CASE("autocast: second derivatives go through the conversions") {
  const Tensor x = parameter({4, 3}, 1), w = parameter({5, 3}, 2);
  Tensor y;
  {
    Autocast scope(bf16);
    y = sum(tanh(linear(x, w)));
  }
  const Tensor dx = grad({y}, {x}, {}, {.create_graph = true})[0];
  CHECK(dx.dtype() == DType::float32);
  sum(square(dx)).backward();
  CHECK(w.grad().dtype() == DType::float32);
  CHECK(amax(abs(w.grad())).item() > 0);
}

TEST_CASE("autocast: norms take a half x beside float32 parameters and statistics") {
  const Tensor x = to(numbers({6, 4, 5}, 1), bf16).set_requires_grad(), weight = parameter({4}, 2), bias = parameter({4}, 3);
  const Tensor mean = zeros({4}), variance = ones({4});
  const Tensor y = batch_norm(x, weight, bias, mean, variance, true, 0.1, 1e-5);
  CHECK(y.dtype() == bf16);
  const Tensor wide = to(x.detach(), DType::float32), same_mean = zeros({4}), same_variance = ones({4});
  const Tensor exact = batch_norm(wide, weight.detach(), bias.detach(), same_mean, same_variance, true, 0.1, 1e-5);
  CHECK(largest_difference(y, exact) <= 0x1p-8 * amax(abs(exact)).item());
  CHECK(largest_difference(mean, same_mean) < 1e-6);
  CHECK(largest_difference(variance, same_variance) < 1e-5);
  sum(y * y).backward();
  CHECK(x.grad().dtype() == bf16);
  CHECK(weight.grad().dtype() == DType::float32);
  CHECK(layer_norm(x, {5}, ones({5}), {}, 1e-5).dtype() == bf16);
  CHECK(group_norm(x, 2, weight, bias, 1e-5).dtype() == bf16);
  CHECK(batch_norm(x, weight, bias, mean, variance, false, 0.1, 1e-5).dtype() == bf16);
  CHECK(error_of<DTypeError>([&] { layer_norm(x, {5}, ones({5}, DType::float64), {}, 1e-5); }).starts_with("layer_norm: weight is float64 but x is "));
}

TEST_CASE("autocast: recurrent layers and cells agree on a dtype, whatever their arguments have") {
  const Tensor x = to(numbers({3, 2, 4}, 1), bf16), h = numbers({2, 5}, 2), c = numbers({2, 5}, 3);
  const std::vector<Tensor> w = {parameter({20, 4}, 4), parameter({20, 5}, 5), parameter({20}, 6), parameter({20}, 7)};
  RnnResult r;
  LstmCellResult cell;
  {
    Autocast scope(bf16);
    r = lstm(x, w, {});
    cell = lstm_cell(select(x, 0, 0), h, c, w[0], w[1], w[2], w[3]);
    const Tensor step = select(x, 0, 0), of_gru[] = {numbers({15, 4}, 8), numbers({15, 5}, 9)}, of_rnn[] = {numbers({5, 4}, 8), numbers({5, 5}, 9)};
    CHECK(gru_cell(step, h, of_gru[0], of_gru[1], {}, {}).dtype() == bf16);
    CHECK(rnn_cell(step, h, of_rnn[0], of_rnn[1], {}, {}).dtype() == bf16);
  }
  CHECK(r.output.dtype() == bf16);
  CHECK(r.c_n.dtype() == bf16);
  CHECK(cell.h.dtype() == bf16);
  CHECK(cell.c.dtype() == bf16);
  sum(r.output).backward();
  for (const Tensor& t : w) CHECK(t.grad().dtype() == DType::float32);
  CHECK(error_of<DTypeError>([&] { lstm_cell(select(x, 0, 0), h, c, w[0], w[1], w[2], w[3]); }) != "");          // without a scope they have to agree
}

TEST_CASE("autocast: arguments that have to agree meet in the widest dtype") {
  const Tensor half = to(numbers({2, 3}, 1), bf16), single = numbers({2, 3}, 2);
  CHECK_THROWS_AS(concat({half, single}), DTypeError);
  Autocast scope(bf16);
  CHECK(concat({half, single}).dtype() == DType::float32);
  CHECK(concat({half, half}).dtype() == bf16);
  CHECK((half + single).dtype() == DType::float32);
  CHECK(relu(half).dtype() == bf16);
}

TEST_CASE("autocast: losses are computed in float32") {
  const Tensor prediction = to(numbers({3, 4}, 1), bf16).set_requires_grad(), target = numbers({3, 4}, 2);
  layers::MSELoss squares;
  layers::BCEWithLogitsLoss entropy;
  Autocast scope(bf16);
  for (const Tensor& loss : {squares(prediction, to(target, bf16)), entropy(prediction, sigmoid(target))}) CHECK(loss.dtype() == DType::float32);
  squares(prediction, target).backward();
  CHECK(prediction.grad().dtype() == bf16);
}

TEST_CASE("autocast: checkpoint runs its function again as it ran first, whatever scope the backward pass is in") {
  const Tensor w = parameter({3, 3}, 2), v = parameter({3, 3}, 2), x = parameter({4, 3}, 1), z = parameter({4, 3}, 1);
  std::vector<DType> seen;
  const auto layer = [&seen](const Tensor& weight) {
    return [&seen, weight](const std::vector<Tensor>& in) {
      const Tensor y = linear(in[0], weight);
      seen.push_back(y.dtype());
      return sum(tanh(y));
    };
  };
  Tensor kept, plain;
  {
    Autocast scope(bf16);
    kept = checkpoint(layer(w), {x});
    plain = layer(v)({z});
  }
  {
    Autocast other(DType::float16);
    kept.backward();
  }
  plain.backward();
  CHECK(seen == std::vector<DType>{bf16, bf16, bf16});
  CHECK(largest_difference(x.grad(), z.grad()) == 0);
  CHECK(largest_difference(w.grad(), v.grad()) == 0);
}

namespace {

struct Run {
  std::vector<double> losses;
  std::vector<Tensor> parameters;
};

// Ten steps of gradient descent on images whose label is the brightest quarter.
Run train(std::optional<DType> dtype) {
  manual_seed(5);
  layers::Sequential net(layers::Conv2d({.in = 1, .out = 8, .kernel = 3, .padding = 1}), layers::BatchNorm2d(8), layers::ReLU(), layers::Flatten(),
                         layers::Linear(8 * 8 * 8, 4));
  Tensor images = numbers({32, 1, 8, 8}, 7);
  std::vector<int64_t> answers(32);
  for (size_t i = 0; i < answers.size(); ++i) {
    answers[i] = static_cast<int64_t>(i) % 4;
    const Tensor quarter = narrow(narrow(select(images, 0, static_cast<int64_t>(i)), 1, answers[i] / 2 * 4, 4), 2, answers[i] % 2 * 4, 4);
    add_(quarter, 1.5);
  }
  const Tensor labels = to(from_vector(answers), images.device());
  Run run;
  for (int step = 0; step < 10; ++step) {
    Tensor loss;
    {
      Autocast scope(dtype);
      loss = cross_entropy(net(images), labels);
    }
    net.zero_grad();
    loss.backward();
    NoGrad no_grad;
    for (const auto& [name, p] : net.named_parameters()) sub_(p, p.grad() * 0.05);
    run.losses.push_back(loss.item());
  }
  for (const auto& [name, p] : net.named_parameters()) run.parameters.push_back(p.detach());
  return run;
}

}  // namespace

TEST_CASE("autocast: training in bfloat16 follows training in float32") {
  const Run exact = train({}), half = train(bf16);
  REQUIRE(exact.losses.back() < 0.5 * exact.losses.front());                   // it learns
  for (size_t i = 0; i < exact.losses.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(half.losses[i] - exact.losses[i]) < 0.02 * exact.losses.front());
  }
  CHECK(half.losses != exact.losses);
  for (size_t i = 0; i < exact.parameters.size(); ++i) {
    CHECK(half.parameters[i].dtype() == DType::float32);
    CHECK(largest_difference(half.parameters[i], exact.parameters[i]) < 0.05 * amax(abs(exact.parameters[i])).item() + 0.01);
  }
}
