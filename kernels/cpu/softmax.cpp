// Softmax along an axis of x [outer, size, inner] and what is built on it:
//     softmax y = exp(x - max) / sum exp(x - max);  log-softmax y = x - max - log sum exp(x - max);
//     backward: dx = y * (dy - sum dy * y), and dx = dy - exp(y) * sum dy of the logarithm;
//     cross-entropy with label smoothing e (Szegedy et al. 2016, section 7) and class weights w, as PyTorch defines it:
//     loss = -(1 - e) * w[t] * logp[t] - e / classes * sum_c w[c] * logp[c];  d loss / d logits = softmax * S - G with G = -d loss / d logp, S = sum G,
//     of rows, or their sum, or that divided by the sum of w[t]; of log-probabilities: -w[t] * x[t].
// Layout: contiguous. Overwrites its outputs. Sums in the element's type over at most 4096 elements, in float64 beyond; a row (or a column, where inner > 1) is
// summed by one thread: deterministic. Floor: softmax one read and one write, backward two reads and one write, as long as a row stays in the cache.
#include <algorithm>
#include <cmath>
#include <limits>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/softmax.cpp"
#include <fovea/kernels/cpu/simd.h>

#include <fovea/kernels/cpu/simd_tail.h>
#include <fovea/kernels/cpu/vector_math.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

constexpr int64_t chunk = 4096;

int64_t grain_for(int64_t elements) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(elements, 1)); }

template <class D, class T = hn::TFromD<D>>
HWY_INLINE T max_of_row(D d, const T* x, int64_t n) {
  const auto lowest = hn::Set(d, -std::numeric_limits<T>::infinity());
  auto best = lowest;
  for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
    best = hn::Max(best, hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(count)), load_some(d, x + i, count), lowest));
  });
  return hn::GetLane(hn::MaxOfLanes(d, best));
}

// sum exp(x - max); the terms go to y unless it is null.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE double sum_of_exp(D d, const T* x, T* y, int64_t n, T max) {
  const auto shift = hn::Set(d, max);
  double total = 0;
  for (int64_t start = 0; start < n; start += chunk) {
    const T* in = x + start;
    T* out = y ? y + start : nullptr;
    auto sum = hn::Zero(d);
    for_each_vector(d, std::min(chunk, n - start), [&](int64_t i, int64_t count) HWY_ATTR {
      const auto e = vector_math::exp(d, hn::Sub(load_some(d, in + i, count), shift));
      if (out) store_some(d, e, out + i, count);
      sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(count)), e));
    });
    total += static_cast<double>(sum_lanes(d, sum));
  }
  return total;
}

template <class T>
void softmax_row(const T* x, T* y, int64_t n, bool is_log) {
  const hn::ScalableTag<T> d;
  const T max = max_of_row(d, x, n);
  const double sum = sum_of_exp(d, x, is_log ? nullptr : y, n, max);
  const auto shift = hn::Set(d, max), scale = hn::Set(d, static_cast<T>(1.0 / sum)), log_sum = hn::Set(d, static_cast<T>(std::log(sum)));
  for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
    if (is_log) store_some(d, hn::Sub(hn::Sub(load_some(d, x + i, count), shift), log_sum), y + i, count);
    else store_some(d, hn::Mul(load_some(d, y + i, count), scale), y + i, count);
  });
}

template <class T>
void softmax_backward_row(const T* dy, const T* y, T* dx, int64_t n, bool is_log) {
  const hn::ScalableTag<T> d;
  double total = 0;
  for (int64_t start = 0; start < n; start += chunk) {
    auto sum = hn::Zero(d);
    for_each_vector(d, std::min(chunk, n - start), [&](int64_t i, int64_t count) HWY_ATTR {
      const auto g = load_some(d, dy + start + i, count);
      sum = is_log ? hn::Add(sum, g) : hn::MulAdd(g, load_some(d, y + start + i, count), sum);
    });
    total += static_cast<double>(sum_lanes(d, sum));
  }
  const auto sum = hn::Set(d, static_cast<T>(total));
  for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
    const auto g = load_some(d, dy + i, count), out = load_some(d, y + i, count);
    store_some(d, is_log ? hn::NegMulAdd(vector_math::exp(d, out), sum, g) : hn::Mul(out, hn::Sub(g, sum)), dx + i, count);
  });
}

