// Reductions of tensors: gradients and their gradients over every set of axes, special values, errors, values from PyTorch.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

using namespace fovea;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
const double not_a_number = std::numeric_limits<double>::quiet_NaN();
using Values = std::vector<double>;

// Distinct values between 0.3 and 2, in a scrambled order.
Tensor sample(const Shape& shape) {
  std::vector<double> values;
  const int64_t n = shape.numel();
  for (int64_t i = 0; i < n; ++i)
    values.push_back(0.3 + 1.7 * static_cast<double>((i * 37 + 11) % 101) / 101 + 1e-3 * static_cast<double>(i));
  return from_vector(values, shape).set_requires_grad();
}

struct Case {
  const char* name;
  std::function<Tensor(const Tensor&, const Axes&, bool)> f;
};

}  // namespace

TEST_CASE("reductions: gradients of first and second order, over every set of axes") {
  const Case cases[] = {
      {"sum", [](const Tensor& x, const Axes& a, bool k) { return square(sum(x, a, k)); }},
      {"mean", [](const Tensor& x, const Axes& a, bool k) { return square(mean(x, a, k)); }},
      {"prod", [](const Tensor& x, const Axes& a, bool k) { return prod(x, a, k); }},
      {"amax", [](const Tensor& x, const Axes& a, bool k) { return square(amax(x, a, k)); }},
      {"amin", [](const Tensor& x, const Axes& a, bool k) { return square(amin(x, a, k)); }},
      {"var", [](const Tensor& x, const Axes& a, bool k) { return var(x, a, k, 0); }},
      {"std", [](const Tensor& x, const Axes& a, bool k) { return sqrt(var(x, a, k, 0) + 1); }},
      {"norm", [](const Tensor& x, const Axes& a, bool k) { return norm(x, 2, a, k); }},
      {"norm 1", [](const Tensor& x, const Axes& a, bool k) { return square(norm(x, 1, a, k)); }},
      {"norm 3", [](const Tensor& x, const Axes& a, bool k) { return norm(x, 3, a, k); }},
      {"norm inf", [](const Tensor& x, const Axes& a, bool k) { return square(norm(x, inf, a, k)); }},
      {"logsumexp", [](const Tensor& x, const Axes& a, bool k) { return logsumexp(x, a, k); }},
  };
  for (const Case& c : cases) {
    for (const Axes& axes : {Axes{}, Axes{0}, Axes{1}, Axes{-1}, Axes{0, 2}, Axes{1, 2}, Axes{0, 1, 2}}) {
      for (bool keepdims : {false, true}) {
        CAPTURE(c.name);
        CAPTURE(axes.list().size());
        const TensorFunction f = [&](const std::vector<Tensor>& x) { return c.f(x[0], axes, keepdims); };
        CHECK(gradcheck(f, {sample({2, 3, 4})}) == "");
        CHECK(gradgradcheck(f, {sample({2, 3, 2})}) == "");
      }
    }
    const TensorFunction whole = [&](const std::vector<Tensor>& x) { return c.f(x[0], {}, false); };
    CHECK(gradcheck(whole, {sample({})}) == "");
    CHECK(gradcheck(whole, {transpose(sample({5, 3}))}) == "");
  }
}

TEST_CASE("stddev, cumsum, max and min along an axis: gradients") {
  for (int64_t axis : {0, 1, -1}) {
    const TensorFunction functions[] = {
        [axis](const std::vector<Tensor>& x) { return stddev(x[0], axis); },
        [axis](const std::vector<Tensor>& x) { return square(cumsum(x[0], axis)); },
        [axis](const std::vector<Tensor>& x) { return square(max(x[0], axis).values); },
        [axis](const std::vector<Tensor>& x) { return square(min(x[0], axis, true).values); },
        [axis](const std::vector<Tensor>& x) { return prod(x[0] - 0.3 - 1.7 * 11 / 101, axis); },   // the first factor is zero
    };
    for (const TensorFunction& f : functions) {
      CHECK(gradcheck(f, {sample({3, 4, 2})}) == "");
      CHECK(gradgradcheck(f, {sample({3, 3, 2})}) == "");
    }
  }
}

