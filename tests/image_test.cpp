// Resizing, grid sampling and affine grids: PyTorch's values, properties, and gradients against differences.
#include <doctest/doctest.h>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/image.h>
#include <fovea/autograd/shape.h>

#include "devices.h"
#include "tensor_helpers.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

using Inputs = const std::vector<Tensor>&;

Tensor pattern(const Shape& shape) {
  return filled<double>(shape, [](int64_t i) { return static_cast<double>(i * 11 % 17 - 6) / 2; });
}

const InterpolateOptions bilinear{ResizeMode::bilinear, false}, aligned{ResizeMode::bilinear, true};

}  // namespace

TEST_CASE("interpolate gives PyTorch's values") {
  const Tensor x = pattern({1, 1, 5, 7}), small = narrow(narrow(x, 2, 0, 2), 3, 0, 3);
  CHECK(distance(interpolate(small, {3, 5}), {-3, -3, 2.5, 2.5, -0.5, -3, -3, 2.5, 2.5, -0.5, 1.5, 1.5, -1.5, -1.5, 4}) == 0);
  CHECK(distance(interpolate(small, {3, 5}, bilinear), {-3, -0.8, 2.5, 0.7, -0.5, -0.75, -0.25, 0.5, 1.25, 1.75, 1.5, 0.3, -1.5, 1.8, 4}) < 1e-12);
  CHECK(distance(interpolate(small, {3, 5}, aligned), {-3, -0.25, 2.5, 1, -0.5, -0.75, -0.125, 0.5, 1.125, 1.75, 1.5, 0, -1.5, 1.25, 4}) < 1e-12);
  CHECK(distance(interpolate(x, {2, 3}, bilinear), {-0.208333333, 2, 2.08333333, 0.416666667, 0.5, 2}) < 1e-8);
}

TEST_CASE("interpolate: the same size changes nothing, a constant stays one, float32 follows float64") {
  const Tensor x = random_tensor({2, 3, 9, 300});
  for (const InterpolateOptions& o : {InterpolateOptions(), bilinear, aligned}) {
    CHECK(distance(interpolate(x, {9, 300}, o), x) < 1e-12);
    CHECK(distance(interpolate(full({1, 2, 3, 4}, 1.5, DType::float64), {7, 5}, o), full({1, 2, 7, 5}, 1.5, DType::float64)) < 1e-12);
    CHECK(distance(to(interpolate(to(x, DType::float32), {18, 600}, o), DType::float64), interpolate(x, {18, 600}, o)) < 1e-3);
  }
  const Tensor twice = interpolate(x, {18, 600});
  for (const int64_t i : {0, 1}) CHECK(values(slice(slice(twice, 2, i, 18, 2), 3, i, 600, 2)) == values(x));
}

TEST_CASE("affine_grid and grid_sample give PyTorch's values") {
  const Tensor x = pattern({1, 1, 5, 7}), theta = reshape(tensor({0.8, 0.3, 0.1, -0.2, 1.1, -0.3}, DType::float64), {1, 2, 3});
  const Tensor outside = affine_grid(theta, {2, 3}), corners = affine_grid(theta, {2, 3}, true);
  CHECK(distance(outside, {-0.583333333, -0.716666667, -0.05, -0.85, 0.483333333, -0.983333333, -0.283333333, 0.383333333, 0.25, 0.25, 0.783333333, 0.116666667}) < 1e-8);
  CHECK(distance(corners, {-1, -1.2, -0.2, -1.4, 0.6, -1.6, -0.4, 1, 0.4, 0.8, 1.2, 0.6}) < 1e-8);
  CHECK(distance(grid_sample(x, outside), {1.51128472, 3.5328125, -0.040625, 4.2875, -0.0234375, 3.05295139}) < 1e-8);
  CHECK(distance(grid_sample(x, corners, true), {-1.8, 0.34, 0, 1.1, 1.28, 0.08}) < 1e-8);
}

