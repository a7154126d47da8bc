// Reductions and running sums of CUDA's table against the CPU's: every dtype, axes and strides of all kinds, sizes around the borders of teams, blocks and splits.
#include <cstdint>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;
using kernels::ArgReduce;
using kernels::Reduce;

namespace {

constexpr Reduce all_reductions[] = {Reduce::sum, Reduce::mean,        Reduce::product,   Reduce::max, Reduce::min,
                                     Reduce::sum_squares, Reduce::logsumexp, Reduce::any, Reduce::all};

// Values near one, so that products neither vanish nor overflow; small integers with zeros among them.
Tensor sample(const Shape& shape, DType dtype, uint32_t state = 1) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) {
    state = state * 1664525u + 1013904223u;
    const double u = static_cast<double>(state >> 8) / 0x1p24;
    v = is_floating(dtype) ? 0.95 + 0.1 * u : std::floor(u * 5);
  }
  Tensor y = empty(shape, dtype);
  cpu().copy(nullptr, from_vector(values, shape).view(), y.mutable_view());
  return y;
}

Tensor as_float64(const Tensor& x) {
  Tensor y = empty(x.shape(), DType::float64);
  cpu().copy(nullptr, x.view(), y.mutable_view());
  return y;
}

Shape kept_shape(const Shape& shape, unsigned axes) {
  Shape kept = shape;
  for (int i = 0; i < shape.rank(); ++i)
    if (axes >> i & 1) kept[i] = 1;
  return kept;
}

// What a result of this dtype may be off by, in relation to itself.
double tolerance(DType dtype) {
  switch (dtype) {
    case DType::float64: return 1e-12;
    case DType::float32: return 2e-6;
    case DType::float16: return 0x1p-10;
    default: return 0x1p-7;
  }
}

// The memory of `x` seen with other strides, reduced along `axes` (bits), on both devices. The reference is computed in float64.
void check_reduce(Reduce op, const Tensor& x, const Shape& shape, const Strides& strides, int64_t first, unsigned axes, DType result, int64_t offset = 0) {
  CAPTURE(static_cast<int>(op));
  CAPTURE(name_of(x.dtype()));
  CAPTURE(str(shape, " strides ", strides));
  CAPTURE(axes);
  const bool is_integer = !is_floating(x.dtype());
  const Tensor source = is_integer ? x : as_float64(x);
  const Shape kept = kept_shape(shape, axes);
  Tensor want = empty(kept, is_integer ? result : DType::float64);
  ConstView from = source.view();
  from.data = static_cast<const char*>(from.data) + first * size_of(from.dtype);
  from.shape = shape;
  from.strides = strides;
  cpu().reduce(nullptr, op, from, want.mutable_view());
  const DeviceTensor device(x, offset), y = DeviceTensor::poisoned(kept, result, offset), again = DeviceTensor::poisoned(kept, result);
  testing::cuda().reduce(nullptr, op, device.view(shape, strides, first), y.view());
  testing::cuda().reduce(nullptr, op, device.view(shape, strides, first), again.view());
  const Tensor got = y.to_host();
  const double added_up = is_integer || x.dtype() == DType::float64 ? 0 : tolerance(DType::float32);         // a thread's share of x is added in float32
  CHECK(difference(got, want, std::max(tolerance(result), added_up), 1e-30) == "");
  CHECK(same_bits(got, again.to_host()));
}

void check_reduce(Reduce op, const Tensor& x, unsigned axes, DType result, int64_t offset = 0) {
  check_reduce(op, x, x.shape(), contiguous_strides(x.shape()), 0, axes, result, offset);
}

Tensor line_of(const std::vector<double>& values, DType dtype = DType::float32) {
  Tensor y = empty({static_cast<int64_t>(values.size())}, dtype);
  cpu().copy(nullptr, from_vector(values).view(), y.mutable_view());
  return y;
}

double reduced(Reduce op, const Tensor& x) {
  const DeviceTensor device(x), y = DeviceTensor::poisoned({1}, x.dtype());
  testing::cuda().reduce(nullptr, op, device.view(), y.view());
  return y.to_host().to_vector<double>()[0];
}

}  // namespace

TEST_CASE("cuda reduce: every operation and dtype, over every set of axes") {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean})
    for (const Reduce op : all_reductions) {
      const bool is_truth = op == Reduce::any || op == Reduce::all, is_integer = !is_floating(dtype);
      if (is_integer && op == Reduce::logsumexp) continue;
      const DType result = is_truth ? DType::boolean : !is_integer ? dtype : op == Reduce::mean ? DType::float64 : DType::int64;
      const Tensor x = sample({3, 5, 8}, dtype);
      for (unsigned axes = 0; axes < 8; ++axes) check_reduce(op, x, axes, result);
    }
}

