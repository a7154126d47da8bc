// What the normalisation kernels do to a run of contiguous elements: its mean and variance, the sums its gradient needs, and applying both. Included once for each instruction set, after simd.h.
//
// Note [Variance without cancellation]
// E[x^2] - E[x]^2 loses everything when the mean is large beside the deviation. Here a run is cut into chunks that stay in the first-level cache; a chunk is
// summed, then its deviations from that mean are (the second pass is nearly free), which is exact to rounding: m2 = sum d^2 - (sum d)^2 / n corrects for
// the rounding of the chunk's own mean. Chunks are combined in float64 in a fixed order (Chan, Golub & LeVeque 1979, eq. 2.1).
#if defined(FOVEA_KERNELS_CPU_NORM_RUNS_H) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_NORM_RUNS_H
#undef FOVEA_KERNELS_CPU_NORM_RUNS_H
#else
#define FOVEA_KERNELS_CPU_NORM_RUNS_H
#endif

#include <hwy/highway.h>

#include <algorithm>

#include <fovea/kernels/cpu/simd_tail.h>
#include <fovea/kernels/view.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

inline constexpr int64_t moments_chunk = 4096;     // elements

struct Moments {
  double count = 0, mean = 0, m2 = 0;              // m2: sum of squared deviations from the mean

  void add(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, delta = other.mean - mean;
    mean += delta * (other.count / total);
    m2 += other.m2 + delta * delta * (count * other.count / total);
    count = total;
  }
  double variance() const { return count > 0 ? std::max(m2 / count, 0.0) : 0.0; }     // in this order std::max keeps a NaN
};

// Sum of at most a few thousand elements, in four vectors of partial sums.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE T sum_run(D d, const T* x, int64_t n) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    s0 = hn::Add(s0, hn::LoadU(d, x + i));
    s1 = hn::Add(s1, hn::LoadU(d, x + i + lanes));
    s2 = hn::Add(s2, hn::LoadU(d, x + i + 2 * lanes));
    s3 = hn::Add(s3, hn::LoadU(d, x + i + 3 * lanes));
  }
  for (; i + lanes <= n; i += lanes) s0 = hn::Add(s0, hn::LoadU(d, x + i));
  if (i < n) s1 = hn::Add(s1, load_first(d, x + i, static_cast<size_t>(n - i)));
  return sum_lanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE Moments chunk_moments(D d, const T* x, int64_t n) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const T mean = sum_run(d, x, n) / static_cast<T>(n);
  const auto center = hn::Set(d, mean);
  auto s0 = hn::Zero(d), s1 = s0, q0 = s0, q1 = s0;
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto a = hn::Sub(hn::LoadU(d, x + i), center), b = hn::Sub(hn::LoadU(d, x + i + lanes), center);
    s0 = hn::Add(s0, a);
    s1 = hn::Add(s1, b);
    q0 = hn::MulAdd(a, a, q0);
    q1 = hn::MulAdd(b, b, q1);
  }
  for (; i < n; i += lanes) {
    const int64_t count = std::min(lanes, n - i);
    const auto inside = hn::FirstN(d, static_cast<size_t>(count));
    const auto a = hn::IfThenElseZero(inside, hn::Sub(load_some(d, x + i, count), center));
    s0 = hn::Add(s0, a);
    q0 = hn::MulAdd(a, a, q0);
  }
  const double drift = sum_lanes(d, hn::Add(s0, s1)), squares = sum_lanes(d, hn::Add(q0, q1));
  const double count = static_cast<double>(n);
  return {count, static_cast<double>(mean) + drift / count, squares - drift * drift / count};
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE Moments run_moments(D d, const T* x, int64_t n) {
  Moments total;
  for (int64_t i = 0; i < n; i += moments_chunk) total.add(chunk_moments(d, x + i, std::min(moments_chunk, n - i)));
  return total;
}

// Sums of a gradient and of its product with the deviation from the mean: what every normalisation's backward pass is made of.
struct GradientSums {
  double dy = 0, dy_deviation = 0;
  void add(const GradientSums& other) {
    dy += other.dy;
    dy_deviation += other.dy_deviation;
  }
};

template <class T>
T value_or(const ConstView& view, int64_t i, T otherwise) {
  return view ? view.as<T>()[i] : otherwise;
}

// y = scale * (x - center) + shift (+ residual, unless null), and max(., 0) with NaN kept
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void affine_run(D d, const T* x, const T* residual, T* y, int64_t n, T center, T scale, T shift, bool has_relu) {
  const auto c = hn::Set(d, center), a = hn::Set(d, scale), b = hn::Set(d, shift);
  const auto least = has_relu ? hn::Zero(d) : hn::Neg(hn::Inf(d));
  const auto floor = [&](hn::Vec<D> v) HWY_ATTR { return hn::IfThenElse(hn::Lt(v, least), least, v); };
  if (residual) {
    for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
      const auto v = hn::MulAdd(hn::Sub(load_some(d, x + i, count), c), a, b);
      store_some(d, floor(hn::Add(v, load_some(d, residual + i, count))), y + i, count);
    });
  } else {
    for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
      store_some(d, floor(hn::MulAdd(hn::Sub(load_some(d, x + i, count), c), a, b)), y + i, count);
    });
  }
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> load_gradient(D d, const T* dy, const T* y, int64_t i, int64_t count) {
  const auto g = load_some(d, dy + i, count);
  return y ? hn::IfThenZeroElse(hn::Le(load_some(d, y + i, count), hn::Zero(d)), g) : g;
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE GradientSums gradient_sums(D d, const T* dy, const T* x, const T* y, int64_t n, T mean) {
  const auto center = hn::Set(d, mean);
  auto s = hn::Zero(d), q = hn::Zero(d);
  for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
    const auto g = load_gradient(d, dy, y, i, count);                      // zero behind the end, so that those lanes add nothing
    s = hn::Add(s, g);
    q = hn::MulAdd(g, hn::Sub(load_some(d, x + i, count), center), q);
  });
  return {static_cast<double>(sum_lanes(d, s)), static_cast<double>(sum_lanes(d, q))};
}

// dx = scale * (g - mean_g - (x - mean) * slope), and dresidual = g; either may be null.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void gradient_run(D d, const T* dy, const T* x, const T* y, T* dx, T* dresidual, int64_t n, T mean, T scale, T mean_g, T slope) {
  const auto center = hn::Set(d, mean), a = hn::Set(d, scale), m = hn::Set(d, mean_g), k = hn::Set(d, slope);
  for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
    const auto g = load_gradient(d, dy, y, i, count);
    if (dresidual) store_some(d, g, dresidual + i, count);
    if (!dx) return;
    const auto deviation = hn::Sub(load_some(d, x + i, count), center);
    store_some(d, hn::Mul(a, hn::Sub(hn::Sub(g, m), hn::Mul(deviation, k))), dx + i, count);
  });
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
