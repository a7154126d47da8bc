// The differentiable products: matmul, linear and the convolutions. Their kernels: matmul_test.cpp, conv_test.cpp.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include <fovea/autograd/conv.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/matmul.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

using namespace fovea;

namespace {

// Small whole numbers, so that results are exact: (i * step) % modulus - modulus / 2.
Tensor sequence(const Shape& shape, int64_t modulus = 11, int64_t step = 7) {
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(static_cast<int64_t>(i) * step % modulus - modulus / 2);
  return from_vector(values, shape);
}

Tensor random_leaf(const Shape& shape) {
  Tensor x = randn(shape, DType::float64);
  x.set_requires_grad();
  return x;
}

// First and second derivatives, for all inputs.
void check_gradients(const TensorFunction& fn, const std::vector<Tensor>& inputs) {
  CHECK(gradcheck(fn, inputs) == "");
  CHECK(gradgradcheck(fn, inputs) == "");
}

template <class E, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  }
  return "no error";
}

// Batched matrix product by its definition, for shapes that are already broadcast.
std::vector<float> plain_product(const std::vector<float>& a, const std::vector<float>& b, int64_t batch, int64_t m, int64_t n, int64_t k) {
  std::vector<float> y(static_cast<size_t>(batch * m * n));
  for (int64_t p = 0; p < batch; ++p)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t e = 0; e < k; ++e) y[(p * m + i) * n + j] += a[(p * m + i) * k + e] * b[(p * k + e) * n + j];
  return y;
}

}  // namespace

TEST_CASE("matmul: vectors, matrices and stacks of them follow PyTorch's rules") {
  struct Case { Shape a, b, y; };
  for (const Case& c : {Case{{3}, {3}, {}}, Case{{2, 3}, {3}, {2}}, Case{{3}, {3, 4}, {4}}, Case{{2, 3}, {3, 4}, {2, 4}}, Case{{5, 2, 3}, {3, 4}, {5, 2, 4}},
                        Case{{2, 3}, {5, 3, 4}, {5, 2, 4}}, Case{{5, 1, 2, 3}, {6, 3, 4}, {5, 6, 2, 4}}, Case{{3}, {5, 3, 4}, {5, 4}}, Case{{5, 2, 3}, {3}, {5, 2}},
                        Case{{0, 3}, {3, 4}, {0, 4}}, Case{{2, 0}, {0, 4}, {2, 4}}, Case{{0, 2, 3}, {3, 4}, {0, 2, 4}}}) {
    CAPTURE(c.a);
    CAPTURE(c.b);
    const Tensor a = sequence(c.a), b = sequence(c.b, 7, 5), y = matmul(a, b);
    CHECK(y.shape() == c.y);
    // The same by broadcasting everything to stacks of matrices first.
    const Tensor a_matrix = a.rank() == 1 ? unsqueeze(a, 0) : a, b_matrix = b.rank() == 1 ? unsqueeze(b, 1) : b;
    Shape batch_a = a_matrix.shape(), batch_b = b_matrix.shape();
    for (int i = 0; i < 2; ++i) batch_a.erase(batch_a.rank() - 1), batch_b.erase(batch_b.rank() - 1);
    const Shape batch = broadcast_shapes(batch_a, batch_b, "test");
    const int64_t m = a_matrix.size(-2), k = a_matrix.size(-1), n = b_matrix.size(-1);
    Shape shape_a = batch, shape_b = batch;
    shape_a.push_back(m);
    shape_a.push_back(k);
    shape_b.push_back(k);
    shape_b.push_back(n);
    CHECK(y.to_vector<float>() == plain_product(expand(a_matrix, shape_a).to_vector<float>(), expand(b_matrix, shape_b).to_vector<float>(), batch.numel(), m, n, k));
  }
}

TEST_CASE("matmul: transposed, sliced and flipped operands") {
  const Tensor a = sequence({20, 30}), b = sequence({40, 30}, 13);
  const Tensor expected = matmul(a, contiguous(transpose(b)));
  CHECK(matmul(a, transpose(b)).to_vector<float>() == expected.to_vector<float>());
  CHECK(matmul(b, transpose(a)).to_vector<float>() == transpose(expected).to_vector<float>());
  const Tensor backwards = matmul(flip(a, {0}), transpose(b));
  CHECK(backwards.to_vector<float>() == flip(expected, {0}).to_vector<float>());
  const Tensor every_other = matmul(slice(a, 1, 0, 30, 2), transpose(slice(b, 1, 0, 30, 2)));
  CHECK(every_other.to_vector<float>() == matmul(contiguous(slice(a, 1, 0, 30, 2)), contiguous(transpose(slice(b, 1, 0, 30, 2)))).to_vector<float>());
}