TEST_CASE("cuda reduce: long rows, long columns and outputs beyond one block") {
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    check_reduce(Reduce::sum, sample({70001}, dtype), 1, dtype);                             // one output: split over blocks
    check_reduce(Reduce::sum, sample({3, 40000}, dtype), 2, dtype);
    check_reduce(Reduce::sum, sample({40000, 3}, dtype), 1, dtype);
    check_reduce(Reduce::logsumexp, sample({2, 33000}, dtype), 2, dtype);
    check_reduce(Reduce::mean, sample({700, 33}, dtype), 1, dtype);
    check_reduce(Reduce::sum_squares, sample({1000, 7}, dtype), 2, dtype);
    check_reduce(Reduce::max, sample({6, 130, 50}, dtype), 5, dtype);
  }
  check_reduce(Reduce::sum, sample({4, 4096}, DType::float32), 2, DType::float32, 1);       // packs would not be aligned
  check_reduce(Reduce::sum, sample({50000}, DType::int32), 1, DType::int64);
}

TEST_CASE("cuda reduce: columns in packs, split over blocks or not, and where memory is not aligned for packs") {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16})
    for (const Reduce op : {Reduce::sum, Reduce::mean, Reduce::max, Reduce::min, Reduce::product, Reduce::sum_squares, Reduce::logsumexp})
      for (const int64_t offset : {0, 1}) {
        check_reduce(op, sample({37, 16}, dtype), 1, dtype, offset);
        check_reduce(op, sample({5, 9, 48}, dtype), 2, dtype, offset);
        check_reduce(op, sample({4, 3, 1000}, dtype), 1, dtype, offset);                     // more packs than a team is wide
        if (op != Reduce::product) check_reduce(op, sample({9000, 8}, dtype), 1, dtype, offset);
      }
  check_reduce(Reduce::sum, sample({9000, 8}, DType::bfloat16), 1, DType::float32);          // what autocast asks for
  check_reduce(Reduce::sum, sample({4000}, DType::float32), {30, 16}, {130, 2}, 0, 1, DType::float32);      // columns with gaps
  check_reduce(Reduce::sum, sample({4000}, DType::float32), {30, 3, 16}, {130, 43, 1}, 0, 1, DType::float32);  // a stride that is no whole number of packs
}

TEST_CASE("cuda reduce: strides of all kinds") {
  const Tensor x = sample({4000}, DType::float32);
  for (const Reduce op : {Reduce::sum, Reduce::max, Reduce::product, Reduce::logsumexp})
    for (unsigned axes = 0; axes < 8; ++axes) {
      check_reduce(op, x, {10, 9, 8}, {1, 10, 90}, 0, axes, DType::float32);                 // permuted
      check_reduce(op, x, {7, 6, 5}, {0, 31, 2}, 3, axes, DType::float32);                   // repeated and spread
      check_reduce(op, x, {7, 6, 5}, {-90, 10, -1}, 700, axes, DType::float32);              // backwards
    }
  check_reduce(Reduce::sum, x, {32, 64}, {2, 62}, 0, 1, DType::float64);
}

TEST_CASE("cuda reduce: nothing and single elements") {
  for (const Reduce op : all_reductions) {
    check_reduce(op, sample({0, 3}, DType::float32), 1, DType::float32);
    check_reduce(op, sample({3, 0}, DType::float32), 1, DType::float32);
    check_reduce(op, sample({1}, DType::float32), 1, DType::float32);
    check_reduce(op, sample({}, DType::float32), 0, DType::float32);
  }
}

TEST_CASE("cuda reduce: NaN wins, infinities stay what they are") {
  const double inf = INFINITY;
  std::vector<double> values(5000, 1.0);
  values[4321] = NAN;
  for (const Reduce op : {Reduce::sum, Reduce::product, Reduce::max, Reduce::min, Reduce::logsumexp}) CHECK(std::isnan(reduced(op, line_of(values))));
  CHECK(std::isnan(reduced(Reduce::logsumexp, line_of({NAN, inf}))));
  CHECK(std::isnan(reduced(Reduce::logsumexp, line_of({inf, NAN, 1}))));
  CHECK(reduced(Reduce::logsumexp, line_of({-inf, -inf})) == -inf);
  CHECK(reduced(Reduce::logsumexp, line_of({1, inf, inf, -inf})) == inf);
  CHECK(reduced(Reduce::logsumexp, line_of({-inf, 2, -inf})) == 2);
  CHECK(reduced(Reduce::logsumexp, line_of({1000, 1000})) == doctest::Approx(1000 + std::log(2.0)));
  CHECK(reduced(Reduce::max, line_of({-inf, -inf})) == -inf);
  CHECK(reduced(Reduce::min, line_of({inf, 3, -inf})) == -inf);
  CHECK(reduced(Reduce::sum, line_of({inf, 3})) == inf);
}

