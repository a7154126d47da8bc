// Indexing: kernels against plain loops, operations with their gradients and their errors.
#include <doctest/doctest.h>

#include "tensor_helpers.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

Tensor random_indices(const Shape& shape, int64_t size, unsigned seed = 7) {
  std::mt19937 generator(seed);
  Tensor index = empty(shape, DType::int64);
  for (int64_t i = 0; i < index.numel(); ++i) index.mutable_data<int64_t>()[i] = static_cast<int64_t>(generator() % static_cast<uint64_t>(size));
  return index;
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

TEST_CASE("gather and scatter_add kernels agree with plain loops along every axis, contiguous or not") {
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

TEST_CASE("index_select and index_add kernels agree with plain loops, for every dtype they take") {
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

TEST_CASE("scatter_add does not depend on the number of threads") {
  const Tensor index = random_indices({5000, 70}, 13), source = random_tensor({5000, 70}, DType::float32);
  const auto run = [&](int threads) {
    Threads scope(threads);
    Tensor y = zeros({13, 70});
    kernels::cpu_table().scatter_add(nullptr, 0, index.view(), source.view(), y.mutable_view());
    return values(y);
  };
  CHECK(run(1) == run(4));
}

TEST_CASE("first_out_of_range finds the first offender in row-major order") {
  const auto& t = kernels::cpu_table();
  Tensor index = random_indices({4, 5, 6}, 10);
  CHECK(t.first_out_of_range(nullptr, 10, index.view()) == -1);
  index.mutable_data<int64_t>()[77] = 10;
  index.mutable_data<int64_t>()[50] = -1;
  CHECK(t.first_out_of_range(nullptr, 10, index.view()) == 50);
  CHECK(t.first_out_of_range(nullptr, 10, empty({0, 3}, DType::int64).view()) == -1);
}
