// gather, scatter_add, index_select, index_add and check_range of CUDA's table against the CPU's.
#include <cstdint>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

constexpr DType all_dtypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean};

uint32_t next(uint32_t& state) { return (state = state * 1664525u + 1013904223u) >> 8; }

Tensor sample(const Shape& shape, DType dtype, uint32_t state = 1) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = static_cast<double>(next(state) % 200) / (is_floating(dtype) ? 7.0 : 1.0);
  Tensor y = empty(shape, dtype);
  cpu().copy(nullptr, from_vector(values, shape).view(), y.mutable_view());
  return y;
}

Tensor indices(const Shape& shape, int64_t size, uint32_t state = 5) {
  std::vector<int64_t> values(static_cast<size_t>(shape.numel()));
  for (int64_t& v : values) v = next(state) % size;
  return from_vector(values, shape);
}

void check_gather(int axis, const Tensor& x, const Tensor& index, int64_t offset = 0) {
  CAPTURE(name_of(x.dtype()));
  CAPTURE(str(x.shape(), " index ", index.shape(), " axis ", axis));
  Tensor want = empty(index.shape(), x.dtype());
  cpu().gather(nullptr, axis, x.view(), index.view(), want.mutable_view());
  const DeviceTensor from(x, offset), at(index), y = DeviceTensor::poisoned(index.shape(), x.dtype(), offset);
  testing::cuda().gather(nullptr, axis, from.view(), at.view(), y.view());
  CHECK(same_bits(y.to_host(), want));
}

void check_select(int axis, const Tensor& x, const Tensor& index, int64_t offset = 0) {
  CAPTURE(name_of(x.dtype()));
  CAPTURE(str(x.shape(), " index ", index.shape(), " axis ", axis));
  Shape shape = x.shape();
  shape[axis] = index.numel();
  Tensor want = empty(shape, x.dtype());
  cpu().index_select(nullptr, axis, x.view(), index.view(), want.mutable_view());
  const DeviceTensor from(x, offset), at(index), y = DeviceTensor::poisoned(shape, x.dtype(), offset);
  testing::cuda().index_select(nullptr, axis, from.view(), at.view(), y.view());
  CHECK(same_bits(y.to_host(), want));
}

// Sums of floats may come in another order than the CPU's where lanes share a target.
double tolerance(DType dtype) { return dtype == DType::float32 ? 1e-5 : is_half(dtype) ? 1e-5 + rounding(dtype) : 1e-13; }

using Entry = void (*)(kernels::Queue, int, const ConstView&, const ConstView&, const View&);

void check_accumulation(Entry on_cpu, Entry on_device, int axis, const Tensor& index, const Tensor& source, const Shape& shape) {
  CAPTURE(name_of(source.dtype()));
  CAPTURE(str(shape, " index ", index.shape(), " axis ", axis));
  const Tensor before = sample(shape, source.dtype(), 77);
  const Tensor wide = as_computed(source);
  Tensor want = empty(shape, wide.dtype());
  cpu().copy(nullptr, before.view(), want.mutable_view());
  on_cpu(nullptr, axis, index.view(), wide.view(), want.mutable_view());
  const DeviceTensor at(index), from(source), y(before), again(before, 1);
  on_device(nullptr, axis, at.view(), from.view(), y.view());
  on_device(nullptr, axis, at.view(), from.view(), again.view());
  const Tensor got = y.to_host();
  CHECK(difference(got, want, tolerance(source.dtype()), 0) == "");
  CHECK(same_bits(got, again.to_host()));
}

void check_scatter(int axis, const Tensor& index, const Tensor& source, const Shape& shape) {
  check_accumulation(cpu().scatter_add, testing::cuda().scatter_add, axis, index, source, shape);
}
void check_index_add(int axis, const Tensor& index, const Tensor& source, const Shape& shape) {
  check_accumulation(cpu().index_add, testing::cuda().index_add, axis, index, source, shape);
}

}  // namespace

