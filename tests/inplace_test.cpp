// In-place changes: values, versions, what may be recorded and what may not.
#include <doctest/doctest.h>

#include <vector>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/backward.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

using namespace fovea;

namespace {
using Values = std::vector<double>;
}

TEST_CASE("values, with broadcasting and dtypes") {
  Tensor x = tensor({{1, 2}, {3, 4}});
  x += tensor({10, 20});
  CHECK(x.to_vector<double>() == Values{11, 22, 13, 24});
  x -= 1;
  x *= 2.5;
  x /= reshape(tensor({5, 10}), {2, 1});
  CHECK(x.to_vector<double>() == Values{5, 10.5, 3, 5.75});
  add_(x, tensor({2, 4}), 0.5);
  CHECK(x.to_vector<double>() == Values{6, 12.5, 4, 7.75});
  sub_(x, tensor({2, 4}), 0.5);
  CHECK(x.to_vector<double>() == Values{5, 10.5, 3, 5.75});
  addcmul_(x, x, x, 1);
  CHECK(x.to_vector<double>() == Values{30, 120.75, 12, 38.8125});
  clamp_(x, 20, 100);
  CHECK(x.to_vector<double>() == Values{30, 100, 20, 38.8125});
  relu_(copy_(x, tensor({-1, 1})));
  CHECK(x.to_vector<double>() == Values{0, 1, 0, 1});
  fill_(select(x, 0, 1), 7);
  CHECK(x.to_vector<double>() == Values{0, 1, 7, 7});
  zero_(x);
  CHECK(x.to_vector<double>() == Values{0, 0, 0, 0});
  Tensor i = arange(4);
  i += 1;
  mul_(i, i);
  CHECK(i.to_vector<double>() == Values{1, 4, 9, 16});
  Tensor h = ones({2}, DType::float16);
  h += tensor({0.5, 1}, DType::float64);
  CHECK(h.to_vector<double>() == Values{1.5, 2});
}

TEST_CASE("an operand that shares memory with x is read as it was before") {
  Tensor x = arange(5);
  add_(narrow(x, 0, 1, 4), narrow(x, 0, 0, 4));
  CHECK(x.to_vector<double>() == Values{0, 1, 3, 5, 7});
  Tensor m = reshape(arange(4), {2, 2});
  add_(m, transpose(m));
  CHECK(m.to_vector<double>() == Values{0, 3, 3, 6});
}

TEST_CASE("the version says that a tensor was changed, and a backward pass notices") {
  Tensor x = ones({2}).set_requires_grad(), w = ones({2});
  Tensor y = x * w;
  const uint32_t before = w.version();
  w += 1;
  CHECK(w.version() > before);
  CHECK_THROWS_WITH_AS(sum(y).backward(), doctest::Contains("changed in place"), AutogradError);
}

TEST_CASE("a change of a computed tensor is recorded") {
  Tensor x = tensor({1, 2}, DType::float64).set_requires_grad(), b = tensor({3, 4}, DType::float64).set_requires_grad();
  Tensor y = x * 2;
  mul_(y, b);                                                  // 2 x b
  add_(y, x);                                                  // 2 x b + x
  mul_(y, y);
  sum(y).backward();
  CHECK(y.to_vector<double>() == Values{49, 324});
  CHECK(x.grad().to_vector<double>() == Values{2 * 7 * 7, 2 * 18 * 9});
  CHECK(b.grad().to_vector<double>() == Values{2 * 7 * 2, 2 * 18 * 4});
  Tensor z = x * 2;
  fill_(z, 3);
  CHECK(!z.requires_grad());
  Tensor target = zeros({2}, DType::float64);
  copy_(target, x);
  CHECK(grad({sum(square(target))}, {x})[0].to_vector<double>() == Values{2, 4});
}

TEST_CASE("what cannot be recorded is refused, and nothing is changed") {
  Tensor leaf = ones({2, 2}).set_requires_grad();
  CHECK_THROWS_WITH_AS(add_(leaf, 1), doctest::Contains("NoGrad"), AutogradError);
  CHECK(leaf.to_vector<double>() == Values{1, 1, 1, 1});
  {
    NoGrad no_grad;
    add_(leaf, 1);
  }
  CHECK(leaf.to_vector<double>() == Values{2, 2, 2, 2});
  const Tensor y = leaf * 2, row = select(y, 0, 0);
  CHECK_THROWS_WITH_AS(add_(row, 1), doctest::Contains("shares memory"), AutogradError);
  Tensor i = arange(2);
  CHECK_THROWS_WITH_AS(add_(i, 0.5), doctest::Contains("does not fit into x of dtype int64"), DTypeError);
  CHECK_THROWS_AS(div_(i, 2), DTypeError);
  CHECK_THROWS_WITH_AS(add_(ones({2}), ones({2, 2})), doctest::Contains("cannot be broadcast to x"), ShapeError);
  CHECK_THROWS_WITH_AS(add_(expand(ones({1}), {3}), 1), doctest::Contains("repeats"), ShapeError);
}
