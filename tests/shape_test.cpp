// Operations that move elements: what shares memory, what is copied, and what is said about shapes that do not fit. (Values and gradients: op_cases.)
#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/backward.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/compare.h>
#include <fovea/tensor/creation.h>

#include "devices.h"
#include "messages.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

bool shares_memory(const Tensor& a, const Tensor& b) { return a.storage() == b.storage(); }
using Values = std::vector<float>;

}  // namespace

TEST_CASE("views share memory, copies do not") {
  const Tensor x = rand({4, 6, 2});
  CHECK(shares_memory(transpose(x, 0, 1), x));
  CHECK(shares_memory(permute(x, {2, 0, 1}), x));
  CHECK(shares_memory(expand(narrow(x, 0, 0, 1), {5, 6, 2}), x));
  CHECK(shares_memory(unsqueeze(x, 1), x));
  CHECK(shares_memory(slice(x, 0, -1, -5, -1), x));
  CHECK(shares_memory(select(x, 1, 3), x));
  CHECK(shares_memory(flip(x, {0, 1}), x));
  CHECK(shares_memory(diagonal(x), x));
  CHECK(shares_memory(split(x, 3, 1)[1], x));
  CHECK(shares_memory(chunk(x, 2, 0)[1], x));
  CHECK_FALSE(shares_memory(clone(x), x));
  CHECK_FALSE(shares_memory(concat({x, x}), x));
  CHECK_FALSE(shares_memory(roll(x, 1, 0), x));
  CHECK(contiguous(x).is_same(x));
  CHECK_FALSE(shares_memory(contiguous(transpose(x, 0, 1)), x));
  CHECK(to(x, DType::float32).is_same(x));
}

TEST_CASE("reshape is a view wherever the strides allow it, and always the same values") {
  const Tensor x = arange(0, 24);
  CHECK(shares_memory(reshape(x, {2, 3, 4}), x));
  const Tensor block = reshape(x, {2, 3, 4});
  CHECK(shares_memory(reshape(narrow(block, 0, 1, 1), {12}), x));
  CHECK(shares_memory(reshape(transpose(block, 0, 1), {3, 2, 2, 2}), x));                // splits an axis of a transposed tensor
  CHECK(shares_memory(reshape(slice(block, 0, 0, 2, 1), {6, 4}), x));
  CHECK_FALSE(shares_memory(reshape(transpose(block, 0, 1), {24}), x));
  CHECK_FALSE(shares_memory(reshape(narrow(block, 2, 0, 2), {2, 6}), x));
  CHECK(reshape(transpose(block, 0, 1), {24}).to_vector<float>()[4] == 12);
  CHECK(reshape(transpose(narrow(block, 2, 1, 2), 1, 2), {4, 3}).to_vector<float>() == Values{1, 5, 9, 2, 6, 10, 13, 17, 21, 14, 18, 22});
  CHECK(reshape(flip(x, {0}), {4, 6}).to_vector<float>()[0] == 23);
  CHECK(reshape(expand(tensor({1, 2}), {3, 2}), {-1}).to_vector<float>() == Values{1, 2, 1, 2, 1, 2});
  CHECK(reshape(zeros({0, 4}), {2, 0, 7}).shape() == Shape{2, 0, 7});
  CHECK(reshape(zeros({1, 1}), {}).rank() == 0);
  CHECK(flatten(scalar(3)).shape() == Shape{1});
}

TEST_CASE("slice follows Python's rules") {
  const Tensor x = arange(0, 6);
  CHECK(slice(x, 0, 1, 5, 2).to_vector<float>() == Values{1, 3});
  CHECK(slice(x, 0, -3, 100).to_vector<float>() == Values{3, 4, 5});
  CHECK(slice(x, 0, 4, 1).numel() == 0);
  CHECK(slice(x, 0, 4, 1, -1).to_vector<float>() == Values{4, 3, 2});
  CHECK(slice(x, 0, 100, -100, -2).to_vector<float>() == Values{5, 3, 1});
  CHECK(slice(slice(x, 0, 1, 6), 0, 0, 5, 2).to_vector<float>() == Values{1, 3, 5});
  CHECK(slice(flip(x, {0}), 0, 0, 2).to_vector<float>() == Values{5, 4});
  CHECK_THROWS_AS(slice(x, 0, 0, 6, 0), ValueError);
}

