// Elementwise kernels and copies: every layout against plain loops, every function against the standard library in float64.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include <fovea/kernels/table.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/tensor.h>

#include "strided_views.h"

using namespace fovea;
using namespace fovea::testing;
using kernels::Binary;
using kernels::Scalars;
using kernels::Ternary;
using kernels::Unary;

namespace {

const kernels::KernelTable& cpu() { return kernels::cpu_table(); }

Tensor ramp(int64_t n, DType dtype = DType::float32) {
  Tensor x = empty({n}, dtype);
  cpu().arange(nullptr, 1, 1, x.mutable_view());
  return x;
}

struct Layout {
  const char* name;
  Shape shape;
  Strides a, b, y;
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {"contiguous", {6, 70}, {70, 1}, {70, 1}, {70, 1}},
      {"one element", {}, {}, {}, {}},
      {"one element of rank 3", {1, 1, 1}, {5, 3, 1}, {0, 0, 0}, {1, 1, 1}},
      {"row vector", {9, 101}, {101, 1}, {0, 1}, {101, 1}},
      {"column vector", {9, 101}, {101, 1}, {1, 0}, {101, 1}},
      {"scalar", {9, 1001}, {1001, 1}, {0, 0}, {1001, 1}},
      {"short rows", {300, 3}, {3, 1}, {0, 1}, {3, 1}},
      {"transposed operand", {33, 65}, {1, 33}, {65, 1}, {65, 1}},
      {"transposed, beside a column that repeats", {70, 130}, {1, 70}, {1, 0}, {130, 1}},
      {"both transposed, a stack of matrices", {3, 66, 17}, {1122, 1, 66}, {1122, 1, 66}, {1122, 17, 1}},
      {"channels last beside channels first", {2, 33, 70}, {2310, 1, 33}, {2310, 70, 1}, {2310, 70, 1}},
      {"transposed output", {33, 65}, {65, 1}, {65, 1}, {1, 33}},
      {"channels", {2, 5, 7, 3}, {105, 21, 3, 1}, {0, 1, 0, 0}, {105, 21, 3, 1}},
      {"channels last", {2, 5, 70, 1}, {350, 1, 5, 5}, {0, 1, 0, 0}, {350, 70, 1, 1}},
      {"every second", {40, 30}, {120, 2}, {60, 2}, {60, 2}},
      {"rank 6, permuted", {2, 3, 2, 5, 2, 4}, {1, 2, 6, 12, 60, 120}, {240, 80, 40, 8, 4, 1}, {240, 80, 40, 8, 4, 1}},
      {"several pieces", {300, 400}, {400, 1}, {0, 1}, {400, 1}},
      {"several pieces, strided", {300, 400}, {1, 300}, {0, 1}, {400, 1}},
  };
  return all;
}

}  // namespace

TEST_CASE("binary: every layout gives what a plain loop gives") {
  const Tensor a = ramp(130000), b = ramp(130000);
  for (const Layout& l : layouts()) {
    CAPTURE(l.name);
    Tensor y = full({130000}, -1);
    const ConstView av = restrided(a, l.shape, l.a, 3), bv = restrided(b, l.shape, l.b, 7);
    const View yv = restrided(y, l.shape, l.y, 5);
    cpu().binary(nullptr, Binary::subtract, {}, av, bv, yv);
    int64_t wrong = 0;
    for_each_index(l.shape, [&](const Shape& i) { wrong += at(yv, i) != at(av, i) - at(bv, i); });
    CHECK(wrong == 0);
    int64_t written = 0;                                       // nothing else was touched
    for (float v : y.to_vector<float>()) written += v != -1;
    int64_t minus_ones = 0;
    for_each_index(l.shape, [&](const Shape& i) { minus_ones += at(yv, i) == -1; });
    CHECK(written == l.shape.numel() - minus_ones);
  }
}

TEST_CASE("ternary and unary: every layout") {
  const Tensor a = ramp(130000), b = ramp(130000);
  for (const Layout& l : layouts()) {
    CAPTURE(l.name);
    Tensor y = full({130000}, -1), z = full({130000}, -1);
    const ConstView av = restrided(a, l.shape, l.a, 3), bv = restrided(b, l.shape, l.b, 7);
    const View yv = restrided(y, l.shape, l.y, 5), zv = restrided(z, l.shape, l.y);
    cpu().ternary(nullptr, Ternary::add_product, {2, 0}, av, bv, bv, yv);
    cpu().unary(nullptr, Unary::add_scalar, {3, 0}, bv, zv);
    int64_t wrong = 0;
    for_each_index(l.shape, [&](const Shape& i) {
      wrong += std::abs(at(yv, i) - (at(av, i) + 2 * at(bv, i) * at(bv, i))) > 1e-6 * at(yv, i);
      wrong += at(zv, i) != at(bv, i) + 3;
    });
    CHECK(wrong == 0);
  }
}