TEST_CASE("cuda gather: every dtype, any axis, an index smaller than x") {
  for (const DType dtype : all_dtypes) {
    const Tensor x = sample({4, 5, 6}, dtype);
    for (int axis = 0; axis < 3; ++axis) check_gather(axis, x, indices({3, 4, 5}, x.shape()[axis]), axis);
    check_gather(0, sample({7}, dtype), indices({500}, 7));
    check_gather(0, sample({}, dtype), indices({}, 1));
    check_gather(1, sample({2, 3}, dtype), indices({2, 0}, 3));
  }
}

TEST_CASE("cuda index_select: rows in wide accesses where they fit, element by element where not") {
  for (const DType dtype : all_dtypes)
    for (const int64_t offset : {0, 1}) {
      check_select(0, sample({9, 16}, dtype), indices({30}, 9), offset);
      check_select(1, sample({3, 9, 16}, dtype), indices({7}, 9), offset);
      check_select(0, sample({9, 5}, dtype), indices({30}, 9), offset);
      check_select(1, sample({9, 16}, dtype), indices({40}, 16), offset);
      check_select(0, sample({9, 16}, dtype), indices({0}, 9), offset);
    }
  check_select(0, sample({50, 300}, DType::float32), indices({200}, 50));
}

TEST_CASE("cuda gather: strided views") {
  const Tensor x = sample({2000}, DType::float32), index = indices({2000}, 6);
  const DeviceTensor from(x), at(index);
  const Shape shape{4, 5, 6};
  for (int axis = 0; axis < 3; ++axis) {
    Shape x_shape = shape;
    x_shape[axis] = 6;
    ConstView x_view = x.view(), index_view = index.view();
    x_view.data = static_cast<const float*>(x_view.data) + 1000;
    x_view.shape = x_shape;
    x_view.strides = {-50, 3, 21};
    index_view.shape = shape;
    index_view.strides = {1, 4, 0};
    Tensor want = empty(shape, DType::float32);
    cpu().gather(nullptr, axis, x_view, index_view, want.mutable_view());
    const DeviceTensor y = DeviceTensor::poisoned({shape.numel()}, DType::float32);
    testing::cuda().gather(nullptr, axis, from.view(x_shape, {-50, 3, 21}, 1000), at.view(shape, {1, 4, 0}), y.view(shape, {1, 4, 20}));
    Tensor got = empty(shape, DType::float32);
    const Tensor raw = y.to_host();
    ConstView seen = raw.view();
    seen.shape = shape;
    seen.strides = {1, 4, 20};
    cpu().copy(nullptr, seen, got.mutable_view());
    CHECK(same_bits(got, want));
  }
}

TEST_CASE("cuda index_select: rows whose ends are no whole access, in memory where they begin at one") {
  const Tensor x = sample({9, 16}, DType::float32), index = indices({6}, 9);
  ConstView rows = x.view();
  rows.shape = {9, 5};
  Tensor want = empty({6, 5}, DType::float32), got = empty({6, 5}, DType::float32);
  cpu().index_select(nullptr, 0, rows, index.view(), want.mutable_view());
  const DeviceTensor from(x), at(index), y = DeviceTensor::poisoned({6, 8}, DType::float32);
  testing::cuda().index_select(nullptr, 0, from.view({9, 5}, {16, 1}), at.view(), y.view({6, 5}, {8, 1}));
  const Tensor raw = y.to_host();
  ConstView seen = raw.view();
  seen.shape = {6, 5};
  cpu().copy(nullptr, seen, got.mutable_view());
  CHECK(same_bits(got, want));
  const std::vector<float> all = raw.to_vector<float>();
  for (size_t i = 0; i < all.size(); ++i) CHECK(std::isnan(all[i]) == (i % 8 >= 5));
}

TEST_CASE("cuda scatter_add: a thread a line, a warp a target, a warp a range of targets") {
  for (const DType dtype : all_dtypes) {
    for (int axis = 0; axis < 3; ++axis) {
      Shape shape{5, 6, 7};
      check_scatter(axis, indices({4, 5, 6}, shape[axis]), sample({5, 6, 7}, dtype), shape);
    }
    check_scatter(0, indices({5000}, 10), sample({5000}, dtype), {10});                     // many to each target
    check_scatter(0, indices({3000}, 20000), sample({3000}, dtype), {20000});               // more targets than owners
    check_scatter(1, indices({9, 100}, 5000), sample({9, 100}, dtype), {9, 5000});
    check_scatter(0, indices({20, 4100}, 3), sample({20, 4100}, dtype), {3, 4100});         // many lines
    check_scatter(0, indices({}, 1), sample({}, dtype), {});
    check_scatter(0, indices({0}, 4), sample({0}, dtype), {4});
  }
}