TEST_CASE("grid_sample: the identity changes nothing; points far away, infinite or NaN give zero") {
  const Tensor x = random_tensor({2, 3, 6, 5}), identity = expand(reshape(tensor({1, 0, 0, 0, 1, 0}, DType::float64), {1, 2, 3}), {2, 2, 3});
  for (const bool align_corners : {false, true}) CHECK(distance(grid_sample(x, affine_grid(identity, {6, 5}, align_corners), align_corners), x) < 1e-12);
  const double inf = std::numeric_limits<double>::infinity();
  Tensor grid = reshape(tensor({inf, 0, quiet_nan(), 0, 1e30, 0, 0, -1e30}, DType::float64), {1, 1, 4, 2}), image = random_leaf({1, 3, 6, 5}, 4);
  grid.set_requires_grad();
  const Tensor y = grid_sample(image, grid);
  CHECK(values(y) == std::vector<double>(12, 0));
  y.backward(ones_like(y));
  CHECK(values(image.grad()) == std::vector<double>(90, 0));
  CHECK(values(grid.grad()) == std::vector<double>(8, 0));
}

TEST_CASE("gradients of resizing and sampling are the limits of differences") {
  for (const InterpolateOptions& o : {InterpolateOptions(), bilinear, aligned}) {
    for (const Pair size : {Pair(7, 9), Pair(2, 3), Pair(1, 1)}) {
      const TensorFunction f = [&](Inputs i) { return square(interpolate(i[0], size, o)); };
      CHECK(gradcheck(f, {random_leaf({2, 2, 4, 5}, 3)}) == "");
      CHECK(gradgradcheck(f, {random_leaf({2, 2, 4, 5}, 3)}) == "");
    }
  }
  for (const bool align_corners : {false, true}) {
    const TensorFunction f = [&](Inputs i) { return grid_sample(i[0], i[1], align_corners); };
    CHECK(gradcheck(f, {random_leaf({2, 2, 4, 5}, 3), random_leaf({2, 3, 3, 2}, 4)}) == "");
    const TensorFunction g = [&](Inputs i) { return square(affine_grid(i[0], {3, 4}, align_corners)); };
    CHECK(gradcheck(g, {random_leaf({2, 2, 3}, 5)}) == "");
    CHECK(gradgradcheck(g, {random_leaf({2, 2, 3}, 5)}) == "");
  }
}

TEST_CASE("grid_sample says that it has no second derivative") {
  Tensor x = random_leaf({1, 1, 3, 3}, 1);
  const Tensor y = grid_sample(x, zeros({1, 2, 2, 2}, DType::float64));
  CHECK(error_of<AutogradError>([&] { y.backward(ones_like(y), false, true); }).find("grid_sample: a second derivative is not offered") != std::string::npos);
}

TEST_CASE("image operations refuse what does not fit, and take empty batches and meta") {
  const Tensor x = zeros({1, 2, 4, 4});
  CHECK(error_of<ValueError>([&] { interpolate(x, 0); }).find("at least 1") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { interpolate(zeros({2, 4, 4}), 2); }).find("[n, channels, h, w]") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { grid_sample(x, zeros({2, 3, 3, 2})); }).find("grid must be [1, out_h, out_w, 2]") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { affine_grid(zeros({2, 3}), 4); }).find("theta must be [n, 2, 3]") != std::string::npos);
  Tensor none = zeros({0, 2, 4, 4});
  none.set_requires_grad();
  for (const Tensor& y : {interpolate(none, 3), interpolate(none, 3, bilinear), grid_sample(none, zeros({0, 3, 3, 2}))}) {
    CHECK(y.shape() == Shape{0, 2, 3, 3});
    y.backward(zeros_like(y));
  }
  CHECK(values(grid_sample(zeros({1, 1, 0, 0}), zeros({1, 1, 1, 2}))) == std::vector<double>{0});
  const Tensor meta = empty({2, 3, 8, 8}, Device::meta());
  CHECK(interpolate(meta, 5, bilinear).shape() == Shape{2, 3, 5, 5});
  CHECK(grid_sample(meta, affine_grid(empty({2, 2, 3}, Device::meta()), 5)).shape() == Shape{2, 3, 5, 5});
}
