// Elementwise operations on tensors: gradients and their gradients, broadcasting, dtype promotion, errors, values from PyTorch.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

using namespace fovea;

namespace {

Tensor random(const Shape& shape, double low, double high) {
  static Generator generator(1);
  std::vector<double> values;
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const auto words = kernels::PhiloxKey(generator.next(1));
    const double u = std::fmod(std::sin(static_cast<double>(words.offset + 1) * 12.9898) * 43758.5453, 1.0);
    values.push_back(low + (high - low) * std::abs(u));
  }
  return from_vector(values, shape).set_requires_grad();
}

struct Case {
  const char* name;
  TensorFunction f;
  double low, high;
};

using V = const std::vector<Tensor>&;

}  // namespace

TEST_CASE("functions of one tensor: the gradient and its gradient are limits of differences") {
  const Case cases[] = {
      {"neg", [](V x) { return -x[0]; }, -2, 2},
      {"abs", [](V x) { return abs(x[0]); }, 0.1, 2},
      {"square", [](V x) { return square(x[0]); }, -2, 2},
      {"sqrt", [](V x) { return sqrt(x[0]); }, 0.5, 2},
      {"rsqrt", [](V x) { return rsqrt(x[0]); }, 0.5, 2},
      {"reciprocal", [](V x) { return reciprocal(x[0]); }, 0.5, 2},
      {"exp", [](V x) { return exp(x[0]); }, -2, 2},
      {"expm1", [](V x) { return expm1(x[0]); }, -2, 2},
      {"log", [](V x) { return log(x[0]); }, 0.5, 2},
      {"log1p", [](V x) { return log1p(x[0]); }, -0.5, 2},
      {"sin", [](V x) { return sin(x[0]); }, -4, 4},
      {"cos", [](V x) { return cos(x[0]); }, -4, 4},
      {"erf", [](V x) { return erf(x[0]); }, -2, 2},
      {"clamp", [](V x) { return clamp(mul(x[0], x[0]), 0.5, 1.5); }, -2, 2},
      {"floor", [](V x) { return mul(floor(x[0]), x[0]); }, 0.1, 0.9},
      {"x + 2", [](V x) { return x[0] + 2; }, -2, 2},
      {"2 - x", [](V x) { return 2 - x[0]; }, -2, 2},
      {"x - 0.5", [](V x) { return x[0] - 0.5; }, -2, 2},
      {"3 x", [](V x) { return 3 * x[0] * x[0]; }, -2, 2},
      {"x / 3", [](V x) { return x[0] * x[0] / 3; }, -2, 2},
      {"3 / x", [](V x) { return 3 / x[0]; }, 0.5, 2},
      {"x ^ 3", [](V x) { return pow(x[0], 3); }, -2, 2},
      {"x ^ 2.5", [](V x) { return pow(x[0], 2.5); }, 0.5, 2},
      {"x ^ 0", [](V x) { return pow(x[0], 0) * x[0] * x[0]; }, 0.5, 2},
      {"relu", [](V x) { return relu(x[0]) * x[0]; }, 0.1, 2},
      {"relu of negatives", [](V x) { return relu(x[0]) + x[0] * x[0]; }, -2, -0.1},
      {"relu6", [](V x) { return relu6(x[0] * x[0]); }, 0.2, 2.4},
      {"leaky_relu", [](V x) { return leaky_relu(x[0] * x[0] - 2, 0.1); }, -1, 1},
      {"elu", [](V x) { return elu(x[0], 1.5); }, -3, -0.1},
      {"elu of positives", [](V x) { return elu(x[0] * x[0], 1.5); }, 0.1, 3},
      {"sigmoid", [](V x) { return sigmoid(x[0]); }, -4, 4},
      {"tanh", [](V x) { return fovea::tanh(x[0]); }, -3, 3},
      {"softplus", [](V x) { return softplus(x[0], 2); }, -3, 3},
      {"softplus beyond the threshold", [](V x) { return softplus(x[0] * x[0], 2, 1); }, 1, 3},
      {"silu", [](V x) { return silu(x[0]); }, -4, 4},
      {"gelu", [](V x) { return gelu(x[0]); }, -3, 3},
      {"gelu tanh", [](V x) { return gelu(x[0], Gelu::tanh); }, -3, 3},
      {"hardtanh", [](V x) { return hardtanh(x[0] * x[0], -0.5, 0.5); }, -0.6, 0.6},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    CHECK(gradcheck(c.f, {random({3, 5}, c.low, c.high)}) == "");
    CHECK(gradgradcheck(c.f, {random({3, 5}, c.low, c.high)}) == "");
    CHECK(gradcheck(c.f, {random({}, c.low, c.high)}) == "");
    CHECK(gradcheck(c.f, {random({0, 2}, c.low, c.high)}) == "");
    CHECK(gradcheck(c.f, {random({1}, c.low, c.high)}) == "");
  }
}