TEST_CASE("cuda index_add: one index for all lines") {
  for (const DType dtype : all_dtypes) {
    check_index_add(0, indices({300}, 7), sample({300, 40}, dtype), {7, 40});
    check_index_add(1, indices({50}, 9), sample({4, 50, 5}, dtype), {4, 9, 5});
    check_index_add(1, indices({100}, 9), sample({3, 100}, dtype), {3, 9});
    check_index_add(0, indices({20}, 3000), sample({20, 300}, dtype), {3000, 300});         // ranges of more than one row
    check_index_add(0, indices({0}, 3), sample({0, 8}, dtype), {3, 8});
  }
}

TEST_CASE("cuda scatter_add: strided views") {
  for (const DType dtype : {DType::float64, DType::bfloat16}) {
    const Tensor source = sample({3000}, dtype), wide = as_computed(source), index = indices({3000}, 11);
    const Shape shape{40, 9};
    for (int axis = 0; axis < 2; ++axis) {
      Shape y_shape = shape;
      y_shape[axis] = 11;
      const Tensor before = sample({y_shape.numel()}, dtype, 3);
      const Strides source_strides{1, 45}, index_strides{0, 2}, y_strides{1, y_shape[0]};
      Tensor want = empty({y_shape.numel()}, wide.dtype());
      cpu().copy(nullptr, before.view(), want.mutable_view());
      ConstView s = wide.view(), i = index.view();
      s.shape = i.shape = shape;
      s.strides = source_strides;
      i.strides = index_strides;
      View y = want.mutable_view();
      y.shape = y_shape;
      y.strides = y_strides;
      cpu().scatter_add(nullptr, axis, i, s, y);
      const DeviceTensor from(source), at(index), got(before);
      testing::cuda().scatter_add(nullptr, axis, at.view(shape, index_strides), from.view(shape, source_strides), got.view(y_shape, y_strides));
      CHECK(difference(got.to_host(), want, tolerance(dtype), 0) == "");
    }
  }
}

// What check_range has found, once the device has been waited for.
std::string reported() { return error_of<IndexError>([] { fovea::cuda::synchronize(0); }); }

TEST_CASE("cuda check_range: the first position in row-major order, whatever the strides, from the next wait, once") {
  kernels::RangeCheck range("look", "index", 0, 5, "five places");
  const auto found = [&](const Tensor& values, const Shape& shape, const Strides& strides) {
    const DeviceTensor at(values);
    testing::cuda().check_range(nullptr, range, at.view(shape, strides), {});
    return reported();
  };
  const std::string late = " (found on cuda:0 by work queued earlier)";
  for (const int64_t n : {3000, 100003}) {                   // one block, and a grid
    CAPTURE(n);
    Tensor values = full({n}, 4, DType::int64);
    int64_t* v = values.mutable_data<int64_t>();
    CHECK(found(values, {n}, {1}) == "");
    CHECK(found(values, {0}, {1}) == "");
    CHECK(found(values, {}, {}) == "");
    range.high = 4;
    CHECK(found(values, {n}, {1}) == "look: index[0] is 4, out of range [0, 4) for five places" + late);
    range.high = 5;
    v[2900] = 5;
    CHECK(found(values, {n}, {1}) == "look: index[2900] is 5, out of range [0, 5) for five places" + late);
    v[1201] = -1;
    CHECK(found(values, {n}, {1}) == "look: index[1201] is -1, out of range [0, 5) for five places" + late);
    CHECK(found(values, {30, n / 30}, {1, 30}) == "look: index[1,40] is -1, out of range [0, 5) for five places" + late);
    v[0] = std::numeric_limits<int64_t>::min();
    CHECK(contains(found(values, {n}, {1}), "index[0] is -9223372036854775808"));
    CHECK(contains(found(values, {}, {}), "index is -9223372036854775808"));
    CHECK(reported() == "");
  }
}

