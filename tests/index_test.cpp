// Indexing: kernels against plain loops, operations with their gradients and their errors.
#include <doctest/doctest.h>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/index.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/shape.h>

#include "devices.h"
#include "tensor_helpers.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

Tensor random_indices(const Shape& shape, int64_t size, unsigned seed = 7) {
  std::mt19937 generator(seed);
  return filled<int64_t>(shape, [&](int64_t) { return generator() % static_cast<uint64_t>(size); });
}

// The last two axes swapped, as a view.
template <class V>
V swapped(V v) {
  std::swap(v.shape[1], v.shape[2]);
  std::swap(v.strides[1], v.strides[2]);
  return v;
}

size_t flat(const Shape& shape, int64_t a, int64_t b, int64_t c) { return static_cast<size_t>((a * shape[1] + b) * shape[2] + c); }

template <class F>
void for_each(const Shape& shape, const F& f) {
  for (int64_t a = 0; a < shape[0]; ++a)
    for (int64_t b = 0; b < shape[1]; ++b)
      for (int64_t c = 0; c < shape[2]; ++c) f(a, b, c);
}

}  // namespace

TEST_CASE("gather and scatter_add kernels agree with plain loops along every axis, contiguous or not" * of_the_cpu()) {
  const auto& t = kernels::cpu_table();
  for (const int axis : {0, 1, 2}) {
    for (const Shape& x_shape : {Shape{3, 4, 5}, Shape{2, 70, 130}, Shape{1, 1, 1}}) {
      for (const bool is_swapped : {false, true}) {
        if (is_swapped && x_shape[1] == 4) continue;
        Shape shape = x_shape;
        shape[axis] = x_shape[axis] + 2;
        const Tensor x = random_tensor(x_shape), index = random_indices(shape, x_shape[axis]), source = random_tensor(shape, DType::float64, 5);
        Tensor y = poisoned(shape, DType::float64), target = random_tensor(x_shape, DType::float64, 8);
        std::vector<double> expected(static_cast<size_t>(shape.numel())), sums = values(target);
        const auto in = values(x), from = values(source);
        for_each(shape, [&](int64_t a, int64_t b, int64_t c) {
          const int64_t i = index.data<int64_t>()[flat(shape, a, b, c)];
          const size_t at = axis == 0 ? flat(x_shape, i, b, c) : axis == 1 ? flat(x_shape, a, i, c) : flat(x_shape, a, b, i);
          expected[flat(shape, a, b, c)] = in[at];
          sums[at] += from[flat(shape, a, b, c)];
        });
        const int seen_axis = is_swapped && axis > 0 ? 3 - axis : axis;
        const auto see = [&](auto view) { return is_swapped ? swapped(view) : view; };
        t.gather(nullptr, seen_axis, see(x.view()), see(index.view()), see(y.mutable_view()));
        t.scatter_add(nullptr, seen_axis, see(index.view()), see(source.view()), see(target.mutable_view()));
        CHECK(values(y) == expected);
        CHECK(distance(target, sums) < 1e-12);
      }
    }
  }
}

TEST_CASE("index_select and index_add kernels agree with plain loops, for every dtype they take" * of_the_cpu()) {
  const auto& t = kernels::cpu_table();
  for (const DType dtype : {DType::float32, DType::float64, DType::int32, DType::int64, DType::uint8}) {
    for (const int axis : {0, 1, 2}) {
      const Shape x_shape{6, 7, 75};
      Shape shape = x_shape;
      shape[axis] = 11;
      Tensor x = empty(x_shape, dtype), y = poisoned(shape, dtype), target = zeros(x_shape, dtype);
      t.copy(nullptr, random_indices(x_shape, 9).view(), x.mutable_view());
      const Tensor index = random_indices({11}, x_shape[axis]);
      t.index_select(nullptr, axis, x.view(), index.view(), y.mutable_view());
      t.index_add(nullptr, axis, index.view(), y.view(), target.mutable_view());
      const auto in = values(x), out = values(y);
      std::vector<double> sums(in.size(), 0);
      for_each(shape, [&](int64_t a, int64_t b, int64_t c) {
        const int64_t i = index.data<int64_t>()[axis == 0 ? a : axis == 1 ? b : c];
        const size_t at = axis == 0 ? flat(x_shape, i, b, c) : axis == 1 ? flat(x_shape, a, i, c) : flat(x_shape, a, b, i);
        REQUIRE(out[flat(shape, a, b, c)] == in[at]);
        sums[at] += in[at];
      });
      CHECK(values(target) == sums);
    }
  }
}

