#include <doctest/doctest.h>

#include <limits>
#include <sstream>

#include <fovea/autograd/shape.h>
#include <fovea/tensor/compare.h>

#include "file_cases.h"

using namespace fovea;

namespace {
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
}  // namespace

TEST_CASE("equal: exactly the same shape, dtype and values, whatever the strides") {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean}) {
    const Tensor x = counting({3, 4}, dtype);
    CHECK(equal(x, clone(x)));
    CHECK(equal(transpose(x), contiguous(transpose(x))));
    CHECK(!equal(x, contiguous(transpose(x))));
    CHECK(!equal(x, flip(x, {1})));
    CHECK(!equal(x, narrow(x, 0, 0, 2)));
  }
  CHECK(!equal(zeros({2}), zeros({2}, DType::float64)));
  CHECK(equal(empty({0, 3}), empty({0, 3})));
  CHECK(!equal(empty({0, 3}), empty({3, 0})));
  CHECK(equal(tensor({0.0}), tensor({-0.0})));
  CHECK(!equal(tensor({not_a_number}), tensor({not_a_number})));
  CHECK(equal(Tensor(), Tensor()));
  CHECK(!equal(Tensor(), zeros({1})));
}

TEST_CASE("equal: 64-bit integers are told apart where float64 is not fine enough") {
  const Tensor a = from_vector(std::vector<int64_t>{int64_t{1} << 60}), b = from_vector(std::vector<int64_t>{(int64_t{1} << 60) + 1});
  CHECK(!equal(a, b));
  CHECK(compare(a, b).report == "1 of 1 element differs; worst at [0]: 1152921504606846976 against 1152921504606846977, off by 0 (relative 0)");
}

TEST_CASE("allclose: the tolerance is atol + rtol * |expected|") {
  CHECK(allclose(tensor({100.0009}), tensor({100})));
  CHECK(!allclose(tensor({100.002}), tensor({100})));
  CHECK(allclose(tensor({100.002}), tensor({100}), 1e-4));
  CHECK(allclose(tensor({0.5}), tensor({0}), 0, 0.5));
  CHECK(!allclose(tensor({0}), tensor({1e-7})));
  CHECK(allclose(tensor({infinity, -infinity}), tensor({infinity, -infinity})));
  CHECK(!allclose(tensor({infinity}), tensor({-infinity}), 1, 1));
  CHECK(!allclose(tensor({1e30}), tensor({infinity}), 1, 1));
  CHECK(!allclose(tensor({not_a_number}), tensor({not_a_number})));
  CHECK(allclose(tensor({not_a_number}), tensor({not_a_number}), 1e-5, 1e-8, true));
  CHECK(!allclose(tensor({not_a_number}), tensor({1}), 1e-5, 1e-8, true));
  CHECK_THROWS_AS(allclose(tensor({1}), tensor({1}), -1), ValueError);
}

TEST_CASE("compare: the report names the first and the worst of the elements that differ") {
  const Tensor expected = zeros({2, 3});
  const Tensor x = from_vector(std::vector<float>{0, 1, 0, 0, -4, 2}, {2, 3});
  const Comparison c = compare(x, expected);
  CHECK(!c);
  CHECK(c.mismatches == 3);
  CHECK(c.worst_error == 4);
  CHECK(c.report == "3 of 6 elements differ (rtol 1e-05, atol 1e-08); worst at [1,1]: -4 against 0, off by 4; they are:\n"
                    "  [0,1]: 1 against 0\n  [1,1]: -4 against 0\n  [1,2]: 2 against 0");
  CHECK(compare(x, expected, {.listed = 1}).report.ends_with("; the first:\n  [0,1]: 1 against 0"));
  const Comparison one = compare(tensor({1, 2.5}), tensor({1, 2}));
  CHECK(one.report == "1 of 2 elements differs (rtol 1e-05, atol 1e-08); worst at [1]: 2.5 against 2, off by 0.5 (relative 0.25)");
  CHECK(compare(expected, expected).report.empty());
  std::ostringstream out;
  out << one << ' ' << compare(expected, expected);
  CHECK(out.str() == one.report + " close");
}

TEST_CASE("compare: a NaN is worse than any number") {
  const Comparison c = compare(tensor({5, not_a_number, 9}), zeros({3}));
  CHECK(c.worst_error == infinity);
  CHECK(doctest::String(c.report.c_str()) == doctest::Contains("worst at [1]: nan against 0;"));
}

TEST_CASE("compare: shapes, dtypes and missing tensors are told") {
  CHECK(compare(zeros({2, 3}), zeros({3, 2})).report == "shape [2,3] against [3,2]");
  CHECK(compare(zeros({2}), zeros({2}, DType::int32)).report == "dtype float32 against int32");
  CHECK(compare(Tensor(), zeros({1})).report == "no tensor against a tensor");
  CHECK(compare(scalar(1), scalar(2)).report.starts_with("1 of 1 element differs (rtol 1e-05, atol 1e-08); worst at []: 1 against 2"));
}