TEST_CASE("cuda check_range: exceptions, forbidden values and rows of which only the first count") {
  kernels::RangeCheck range("look", "labels", 0, 4, "4 classes");
  const DeviceTensor labels(from_vector<int64_t>({1, 2, 9, 9, 3, 9, 0, 1, 2}, {3, 3})), lengths(from_vector<int64_t>({2, 1, 7}));
  testing::cuda().check_range(nullptr, range, labels.view(), lengths.view());                    // 7: the whole row
  CHECK(contains(reported(), "labels[1,0] is 9"));
  range.has_exception = true;
  range.exception = 9;
  testing::cuda().check_range(nullptr, range, labels.view(), lengths.view());
  CHECK(reported() == "");
  range.why_forbidden = "the blank; targets must not hold blanks";
  range.forbidden = 0;
  testing::cuda().check_range(nullptr, range, labels.view(), lengths.view());
  CHECK(contains(reported(), "look: labels[2,0] is 0, the blank; targets must not hold blanks"));
}

TEST_CASE("cuda check_range: of several findings the first of the stream is told") {
  const kernels::RangeCheck first("first", "index", 0, 5, "five places"), second("second", "index", 0, 5, "five places");
  const DeviceTensor at(from_vector<int64_t>({0, 7}));
  testing::cuda().check_range(nullptr, first, at.view(), {});
  testing::cuda().check_range(nullptr, second, at.view(), {});
  CHECK(contains(reported(), "first: index[1] is 7"));
  CHECK(reported() == "");
  testing::cuda().check_range(nullptr, second, at.view(), {});
  CHECK(contains(reported(), "second: index[1] is 7"));
}

TEST_CASE("cuda gather and scatter_add: an index out of range reads zero and adds nothing") {
  const int64_t far = int64_t{1} << 40;
  for (const int64_t columns : {5, 64}) {                    // 64: rows in packs of 16 bytes
    const Tensor x = full({4, columns}, 3.0, DType::float32);
    const DeviceTensor from(x), at(from_vector<int64_t>({1, -1, 4, far, 3}));
    const DeviceTensor got = DeviceTensor::poisoned({5, columns}, DType::float32);
    testing::cuda().index_select(nullptr, 0, from.view(), at.view(), got.view());
    const std::vector<double> rows = got.to_host().to_vector<double>();
    for (int64_t r = 0; r < 5; ++r) CHECK(rows[static_cast<size_t>(r * columns)] == (r == 0 || r == 4 ? 3 : 0));
  }
  // Few and many steps, lines and targets: every way of adding.
  for (const Shape& shape : {Shape{6, 3}, Shape{40, 3}, Shape{40, 64}, Shape{40, 1}}) {
    for (const bool is_shared : {false, true}) {
      CAPTURE(shape);
      CAPTURE(is_shared);
      const int64_t steps = shape[0], size = 5;
      Tensor index = zeros({steps, is_shared ? 1 : shape[1]}, DType::int64);
      for (int64_t i = 0; i < index.numel(); ++i) index.mutable_data<int64_t>()[i] = i % 4 == 0 ? 2 : i % 4 == 1 ? -1 : i % 4 == 2 ? size : far;
      const DeviceTensor at(index), source(ones(shape)), y(zeros({size, shape[1]}));
      testing::cuda().scatter_add(nullptr, 0, at.view(shape, {index.size(1), is_shared ? 0 : 1}), source.view(), y.view());
      double counted = 0;
      for (int64_t i = 0; i < index.numel(); i += 4) ++counted;
      const std::vector<double> sums = y.to_host().to_vector<double>();
      double total = 0;
      for (size_t i = 0; i < sums.size(); ++i) {
        total += sums[i];
        if (static_cast<int64_t>(i) / shape[1] != 2) CHECK(sums[i] == 0);
      }
      CHECK(total == counted * static_cast<double>(is_shared ? shape[1] : 1));
    }
  }
}
