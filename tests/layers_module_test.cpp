#include <doctest/doctest.h>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/layers/module.h>
#include <fovea/layers/state_dict.h>
#include <fovea/tensor/creation.h>

#include "messages.h"

using namespace fovea;
using namespace fovea::testing;
using namespace fovea::layers;

namespace {

class Scale : public Module {
 public:
  explicit Scale(int64_t size)
      : weight(param("weight", ones({size}))), absent(param("bias", Tensor())), seen(buffer("seen", zeros({}, DType::int64))) {}
  Tensor forward(const Tensor& x) override { return reshape(x, {x.numel()}); }
  std::string options() const override { return std::to_string(weight.numel()); }
  Tensor weight, absent, seen;

 protected:
  std::optional<Cost> own_cost(const Shape& input) const override {
    return ElementwiseGeometry{.numel = input.numel(), .parameters = weight.numel()}.cost();
  }
};

class Two : public Module {
 public:
  Two() : first(add("first", Scale(2))), second(add("second", Scale(3))), shift(param("shift", zeros({4}))) {}
  Tensor forward(const Tensor& x) override { return second(first(first(x))); }
  Scale& first;
  Scale& second;
  Tensor shift;
};

class Outer : public Module {
 public:
  Outer() : pair(add("pair", Two())), last(add("last", Scale(5))) {}
  Tensor forward(const Tensor& x) override { return last(pair(x)); }
  Two& pair;
  Scale& last;
};

std::string names(const NamedTensors& list) {
  std::string text;
  for (const auto& [name, tensor] : list) text += name + " ";
  return text;
}

}  // namespace

TEST_CASE("module: names are paths in PyTorch's order, and what is undefined is not there") {
  Outer net;
  CHECK(names(net.named_parameters()) == "pair.shift pair.first.weight pair.second.weight last.weight ");
  CHECK(names(net.named_buffers()) == "pair.first.seen pair.second.seen last.seen ");
  CHECK(names(state_dict(net)) ==
        "pair.shift pair.first.weight pair.first.seen pair.second.weight pair.second.seen last.weight last.seen ");
  CHECK(names(net.named_parameters("net")) == "net.pair.shift net.pair.first.weight net.pair.second.weight net.last.weight ");
  CHECK(net.parameter_count() == 4 + 2 + 3 + 5);
  CHECK(net.tree() == "Outer(\n  (pair): Two(\n    (first): Scale(2)\n    (second): Scale(3)\n  )\n  (last): Scale(5)\n)");
  for (const auto& [name, parameter] : net.named_parameters()) CHECK(parameter.requires_grad());
  for (const auto& [name, tensor] : net.named_buffers()) CHECK(!tensor.requires_grad());
}

TEST_CASE("module: a name must be new and without dots") {
  struct Bad : Module {
    Bad() { param("a", ones({1})); }
    void again() { buffer("a", ones({1})); }
    void dotted() { param("a.b", ones({1})); }
  } bad;
  CHECK(error_of([&] { bad.again(); }).find("the name \"a\" is taken") != std::string::npos);
  CHECK_THROWS_AS(bad.dotted(), ValueError);
  CHECK(bad.parameter_count() == 1);
}

TEST_CASE("module: moving keeps references to children and handles on parameters valid") {
  Outer net;
  Scale& deep = net.pair.first;
  const Tensor weight = deep.weight;
  Outer moved(std::move(net));
  std::vector<Outer> list;
  list.push_back(std::move(moved));
  list.push_back(Outer());                                                   // moves the first again
  CHECK(&list[0].pair.first == &deep);
  CHECK(&list[0].layer("pair.first") == &deep);
  CHECK(list[0].named_parameters()["pair.first.weight"].is_same(weight));
  CHECK(list[0].output_shape({2, 3}) == Shape{6});
}

TEST_CASE("module: a parameter that two layers share counts once and stays shared") {
  struct Tied : Module {
    Tied() : first(add("first", Scale(3))), weight(param("weight", first.weight)) {}
    Tensor forward(const Tensor& x) override { return first(x); }
    Scale& first;
    Tensor weight;
  } net;
  CHECK(net.parameter_count() == 3);
  CHECK(net.named_parameters().size() == 2);
  net.to(DType::float64);
  CHECK(net.weight.is_same(net.first.weight));
  CHECK(net.first.weight.dtype() == DType::float64);
  load_state_dict(net, {{"weight", full({3}, 5)}}, {.strict = false});
  CHECK(net.first.weight.to_vector<double>() == std::vector<double>(3, 5.0));
}

