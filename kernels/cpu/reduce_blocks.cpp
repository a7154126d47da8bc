// Sums, products, extremes and logsumexp of one contiguous run, and of several rows into a row of accumulators; called by reduce.cpp.
// max and min hand on NaN. A run is summed in interleaved sums, four vectors wide, that are added up at its end in a fixed order.
#include <cmath>
#include <cstring>

#include <fovea/kernels/cpu/reduce_blocks.h>
#include <fovea/kernels/cpu/wrapped.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/reduce_blocks.cpp"
#include <fovea/kernels/cpu/simd.h>
#include <fovea/kernels/cpu/vector_math.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
namespace vm = vector_math;

// f(accumulator, vector of x) over the run, in four interleaved accumulators that start at `identity`. merge puts two accumulators
// together, join two lanes.
template <class T, class F, class M, class J>
HWY_INLINE double fold(const T* x, int64_t n, double identity, const F& f, const M& merge, const J& join) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a0 = vm::constant(d, identity);
  int64_t i = 0;
  if (n >= 4 * lanes) {
    auto a1 = a0, a2 = a0, a3 = a0;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
      a0 = f(d, a0, hn::LoadU(d, x + i));
      a1 = f(d, a1, hn::LoadU(d, x + i + lanes));
      a2 = f(d, a2, hn::LoadU(d, x + i + 2 * lanes));
      a3 = f(d, a3, hn::LoadU(d, x + i + 3 * lanes));
    }
    a0 = merge(d, merge(d, a0, a1), merge(d, a2, a3));
  }
  for (; i + lanes <= n; i += lanes) a0 = f(d, a0, hn::LoadU(d, x + i));
  HWY_ALIGN T lane[hn::MaxLanes(d)] = {};
  if (i < n) {                                                 // the rest, whose missing lanes change nothing
    std::memcpy(lane, x + i, static_cast<size_t>(n - i) * sizeof(T));
    a0 = hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(n - i)), f(d, a0, hn::Load(d, lane)), a0);
  }
  hn::Store(a0, d, lane);
  double wide[hn::MaxLanes(d)];
  for (int64_t k = 0; k < lanes; ++k) wide[k] = static_cast<double>(lane[k]);
  for (int64_t half = lanes / 2; half > 0; half /= 2)
    for (int64_t k = 0; k < half; ++k) wide[k] = join(wide[k], wide[k + half]);
  return wide[0];
}

template <class T>
HWY_INLINE double max_of(const T* x, int64_t n) {
  const auto larger = [](auto d, auto a, auto v) HWY_ATTR { return vm::max_or_nan(d, a, v); };
  return fold(x, n, lowest_of<double>(), larger, larger, [](double a, double v) HWY_ATTR { return a > v || a != a ? a : v; });
}

template <class T>
HWY_INLINE double min_of(const T* x, int64_t n) {
  const auto smaller = [](auto d, auto a, auto v) HWY_ATTR { return vm::min_or_nan(d, a, v); };
  return fold(x, n, highest_of<double>(), smaller, smaller, [](double a, double v) HWY_ATTR { return a < v || a != a ? a : v; });
}

// add_term(d, accumulator, x) over the run.
template <class T, class F>
HWY_INLINE double sum_of(const T* x, int64_t n, const F& add_term) {
  return fold(
      x, n, 0, add_term, [](auto, auto a, auto b) HWY_ATTR { return hn::Add(a, b); }, [](double a, double b) HWY_ATTR { return a + b; });
}

template <class T>
Partial<double> logsumexp_of(const T* x, int64_t n) {
  const double maximum = max_of(x, n);
  if (!std::isfinite(maximum)) return {std::isnan(maximum) ? maximum : maximum > 0 ? 1.0 : 0.0, maximum};
  const T shift = static_cast<T>(maximum);
  return {sum_of(x, n, [=](auto d, auto a, auto v) HWY_ATTR { return hn::Add(a, vm::exp(d, hn::Sub(v, hn::Set(d, shift)))); }), maximum};
}