// `count` columns beside each other, `stride` elements from one row to the next.
template <class T>
void softmax_columns(const T* x, T* y, int64_t size, int64_t stride, int64_t count, bool is_log) {
  const hn::ScalableTag<T> d;
  auto max = load_some(d, x, count);
  for (int64_t k = 1; k < size; ++k) max = hn::Max(max, load_some(d, x + k * stride, count));
  auto sum = hn::Zero(d);
  for (int64_t k = 0; k < size; ++k) {
    const auto e = vector_math::exp(d, hn::Sub(load_some(d, x + k * stride, count), max));
    if (!is_log) store_some(d, e, y + k * stride, count);
    sum = hn::Add(sum, e);
  }
  if (is_log) {
    HWY_ALIGN T lanes[HWY_MAX_BYTES / sizeof(T)];
    hn::Store(sum, d, lanes);
    for (size_t j = 0; j < hn::Lanes(d); ++j) lanes[j] = std::log(lanes[j]);
    const auto log_sum = hn::Load(d, lanes);
    for (int64_t k = 0; k < size; ++k) store_some(d, hn::Sub(hn::Sub(load_some(d, x + k * stride, count), max), log_sum), y + k * stride, count);
  } else {
    for (int64_t k = 0; k < size; ++k) store_some(d, hn::Div(load_some(d, y + k * stride, count), sum), y + k * stride, count);
  }
}

template <class T>
void softmax_backward_columns(const T* dy, const T* y, T* dx, int64_t size, int64_t stride, int64_t count, bool is_log) {
  const hn::ScalableTag<T> d;
  auto sum = hn::Zero(d);
  for (int64_t k = 0; k < size; ++k) {
    const auto g = load_some(d, dy + k * stride, count);
    sum = is_log ? hn::Add(sum, g) : hn::MulAdd(g, load_some(d, y + k * stride, count), sum);
  }
  for (int64_t k = 0; k < size; ++k) {
    const auto g = load_some(d, dy + k * stride, count), out = load_some(d, y + k * stride, count);
    store_some(d, is_log ? hn::NegMulAdd(vector_math::exp(d, out), sum, g) : hn::Mul(out, hn::Sub(g, sum)), dx + k * stride, count);
  }
}

// Calls row(offset) for each line of a geometry with inner == 1, column(offset, count) for each group of columns of the others.
template <class T, class Row, class Column>
void for_each_line(const AxisGeometry& g, const Row& row, const Column& column) {
  if (g.size == 0) return;
  if (g.inner == 1) {
    parallel_for(g.outer, grain_for(g.size), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) row(i * g.size);
    });
    return;
  }
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<T>())), groups = (g.inner + lanes - 1) / lanes;
  parallel_for(g.outer * groups, grain_for(g.size * lanes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % groups * lanes;
      column(i / groups * g.size * g.inner + first, std::min(lanes, g.inner - first));
    }
  });
}

void softmax(Queue, const AxisGeometry& g, bool is_log, const ConstView& x, const View& y) {
  dispatch_real(x.dtype, is_log ? "log_softmax" : "softmax", [&](auto zero) {
    using T = decltype(zero);
    const T* in = x.as<T>();
    T* out = y.as<T>();
    for_each_line<T>(g, [&](int64_t at) { softmax_row(in + at, out + at, g.size, is_log); },
                     [&](int64_t at, int64_t count) { softmax_columns(in + at, out + at, g.size, g.inner, count, is_log); });
  });
}

void softmax_backward(Queue, const AxisGeometry& g, bool is_log, const ConstView& dy, const ConstView& y, const View& dx) {
  dispatch_real(y.dtype, is_log ? "log_softmax_backward" : "softmax_backward", [&](auto zero) {
    using T = decltype(zero);
    const T *gradient = dy.as<T>(), *out = y.as<T>();
    T* in = dx.as<T>();
    for_each_line<T>(g, [&](int64_t at) { softmax_backward_row(gradient + at, out + at, in + at, g.size, is_log); },
                     [&](int64_t at, int64_t count) { softmax_backward_columns(gradient + at, out + at, in + at, g.size, g.inner, count, is_log); });
  });
}

// --- cross-entropy ---

// The losses of rows and their weights, added up.
struct LossSums {
  double loss = 0, weight = 0;
};

// Where the score of a row's target lies.
int64_t place_of(const CrossEntropyGeometry& g, int64_t row, int64_t target) { return (row / g.inner * g.classes + target) * g.inner + row % g.inner; }

template <class T>
struct CrossEntropyRow {
  const CrossEntropyGeometry& g;
  const T* weights;                                  // null: all one

  double weight(int64_t c) const { return weights ? static_cast<double>(weights[c]) : 1.0; }
  double of_target(int64_t target) const { return (1 - g.label_smoothing) * weight(target); }
  double of_each() const { return g.label_smoothing / static_cast<double>(g.classes); }

  double loss(const T* x, int64_t target) const {
    const hn::ScalableTag<T> d;
    const T max = max_of_row(d, x, g.classes);
    const double log_sum = std::log(sum_of_exp(d, x, static_cast<T*>(nullptr), g.classes, max)), shift = static_cast<double>(max);
    double loss = of_target(target) * (log_sum - (static_cast<double>(x[target]) - shift));
    if (g.label_smoothing > 0) {
      double sum_weights = 0, sum_shifted = 0;
      for (int64_t c = 0; c < g.classes; ++c) {
        sum_weights += weight(c);
        sum_shifted += weight(c) * (static_cast<double>(x[c]) - shift);
      }
      loss += of_each() * (sum_weights * log_sum - sum_shifted);
    }
    return loss;
  }