TEST_CASE("module: layers are found by path, with a suggestion where they are not") {
  Outer net;
  CHECK(&net.layer("") == &net);
  CHECK(&net.layer<Scale>("pair.second") == &net.pair.second);
  CHECK(error_of([&] { net.layer("pair.frist"); }) == "no layer \"pair.frist\"; did you mean \"pair.first\"?");
  CHECK(error_of([&] { net.layer("xyz!"); }) == "no layer \"xyz!\"");
  CHECK(error_of([&] { net.layer<Two>("last"); }) == "layer \"last\" is Scale, not of the type asked for");
}

TEST_CASE("module: train, eval, freeze and zero_grad reach everything below") {
  Outer net;
  net.eval();
  CHECK(!net.pair.second.is_training());
  net.pair.train();
  CHECK(net.pair.second.is_training());
  CHECK(!net.last.is_training());
  net.pair.freeze();
  CHECK(!net.pair.first.weight.requires_grad());
  CHECK(net.trainable_count() == 5);
  CHECK(net.parameter_count() == 14);
  net.pair.freeze(false);
  CHECK(net.trainable_count() == 14);
  net.last.weight.set_grad(ones({5}));
  net.zero_grad();
  CHECK(!net.last.weight.grad());
  std::string visited;
  net.apply([&](Module& m) { visited += m.type_name() + " "; });
  CHECK(visited == "Scale Scale Two Scale Outer ");
}

TEST_CASE("module: to() takes gradients along; a forward pass before it has no backward pass after it") {
  Outer net;
  const Tensor weight = net.last.weight, before = sum(weight * 2);
  sum(weight * 3).backward();
  net.to(DType::float64);
  CHECK(weight.grad().dtype() == DType::float64);
  CHECK(contains(error_of<AutogradError>([&] { before.backward(); }), "was float32 on " + str(default_device()) + " in the forward pass and is float64 on "));
  sum(weight * 4).backward();
  CHECK(weight.grad().to_vector<double>() == std::vector<double>(5, 7.0));
}

TEST_CASE("module: to() changes dtype and device for every handle, and leaves integers alone") {
  Outer net;
  const Tensor handle = net.last.weight;
  net.to(DType::float64);
  CHECK(handle.dtype() == DType::float64);
  CHECK(net.named_parameters()["last.weight"].dtype() == DType::float64);
  CHECK(handle.to_vector<double>() == std::vector<double>(5, 1.0));
  CHECK(handle.requires_grad());
  CHECK(net.last.seen.dtype() == DType::int64);
  CHECK_THROWS_AS(net.to(DType::int32), DTypeError);
  net.to(Device::meta());
  CHECK(handle.is_meta());
  CHECK(net.last.seen.is_meta());
  CHECK_THROWS_AS(net.to(Device::cpu()), DeviceError);
}

TEST_CASE("module: the cost of a module is that of the layers its forward calls, its parameters counted once") {
  Outer net;
  const auto rows = net.layer_costs({3, 4});
  REQUIRE(rows.size() == 4);
  CHECK(rows[0].path == "pair.first");
  CHECK(rows[1].path == "pair.first");
  CHECK(rows[2].path == "pair.second");
  CHECK(rows[3].path == "last");
  CHECK(rows[0].input == Shape{3, 4});
  CHECK(rows[3].input == Shape{12});
  const Cost cost = net.cost({3, 4});
  CHECK(cost.flops == 4 * 12);
  CHECK(cost.macs == 0);
  CHECK(cost.bytes == 4 * (4 * 24 + 2 + 2 + 3 + 5));
  CHECK(cost.parameters == 14);
  CHECK(str(Cost{1234567, 2469134, 10, 3}) ==
        "1,234,567 MACs; 2,469,134 FLOPs (a multiply-add counts as two); 10 bytes moved; 3 parameters");
}

TEST_CASE("state dict: loading copies values, converting their dtype, and is seen through every handle") {
  Outer from, net;
  load_state_dict(from.pair, {{"shift", full({4}, 7)}}, {.strict = false});
  from.to(DType::float64);
  const Tensor handle = net.pair.shift;
  const uint32_t version = handle.version();
  const LoadReport report = load_state_dict(net, state_dict(from));
  CHECK(report.loaded.size() == 7);
  CHECK(report.missing.empty());
  CHECK(handle.to_vector<float>() == std::vector<float>(4, 7.0f));
  CHECK(handle.dtype() == DType::float32);
  CHECK(handle.version() != version);
}