TEST_CASE("functions of two tensors: gradients with broadcasting") {
  const Case cases[] = {
      {"add", [](V x) { return (x[0] + x[1]) * x[0]; }, 0.5, 2},
      {"sub", [](V x) { return (x[0] - x[1]) * x[1]; }, 0.5, 2},
      {"mul", [](V x) { return x[0] * x[1]; }, 0.5, 2},
      {"div", [](V x) { return x[0] / x[1]; }, 0.5, 2},
      {"pow", [](V x) { return pow(x[0], x[1]); }, 0.5, 2},
      {"maximum", [](V x) { return maximum(x[0], x[1]) * x[0]; }, 0.5, 2},
      {"minimum", [](V x) { return minimum(x[0], x[1]) * x[1]; }, 0.5, 2},
      {"atan2", [](V x) { return atan2(x[0], x[1]); }, 0.5, 2},
      {"remainder", [](V x) { return remainder(x[0] * 3, x[1] + 2.5); }, 0.1, 0.4},
      {"where", [](V x) { return where(gt(x[0], x[1]), x[0] * x[1], x[1]); }, 0.5, 2},
      {"lerp", [](V x) { return lerp(x[0], x[1], x[0] * x[1]); }, 0.1, 0.9},
      {"addcmul", [](V x) { return addcmul(x[0], x[1], x[0], 0.5); }, 0.5, 2},
      {"addcdiv", [](V x) { return addcdiv(x[0], x[0], x[1], 0.5); }, 0.5, 2},
  };
  const std::pair<Shape, Shape> shapes[] = {{{3, 4}, {3, 4}}, {{3, 4}, {4}}, {{3, 1}, {1, 4}}, {{2, 3, 2}, {3, 1}},
                                            {{2, 3}, {}},     {{}, {}},      {{0, 3}, {1, 3}}, {{1}, {3}}};
  for (const Case& c : cases) {
    for (const auto& pair : shapes) {
      const Shape &a = pair.first, &b = pair.second;
      CAPTURE(c.name);
      CAPTURE(a);
      CAPTURE(b);
      CHECK(gradcheck(c.f, {random(a, c.low, c.high), random(b, c.low, c.high)}) == "");
      CHECK(gradgradcheck(c.f, {random(a, c.low, c.high), random(b, c.low, c.high)}) == "");
    }
  }
}

TEST_CASE("gradients at kinks and special values are PyTorch's") {
  const auto slopes = [](const std::vector<double>& at, const std::function<Tensor(const Tensor&)>& f) {
    Tensor x = from_vector(at).set_requires_grad();
    return grad({f(x)}, {x}, {ones_like(x)})[0].to_vector<double>();
  };
  using Values = std::vector<double>;
  CHECK(slopes({-1, 0, 1}, [](const Tensor& x) { return relu(x); }) == Values{0, 0, 1});
  CHECK(slopes({-1, 0, 0.5, 1}, [](const Tensor& x) { return clamp(x, -1, 1); }) == Values{1, 1, 1, 1});
  CHECK(slopes({-1.5, -1, 0, 2, 2.5, std::nan("")}, [](const Tensor& x) { return clamp(x, -1, 2); }) == Values{0, 1, 1, 1, 0, 0});
  CHECK(slopes({-1, 0.5, 1}, [](const Tensor& x) { return clamp_min(x, 0.5); }) == Values{0, 1, 1});
  CHECK(slopes({-1, 0.5, 1}, [](const Tensor& x) { return clamp_max(x, 0.5); }) == Values{1, 1, 0});
  CHECK(slopes({-1, 0, 1}, [](const Tensor& x) { return hardtanh(x); }) == Values{0, 1, 0});
  CHECK(slopes({-1, 0, 6}, [](const Tensor& x) { return relu6(x); }) == Values{0, 0, 0});
  CHECK(slopes({-2, 0, 3}, [](const Tensor& x) { return abs(x); }) == Values{-1, 0, 1});
  CHECK(slopes({-2, 0, 3}, [](const Tensor& x) { return maximum(x, zeros_like(x)); }) == Values{0, 0.5, 1});
  CHECK(slopes({0, 2}, [](const Tensor& x) { return pow(x, 2); }) == Values{0, 4});
  CHECK(slopes({0, 2}, [](const Tensor& x) { return pow(x, zeros_like(x)); }) == Values{0, 0});
  CHECK(slopes({0, 2}, [](const Tensor& x) { return leaky_relu(x, 0.1); }) == Values{0.1, 1});
}