TEST_CASE("copy: every layout and every pair of dtypes") {
  for (DType from :
       {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean}) {
    for (DType to :
         {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean}) {
      CAPTURE(name_of(from));
      CAPTURE(name_of(to));
      const Tensor source = ramp(200);
      Tensor x = empty({200}, from), y = empty({200}, to);
      cpu().copy(nullptr, source.view(), x.mutable_view());
      const ConstView xv = restrided(x, {19, 10}, {1, 19});
      const View yv = y.mutable_view(), yt = restrided(y, {19, 10}, {10, 1});
      cpu().copy(nullptr, x.view(), yv);
      for (int64_t i = 0; i < 200; ++i)
        CHECK(at(yv, {i}) == (to == DType::boolean || from == DType::boolean ? 1.0 : static_cast<double>(i + 1)));
      cpu().copy(nullptr, xv, yt);
      for_each_index({19, 10}, [&](const Shape& i) { CHECK(at(yt, i) == (to == DType::boolean ? 1.0 : at(xv, i))); });
    }
  }
}

TEST_CASE("copy: transposes of many sizes, several matrices") {
  for (DType dtype : {DType::float64, DType::float32, DType::float16, DType::uint8}) {
    for (int64_t rows : {1, 5, 8, 63, 64, 65, 200}) {
      for (int64_t columns : {1, 7, 16, 64, 129}) {
        CAPTURE(rows);
        CAPTURE(columns);
        Tensor source = ramp(3 * rows * columns), x = empty({3 * rows * columns}, dtype), y = empty({3 * rows * columns}, dtype);
        cpu().copy(nullptr, source.view(), x.mutable_view());
        const ConstView xv = restrided(x, {3, rows, columns}, {rows * columns, 1, rows});
        const View yv = restrided(y, {3, rows, columns}, {rows * columns, columns, 1});
        cpu().copy(nullptr, xv, yv);
        int64_t wrong = 0;
        for_each_index(xv.shape, [&](const Shape& i) { wrong += at(xv, i) != at(yv, i); });
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("fill and arange: any strides and dtypes") {
  for (DType dtype :
       {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean}) {
    Tensor y = full({10, 10}, 0, dtype);
    cpu().fill(nullptr, 1, restrided(y, {10}, {11}));
    const std::vector<double> values = y.to_vector<double>();
    for (int64_t i = 0; i < 100; ++i) CHECK(values[static_cast<size_t>(i)] == (i % 11 == 0 ? 1.0 : 0.0));
  }
  Tensor y = full({20}, -1, DType::float64);
  cpu().arange(nullptr, 5, -0.5, restrided(y, {10}, {2}));
  for (int64_t i = 0; i < 20; ++i)
    CHECK(y.to_vector<double>()[static_cast<size_t>(i)] == (i % 2 == 0 ? 5 - 0.25 * static_cast<double>(i) : -1.0));
}

TEST_CASE("empty tensors are left alone") {
  Tensor x = empty({0, 3}), y = empty({0, 3});
  cpu().unary(nullptr, Unary::exp, {}, x.view(), y.mutable_view());
  cpu().binary(nullptr, Binary::add, {}, x.view(), x.view(), y.mutable_view());
  cpu().copy(nullptr, x.view(), y.mutable_view());
  cpu().fill(nullptr, 1, y.mutable_view());
  CHECK(y.numel() == 0);
}

TEST_CASE("results too large for the caches are written past them, and are the same") {
  const int64_t n = (8 << 20) + 77;                            // over 32 MB of float32
  const Tensor a = ramp(n);
  for (int64_t offset : {0, 3}) {
    CAPTURE(offset);
    Tensor y = full({n}, -1);
    const int64_t count = n - 5;
    cpu().binary(nullptr, Binary::add, {}, restrided(a, {count}, {1}, 1), restrided(a, {count}, {1}), restrided(y, {count}, {1}, offset));
    int64_t wrong = 0;
    const float* values = y.data<float>();
    for (int64_t i = 0; i < count; ++i) wrong += values[offset + i] != static_cast<float>(i + 2) + static_cast<float>(i + 1);
    CHECK(wrong == 0);
    for (int64_t i = 0; i < offset; ++i) CHECK(values[i] == -1);
    for (int64_t i = offset + count; i < n; ++i) CHECK(values[i] == -1);
    cpu().unary(nullptr, Unary::negative, {}, restrided(a, {count}, {1}), restrided(y, {count}, {1}, offset));
    cpu().ternary(nullptr, Ternary::add_product, {1, 0}, restrided(a, {count}, {1}), restrided(a, {count}, {0}), restrided(a, {count}, {0}),
                  restrided(y, {count}, {1}, offset));
    wrong = 0;
    for (int64_t i = 0; i < count; ++i) wrong += values[offset + i] != static_cast<float>(i + 1) + 1;
    CHECK(wrong == 0);
  }
}

TEST_CASE("large transposes, aligned and not") {
  for (DType dtype : {DType::float32, DType::float64}) {
    const int64_t rows = 2064, columns = 1040;                 // rows of y are whole cache lines
    const Tensor x = ramp(rows * columns, dtype);
    for (int64_t offset : {0, 1}) {
      Tensor y = full({rows * columns + 1}, -1, dtype);
      const ConstView xv = restrided(x, {rows, columns}, {1, rows});
      const View yv = restrided(y, {rows, columns}, {columns, 1}, offset);
      cpu().copy(nullptr, xv, yv);
      const std::vector<double> values = y.to_vector<double>();
      int64_t wrong = 0;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c)
          wrong += values[static_cast<size_t>(r * columns + c + offset)] != static_cast<double>(c * rows + r + 1);
      CHECK(wrong == 0);
      CHECK(values[offset == 0 ? values.size() - 1 : 0] == -1);
    }
  }
}
