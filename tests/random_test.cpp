// Random numbers: Philox against published vectors, the distributions' statistics, independence of threads, and dropout.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/random.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/philox.h>
#include <fovea/tensor/creation.h>

using namespace fovea;
using kernels::Philox;

namespace {

double mean_of(const Tensor& x) { return mean(to(x, DType::float64)).item(); }
double deviation_of(const Tensor& x) { return stddev(to(x, DType::float64)).item(); }

}  // namespace

TEST_CASE("Philox4x32-10 gives the words of Random123's known-answer file") {
  using Words = std::array<uint32_t, 4>;
  CHECK(Philox::words(0, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
}

TEST_CASE("element i comes from word i % 4 of block i / 4") {
  Generator generator(42);
  generator.set_state(42, (uint64_t{1} << 32) - 3);                     // the counter carries into its high word on the way
  const uint64_t offset = generator.offset();
  const std::vector<float> x = rand({1000}, DType::float32, generator).to_vector<float>();
  for (size_t i = 0; i < x.size(); ++i) CHECK(x[i] == Philox::uniform_float(Philox::words(42, offset + i / 4)[i % 4]));
  generator.set_state(42, offset);
  const std::vector<double> y = rand({1001}, DType::float64, generator).to_vector<double>();
  for (size_t i = 0; i < y.size(); ++i) {
    const auto words = Philox::words(42, offset + i / 2);
    CHECK(y[i] == Philox::uniform_double(words[2 * (i % 2)], words[2 * (i % 2) + 1]));
  }
}

TEST_CASE("the same seed gives the same numbers, for any number of threads; another seed, others") {
  const int before = num_threads();
  std::vector<std::vector<double>> draws;
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    Generator g(7);
    const Tensor a = randn({100003}, DType::float32, g), b = rand({50001}, DType::float64, g);
    draws.push_back(a.to_vector<double>());
    draws.push_back(b.to_vector<double>());
  }
  set_num_threads(before);
  CHECK(draws[0] == draws[2]);
  CHECK(draws[1] == draws[3]);
  Generator g(7), h(8);
  const Tensor first = rand({100}, DType::float32, g), second = rand({100}, DType::float32, g);
  CHECK(first.to_vector<float>() != second.to_vector<float>());
  CHECK(first.to_vector<float>() != rand({100}, DType::float32, h).to_vector<float>());
}

TEST_CASE("a longer draw begins with the shorter one") {
  Generator g(3), h(3);
  const std::vector<float> shorter = randn({777}, DType::float32, g).to_vector<float>(),
                           longer = randn({5000}, DType::float32, h).to_vector<float>();
  CHECK(std::equal(shorter.begin(), shorter.end(), longer.begin()));
}

TEST_CASE("moments and bounds of the distributions") {
  constexpr int64_t n = 400000;
  for (DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    CAPTURE(name_of(dtype));
    Generator g(11);
    const Tensor u = rand({n}, dtype, g), z = randn({n}, dtype, g);
    CHECK(mean_of(u) == doctest::Approx(0.5).epsilon(0.006));
    CHECK(deviation_of(u) == doctest::Approx(std::sqrt(1.0 / 12)).epsilon(0.006));
    CHECK(amin(u).item() >= 0);
    CHECK(amax(u).item() < 1);
    CHECK(std::abs(mean_of(z)) < 0.006);
    CHECK(deviation_of(z) == doctest::Approx(1).epsilon(0.006));
    const Tensor wide = to(z, DType::float64);
    CHECK(std::abs(mean(pow(wide, 3)).item()) < 0.03);                    // symmetric
    CHECK(mean(pow(wide, 4)).item() == doctest::Approx(3).epsilon(0.03));  // a normal's fourth moment
    CHECK(all(isfinite(z)).item<int64_t>() == 1);
  }
  Generator g(12);
  manual_seed(12);
  CHECK(mean_of(bernoulli(0.3, {n})) == doctest::Approx(0.3).epsilon(0.01));
  const Tensor dice = randint(1, 7, {n}, DType::int64, g);
  for (int face = 1; face <= 6; ++face)
    CHECK(static_cast<double>(sum(eq(dice, face)).item<int64_t>()) == doctest::Approx(n / 6.0).epsilon(0.02));
  CHECK(amin(dice).item() == 1);
  CHECK(amax(dice).item() == 6);
  const Tensor large = randint(-(int64_t{1} << 52), int64_t{1} << 52, {n}, DType::int64, g);
  CHECK(std::abs(mean_of(large)) < 0.01 * 0x1p52);
  CHECK(deviation_of(large) == doctest::Approx(0x1p53 / std::sqrt(12.0)).epsilon(0.01));
}

TEST_CASE("neighbours are not correlated") {
  constexpr int64_t n = 200000;
  Generator g(5);
  const std::vector<double> z = randn({n}, DType::float32, g).to_vector<double>();
  for (size_t lag = 1; lag <= 4; ++lag) {
    double product = 0;
    for (size_t i = 0; i + lag < z.size(); ++i) product += z[i] * z[i + lag];
    CHECK(std::abs(product / n) < 0.01);
  }
}

TEST_CASE("dropout: keeps 1 - p of the elements, scaled; the gradient has the same mask") {
  for (DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    Generator g(1);
    Tensor x = ones({100001}, dtype).set_requires_grad();
    const Tensor y = dropout(x, 0.25, g);
    CHECK(mean_of(gt(y, 0)) == doctest::Approx(0.75).epsilon(0.01));
    const double kept =
        dtype == DType::bfloat16 ? 1.3359375 : static_cast<double>(dtype == DType::float32 ? static_cast<double>(4.0f / 3) : 4.0 / 3);
    CHECK(amax(y).item() == doctest::Approx(kept));
    CHECK(grad({y}, {x}, {ones_like(y)})[0].to_vector<double>() == y.to_vector<double>());
  }
  Generator g(2);
  const Tensor x = ones({1000});
  CHECK(dropout(x, 0, g).is_same(x));
  CHECK(amax(dropout(x, 1, g)).item() == 0);
  CHECK_THROWS_WITH_AS(dropout(x, 1.5, g), doctest::Contains("p must be in [0, 1]"), ValueError);
  CHECK_THROWS_AS(dropout(arange(3), 0.5, g), DTypeError);
  CHECK(dropout(ones({0}), 0.5, g).numel() == 0);
}

TEST_CASE("dropout: first and second derivatives") {
  const TensorFunction f = [](const std::vector<Tensor>& x) {
    Generator g(9);
    return dropout(square(x[0]), 0.4, g) * feature_dropout(x[0], 0.3, g);
  };
  CHECK(gradcheck(f, {randn({3, 4, 2}, DType::float64).set_requires_grad()}) == "");
  CHECK(gradgradcheck(f, {randn({3, 4, 2}, DType::float64).set_requires_grad()}) == "");
}

TEST_CASE("feature_dropout: a channel is kept or lost as one") {
  Generator g(4);
  const Tensor y = feature_dropout(ones({8, 16, 5, 5}), 0.5, g);
  const Tensor per_channel = mean(y, {2, 3});
  CHECK(all(logical_or(eq(per_channel, 0), eq(per_channel, 2))).item<int64_t>() == 1);
  CHECK(mean_of(y) == doctest::Approx(1).epsilon(0.3));
}