TEST_CASE("split and chunk cut as PyTorch does") {
  const Tensor x = arange(0, 7);
  CHECK(split(x, 3).size() == 3);
  CHECK(split(x, 3)[2].to_vector<float>() == Values{6});
  CHECK(split(x, std::vector<int64_t>{2, 0, 5})[1].numel() == 0);
  CHECK(chunk(x, 3)[0].numel() == 3);
  CHECK(chunk(x, 5).size() == 4);
  const std::vector<Tensor> of_nothing = split(zeros({0, 2}), 3);
  REQUIRE(of_nothing.size() == 1);
  CHECK(of_nothing[0].shape() == Shape{0, 2});
  CHECK_THROWS_AS(split(x, 0), ValueError);
  CHECK_THROWS_AS(chunk(x, 0), ValueError);
  CHECK(contains(error_of<ShapeError>([&] { split(x, std::vector<int64_t>{3, 3}); }), "add up to 6"));
}

TEST_CASE("shapes that do not fit are named") {
  const Tensor x = zeros({2, 3});
  CHECK(contains(error_of<ShapeError>([&] { reshape(x, {4, 2}); }), "[2,3] of 6 elements"));
  CHECK(contains(error_of<ShapeError>([&] { reshape(x, {-1, -1}); }), "one size may be -1"));
  CHECK_THROWS_AS(reshape(x, {-1, 4}), ShapeError);
  CHECK_THROWS_AS(reshape(x, {-2, 3}), ShapeError);
  CHECK_THROWS_AS(reshape(zeros({0}), {-1, 0}), ShapeError);
  CHECK(contains(error_of<ShapeError>([&] { expand(x, {2, 4}); }), "[2,3]"));
  CHECK_THROWS_AS(expand(x, {3}), ShapeError);
  CHECK_THROWS_AS(permute(x, {0}), ShapeError);
  CHECK_THROWS_AS(permute(x, {0, 0}), ShapeError);
  CHECK_THROWS_AS(transpose(zeros({3})), ShapeError);
  CHECK_THROWS_AS(transpose(x, 0, 2), IndexError);
  CHECK(contains(error_of<ShapeError>([&] { squeeze(x, 0); }), "has size 2, not 1"));
  CHECK_THROWS_AS(unsqueeze(x, 3), IndexError);
  CHECK_THROWS_AS(narrow(x, 1, 2, 2), IndexError);
  CHECK_THROWS_AS(narrow(x, 1, -1, 2), IndexError);
  CHECK_THROWS_AS(narrow(x, 1, 1, -1), IndexError);
  CHECK(contains(error_of<IndexError>([&] { select(x, 1, 3); }), "index 3"));
  CHECK_THROWS_AS(flatten(x, 1, 0), ShapeError);
  CHECK_THROWS_AS(concat({}), ValueError);
  CHECK(contains(error_of<ShapeError>([&] { concat({x, zeros({2, 4})}); }), "tensor 1 has shape [2,4]"));
  CHECK_THROWS_AS(concat({x, zeros({3})}), ShapeError);
  CHECK_THROWS_AS(concat({x, zeros({2, 3}, DType::float64)}), DTypeError);
  CHECK_THROWS_AS(concat({x, zeros({2, 3}, Device::meta())}), DeviceError);
  CHECK_THROWS_AS(stack({x, zeros({3, 2})}), ShapeError);
  CHECK_THROWS_AS(stack({}), ValueError);
  CHECK_THROWS_AS(repeat(x, {2}), ShapeError);
  CHECK_THROWS_AS(repeat(x, {2, -1}), ValueError);
  CHECK_THROWS_AS(pad(x, {1}), ShapeError);
  CHECK_THROWS_AS(pad(x, {1, 1, 1, 1, 1, 1}), ShapeError);
  CHECK_THROWS_AS(pad(x, {-2, -2}), ShapeError);
  CHECK_THROWS_AS(pad(x, {3, 0}, PadMode::reflect), ShapeError);
  CHECK_THROWS_AS(pad(zeros({2, 0}), {1, 0}, PadMode::replicate), ShapeError);
  CHECK_THROWS_AS(tril(zeros({3})), ShapeError);
  CHECK_THROWS_AS(unsqueeze(zeros({1, 1, 1, 1, 1, 1, 1, 1}), 0), ShapeError);            // a ninth axis
}

