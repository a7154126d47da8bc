// Reductions: every layout and every set of axes against plain loops in float64.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/tensor.h>

#include "strided_views.h"

using namespace fovea;
using namespace fovea::testing;
using kernels::Reduce;

namespace {

const kernels::KernelTable& cpu() { return kernels::cpu_table(); }

// Values in about [-1, 1), the same on every machine; zeros among them for any and all.
Tensor sample(int64_t n, DType dtype) {
  std::vector<double> values(static_cast<size_t>(n));
  uint32_t state = 1;
  for (double& v : values) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<double>(state >> 8) / 0x1p23 - 1;
    if (!is_floating(dtype)) v = std::floor(v * 5);
  }
  Tensor y = empty({n}, dtype);
  cpu().copy(nullptr, from_vector(values).view(), y.mutable_view());
  return y;
}

double reference(Reduce op, const std::vector<double>& x) {
  double sum = 0, product = 1, squares = 0, largest = -INFINITY, smallest = INFINITY, exps = 0;
  bool any = false, all = true;
  for (double v : x) {
    sum += v, product *= v, squares += v * v, exps += std::exp(v);
    largest = std::max(largest, v), smallest = std::min(smallest, v);
    any = any || v != 0, all = all && v != 0;
  }
  switch (op) {
    case Reduce::sum: return sum;
    case Reduce::mean: return sum / static_cast<double>(x.size());
    case Reduce::product: return product;
    case Reduce::max: return largest;
    case Reduce::min: return smallest;
    case Reduce::sum_squares: return squares;
    case Reduce::logsumexp: return std::log(exps);
    case Reduce::any: return any;
    case Reduce::all: return all;
  }
  return 0;
}

// Every set of axes of x, against the reference; returns the number of outputs that are off.
int64_t wrong_outputs(Reduce op, const ConstView& x, DType result, double tolerance) {
  int64_t wrong = 0;
  for (int mask = 0; mask < 1 << x.rank(); ++mask) {
    Shape shape = x.shape;
    for (int i = 0; i < x.rank(); ++i)
      if (mask >> i & 1) shape[i] = 1;
    Tensor y = empty(shape, result);
    cpu().reduce(nullptr, op, x, y.mutable_view());
    std::vector<std::vector<double>> groups(static_cast<size_t>(shape.numel()));
    const Strides strides = contiguous_strides(shape);
    for_each_index(x.shape, [&](const Shape& index) {
      int64_t output = 0;
      for (int i = 0; i < x.rank(); ++i) output += (mask >> i & 1 ? 0 : index[i]) * strides[i];
      groups[static_cast<size_t>(output)].push_back(at(x, index));
    });
    const std::vector<double> got = y.to_vector<double>();
    for (size_t i = 0; i < groups.size(); ++i) {
      const double want = reference(op, groups[i]);
      double magnitude = 0;  // sums of both signs cancel: their error is measured against the sum of magnitudes
      for (double v : groups[i]) magnitude += std::abs(v);
      const bool is_close = std::abs(got[i] - want) <= tolerance * std::max({1.0, std::abs(want), 0.1 * magnitude}) || got[i] == want;
      if (!is_close && wrong++ == 0)
        MESSAGE("op " << static_cast<int>(op) << " axes mask " << mask << ": got " << got[i] << ", want " << want);
    }
  }
  return wrong;
}

const Reduce all_ops[] = {Reduce::sum,         Reduce::mean,      Reduce::product, Reduce::max, Reduce::min,
                          Reduce::sum_squares, Reduce::logsumexp, Reduce::any,     Reduce::all};

DType result_dtype(Reduce op, DType dtype) {
  if (op == Reduce::any || op == Reduce::all) return DType::boolean;
  return is_floating(dtype)   ? (dtype == DType::float64 ? DType::float64 : DType::float32)
         : op == Reduce::mean ? DType::float64
                              : DType::int64;
}

}  // namespace

TEST_CASE("reduce: every operation over every set of axes, in several layouts and dtypes") {
  struct Layout { Shape shape; Strides strides; };
  const Layout layouts[] = {
      {{}, {}},
      {{1}, {1}},
      {{37}, {1}},
      {{5, 7}, {7, 1}},
      {{5, 70}, {70, 1}},
      {{70, 5}, {1, 70}},
      {{4, 5, 6}, {30, 6, 1}},
      {{4, 5, 6}, {1, 4, 20}},
      {{3, 4, 20}, {160, 40, 2}},
      {{3, 0, 2}, {0, 2, 1}},
      {{2, 3, 4, 5}, {1, 2, 0, 6}},
      {{9, 1, 17}, {17, 17, 1}},
  };
  for (DType dtype : {DType::float32, DType::float64, DType::bfloat16, DType::int32, DType::uint8, DType::boolean}) {
    const Tensor source = sample(2000, dtype);
    for (const Layout& l : layouts) {
      for (Reduce op : all_ops) {
        if (op == Reduce::logsumexp && !is_floating(dtype)) continue;
        if (op == Reduce::product && dtype == DType::uint8) continue;          // wraps: not what float64 gives
        const bool is_empty = l.shape.numel() == 0 && (op == Reduce::mean || op == Reduce::max || op == Reduce::min);
        if (is_empty) continue;                                                // undefined or refused above
        CAPTURE(l.shape);
        CAPTURE(name_of(dtype));
        CHECK(wrong_outputs(op, restrided(source, l.shape, l.strides), result_dtype(op, dtype), dtype == DType::float64 ? 1e-13 : 2e-6) ==
              0);
      }
    }
  }
}