TEST_CASE("matmul: dot and outer") {
  CHECK(dot(tensor({1, 2, 3}), tensor({4, 5, 6})).item() == 32);
  CHECK(outer(tensor({1, 2}), tensor({3, 4, 5})).to_vector<float>() == std::vector<float>{3, 4, 5, 6, 8, 10});
}

TEST_CASE("matmul: first and second derivatives") {
  const TensorFunction product = [](const std::vector<Tensor>& x) { return matmul(x[0], x[1]); };
  struct Case { Shape a, b; };
  for (const Case& c : {Case{{3}, {3}}, Case{{2, 3}, {3}}, Case{{3}, {3, 4}}, Case{{2, 3}, {3, 4}}, Case{{2, 2, 3}, {3, 4}}, Case{{2, 1, 2, 3}, {3, 3, 2}}, Case{{2, 0}, {0, 3}}}) {
    CAPTURE(c.a);
    CAPTURE(c.b);
    check_gradients(product, {random_leaf(c.a), random_leaf(c.b)});
  }
  check_gradients([](const std::vector<Tensor>& x) { return matmul(transpose(x[0]), transpose(x[1])); }, {random_leaf({3, 2}), random_leaf({4, 3})});
}

TEST_CASE("linear: equals the product with the transposed weight, plus the bias") {
  const Tensor x = sequence({2, 3, 5}), weight = sequence({4, 5}, 7, 5), bias = sequence({4}, 5, 3);
  const std::vector<float> product = matmul(x, transpose(weight)).to_vector<float>(), with_bias = linear(x, weight, bias).to_vector<float>(), b = bias.to_vector<float>();
  CHECK(linear(x, weight).to_vector<float>() == product);
  CHECK(linear(x, weight, bias).shape() == Shape{2, 3, 4});
  bool same = true;
  for (size_t i = 0; i < product.size(); ++i) same &= with_bias[i] == product[i] + b[i % 4];
  CHECK(same);
  CHECK(linear(zeros({0, 5}), weight, bias).shape() == Shape{0, 4});
  CHECK(linear(zeros({5}), weight, bias).to_vector<float>() == b);
}

TEST_CASE("linear: first and second derivatives") {
  check_gradients([](const std::vector<Tensor>& x) { return linear(x[0], x[1], x[2]); }, {random_leaf({2, 3, 4}), random_leaf({5, 4}), random_leaf({5})});
  check_gradients([](const std::vector<Tensor>& x) { return linear(x[0], x[1]); }, {random_leaf({4}), random_leaf({5, 4})});
}

