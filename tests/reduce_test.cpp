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