TEST_CASE("a tensor repeated more often than memory can address is an error") {
  const int64_t large = int64_t{1} << 40;
  CHECK_THROWS_AS(repeat(zeros({2, 2}), {large, large}), Error);
  CHECK_THROWS_AS(pad(zeros({2}), {int64_t{1} << 61, int64_t{1} << 61}), Error);
  CHECK_THROWS_AS(clone(expand(zeros({1, 1}), {large, large})), Error);
}

TEST_CASE("dtype conversions: rounding, saturation of the range is the caller's, and gradients only between floating types") {
  CHECK(to(tensor({1.9, -1.9}), DType::int32).to_vector<int32_t>() == std::vector<int32_t>{1, -1});
  CHECK(to(tensor({0, 2, -1}), DType::boolean).to_vector<float>() == Values{0, 1, 1});
  CHECK(to(to(tensor({1.00390625}), DType::bfloat16), DType::float32).item() == 1);     // half way: to the even neighbour
  Tensor x = tensor({1, 2});
  x.set_requires_grad();
  CHECK_FALSE(to(x, DType::int64).requires_grad());
  backward({to(x, DType::float64)}, {from_vector<double>({3, 4})});
  CHECK(x.grad().to_vector<float>() == Values{3, 4});
}

TEST_CASE("a gradient through a view fills the rest with zeros") {
  Tensor x = zeros({2, 3});
  x.set_requires_grad();
  backward({slice(select(x, 0, 1), 0, 0, 3, 2)}, {tensor({5, 7})});
  CHECK(x.grad().to_vector<float>() == Values{0, 0, 0, 5, 0, 7});
}

TEST_CASE("moving to a device that is not there says so") {
  CHECK_THROWS_AS(to(zeros({2}), Device::cuda(99)), DeviceError);
  CHECK(contains(error_of<DeviceError>([] { to(zeros({2}, Device::meta()), Device::cpu()); }), "no data"));
  CHECK(to(zeros({2}), Device::meta()).is_meta());
}

TEST_CASE("channels_last: the same elements in another order of memory, which elementwise operations keep") {
  const Tensor x = to(arange(2 * 3 * 4 * 5), DType::float32), image = reshape(x, {2, 3, 4, 5}), y = channels_last(image);
  CHECK(y.shape() == image.shape());
  CHECK(y.strides() == Strides{60, 1, 15, 3});
  CHECK(y.to_vector<float>() == image.to_vector<float>());
  CHECK(is_channels_last(y));
  CHECK(!is_channels_last(image));
  CHECK(channels_last(y).is_same(y));
  CHECK(contiguous(y).is_contiguous());

  const Tensor bias = reshape(to(arange(3), DType::float32), {1, 3, 1, 1});
  const std::vector<Tensor> results = {relu(y), y + image, image * y, y + bias, bias - y, where(gt(y, 50.0), y, 0.0), to(y, DType::float16), gt(image, y)};
  for (const Tensor& kept : results) CHECK(is_channels_last(kept));
  CHECK((y + bias).to_vector<float>() == (image + bias).to_vector<float>());
  CHECK((image * y).to_vector<float>() == (image * image).to_vector<float>());
  CHECK(relu(image).is_contiguous());

  const Tensor both = zeros({2, 1, 4, 5});                                   // one channel: channels-last and contiguous at once
  CHECK(is_channels_last(both));
  CHECK(channels_last(both).is_same(both));
  CHECK(relu(both).is_contiguous());
  CHECK(!is_channels_last(zeros({2, 3, 4})));
  CHECK(!is_channels_last(permute(zeros({2, 3, 5, 4}), {0, 1, 3, 2})));
  CHECK_THROWS_WITH_AS(channels_last(zeros({2, 3})), "channels_last: takes x [n, channels, h, w], got [2,3]", ShapeError);
}