TEST_CASE("products: errors say what does not fit") {
  CHECK(message_of<ShapeError>([] { matmul(zeros({2, 3}), zeros({4, 5})); }) == "matmul: a [2,3] has 3 columns but b [4,5] has 4 rows");
  CHECK_THROWS_AS(matmul(zeros({2, 2, 3}), zeros({3, 3, 4})), ShapeError);
  CHECK_THROWS_AS(matmul(zeros({}), zeros({3})), ShapeError);
  CHECK_THROWS_AS(matmul(zeros({2, 3}), zeros({3, 4}, DType::float64)), DTypeError);
  CHECK_THROWS_AS(matmul(zeros({2, 3}, DType::int64), zeros({3, 4}, DType::int64)), DTypeError);
  CHECK_THROWS_AS(matmul(zeros({2, 3}), zeros({3, 4}, Device::meta())), DeviceError);
  CHECK_THROWS_AS(linear(zeros({2, 3}), zeros({4, 5})), ShapeError);
  CHECK_THROWS_AS(linear(zeros({2, 5}), zeros({4, 5}), zeros({5})), ShapeError);
  CHECK(message_of<ShapeError>([] { conv2d(zeros({8, 4, 32, 32}), zeros({64, 3, 3, 3})); }) ==
        "conv2d: x has 4 channels but weight [64,3,3,3] expects 3 (groups = 1); x is [8,4,32,32]");
  CHECK_THROWS_AS(conv2d(zeros({4, 32}), zeros({6, 4, 3, 3})), ShapeError);
  CHECK_THROWS_AS(conv2d(zeros({1, 4, 9, 9}), zeros({6, 4, 3})), ShapeError);
  CHECK_THROWS_AS(conv2d(zeros({1, 4, 9, 9}), zeros({6, 4, 3, 3}), zeros({5})), ShapeError);
  CHECK_THROWS_AS(conv2d(zeros({1, 4, 2, 9}), zeros({6, 4, 3, 3})), ShapeError);
  CHECK_THROWS_AS(conv2d(zeros({1, 4, 9, 9}), zeros({5, 2, 3, 3}), {}, {.groups = 2}), ShapeError);
  CHECK_THROWS_AS(conv2d(zeros({1, 4, 9, 9}), zeros({6, 4, 3, 3}), {}, {.stride = 0}), ValueError);
  CHECK_THROWS_AS(conv2d(zeros({1, 4, 9, 9}), zeros({6, 4, 3, 3}), {}, {.padding = {0, -1}}), ValueError);
  CHECK_THROWS_AS(conv_transpose2d(zeros({1, 4, 9, 9}), zeros({4, 6, 3, 3}), {}, {.output_padding = 1}), ValueError);
  CHECK_THROWS_AS(conv_transpose2d(zeros({1, 4, 9, 9}), zeros({6, 4, 3, 3})), ShapeError);
  CHECK_THROWS_AS(conv_transpose2d(zeros({1, 4, 1, 1}), zeros({4, 6, 3, 3}), {}, {.padding = 2}), ShapeError);
}

// Values: torch.nn.functional of the same sequences, PyTorch 2.
TEST_CASE("convolutions: PyTorch's values") {
  const Tensor bias = sequence({2}, 5, 3);
  CHECK(conv2d(sequence({1, 2, 4, 5}), sequence({2, 2, 3, 2}, 7, 5), bias, {.stride = {2, 1}, .padding = {1, 0}}).to_vector<float>() ==
        std::vector<float>{-12, 1, -8, -17, 28, -16, -16, 6, 22, 9, 18, -6, 0, 26, 8, 23});
  CHECK(conv1d(sequence({2, 4, 7}), sequence({2, 2, 3}, 7, 5), bias, {.stride = 2, .padding = 2, .dilation = 2, .groups = 2}).to_vector<float>() ==
        std::vector<float>{-9, 13, -17, 7, -12, 16, -9, -2, 1, -11, 14, -15, -12, 18, -7, 10});
  CHECK(conv_transpose1d(sequence({1, 2, 4}), sequence({2, 3, 3}, 7, 5), {}, {.output_padding = 1, .dilation = 2}).to_vector<float>() ==
        std::vector<float>{15, -6, -6, -5, -9, 1, 12, 0, 0, 11, -7, -8, -1, -18, 26, -14, 5, 0, 7, -8, 25, -11, -6, -5, -12, 10, 0});
  const Tensor y = conv_transpose2d(sequence({1, 4, 3, 2}), sequence({4, 2, 3, 2}, 7, 5), sequence({4}, 5, 3),
                                    {.stride = {2, 3}, .padding = {1, 0}, .output_padding = {1, 2}, .groups = 2, .dilation = {1, 2}});
  CHECK(y.shape() == Shape{1, 4, 6, 8});
  CHECK(y.to_vector<float>() == std::vector<float>{
      -14, -2, 16, -2, -2, -6, -2, -2, -15, -2, -15, -8, -2, 7, -2, -2, 10, -2, -6, -11, -2, -6, -2, -2, -12, -2, 7, 17, -2, -4, -2, -2,
      1, -2, -6, 13, -2, -6, -2, -2, 1, -2, 1, -11, -2, 5, -2, -2, -13, 1, -11, 5, 1, 1, 1, 1, 9, 1, -12, 1, 1, -5, 1, 1,
      1, 1, 13, 8, 1, -8, 1, 1, -7, 1, -9, -15, 1, 20, 1, 1, 4, 1, 4, 0, 1, 16, 1, 1, -3, 1, 4, -3, 1, -8, 1, 1,
      1, -1, -3, 5, -1, -11, -1, -1, -11, -1, 18, -3, -1, 2, -1, -1, -2, -1, 3, 2, -1, -5, -1, -1, -17, -1, -3, -9, -1, 14, -1, -1,
      6, -1, -13, -1, -1, 1, -1, -1, 3, -1, -2, -11, -1, 5, -1, -1, 8, 2, 4, -4, 2, 8, 2, 2, -9, 2, -8, -5, 2, 0, 2, 2,
      17, 2, 1, 5, 2, 5, 2, 2, 21, 2, -14, -8, 2, -6, 2, 2, -7, 2, 9, 14, 2, 2, 2, 2, -10, 2, 6, 4, 2, -8, 2, 2});
}

