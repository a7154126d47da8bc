#include <doctest/doctest.h>

#include <cmath>
#include <functional>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/shape.h>
#include <fovea/layers/activation.h>
#include <fovea/layers/container.h>
#include <fovea/layers/conv.h>
#include <fovea/layers/flatten.h>
#include <fovea/layers/linear.h>
#include <fovea/layers/norm.h>
#include <fovea/layers/state_dict.h>
#include <fovea/tensor/compare.h>
#include <fovea/tensor/creation.h>

#include "messages.h"

using namespace fovea;
using namespace fovea::testing;
using namespace fovea::layers;

namespace {

Sequential small_net() {
  Sequential net(Conv2d({.in = 1, .out = 2, .kernel = 3, .padding = 1}), Identity());
  net.add("tail", Sequential(Flatten(), Linear(2 * 4 * 4, 3, {.bias = false})));
  return net;
}

}  // namespace

TEST_CASE("sequential: children are numbered or named, found by index and by path") {
  Sequential net = small_net();
  CHECK(net.size() == 3);
  CHECK(net.tree() ==
        "Sequential(\n  (0): Conv2d(1, 2, kernel=3, padding=1)\n  (1): Identity()\n  (tail): Sequential(\n    (0): Flatten(first_axis=1, "
        "last_axis=-1)\n"
        "    (1): Linear(32, 3, no bias)\n  )\n)");
  CHECK(&net[0] == &net["0"]);
  CHECK(&net[-1] == &net["tail"]);
  CHECK(net.layer<Linear>("tail.1").weight.shape() == Shape{3, 32});
  CHECK(error_of([&] { net["tial.1"]; }) == "no layer \"tial.1\"; did you mean \"tail.1\"?");
  CHECK_THROWS_AS(net[3], IndexError);
  CHECK(net(randn({5, 1, 4, 4})).shape() == Shape{5, 3});
  CHECK(net.output_shape({5, 1, 4, 4}) == Shape{5, 3});
}

TEST_CASE("sequential: moving it keeps what it computes") {
  Sequential net = small_net();
  Conv2d& conv = net.layer<Conv2d>("0");
  const Tensor x = randn({2, 1, 4, 4});
  const std::vector<float> before = net(x).to_vector<float>();
  Sequential moved(std::move(net));
  CHECK(moved(x).to_vector<float>() == before);
  CHECK(&moved.layer("0") == &conv);
  Sequential outer;
  outer.append(std::move(moved));
  CHECK(outer(x).to_vector<float>() == before);
}

TEST_CASE("sequential: batch norm with the ReLU after it is what they are one by one, in value, gradient, statistics and cost") {
  manual_seed(2);
  Sequential together(BatchNorm2d(3), ReLU());
  BatchNorm2d norm(3);
  Tensor a = randn({4, 3, 5, 2}), b = clone(a);
  a.set_requires_grad(true);
  b.set_requires_grad(true);
  const Tensor y = together(a), z = relu(norm(b)), weighting = randn(y.shape());
  CHECK(compare(y, z, {.atol = 1e-6}));
  y.backward(weighting);
  z.backward(weighting);
  CHECK(compare(a.grad(), b.grad(), {.rtol = 1e-4, .atol = 1e-5}));
  CHECK(compare(together.layer<BatchNorm2d>("0").weight.grad(), norm.weight.grad(), {.rtol = 1e-4, .atol = 1e-5}));
  CHECK(compare(together.layer<BatchNorm2d>("0").running_var, norm.running_var, {.atol = 1e-6}));
  CHECK(together.layer<BatchNorm2d>("0").num_batches_tracked.item<int64_t>() == 1);
  CHECK(together.layer_costs({4, 3, 5, 2}).size() == 2);
}

TEST_CASE("batch norm with a residual and the ReLU after it is what they are one by one, in value, gradients and statistics") {
  manual_seed(3);
  const Shape shape{4, 3, 5, 2};
  const Tensor weight = randn({3}), bias = randn({3});
  const Tensor x_values = randn(shape) * 2 + 1, residual_values = randn(shape), weighting = randn(shape);
  for (const bool is_training : {true, false}) {
    const auto run = [&](bool is_fused) {
      BatchNorm2d norm(3);
      norm(x_values * 3 - 1);                                                // so that its running statistics are not what it starts with
      {
        NoGrad no_grad;
        copy_(norm.weight, weight);
        copy_(norm.bias, bias);
      }
      norm.train(is_training);
      Tensor x = clone(x_values), residual = clone(residual_values);
      x.set_requires_grad();
      residual.set_requires_grad();
      const Tensor y = is_fused ? norm.forward_add_relu(x, residual) : relu(norm(x) + residual);
      y.backward(weighting);
      return std::vector<Tensor>{y.detach(),        x.grad(),          residual.grad(),  norm.weight.grad(),
                                 norm.bias.grad(), norm.running_mean, norm.running_var, norm.num_batches_tracked};
    };
    const std::vector<Tensor> fused = run(true), separate = run(false);
    for (size_t i = 0; i < fused.size(); ++i) {
      CAPTURE(i);
      CHECK(compare(fused[i], separate[i], {.rtol = 1e-4, .atol = 1e-5}));
    }
    CHECK(fused.back().item<int64_t>() == (is_training ? 2 : 1));
  }
  BatchNorm2d norm(3);
  CHECK(error_of<ValueError>([&] { norm.forward_add_relu(x_values, {}); }) == "BatchNorm2d: residual is an undefined tensor");
  const std::string misfit = error_of<ShapeError>([&] { norm.forward_add_relu(x_values, narrow(residual_values, 0, 0, 1)); });
  CHECK(misfit.find("residual must have x's shape") != std::string::npos);
  CHECK(norm.num_batches_tracked.item<int64_t>() == 0);                      // a call that failed is no batch
}