TEST_CASE("dtypes are promoted as in PyTorch") {
  const Tensor f32 = ones({2}), f64 = ones({2}, DType::float64), f16 = ones({2}, DType::float16), bf16 = ones({2}, DType::bfloat16);
  const Tensor i32 = ones({2}, DType::int32), i64 = ones({2}, DType::int64), u8 = ones({2}, DType::uint8), b = ones({2}, DType::boolean);
  CHECK((f32 + f64).dtype() == DType::float64);
  CHECK((f16 + bf16).dtype() == DType::float32);
  CHECK((f16 + i64).dtype() == DType::float16);
  CHECK((u8 + i32).dtype() == DType::int32);
  CHECK((i32 + i64).dtype() == DType::int64);
  CHECK((b + u8).dtype() == DType::uint8);
  CHECK((i32 + 2).dtype() == DType::int32);
  CHECK((i32 + 2.5).dtype() == DType::float32);
  CHECK((i32 + 2.5).to_vector<float>() == std::vector<float>{3.5f, 3.5f});
  CHECK((b + 1).dtype() == DType::int64);
  CHECK((f16 * 2.5).dtype() == DType::float16);
  CHECK((i32 / i32).dtype() == DType::float32);
  CHECK((f32 + scalar(2, DType::float64)).dtype() == DType::float32);          // rank 0 decides the kind alone
  CHECK((i32 + scalar(2.5, DType::float64)).dtype() == DType::float64);
  CHECK((u8 + scalar(2, DType::int64)).dtype() == DType::uint8);
  CHECK(exp(i64).dtype() == DType::float32);
  CHECK(relu(u8).dtype() == DType::float32);
  CHECK(gt(i32, f32).dtype() == DType::boolean);
  CHECK(where(b, i32, 1.5).dtype() == DType::float32);
}

TEST_CASE("a wrong shape, dtype or device is named") {
  const Tensor x = ones({2, 3});
  CHECK_THROWS_WITH_AS(x + ones({4}), doctest::Contains("add"), ShapeError);
  CHECK_THROWS_WITH_AS(where(x, x, x), doctest::Contains("condition must be bool"), DTypeError);
  CHECK_THROWS_WITH_AS(x + empty({2, 3}, Device::meta()), doctest::Contains(str("on ", x.device(), " but b is on meta").c_str()), DeviceError);
  CHECK_THROWS_AS(neg(gt(x, 0)), DTypeError);
  CHECK_THROWS_AS(x + Tensor(), ValueError);
}

TEST_CASE("meta tensors have shapes without data") {
  const Tensor x = empty({2, 1, 4}, Device::meta()), y = empty({3, 1}, Device::meta());
  CHECK((gelu(x * y + 1) / 2).shape() == Shape{2, 3, 4});
  CHECK(where(gt(x, y), x, 0).shape() == Shape{2, 3, 4});
  CHECK(clamp(pow(x, 2), 0, 1).is_meta());
}

TEST_CASE("what the backward does not need is not kept") {
  Tensor x = ones({4}).set_requires_grad(), weight = ones({4});
  Tensor scaled = x * weight;                                  // needs weight, not x
  copy_(x.detach(), full({4}, 2));
  CHECK(grad({scaled}, {x}, {ones({4})})[0].to_vector<float>() == std::vector<float>(4, 1.0f));
  Tensor y = weight * x;
  copy_(weight, full({4}, 2));
  CHECK_THROWS_WITH_AS(grad({y}, {x}, {ones({4})}), doctest::Contains("'mul'"), AutogradError);
}