TEST_CASE("convolutions: a single image needs no batch axis") {
  const Tensor x = sequence({3, 6, 6}), weight = sequence({2, 3, 3, 3}, 7, 5);
  CHECK(conv2d(x, weight).shape() == Shape{2, 4, 4});
  CHECK(conv2d(x, weight).to_vector<float>() == conv2d(unsqueeze(x, 0), weight).to_vector<float>());
  CHECK(conv1d(zeros({3, 6}), zeros({2, 3, 3})).shape() == Shape{2, 4});
  CHECK(conv_transpose2d(zeros({3, 6, 6}), zeros({3, 2, 3, 3}), {}, {.stride = 2}).shape() == Shape{2, 13, 13});
}

TEST_CASE("convolutions: first and second derivatives") {
  check_gradients([](const std::vector<Tensor>& x) { return conv2d(x[0], x[1], x[2], {.stride = {2, 1}, .padding = {1, 2}, .dilation = {1, 2}}); },
                  {random_leaf({2, 2, 5, 6}), random_leaf({3, 2, 3, 2}), random_leaf({3})});
  check_gradients([](const std::vector<Tensor>& x) { return conv2d(x[0], x[1], {}, {.padding = 1, .groups = 3}); }, {random_leaf({1, 3, 4, 5}), random_leaf({3, 1, 3, 3})});
  check_gradients([](const std::vector<Tensor>& x) { return conv1d(x[0], x[1], x[2], {.stride = 2, .padding = 1, .groups = 2}); },
                  {random_leaf({2, 4, 7}), random_leaf({2, 2, 3}), random_leaf({2})});
  check_gradients([](const std::vector<Tensor>& x) { return conv_transpose2d(x[0], x[1], x[2], {.stride = 2, .padding = 1, .output_padding = {1, 0}}); },
                  {random_leaf({1, 2, 3, 4}), random_leaf({2, 3, 3, 3}), random_leaf({3})});
  check_gradients([](const std::vector<Tensor>& x) { return conv_transpose1d(x[0], x[1], x[2], {.output_padding = 1, .dilation = 2}); },
                  {random_leaf({2, 2, 4}), random_leaf({2, 3, 3}), random_leaf({3})});
}

TEST_CASE("convolutions: a transposed operand is as good as its copy") {
  const Tensor x = permute(sequence({6, 5, 3, 2}), {3, 2, 0, 1}), weight = permute(sequence({3, 2, 3, 4}, 7, 5), {3, 2, 0, 1});
  CHECK(conv2d(x, weight).shape() == Shape{2, 4, 4, 4});
  CHECK(conv2d(x, weight).to_vector<float>() == conv2d(contiguous(x), contiguous(weight)).to_vector<float>());
}

TEST_CASE("products: gradients that nobody asked for are not computed") {
  const Tensor x = randn({1, 2, 5, 5});
  Tensor weight = randn({3, 2, 3, 3});
  weight.set_requires_grad();
  conv2d(x, weight).backward(ones({1, 3, 3, 3}));
  CHECK(weight.grad().shape() == weight.shape());
  CHECK_FALSE(x.grad().defined());
}

TEST_CASE("products: shapes without data") {
  const Tensor x = zeros({2, 3, 32, 32}, Device::meta());
  CHECK(conv2d(x, zeros({8, 3, 3, 3}, Device::meta()), zeros({8}, Device::meta()), {.stride = 2, .padding = 1}).shape() == Shape{2, 8, 16, 16});
  CHECK(conv_transpose2d(x, zeros({3, 4, 2, 2}, Device::meta()), zeros({4}, Device::meta()), {.stride = 2}).shape() == Shape{2, 4, 64, 64});
  CHECK(matmul(x, zeros({32, 7}, Device::meta())).shape() == Shape{2, 3, 32, 7});
  CHECK(linear(x, zeros({5, 32}, Device::meta()), zeros({5}, Device::meta())).is_meta());
}