TEST_CASE("reduce: long rows, long columns and both, cut into pieces") {
  const Tensor source = sample(600000, DType::float32);
  const Shape shapes[] = {{600000}, {3, 200000}, {200000, 3}, {20000, 30}, {30, 20000}, {10, 20, 3000}, {3000, 20, 10}};
  for (const Shape& shape : shapes)
    for (Reduce op : {Reduce::sum, Reduce::max, Reduce::sum_squares, Reduce::logsumexp}) {
      CAPTURE(shape);
      CHECK(wrong_outputs(op, restrided(source, shape, contiguous_strides(shape)), DType::float32, 3e-6) == 0);
    }
}

TEST_CASE("reduce: results do not depend on the number of threads") {
  const Tensor source = sample(600000, DType::float32);
  const int before = num_threads();
  for (const Shape& shape : {Shape{600000}, Shape{20000, 30}, Shape{30, 20000}}) {
    for (int axis = 0; axis < shape.rank(); ++axis) {
      Shape kept = shape;
      kept[axis] = 1;
      std::vector<std::vector<float>> results;
      for (int threads : {1, 2, 5}) {
        set_num_threads(threads);
        Tensor y = empty(kept);
        cpu().reduce(nullptr, Reduce::sum, restrided(source, shape, contiguous_strides(shape)), y.mutable_view());
        results.push_back(y.to_vector<float>());
      }
      CHECK(results[0] == results[1]);
      CHECK(results[0] == results[2]);
    }
  }
  set_num_threads(before);
}

TEST_CASE("variance: over every set of axes, of long rows and columns, whatever the mean and the number of threads") {
  const auto reference = [](const std::vector<double>& values, double correction) {
    double sum = 0, deviations = 0;
    for (double v : values) sum += v;
    for (double v : values) deviations += (v - sum / static_cast<double>(values.size())) * (v - sum / static_cast<double>(values.size()));
    return deviations / std::max(0.0, static_cast<double>(values.size()) - correction);
  };
  // x [rows, columns] from both of its sides, in memory as it is and transposed.
  const auto check_variance = [&](int64_t rows, int64_t columns, DType dtype, double mean, double tolerance) {
    Tensor x = empty({rows, columns}, dtype);
    const std::vector<double> noise = sample(rows * columns, DType::float64).to_vector<double>();
    std::vector<double> shifted(noise);
    for (double& v : shifted) v += mean;
    cpu().copy(nullptr, from_vector(shifted, {rows, columns}).view(), x.mutable_view());
    const std::vector<double> values = x.to_vector<double>();
    for (const bool is_transposed : {false, true})
      for (const bool over_rows : {false, true}) {
        CAPTURE(str(x.shape(), " ", name_of(dtype), is_transposed ? " transposed" : "", over_rows ? " over rows" : ""));
        ConstView view = x.view();
        if (is_transposed) std::swap(view.shape[0], view.shape[1]), std::swap(view.strides[0], view.strides[1]);
        const bool reduces_first = over_rows != is_transposed;                   // axis 0 of the view
        const int64_t count = over_rows ? rows : columns, outputs = over_rows ? columns : rows;
        Tensor y = empty(reduces_first ? Shape{1, outputs} : Shape{outputs, 1}, dtype == DType::bfloat16 ? DType::float32 : dtype);
        cpu().variance(nullptr, 1, view, y.mutable_view());
        const int before = num_threads();
        set_num_threads(before == 1 ? 3 : 1);
        Tensor again = empty(y.shape(), y.dtype());
        cpu().variance(nullptr, 1, view, again.mutable_view());
        set_num_threads(before);
        const std::vector<double> got = y.to_vector<double>();
        CHECK(got == again.to_vector<double>());
        for (int64_t j = 0; j < outputs; ++j) {
          std::vector<double> line(static_cast<size_t>(count));
          for (int64_t i = 0; i < count; ++i) line[static_cast<size_t>(i)] = values[static_cast<size_t>(over_rows ? i * columns + j : j * columns + i)];
          CHECK(got[static_cast<size_t>(j)] == doctest::Approx(reference(line, 1)).epsilon(tolerance));
        }
      }
  };
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    check_variance(7, 33, dtype, 0, 1e-5);
    check_variance(3, 9000, dtype, 0, 1e-5);
    check_variance(2, 300000, dtype, 0, 1e-5);
    check_variance(20000, 12, dtype, 0, 1e-5);
  }
  check_variance(5, 5000, DType::float32, 1e5, 1e-4);
  check_variance(5, 5000, DType::float64, 1e8, 1e-6);
}