TEST_CASE("scatter_add does not depend on the number of threads" * of_the_cpu()) {
  const Tensor index = random_indices({5000, 70}, 13), source = random_tensor({5000, 70}, DType::float32);
  const auto run = [&](int threads) {
    Threads scope(threads);
    Tensor y = zeros({13, 70});
    kernels::cpu_table().scatter_add(nullptr, 0, index.view(), source.view(), y.mutable_view());
    return values(y);
  };
  CHECK(run(1) == run(4));
}

TEST_CASE("check_range names the first offender in row-major order, of those that count" * of_the_cpu()) {
  const auto& t = kernels::cpu_table();
  Tensor index = random_indices({4, 5, 6}, 10);
  kernels::RangeCheck range("look", "index", 0, 10, "ten places");
  const auto found = [&](const ConstView& values, const ConstView& lengths = {}) { return error_of<IndexError>([&] { t.check_range(nullptr, range, values, lengths); }); };
  CHECK(found(index.view()) == "");
  index.mutable_data<int64_t>()[77] = 10;
  index.mutable_data<int64_t>()[50] = -1;
  CHECK(found(index.view()) == "look: index[1,3,2] is -1, out of range [0, 10) for ten places");
  CHECK(found(empty({0, 3}, DType::int64).view()) == "");
  const Tensor rows = reshape(index, {20, 6}), lengths = full({20}, 6, DType::int64);
  fill_(slice(lengths, 0, 8, 9), 2);                       // of the row with the -1 only the first two count
  CHECK(found(rows.view(), lengths.view()) == "look: index[12,5] is 10, out of range [0, 10) for ten places");
  range.has_exception = true;
  range.exception = 10;
  CHECK(found(rows.view(), lengths.view()) == "");
  range.why_forbidden = "which is taken";
  range.forbidden = index.data<int64_t>()[3];
  CHECK(contains(found(rows.view()), "which is taken"));
}

// --- operations ---

namespace {

Tensor integers(const std::vector<int64_t>& list) { return from_vector(list); }

}  // namespace

TEST_CASE("indexing operations on small examples") {
  const Tensor x = tensor({{1, 2, 3}, {4, 5, 6}});
  CHECK(values(gather(x, 1, tensor({{2, 0}, {1, 1}}, DType::int64))) == std::vector<double>{3, 1, 5, 5});
  CHECK(values(take_along(x, tensor({{0, 1, 0}}, DType::int64), 0)) == std::vector<double>{1, 5, 3});
  CHECK(values(scatter_add(x, 1, tensor({{0, 0}, {2, 2}}, DType::int64), tensor({{10, 20}, {30, 40}}))) == std::vector<double>{31, 2, 3, 4, 5, 76});
  CHECK(values(index_select(x, -1, integers({2, 2, 0}))) == std::vector<double>{3, 3, 1, 6, 6, 4});
  CHECK(values(index_add(x, 0, integers({1, 1}), x)) == std::vector<double>{1, 2, 3, 9, 12, 15});
  CHECK(values(embedding(tensor({{0, 1}, {1, 1}}, DType::int32), x)) == std::vector<double>{1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5, 6});
  CHECK(values(one_hot(integers({2, 0}), 3)) == std::vector<double>{0, 0, 1, 1, 0, 0});
  CHECK(values(masked_fill(x, gt(x, 4), -1)) == std::vector<double>{1, 2, 3, 4, -1, -1});
  CHECK(values(masked_select(x, tensor({1, 0, 1}, DType::boolean))) == std::vector<double>{1, 3, 4, 6});
  CHECK(values(nonzero(tensor({{0, 2, 0}, {3, 0, quiet_nan()}}))) == std::vector<double>{0, 1, 1, 0, 1, 2});
  CHECK(nonzero(zeros({2, 3})).shape() == Shape{0, 2});
  CHECK(values(x) == std::vector<double>{1, 2, 3, 4, 5, 6});
}

