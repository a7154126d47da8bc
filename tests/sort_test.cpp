// Sorting and top-k: kernels against std::stable_sort, operations with their gradients.
#include <doctest/doctest.h>

#include <numeric>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/index.h>
#include <fovea/autograd/shape.h>

#include "devices.h"
#include "tensor_helpers.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

// Positions of a line in order: NaN is the largest, equals keep their order.
std::vector<int64_t> expected_order(const std::vector<double>& line, bool is_descending) {
  std::vector<int64_t> order(line.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    const double a = line[static_cast<size_t>(is_descending ? j : i)], b = line[static_cast<size_t>(is_descending ? i : j)];
    return std::isnan(b) ? !std::isnan(a) : a < b;
  });
  return order;
}

// x[outer, size, inner] with many equals and, if floating, some NaN and infinities.
template <class T>
Tensor difficult(int64_t outer, int64_t size, int64_t inner) {
  Tensor x = empty({outer, size, inner}, dtype_of<T>);
  uint32_t state = 12345;
  for (int64_t i = 0; i < x.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    const uint32_t r = state >> 16;
    T value = static_cast<T>(r % 23);
    if (std::is_floating_point_v<T> && r % 29 == 0) value = static_cast<T>(quiet_nan());
    if (std::is_floating_point_v<T> && r % 31 == 0) value = static_cast<T>(-std::numeric_limits<double>::infinity());
    x.mutable_data<T>()[i] = value;
  }
  return x;
}

template <class T>
void check_order(int64_t outer, int64_t size, int64_t inner, bool is_descending, int64_t k) {
  CAPTURE(size); CAPTURE(inner); CAPTURE(is_descending); CAPTURE(k); CAPTURE(name_of(dtype_of<T>));
  const Tensor x = difficult<T>(outer, size, inner);
  Tensor sorted = poisoned({outer, k, inner}, dtype_of<T>), indices = poisoned({outer, k, inner}, DType::int64);
  const auto& t = kernels::cpu_table();
  (k == size ? t.sort : t.topk)(nullptr, 1, is_descending, x.view(), sorted.mutable_view(), indices.mutable_view());
  const auto in = values(x), out = values(sorted);
  const auto where = indices.to_vector<int64_t>();
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i) {
      std::vector<double> line;
      for (int64_t j = 0; j < size; ++j) line.push_back(in[static_cast<size_t>((o * size + j) * inner + i)]);
      const auto order = expected_order(line, is_descending);
      for (int64_t j = 0; j < k; ++j) {
        const size_t at = static_cast<size_t>((o * k + j) * inner + i);
        REQUIRE(where[at] == order[static_cast<size_t>(j)]);
        REQUIRE(distance({out[at]}, {line[static_cast<size_t>(order[static_cast<size_t>(j)])]}) == 0);
      }
    }
  }
}

template <class T>
void check_dtype() {
  for (const bool is_descending : {false, true}) {
    for (const int64_t size : {1, 2, 17, 256, 257, 1500}) {
      for (const int64_t inner : {1, 3}) {
        check_order<T>(2, size, inner, is_descending, size);
        check_order<T>(2, size, inner, is_descending, std::max<int64_t>(1, size / 3));
      }
    }
    check_order<T>(0, 5, 2, is_descending, 5);
    check_order<T>(2, 0, 2, is_descending, 0);
    check_order<T>(2, 300, 1, is_descending, 0);
  }
}

}  // namespace

TEST_CASE("sort and topk are stable, count NaN as the largest, and take every dtype along every axis" * of_the_cpu()) {
  check_dtype<float>();
  check_dtype<double>();
  check_dtype<int32_t>();
  check_dtype<int64_t>();
  check_dtype<uint8_t>();
}

TEST_CASE("sort and topk: values, positions and gradients along an axis") {
  const Tensor x = tensor({{3, 1, 2}, {0, quiet_nan(), 5}});
  const Ordered up = sort(x, 1), best = topk(x, 2, 0);
  CHECK(distance(up.values, {1, 2, 3, 0, 5, quiet_nan()}) == 0);
  CHECK(values(up.indices) == std::vector<double>{1, 2, 0, 0, 2, 1});
  CHECK(distance(best.values, {3, quiet_nan(), 5, 0, 1, 2}) == 0);
  CHECK(values(argsort(x, -1, true)) == std::vector<double>{0, 2, 1, 1, 2, 0});
  CHECK(topk(x, 0, 1).values.shape() == Shape{2, 0});
  CHECK(error_of<ValueError>([&] { topk(x, 4, 1); }).find("k must be in [0, 3]") != std::string::npos);
  CHECK(sort(empty({3, 4}, Device::meta()), 0).indices.shape() == Shape{3, 4});

  using Inputs = const std::vector<Tensor>&;
  for (const int64_t axis : {0, 1}) {
    Tensor input = random_tensor({4, 5}, DType::float64, 3);
    input.set_requires_grad();
    const TensorFunction sorted = [axis](Inputs i) { return square(sort(i[0], axis, true).values); };
    const TensorFunction largest = [axis](Inputs i) { return square(topk(i[0], 2, axis, false).values); };
    CHECK(gradcheck(sorted, {input}) == "");
    CHECK(gradgradcheck(sorted, {input}) == "");
    CHECK(gradcheck(largest, {input}) == "");
  }
}