TEST_CASE("state dict: one error lists everything that is wrong, and nothing is changed") {
  Outer net;
  StateDict state;
  state.add("pair.shift", full({4}, 9));
  state.add("pair.first.wieght", ones({2}));
  state.add("pair.second.weight", ones({4}));
  state.add("tail.seen", zeros({}, DType::int64));
  state.add("last.weight", full({5}, 9));
  const std::string text = error_of([&] { load_state_dict(net, state); });
  CHECK(text ==
        "load_state_dict: missing \"pair.first.weight\", \"pair.first.seen\", \"pair.second.seen\", \"last.seen\"; unexpected "
        "\"pair.first.wieght\" (did you mean "
        "\"pair.first.weight\"?), \"tail.seen\" (did you mean \"last.seen\"?); wrongly shaped: \"pair.second.weight\" is [4] where the "
        "module has [3]; 2 others match");
  CHECK(net.pair.shift.to_vector<float>() == std::vector<float>(4, 0.0f));
  CHECK(net.last.weight.to_vector<float>() == std::vector<float>(5, 1.0f));
  CHECK_THROWS_AS(load_state_dict(net, state, {.strict = false}), ValueError);       // a wrong shape is never right
}

TEST_CASE("state dict: partial loading takes what is there and reports the rest") {
  Outer net;
  StateDict state;
  state.add("pair.shift", full({4}, 9));
  state.add("fc.bias", ones({2}));
  const LoadReport report = load_state_dict(net, state, {.strict = false});
  CHECK(report.loaded == std::vector<std::string>{"pair.shift"});
  CHECK(report.missing.size() == 6);
  CHECK(report.unexpected == std::vector<std::string>{"fc.bias"});
  CHECK(net.pair.shift.to_vector<float>() == std::vector<float>(4, 9.0f));
}

TEST_CASE("receptive field: an oracle stack of windows, and what does not fit into windows") {
  auto conv = [](int64_t k, int64_t s, int64_t p, int64_t d) { return AxisReach::window(AxisField::window(k, s, p, d)); };
  AxisReach dilated;
  for (int64_t d : {1, 2, 4, 8}) dilated = dilated.then(conv(3, 1, d, d));
  CHECK(dilated == AxisReach{.size = 31, .stride = 1, .offset = -15});
  const AxisReach recurrent{.all_before = true};
  CHECK(conv(3, 2, 1, 1).then(recurrent) == AxisReach{.size = 3, .stride = 2, .offset = -1, .all_before = true});
  CHECK(AxisReach::everything().then(conv(3, 1, 0, 1)).sees_everything());
  CHECK(conv(2, 2, 0, 1).then(AxisReach::transposed(2, 2, 0, 1)) == AxisReach{.size = 2, .stride = 1, .offset = 0});
  CHECK(str(AxisReach::transposed(4, 2, 1, 1)) == "size 3, stride 1/2, offset -1");
  CHECK(conv(5, 1, 2, 1).united(AxisReach{}) == conv(5, 1, 2, 1));
  CHECK_THROWS_AS(conv(3, 2, 1, 1).united(AxisReach{}), ValueError);
}

TEST_CASE("receptive field: a transposed convolution's units see what the bound says, by brute force") {
  for (int64_t kernel = 1; kernel <= 5; ++kernel)
    for (int64_t stride = 1; stride <= 4; ++stride)
      for (int64_t padding = 0; padding <= 2; ++padding)
        for (int64_t dilation = 1; dilation <= 2; ++dilation) {
          const AxisReach reach = AxisReach::transposed(kernel, stride, padding, dilation);
          for (int64_t unit = 0; unit < 20; ++unit)
            for (int64_t input = -30; input < 60; ++input) {
              bool is_seen = false;                                          // output = input * stride - padding + tap * dilation
              for (int64_t tap = 0; tap < kernel; ++tap) is_seen = is_seen || input * stride - padding + tap * dilation == unit;
              const int64_t first = reach.offset + unit / reach.upsampling;
              if (is_seen) REQUIRE((input >= first && input < first + reach.size));
            }
        }
}