TEST_CASE("gradients of the indexing operations are the limits of differences, first and second") {
  using Inputs = const std::vector<Tensor>&;
  const Tensor index = random_indices({2, 4, 3}, 3), list = integers({1, 3, 1, 0, 2}), mask = gt(random_tensor({3, 4, 3}), 0.0);
  const TensorFunction functions[] = {
      [&](Inputs i) { return square(gather(i[0], 0, index)); },
      [&](Inputs i) { return square(take_along(i[0], narrow(index, 1, 0, 1), 0)); },
      [&](Inputs i) { return square(scatter_add(i[0], 0, index, narrow(i[0], 0, 0, 2))); },
      [&](Inputs i) { return square(index_select(i[0], 1, list)); },
      [&](Inputs i) { return square(index_add(i[0], 0, integers({1, 1, 0}), i[0])); },
      [&](Inputs i) { return square(embedding(index, reshape(i[0], {4, 9}))); },
      [&](Inputs i) { return square(masked_fill(i[0], mask, 2)); },
      [&](Inputs i) { return square(masked_select(i[0], mask)); },
  };
  for (const TensorFunction& f : functions) {
    CHECK(gradcheck(f, {random_leaf({3, 4, 3}, 3)}) == "");
    CHECK(gradgradcheck(f, {random_leaf({3, 4, 3}, 3)}) == "");
  }
}

TEST_CASE("embedding: the padding row gets no gradient, repeated rows add up") {
  for (const int64_t padding : {1, -2}) {
    Tensor weight = random_tensor({3, 2}, DType::float32);
    weight.set_requires_grad();
    const Tensor y = embedding(integers({0, 1, 0, 2}), weight, padding);
    y.backward(ones({4, 2}));
    CHECK(values(weight.grad()) == std::vector<double>{2, 2, 0, 0, 1, 1});
  }
}

TEST_CASE("an index out of range is named with its position, and nothing is changed") {
  const Tensor x = zeros({2, 3});
  CHECK(error_of<IndexError>([&] { gather(x, 1, tensor({{0, 1}, {3, 0}}, DType::int64)); }) ==
        "gather: index[1,0] is 3, out of range [0, 3) for axis 1 of x [2,3]");
  CHECK(error_of<IndexError>([&] { scatter_add(x, 0, tensor({{0, -1}}, DType::int64), ones({1, 2})); }).find("index[0,1] is -1") != std::string::npos);
  CHECK(error_of<IndexError>([&] { index_select(x, 0, integers({0, 2})); }).find("index[1] is 2") != std::string::npos);
  CHECK(error_of<IndexError>([&] { embedding(integers({5}), x); }) == "embedding: indices[0] is 5, out of range [0, 2) for weight [2,3]");
  CHECK(error_of<IndexError>([&] { one_hot(integers({1}), 1); }).find("out of range") != std::string::npos);
  CHECK(error_of<DTypeError>([&] { index_select(x, 0, zeros({1})); }).find("index must be int64, got float32") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { gather(x, 1, zeros({3, 1}, DType::int64)); }).find("no larger") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { index_add(x, 0, integers({0}), zeros({2, 3})); }).find("source must be [1,3]") != std::string::npos);
  CHECK(values(x) == std::vector<double>(6, 0));
}

TEST_CASE("indexing of nothing and on meta gives the right shapes") {
  const Tensor none = zeros({0}, DType::int64);
  CHECK(index_select(zeros({2, 3}), 1, none).shape() == Shape{2, 0});
  CHECK(gather(zeros({2, 3}), 1, zeros({0, 3}, DType::int64)).shape() == Shape{0, 3});
  CHECK(embedding(zeros({2, 0}, DType::int64), zeros({4, 5})).shape() == Shape{2, 0, 5});
  CHECK(values(index_add(ones({2, 3}), 1, none, zeros({2, 0}))) == std::vector<double>(6, 1));
  CHECK(masked_select(zeros({0, 3}), zeros({0, 3}, DType::boolean)).shape() == Shape{0});
  const TensorOptions meta(Device::meta()), meta_index(DType::int64, Device::meta());
  CHECK(gather(empty({2, 3}, meta), 1, empty({2, 5}, meta_index)).shape() == Shape{2, 5});
  CHECK(embedding(empty({7}, meta_index), empty({4, 5}, meta)).shape() == Shape{7, 5});
  CHECK(error_of<DeviceError>([&] { nonzero(empty({2}, meta)); }).find("meta") != std::string::npos);
}