template <class T>
Partial<double> row_real(Reduce op, const T* x, int64_t n) {
  const auto times = [](auto, auto a, auto v) HWY_ATTR { return hn::Mul(a, v); };
  switch (op) {
    case Reduce::sum:
    case Reduce::mean: return {sum_of(x, n, [](auto, auto a, auto v) HWY_ATTR { return hn::Add(a, v); }), 0};
    case Reduce::sum_squares: return {sum_of(x, n, [](auto, auto a, auto v) HWY_ATTR { return hn::MulAdd(v, v, a); }), 0};
    case Reduce::product: return {fold(x, n, 1, times, times, [](double a, double v) HWY_ATTR { return a * v; }), 0};
    case Reduce::max: return {max_of(x, n), 0};
    case Reduce::min: return {min_of(x, n), 0};
    case Reduce::logsumexp: return logsumexp_of(x, n);
    case Reduce::any: {
      bool found = false;
      for (int64_t i = 0; i < n; ++i) found |= x[i] != 0;
      return {found ? 1.0 : 0.0, 0};
    }
    case Reduce::all: {
      bool held = true;
      for (int64_t i = 0; i < n; ++i) held &= x[i] != 0;
      return {held ? 1.0 : 0.0, 0};
    }
  }
  return {};
}

HWY_INLINE int64_t combine(Reduce op, int64_t a, int64_t v) {
  switch (op) {
    case Reduce::product: return wrapped_multiply(a, v);
    case Reduce::max: return a > v ? a : v;
    case Reduce::min: return a < v ? a : v;
    case Reduce::any: return a | (v != 0);
    case Reduce::all: return a & (v != 0);
    case Reduce::sum_squares: return wrapped_add(a, wrapped_multiply(v, v));
    default: return wrapped_add(a, v);
  }
}

Partial<int64_t> row_int64(Reduce op, const int64_t* x, int64_t n) {
  check<DTypeError>(op != Reduce::logsumexp,
                    "logsumexp: takes floating-point tensors, got an integer one; convert with to(x, DType::float32)");
  int64_t a = identity_of<int64_t>(op).value;
  for (int64_t i = 0; i < n; ++i) a = combine(op, a, x[i]);
  return {a, 0};
}

void column_int64(Reduce op, const int64_t* x, int64_t* accumulated, int64_t n) {
  for (int64_t j = 0; j < n; ++j) accumulated[j] = combine(op, accumulated[j], x[j]);
}

template <class T, class F>
HWY_INLINE void fold_columns(const T* HWY_RESTRICT x, T* HWY_RESTRICT accumulated, int64_t n, const F& f) {
  const hn::ScalableTag<T> d;
  const hn::CappedTag<T, 1> one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) hn::StoreU(f(d, hn::LoadU(d, accumulated + j), hn::LoadU(d, x + j)), d, accumulated + j);
  for (; j < n; ++j) hn::StoreU(f(one, hn::LoadU(one, accumulated + j), hn::LoadU(one, x + j)), one, accumulated + j);
}

template <class T>
void column_real(Reduce op, const T* x, T* accumulated, int64_t n) {
  switch (op) {
    case Reduce::product: return fold_columns(x, accumulated, n, [](auto, auto a, auto v) HWY_ATTR { return hn::Mul(a, v); });
    case Reduce::max: return fold_columns(x, accumulated, n, [](auto d, auto a, auto v) HWY_ATTR { return vm::max_or_nan(d, a, v); });
    case Reduce::min: return fold_columns(x, accumulated, n, [](auto d, auto a, auto v) HWY_ATTR { return vm::min_or_nan(d, a, v); });
    case Reduce::sum_squares: return fold_columns(x, accumulated, n, [](auto, auto a, auto v) HWY_ATTR { return hn::MulAdd(v, v, a); });
    case Reduce::any:
      for (int64_t j = 0; j < n; ++j) accumulated[j] = x[j] != 0 ? T(1) : accumulated[j];
      return;
    case Reduce::all:
      for (int64_t j = 0; j < n; ++j) accumulated[j] = x[j] != 0 ? accumulated[j] : T(0);
      return;
    default: return fold_columns(x, accumulated, n, [](auto, auto a, auto v) HWY_ATTR { return hn::Add(a, v); });
  }
}