TEST_CASE("cuda reduce: integers wrap, and logsumexp of them is an error that says what to do") {
  const Tensor x = from_vector(std::vector<int64_t>{std::numeric_limits<int64_t>::max(), 1, 5});
  const DeviceTensor device(x), y = DeviceTensor::poisoned({1}, DType::int64);
  testing::cuda().reduce(nullptr, Reduce::sum, device.view(), y.view());
  CHECK(y.to_host().to_vector<int64_t>()[0] == std::numeric_limits<int64_t>::min() + 5);
  CHECK_THROWS_WITH_AS(testing::cuda().reduce(nullptr, Reduce::logsumexp, device.view(), y.view()), doctest::Contains("convert with to(x, DType::float32)"), DTypeError);
}

TEST_CASE("cuda variance: of rows, columns and splits, in packs or not, whatever the mean") {
  const auto check_variance = [](const Tensor& x, unsigned axes, DType result, int64_t offset) {
    CAPTURE(name_of(x.dtype()));
    CAPTURE(str(x.shape()));
    CAPTURE(axes);
    const Shape kept = kept_shape(x.shape(), axes);
    Tensor want = empty(kept, DType::float64);
    cpu().variance(nullptr, 1, as_float64(x).view(), want.mutable_view());
    const DeviceTensor device(x, offset), y = DeviceTensor::poisoned(kept, result, offset), again = DeviceTensor::poisoned(kept, result);
    testing::cuda().variance(nullptr, 1, device.view(), y.view());
    testing::cuda().variance(nullptr, 1, device.view(), again.view());
    CHECK(difference(y.to_host(), want, 4 * tolerance(result), result == DType::float16 ? 0x1p-24 : 1e-15) == "");
    CHECK(same_bits(y.to_host(), again.to_host()));
  };
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16})
    for (const int64_t offset : {0, 1}) {
      for (unsigned axes = 1; axes < 8; ++axes) check_variance(sample({3, 5, 8}, dtype), axes, dtype, offset);
      for (const Shape& shape : {Shape{70001}, Shape{5, 4096}, Shape{7, 1000}, Shape{300, 16}}) check_variance(sample(shape, dtype), shape.rank() == 1 ? 1 : 2, dtype, offset);
      for (const Shape& shape : {Shape{9000, 8}, Shape{37, 16}, Shape{700, 33}}) check_variance(sample(shape, dtype), 1, dtype, offset);
    }
  check_variance(sample({40, 300}, DType::bfloat16), 2, DType::float32, 0);                   // what autocast asks for
  std::vector<double> far(6000);                                                             // 8192, give or take 1
  for (size_t i = 0; i < far.size(); ++i) far[i] = 8192 + static_cast<double>(i % 3) - 1;
  Tensor x = empty({2, 3000}, DType::float32);
  cpu().copy(nullptr, from_vector(far, {2, 3000}).view(), x.mutable_view());
  check_variance(x, 2, DType::float32, 0);
}

TEST_CASE("cuda variance: NaN and infinities make NaN, as does nothing to divide by; integers are an error") {
  const auto variance_of = [](const std::vector<double>& values, double correction) {
    const DeviceTensor device(line_of(values)), y = DeviceTensor::poisoned({1}, DType::float32);
    testing::cuda().variance(nullptr, correction, device.view(), y.view());
    return y.to_host().to_vector<double>()[0];
  };
  CHECK(variance_of({1, 2, 3, 4}, 0) == 1.25);
  CHECK(variance_of({5}, 0) == 0);
  CHECK(variance_of(std::vector<double>(16, 1e20), 0) == 0);                                  // whose square is infinite in float32
  CHECK(std::isnan(variance_of({5}, 1)));
  CHECK(std::isnan(variance_of({}, 0)));
  CHECK(variance_of({1, 3}, 5) == INFINITY);
  CHECK(std::isnan(variance_of({1, NAN, 3}, 1)));
  CHECK(std::isnan(variance_of({1, INFINITY, 3}, 1)));
  const DeviceTensor integers(from_vector(std::vector<int64_t>{1, 2})), y = DeviceTensor::poisoned({1}, DType::int64);
  CHECK_THROWS_WITH_AS(testing::cuda().variance(nullptr, 1, integers.view(), y.view()), doctest::Contains("variance: takes a floating-point dtype, got int64"), DTypeError);
}

