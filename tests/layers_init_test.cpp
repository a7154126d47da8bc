#include <doctest/doctest.h>

#include <array>
#include <cmath>

#include <fovea/layers/init.h>
#include <fovea/tensor/creation.h>

using namespace fovea;
using namespace fovea::layers;

TEST_CASE("init: deviations, bounds and means are those of the formulas") {
  manual_seed(3);
  const Tensor w = empty({64, 32, 3, 3});
  auto moments = [](const Tensor& t) {
    const auto values = t.to_vector<double>();
    double mean = 0, square = 0, largest = 0;
    for (double v : values) { mean += v; square += v * v; largest = std::max(largest, std::abs(v)); }
    const double n = static_cast<double>(values.size());
    return std::array<double, 3>{mean / n, std::sqrt(square / n), largest};
  };
  CHECK(init::fans(w.shape()).in == 288);
  CHECK(init::fans(w.shape()).out == 576);
  init::kaiming_normal_(w, {.nonlinearity = init::Nonlinearity::relu});
  CHECK(moments(w)[1] == doctest::Approx(std::sqrt(2.0 / 288)).epsilon(0.02));
  init::kaiming_normal_(w, {.mode = init::Fan::out, .nonlinearity = init::Nonlinearity::linear});
  CHECK(moments(w)[1] == doctest::Approx(std::sqrt(1.0 / 576)).epsilon(0.02));
  init::kaiming_uniform_(w, {.slope = std::sqrt(5.0)});                      // PyTorch's default for Linear and Conv
  CHECK(moments(w)[2] <= 1 / std::sqrt(288.0));
  CHECK(moments(w)[2] > 0.99 / std::sqrt(288.0));
  init::xavier_normal_(w, 2);
  CHECK(moments(w)[1] == doctest::Approx(2 * std::sqrt(2.0 / 864)).epsilon(0.02));
  init::xavier_uniform_(w);
  CHECK(moments(w)[2] == doctest::Approx(std::sqrt(6.0 / 864)).epsilon(0.01));
  CHECK(std::abs(moments(w)[0]) < 0.002);
  init::constant_(w, 3);
  CHECK(moments(w)[0] == 3);
  CHECK_THROWS_AS(init::kaiming_normal_(empty({4})), ShapeError);
}

TEST_CASE("init: orthogonal rows or columns") {
  for (const Shape& shape : {Shape{5, 8}, Shape{8, 5}, Shape{6, 6}, Shape{4, 2, 3, 3}, Shape{70, 140}}) {
    const Tensor w = empty(shape, DType::float64);
    init::orthogonal_(w, 2);
    const int64_t rows = shape[0], columns = shape.numel() / rows;
    const bool are_rows = rows <= columns;
    const int64_t count = are_rows ? rows : columns, length = are_rows ? columns : rows;
    const std::vector<double> v = w.to_vector<double>();
    auto at = [&](int64_t i, int64_t k) { return v[static_cast<size_t>(are_rows ? i * columns + k : k * columns + i)]; };
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < count; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < length; ++k) sum += at(i, k) * at(j, k);
        CHECK(sum == doctest::Approx(i == j ? 4.0 : 0.0).epsilon(1e-9));
      }
  }
}