// In the second pass the mean that the first has found is only a number that all are near: how far it was off is found too, and taken back.
template <class T>
Partial<double> deviations_of(const T* x, int64_t n) {
  const double count = static_cast<double>(n);
  const T center = static_cast<T>(sum_of(x, n, [](auto, auto a, auto v) HWY_ATTR { return hn::Add(a, v); }) / count);
  const double off = sum_of(x, n, [=](auto d, auto a, auto v) HWY_ATTR { return hn::Add(a, hn::Sub(v, hn::Set(d, center))); }) / count;
  const double squares = sum_of(x, n, [=](auto d, auto a, auto v) HWY_ATTR {
    const auto distance = hn::Sub(v, hn::Set(d, center));
    return hn::MulAdd(distance, distance, a);
  });
  return {squares - count * off * off, 0, count, static_cast<double>(center) + off};
}

template <class T>
void column_deviations_of(const T* HWY_RESTRICT x, const T* HWY_RESTRICT center, T* HWY_RESTRICT sum, T* HWY_RESTRICT squares, int64_t n) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) {
    const auto distance = hn::Sub(hn::LoadU(d, x + j), hn::LoadU(d, center + j));
    hn::StoreU(hn::Add(hn::LoadU(d, sum + j), distance), d, sum + j);
    hn::StoreU(hn::MulAdd(distance, distance, hn::LoadU(d, squares + j)), d, squares + j);
  }
  for (; j < n; ++j) {
    sum[j] += x[j] - center[j];
    squares[j] += (x[j] - center[j]) * (x[j] - center[j]);
  }
}

Partial<double> deviations_float32(const float* x, int64_t n) { return deviations_of(x, n); }
Partial<double> deviations_float64(const double* x, int64_t n) { return deviations_of(x, n); }
void column_deviations_float32(const float* x, const float* center, float* sum, float* squares, int64_t n) { column_deviations_of(x, center, sum, squares, n); }
void column_deviations_float64(const double* x, const double* center, double* sum, double* squares, int64_t n) { column_deviations_of(x, center, sum, squares, n); }

Partial<double> row_float32(Reduce op, const float* x, int64_t n) { return row_real(op, x, n); }
Partial<double> row_float64(Reduce op, const double* x, int64_t n) { return row_real(op, x, n); }
void column_float32(Reduce op, const float* x, float* accumulated, int64_t n) { column_real(op, x, accumulated, n); }
void column_float64(Reduce op, const double* x, double* accumulated, int64_t n) { column_real(op, x, accumulated, n); }

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

template <>
const ReduceBlocks<float>& reduce_blocks<float>() {
  static const ReduceBlocks<float> blocks = {FOVEA_BEST(row_float32), FOVEA_BEST(column_float32), FOVEA_BEST(deviations_float32), FOVEA_BEST(column_deviations_float32)};
  return blocks;
}

template <>
const ReduceBlocks<double>& reduce_blocks<double>() {
  static const ReduceBlocks<double> blocks = {FOVEA_BEST(row_float64), FOVEA_BEST(column_float64), FOVEA_BEST(deviations_float64), FOVEA_BEST(column_deviations_float64)};
  return blocks;
}

template <>
const ReduceBlocks<int64_t>& reduce_blocks<int64_t>() {
  static const ReduceBlocks<int64_t> blocks = {FOVEA_BEST(row_int64), FOVEA_BEST(column_int64), nullptr, nullptr};
  return blocks;
}

}  // namespace fovea::kernels
#endif