  // The gradient of the row's loss, times dloss.
  void gradient(const T* x, int64_t target, T dloss, T* dx) const {
    const hn::ScalableTag<T> d;
    const double sum = sum_of_exp(d, x, dx, g.classes, max_of_row(d, x, g.classes));
    double sum_weights = 0;
    for (int64_t c = 0; g.label_smoothing > 0 && c < g.classes; ++c) sum_weights += weight(c);
    const T each = static_cast<T>(of_each()), scale = static_cast<T>((of_target(target) + of_each() * sum_weights) / sum);
    const T at_target = std::fma(static_cast<T>(-weight(target)), each, dx[target] * scale) - static_cast<T>(of_target(target));
    const auto all_scale = hn::Set(d, scale), all_each = hn::Set(d, each), upstream = hn::Set(d, dloss), one = hn::Set(d, T(1));
    for_each_vector(d, g.classes, [&](int64_t i, int64_t count) HWY_ATTR {
      const auto w = weights ? load_some(d, weights + i, count) : one;
      store_some(d, hn::Mul(hn::NegMulAdd(w, all_each, hn::Mul(load_some(d, dx + i, count), all_scale)), upstream), dx + i, count);
    });
    dx[target] = at_target * dloss;
  }
};

void cross_entropy(Queue, const CrossEntropyGeometry& g, const ConstView& logits, const ConstView& targets, const ConstView& class_weights, const View& losses, const View& divisor) {
  constexpr int64_t most_pieces = 64;
  dispatch_real(logits.dtype, "cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    const CrossEntropyRow<T> row{g, class_weights.as<T>()};
    const int64_t grain = std::max(grain_for(g.is_normalized ? 1 : g.classes), (g.rows + most_pieces - 1) / most_pieces);
    LossSums pieces[most_pieces];
    parallel_for(g.rows, grain, [&](int64_t begin, int64_t end) {
      LossSums sums;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t target = targets.as<int64_t>()[i];
        const bool counts = target != g.ignore_index;
        double loss = 0;
        if (counts && g.is_normalized) loss = row.weight(target) * -static_cast<double>(logits.as<T>()[place_of(g, i, target)]);
        else if (counts) loss = row.loss(logits.as<T>() + i * g.classes, target);
        if (g.reduction == Reduction::none) losses.as<T>()[i] = static_cast<T>(loss);
        sums.loss += loss;
        sums.weight += counts ? row.weight(target) : 0;
      }
      pieces[begin / grain] = sums;
    });
    if (g.reduction == Reduction::none) return;
    LossSums total;
    for (const LossSums& piece : pieces) {
      total.loss += piece.loss;
      total.weight += piece.weight;
    }
    const bool is_mean = g.reduction == Reduction::mean;
    *losses.as<T>() = static_cast<T>(is_mean ? total.loss / total.weight : total.loss);
    if (is_mean) *divisor.as<T>() = static_cast<T>(total.weight);
  });
}

void cross_entropy_backward(Queue, const CrossEntropyGeometry& g, const ConstView& dlosses, const ConstView& divisor, const ConstView& logits, const ConstView& targets,
                            const ConstView& class_weights, const View& dlogits) {
  dispatch_real(logits.dtype, "cross_entropy_backward", [&](auto zero) {
    using T = decltype(zero);
    const CrossEntropyRow<T> row{g, class_weights.as<T>()};
    const int64_t step = g.reduction == Reduction::none ? dlosses.strides[0] : 0;
    const auto upstream = [&](int64_t i) { return g.reduction == Reduction::mean ? *dlosses.as<T>() / *divisor.as<T>() : dlosses.as<T>()[i * step]; };
    if (g.is_normalized) {
      std::fill(dlogits.as<T>(), dlogits.as<T>() + g.rows * g.classes, T(0));
      for (int64_t i = 0; i < g.rows; ++i) {
        const int64_t target = targets.as<int64_t>()[i];
        if (target != g.ignore_index) dlogits.as<T>()[place_of(g, i, target)] = static_cast<T>(-row.weight(target)) * upstream(i);
      }
      return;
    }
    parallel_for(g.rows, grain_for(g.classes), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t target = targets.as<int64_t>()[i];
        T* dx = dlogits.as<T>() + i * g.classes;
        if (target == g.ignore_index) std::fill(dx, dx + g.classes, T(0));
        else row.gradient(logits.as<T>() + i * g.classes, target, upstream(i), dx);
      }
    });
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
void add_softmax(KernelTable& t) {
  t.softmax = FOVEA_BEST(softmax);
  t.softmax_backward = FOVEA_BEST(softmax_backward);
  t.cross_entropy = FOVEA_BEST(cross_entropy);
  t.cross_entropy_backward = FOVEA_BEST(cross_entropy_backward);
}
}  // namespace fovea::kernels
#endif