TEST_CASE("channels_last: elementwise operations on it give the CPU's values and gradients, wherever they run") {
  using Operation = Tensor (*)(const Tensor& a, const Tensor& b, const Tensor& bias);        // bias: one value a channel
  struct Case {
    const char* name;
    bool takes_b;
    Operation of;
  };
  const Case cases[] = {
      {"unary", false, [](const Tensor& a, const Tensor&, const Tensor&) { return tanh(a); }},
      {"chain", false, [](const Tensor& a, const Tensor&, const Tensor&) { return sigmoid(relu(a) * 2.0 - 0.5); }},
      {"binary", true, [](const Tensor& a, const Tensor& b, const Tensor&) { return a * b - a; }},
      {"broadcast", false, [](const Tensor& a, const Tensor&, const Tensor& bias) { return (a + bias) / (square(bias) + 1.0); }},
      {"ternary", true, [](const Tensor& a, const Tensor& b, const Tensor& bias) { return lerp(a, b, bias); }},
      {"where", true, [](const Tensor& a, const Tensor& b, const Tensor&) { return where(gt(a, b), a, b * 3.0); }},
      {"cast", true, [](const Tensor& a, const Tensor& b, const Tensor&) { return to(a, DType::float64) + to(b, DType::float64); }},
  };
  enum class Layout : uint8_t { planar, last };
  const auto compute = [&](const Case& c, Device device, const std::vector<Tensor>& values, Layout layout_a, Layout layout_b) {
    std::vector<Tensor> leaves;
    for (const Tensor& x : values) leaves.push_back(copied_to(x, device).set_requires_grad());
    const auto laid_out = [](const Tensor& x, Layout layout) { return layout == Layout::last ? channels_last(x) : x; };
    const Tensor y = c.of(laid_out(leaves[0], layout_a), laid_out(leaves[1], layout_b), leaves[2]);
    CHECK(is_channels_last(y) == (layout_a == Layout::last || (c.takes_b && layout_b == Layout::last)));
    std::vector<Tensor> results = {on_cpu(y)};
    for (const Tensor& g : grad({sum(y * y)}, leaves, {}, {.allow_unused = true})) results.push_back(g ? on_cpu(g) : g);
    return results;
  };
  manual_seed(5);
  for (const Shape& shape : {Shape{3, 7, 5, 9}, {2, 8, 3, 4}, {2, 3, 1, 17}, {1, 33, 4, 1}}) {
    const TensorOptions host{DType::float32, Device::cpu()};
    const std::vector<Tensor> values = {randn(shape, host), randn(shape, host), randn({shape[1], 1, 1}, host)};
    for (const Case& c : cases) {
      const std::vector<Tensor> expected = compute(c, Device::cpu(), values, Layout::planar, Layout::planar);
      for (const auto& [a, b] : {std::pair{Layout::last, Layout::last}, {Layout::last, Layout::planar}, {Layout::planar, Layout::last}}) {
        CAPTURE(c.name);
        CAPTURE(shape);
        const std::vector<Tensor> found = compute(c, default_device(), values, a, b);
        for (size_t i = 0; i < found.size(); ++i) {
          CAPTURE(i);
          REQUIRE(found[i].defined() == expected[i].defined());
          if (found[i]) CHECK(compare(found[i], expected[i], {.rtol = 1e-5, .atol = 1e-5}));
        }
      }
    }
  }
}