TEST_CASE("values and slopes of the activations are torch.nn.functional's") {
  struct Golden {
    const char* name;
    Tensor (*f)(const Tensor&);
    std::vector<double> values, slopes;
  };
  const Golden all[] = {
      {"relu6", [](const Tensor& x) { return relu6(x); },
       {0, 0, 0.3, 1.9},
       {0, 0, 1, 1}},
      {"leaky_relu", [](const Tensor& x) { return leaky_relu(x, 0.2); },
       {-0.6, -0.14, 0.3, 1.9},
       {0.2, 0.2, 1, 1}},
      {"elu", [](const Tensor& x) { return elu(x, 1.3); },
       {-1.23527681112178, -0.654439105071168, 0.3, 1.9},
       {0.0647231888782231, 0.645560894928832, 1, 1}},
      {"sigmoid", [](const Tensor& x) { return sigmoid(x); },
       {0.0474258731775668, 0.331812227831834, 0.574442516811659, 0.869891525637002},
       {0.0451766597309121, 0.221712873293109, 0.244458311690746, 0.113180259261931}},
      {"tanh", [](const Tensor& x) { return fovea::tanh(x); },
       {-0.99505475368673, -0.604367777117163, 0.291312612451591, 0.956237458127739},
       {0.00986603716544017, 0.634739589982459, 0.915136961826629, 0.0856099236734005}},
      {"softplus", [](const Tensor& x) { return softplus(x, 2, 3); },
       {0.00123784256886522, 0.110208704959225, 0.518743975242943, 1.9},
       {0.00247262315663477, 0.197816111441418, 0.645656306225795, 1}},
      {"silu", [](const Tensor& x) { return silu(x); },
       {-0.1422776195327, -0.232268559482284, 0.172332755043498, 1.6527938987103},
       {-0.0881041060151696, 0.176613216526658, 0.647780010318883, 1.08493401823467}},
      {"gelu", [](const Tensor& x) { return gelu(x); },
       {-0.00404969409489031, -0.169374556556151, 0.185373426656686, 1.8454385363496},
       {-0.0119456472041839, 0.0233858988663402, 0.73232776682711, 1.09595348825588}},
      {"gelu tanh", [](const Tensor& x) { return gelu(x, Gelu::tanh); },
       {-0.00363739208177299, -0.169429865294883, 0.185370923542759, 1.84545123445533},
       {-0.0115841666309696, 0.0236427813438961, 0.732295451638802, 1.09678180809979}},
      {"hardtanh", [](const Tensor& x) { return hardtanh(x, -1, 1.5); },
       {-1, -0.7, 0.3, 1.5},
       {0, 1, 1, 0}},
      {"erf", [](const Tensor& x) { return erf(x); },
       {-0.999977909503001, -0.677801193837418, 0.328626759459127, 0.992790429235258},
       {0.000139253051946748, 0.691274860410539, 1.03126090961896, 0.0305247404354478}},
      {"expm1", [](const Tensor& x) { return expm1(x); },
       {-0.950212931632136, -0.50341469620859, 0.349858807576003, 5.68589444227927},
       {0.049787068367864, 0.49658530379141, 1.349858807576, 6.68589444227927}},
      {"remainder", [](const Tensor& x) { return remainder(x, 0.8); },
       {0.2, 0.1, 0.3, 0.3},
       {1, 1, 1, 1}},
  };
  for (const Golden& golden : all) {
    CAPTURE(golden.name);
    Tensor x = from_vector(std::vector<double>{-3, -0.7, 0.3, 1.9}).set_requires_grad();
    const Tensor y = golden.f(x);
    const std::vector<double> values = y.to_vector<double>(), slopes = grad({y}, {x}, {ones_like(y)})[0].to_vector<double>();
    for (size_t i = 0; i < 4; ++i) {
      CHECK(values[i] == doctest::Approx(golden.values[i]).epsilon(1e-12));
      CHECK(slopes[i] == doctest::Approx(golden.slopes[i]).epsilon(1e-12));
    }
  }
}