TEST_CASE("module list: holds layers for a forward that is written out") {
  struct Sum : Module {
    Sum() : list(add("list", ModuleList(Linear(3, 2), Linear(3, 2)))) {}
    Tensor forward(const Tensor& x) override { return concat({list[0](x), list[-1](x)}, 1); }
    ModuleList& list;
  } net;
  CHECK(net(ones({4, 3})).shape() == Shape{4, 4});
  CHECK(net.named_parameters().contains("list.1.bias"));
  CHECK(net.cost({4, 3}).macs == 2 * 4 * 3 * 2);
  CHECK(error_of([&] { net.list(ones({1})); }).find("ModuleList: has no forward of its own") == 0);
}

TEST_CASE("residual: x + body(x), with a shortcut where the shape changes") {
  Residual plain{Sequential(Identity())};
  CHECK(plain(ones({2})).to_vector<float>() == std::vector<float>{2, 2});
  Residual wider(Linear(2, 4), Linear(2, 4, {.bias = false}));
  CHECK(wider(ones({3, 2})).shape() == Shape{3, 4});
  CHECK(wider.named_parameters().contains("shortcut.weight"));
  Residual moved(std::move(wider));
  CHECK(moved(ones({3, 2})).shape() == Shape{3, 4});
  Residual misfit(Linear(2, 4));
  CHECK(error_of([&] { misfit(ones({3, 2})); }).find("give a shortcut layer") != std::string::npos);
}

TEST_CASE("residual: a body that ends in batch norm, and the ReLU after it, add before they cut off") {
  manual_seed(4);
  Sequential net(Residual(Sequential(BatchNorm2d(3))), ReLU());
  BatchNorm2d norm(3);
  const Tensor x = randn({4, 3, 5, 2});
  const Tensor y = net(x), expected = relu(norm(x) + x);
  CHECK(compare(y, expected, {.rtol = 1e-5, .atol = 1e-6}));
  CHECK(!compare(y, relu(norm(x)) + x, {.rtol = 1e-5, .atol = 1e-6}));
}

TEST_CASE("sequential: weights learn, and frozen ones do not") {
  manual_seed(1);
  Sequential net(Linear(3, 8), Linear(8, 1));
  net.layer("0").freeze();
  const Tensor x = randn({16, 3});
  net(x).backward(ones({16, 1}));
  CHECK(!net.layer<Linear>("0").weight.grad());
  CHECK(net.layer<Linear>("1").weight.grad().shape() == Shape{1, 8});
  net.zero_grad();
  CHECK(!net.layer<Linear>("1").weight.grad());
}

TEST_CASE("unflatten: splits an axis") {
  CHECK(Unflatten(1, {4, -1})(zeros({2, 12, 5})).shape() == Shape{2, 4, 3, 5});
  CHECK_THROWS_AS(Unflatten(1, {5, 2})(zeros({2, 12})), ShapeError);
}

TEST_CASE("linear and convolution: wrong options and shapes are named") {
  CHECK(error_of([] { Conv2d({.out = 3}); }).find("Conv2d: the numbers of channels must be positive") == 0);
  CHECK(error_of([] { Conv2d({.in = 4, .out = 6, .groups = 3}); }) == "Conv2d: groups (3) must divide the channels 6 and 4");
  CHECK_THROWS_AS(Linear(0, 3), ValueError);
  CHECK(error_of([] { Linear(3, 2)(ones({2, 4})); }) == "Linear: the last axis of x must have 3 elements, got shape [2,4]");
  CHECK_THROWS_AS(Conv2d({.in = 3, .out = 4})(ones({1, 2, 5, 5})), ShapeError);
  CHECK(Linear(3, 2)(zeros({0, 3})).shape() == Shape{0, 2});
}

TEST_CASE("coordconv: the added channels say where a pixel is") {
  CoordConv layer({.conv = {.in = 1, .out = 3, .bias = false}, .radius = true});
  CHECK(layer.conv.weight.shape() == Shape{3, 4, 1, 1});
  StateDict pick;                                                            // output channel k is input channel k + 1: y, x, radius
  pick.add("conv.weight", tensor({0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}));
  pick = {{"conv.weight", reshape(pick["conv.weight"], {3, 4, 1, 1})}};
  load_state_dict(layer, pick);
  const std::vector<float> y = layer(zeros({1, 1, 3, 5})).to_vector<float>();
  CHECK(y[0] == -1.0f);                                                      // first row
  CHECK(y[14] == 1.0f);                                                      // last row
  CHECK(y[15] == -1.0f);                                                     // first column
  CHECK(y[15 + 1] == -0.5f);
  CHECK(y[30 + 7] == 0.0f);                                                  // radius of the centre
  CHECK(y[30] == doctest::Approx(std::sqrt(2.0)));
}