TEST_CASE("values, shapes and dtypes are PyTorch's") {
  const Tensor x = tensor({{1, -2, 3}, {4, 5, -6}});
  CHECK(sum(x).item() == 5);
  CHECK(sum(x, 0).to_vector<double>() == Values{5, 3, -3});
  CHECK(sum(x, -1, true).shape() == Shape{2, 1});
  CHECK(mean(x, {0, 1}).item() == doctest::Approx(5.0 / 6));
  CHECK(prod(x, 1).to_vector<double>() == Values{-6, -120});
  CHECK(var(x).item() == doctest::Approx(17.3666667));                               // torch.var
  CHECK(stddev(x, 1, false, 0).to_vector<double>()[0] == doctest::Approx(2.0548046));
  CHECK(norm(x).item() == doctest::Approx(9.5393920));
  CHECK(norm(x, 3).item() == doctest::Approx(7.6116626));
  CHECK(logsumexp(x, 1).to_vector<double>()[1] == doctest::Approx(5.3132737));
  CHECK(argmax(x).item<int64_t>() == 4);
  CHECK(argmin(x, 1).to_vector<int64_t>() == std::vector<int64_t>{1, 2});
  CHECK(max(x, 0).values.to_vector<double>() == Values{4, 5, 3});
  CHECK(max(x, 0).indices.to_vector<int64_t>() == std::vector<int64_t>{1, 1, 0});
  CHECK(min(x, 0, true).indices.shape() == Shape{1, 3});
  CHECK(cumsum(x, 1).to_vector<double>() == Values{1, -1, 2, 4, 9, 3});
  CHECK(cumsum(x, 0).to_vector<double>() == Values{1, -2, 3, 5, 3, -3});
  CHECK(sum(gt(x, 0)).dtype() == DType::int64);
  CHECK(sum(gt(x, 0)).item<int64_t>() == 4);
  CHECK(any(gt(x, 4)).item<int64_t>() == 1);
  CHECK(all(gt(x, -6), 1).to_vector<int64_t>() == std::vector<int64_t>{1, 0});
  CHECK(sum(ones({3}, DType::uint8) * 200).item<int64_t>() == 600);
  CHECK(sum(ones({3}, DType::bfloat16)).dtype() == DType::bfloat16);
  CHECK(sum(ones({5000}, DType::float16)).item() == 5000);                            // float16 alone would stop at 2048
}

TEST_CASE("NaN and infinity") {
  const Tensor x = tensor({1, not_a_number, 3, not_a_number});
  CHECK(std::isnan(max(x).item()));
  CHECK(std::isnan(min(x).item()));
  CHECK(argmax(x).item<int64_t>() == 1);
  CHECK(argmin(x).item<int64_t>() == 1);
  CHECK(logsumexp(tensor({-inf, -inf})).item() == -inf);
  CHECK(logsumexp(tensor({1, inf})).item() == inf);
  CHECK(logsumexp(tensor({-inf, 2})).item() == 2);
  CHECK(std::isnan(logsumexp(x).item()));
  CHECK(logsumexp(tensor({1e4, 1e4})).item() == doctest::Approx(1e4 + std::log(2.0)));
  Tensor minus = tensor({-inf, -inf}, DType::float64).set_requires_grad();
  CHECK(grad({logsumexp(minus)}, {minus})[0].to_vector<double>() == Values{0, 0});
  Tensor zero = zeros({3}, DType::float64).set_requires_grad();
  CHECK(grad({norm(zero)}, {zero})[0].to_vector<double>() == Values{0, 0, 0});
  CHECK(grad({norm(zero, 3)}, {zero})[0].to_vector<double>() == Values{0, 0, 0});
}

TEST_CASE("equal extremes share the gradient over all, the first takes it along an axis") {
  Tensor x = tensor({3, 1, 3}, DType::float64).set_requires_grad();
  CHECK(grad({max(x)}, {x})[0].to_vector<double>() == Values{0.5, 0, 0.5});
  CHECK(grad({amax(x, 0)}, {x})[0].to_vector<double>() == Values{0.5, 0, 0.5});
  CHECK(grad({max(x, 0).values}, {x})[0].to_vector<double>() == Values{1, 0, 0});
}

TEST_CASE("empty tensors") {
  const Tensor x = zeros({0, 3});
  CHECK(sum(x).item() == 0);
  CHECK(sum(x, 0).to_vector<double>() == Values{0, 0, 0});
  CHECK(sum(x, 1).shape() == Shape{0});
  CHECK(prod(x, 0).to_vector<double>() == Values{1, 1, 1});
  CHECK(std::isnan(mean(x).item()));
  CHECK(logsumexp(x).item() == -inf);
  CHECK(all(x).item<int64_t>() == 1);
  CHECK(any(x).item<int64_t>() == 0);
  CHECK(amax(x, 1).shape() == Shape{0});
  CHECK(cumsum(x, 0).shape() == x.shape());
  CHECK_THROWS_WITH_AS(max(x), doctest::Contains("no elements"), ValueError);
  CHECK_THROWS_WITH_AS(argmax(x, 0), doctest::Contains("no elements"), ValueError);
  Tensor leaf = zeros({0, 3}).set_requires_grad();
  CHECK(grad({sum(leaf)}, {leaf})[0].shape() == leaf.shape());
}

TEST_CASE("errors name the operation and the axis; meta tensors have shapes") {
  const Tensor x = ones({2, 3});
  CHECK_THROWS_WITH_AS(sum(x, 2), doctest::Contains("sum"), IndexError);
  CHECK_THROWS_WITH_AS(sum(x, {0, -2}), doctest::Contains("axis 0 comes twice"), ValueError);
  CHECK_THROWS_WITH_AS(mean(ones({2}, DType::int64)), doctest::Contains("to(x, DType::float32)"), DTypeError);
  const Tensor m = empty({2, 3, 4}, Device::meta());
  CHECK(var(m, {0, 2}).shape() == Shape{3});
  CHECK(max(m, 1).indices.shape() == Shape{2, 4});
  CHECK(cumsum(logsumexp(m, -1, true), 0).shape() == Shape{2, 3, 1});
}