TEST_CASE("cuda reduce: rows of every length around a warp's and a block's share") {
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const int64_t length : {4, 8, 16, 24, 32, 64, 72, 256, 1000, 1024, 2048, 4096, 8192})
      for (const Reduce op : {Reduce::sum, Reduce::max, Reduce::logsumexp}) check_reduce(op, sample({9, length}, dtype), 2, dtype);
}

TEST_CASE("cuda argmax and argmin: the first of equals, NaN before everything, along any axis") {
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16, DType::int32, DType::uint8, DType::boolean})
    for (const Shape& shape : {Shape{4, 30, 5}, Shape{1, 1, 1}, Shape{2, 3, 6000}, Shape{9000, 2, 3}, Shape{2, 500, 16}}) {
      std::vector<double> values(static_cast<size_t>(shape.numel()));
      uint32_t state = 7;
      for (double& v : values) v = static_cast<double>((state = state * 1664525u + 1013904223u) >> 29);
      if (is_floating(dtype))
        for (size_t i = 5; i < values.size(); i += 97) values[i] = i % 2 ? NAN : INFINITY;
      Tensor x = empty(shape, dtype);
      cpu().copy(nullptr, from_vector(values, shape).view(), x.mutable_view());
      const DeviceTensor device(x);
      for (const ArgReduce op : {ArgReduce::argmax, ArgReduce::argmin})
        for (int axis = 0; axis < 3; ++axis) {
          CAPTURE(name_of(dtype));
          CAPTURE(str(shape, " axis ", axis));
          const Shape kept = kept_shape(shape, 1u << axis);
          Tensor want = empty(kept, DType::int64);
          cpu().arg_reduce(nullptr, op, axis, x.view(), want.mutable_view());
          const DeviceTensor y = DeviceTensor::poisoned(kept, DType::int64);
          testing::cuda().arg_reduce(nullptr, op, axis, device.view(), y.view());
          CHECK(difference(y.to_host(), want, 0, 0) == "");
        }
    }
}

TEST_CASE("cuda cumsum: both directions, any axis, lines of one tile, of several, and many of them") {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::int32, DType::boolean})
    for (const Shape& shape : {Shape{3, 5}, Shape{2, 6000}, Shape{6000, 2}, Shape{70, 1500}, Shape{1500, 70}, Shape{1, 1}, Shape{0, 4}, Shape{4, 0}, Shape{1, 70000}}) {
      const DType result = is_floating(dtype) ? dtype : DType::int64;
      const Tensor x = sample(shape, dtype);
      const DeviceTensor device(x);
      for (int axis = 0; axis < 2; ++axis)
        for (const bool is_reversed : {false, true}) {
          if (dtype == DType::float16 && shape[axis] > 10000) continue;                     // its sums overflow
          CAPTURE(name_of(dtype));
          CAPTURE(str(shape, " axis ", axis, is_reversed ? " reversed" : ""));
          Tensor want = empty(shape, result);
          cpu().cumsum(nullptr, axis, is_reversed, x.view(), want.mutable_view());
          const DeviceTensor y = DeviceTensor::poisoned(shape, result), again = DeviceTensor::poisoned(shape, result, 1);
          testing::cuda().cumsum(nullptr, axis, is_reversed, device.view(), y.view());
          testing::cuda().cumsum(nullptr, axis, is_reversed, device.view(), again.view());
          const Tensor got = y.to_host();
          // Both add in float64, in another order: a result may round the other way.
          CHECK(difference(got, want, dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1.3e-7 : 0x1p-10, 0) == "");
          CHECK(same_bits(got, again.to_host()));
        }
    }
}

TEST_CASE("cuda cumsum: strided views") {
  const Tensor x = sample({4000}, DType::float64);
  const DeviceTensor device(x);
  const Shape shape{5, 7, 11};
  for (const Strides& strides : {Strides{-100, 2, 17}, Strides{1, 5, 35}, Strides{0, 11, 1}})
    for (int axis = 0; axis < 3; ++axis)
      for (const bool is_reversed : {false, true}) {
        CAPTURE(str(strides, " axis ", axis, is_reversed ? " reversed" : ""));
        ConstView from = x.view();
        from.data = static_cast<const double*>(from.data) + 500;
        from.shape = shape;
        from.strides = strides;
        Tensor want = empty(shape, DType::float64);
        cpu().cumsum(nullptr, axis, is_reversed, from, want.mutable_view());
        const DeviceTensor y = DeviceTensor::poisoned(shape, DType::float64);
        testing::cuda().cumsum(nullptr, axis, is_reversed, device.view(shape, strides, 500), y.view());
        CHECK(difference(y.to_host(), want, 1e-12, 0) == "");
      }
}
