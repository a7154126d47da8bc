// Elementary functions on vectors, right for NaN, infinities, zeros and subnormals, which Highway's are not: its functions do the inner
// range, what is here mends the rest. Error in units of the last place, measured in tests/elementwise_accuracy_test.cpp. Included once for each
// instruction set, after simd.h.
#if defined(FOVEA_KERNELS_CPU_VECTOR_MATH_H) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_VECTOR_MATH_H
#undef FOVEA_KERNELS_CPU_VECTOR_MATH_H
#else
#define FOVEA_KERNELS_CPU_VECTOR_MATH_H
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include <cmath>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE::vector_math {
namespace hn = hwy::HWY_NAMESPACE;

template <class D> using T = hn::TFromD<D>;

template <class D> HWY_INLINE hn::Vec<D> constant(D d, double value) { return hn::Set(d, static_cast<T<D>>(value)); }
template <class D> HWY_INLINE hn::Vec<D> infinity(D d) { return hn::Set(d, std::numeric_limits<T<D>>::infinity()); }
template <class D> HWY_INLINE hn::Vec<D> quiet_nan(D d) { return hn::Set(d, std::numeric_limits<T<D>>::quiet_NaN()); }

// How many elements of y (at most one vector) come before the first that is aligned to a vector, as streaming stores need it.
template <class T>
HWY_INLINE int64_t elements_to_alignment(const T* y, int64_t lanes) {
  const int64_t bytes = lanes * static_cast<int64_t>(sizeof(T));
  return (bytes - static_cast<int64_t>(reinterpret_cast<uintptr_t>(y) % static_cast<uintptr_t>(bytes))) / static_cast<int64_t>(sizeof(T));
}

// For functions that are not worth a vector version: one lane after the other.
template <class D, class V, class F>
HWY_INLINE V lane_by_lane(D d, V x, F f) {
  HWY_ALIGN T<D> lanes[hn::MaxLanes(D())];
  hn::Store(x, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = f(lanes[i]);
  return hn::Load(d, lanes);
}
template <class D, class V, class F>
HWY_INLINE V lane_by_lane(D d, V a, V b, F f) {
  HWY_ALIGN T<D> a_lanes[hn::MaxLanes(D())], b_lanes[hn::MaxLanes(D())];
  hn::Store(a, d, a_lanes);
  hn::Store(b, d, b_lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) a_lanes[i] = f(a_lanes[i], b_lanes[i]);
  return hn::Load(d, a_lanes);
}

// Highway's Exp converts x / ln 2 to an integer, so x must stay near the range where the result is finite and not zero.
template <class D, class V>
HWY_INLINE V exp(D d, V x) {
  constexpr bool is_float = sizeof(T<D>) == 4;
  const V inside = hn::Min(hn::Max(x, constant(d, is_float ? -104.0 : -746.0)), constant(d, is_float ? 89.0 : 710.0));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, inside));
}

template <class D, class V>
HWY_INLINE V expm1(D d, V x) {
  constexpr bool is_float = sizeof(T<D>) == 4;
  const V inside = hn::Min(hn::Max(x, constant(d, is_float ? -104.0 : -746.0)), constant(d, is_float ? 89.0 : 710.0));
  // Tiny x: expm1(x) = x, and -0 stays -0.
  return hn::IfThenElse(hn::Or(hn::IsNaN(x), hn::Lt(hn::Abs(x), constant(d, 1e-30))), x, hn::Expm1(d, inside));
}

template <class D, class V>
HWY_INLINE V log_of_positive_or_special(D d, V x, V y) {      // y = log(x) where x is positive and finite
  y = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), quiet_nan(d), y);
  y = hn::IfThenElse(hn::Eq(x, hn::Zero(d)), hn::Neg(infinity(d)), y);
  return hn::IfThenElse(hn::Or(hn::IsNaN(x), hn::Eq(x, infinity(d))), x, y);
}

template <class D, class V>
HWY_INLINE V log(D d, V x) {
  return log_of_positive_or_special(d, x, hn::Log(d, x));
}

template <class D, class V>
HWY_INLINE V log1p(D d, V x) {
  const V one = constant(d, 1), shifted = hn::Add(x, one);
  const V y = log_of_positive_or_special(d, shifted, hn::Log1p(d, x));
  return hn::IfThenElse(hn::Lt(hn::Abs(x), constant(d, 1e-30)), x, y);
}

template <class D, class V>
HWY_INLINE V tanh(D d, V x) {
  const V tiny = constant(d, 1e-30);
  return hn::IfThenElse(hn::Or(hn::IsNaN(x), hn::Lt(hn::Abs(x), tiny)), x,
                        hn::Tanh(d, hn::Min(hn::Max(x, constant(d, -30)), constant(d, 30))));
}

template <class D, class V>
HWY_INLINE V sigmoid(D d, V x) {
  const V one = constant(d, 1);
  return hn::Div(one, hn::Add(one, exp(d, hn::Neg(x))));
}

// Highway reduces arguments for |x| up to 39000 (float32) or 2^31 (float64); beyond, and for infinities, the standard function.
template <class D, class V>
HWY_INLINE V sin(D d, V x) {
  const V limit = constant(d, sizeof(T<D>) == 4 ? 30000.0 : 1e6);
  if (HWY_LIKELY(hn::AllTrue(d, hn::Lt(hn::Abs(x), limit))))
    return hn::IfThenElse(hn::Lt(hn::Abs(x), constant(d, 1e-30)), x, hn::Sin(d, x));
  return lane_by_lane(d, x, [](T<D> v) HWY_ATTR { return std::sin(v); });
}

template <class D, class V>
HWY_INLINE V cos(D d, V x) {
  const V limit = constant(d, sizeof(T<D>) == 4 ? 30000.0 : 1e6);
  if (HWY_LIKELY(hn::AllTrue(d, hn::Lt(hn::Abs(x), limit)))) return hn::Cos(d, x);
  return lane_by_lane(d, x, [](T<D> v) HWY_ATTR { return std::cos(v); });
}

// float32: x (1 + P(x^2)) up to |x| = 1, 1 - e^Q(|x|) beyond, with polynomials fitted to erf and ln erfc at Chebyshev nodes (error below
// 1e-9). float64: the standard function.
template <class D, class V>
HWY_INLINE V erf(D d, V x) {
  if constexpr (sizeof(T<D>) == 8) {
    return lane_by_lane(d, x, [](T<D> v) HWY_ATTR { return std::erf(v); });
  } else {
    const V magnitude = hn::Min(hn::Abs(x), constant(d, 4)), squared = hn::Mul(x, x);
    V p = constant(d, -9.673590989e-06);
    for (const double c : {0.0001126825396, -0.0008484396559, 0.005221053413, -0.02686543831, 0.1128378262, -0.3761263848, 0.1283791671})
      p = hn::MulAdd(p, squared, constant(d, c));
    const V near = hn::MulAdd(p, x, x);
    V q = constant(d, 1.614061634e-06);
    for (const double c :
         {-4.559062309e-05, 0.0005927695436, -0.00474022237, 0.02636471745, -0.1099782453, -0.6319370935, -1.130166676, 0.0003032130004})
      q = hn::MulAdd(q, magnitude, constant(d, c));
    const V far = hn::CopySign(hn::Sub(constant(d, 1), hn::Exp(d, q)), x);
    return hn::IfThenElse(hn::IsNaN(x), x, hn::IfThenElse(hn::Lt(magnitude, constant(d, 1)), near, far));
  }
}

// x ^ y as C's pow, one number at a time.
template <class D, class V>
HWY_INLINE V pow_of_lanes(D d, V x, V y) {
  return lane_by_lane(d, x, y, [](T<D> base, T<D> exponent) HWY_ATTR { return std::pow(base, exponent); });
}

// e ^ (y ln x) for the ordinary numbers x > 0 and y, with the product in double: its rounding is then far below what float32 can hold.
#if HWY_TARGET != HWY_SCALAR
template <class D, class V>
HWY_INLINE V power_of_ordinary(D d, V x, V y) {
  const hn::Half<D> half;
  const hn::Rebind<double, hn::Half<D>> wide;
  const auto of_half = [&](auto u, auto v) HWY_ATTR {
    const auto product = hn::Mul(hn::PromoteTo(wide, v), hn::Log(wide, hn::PromoteTo(wide, u)));
    const auto limit = hn::Set(wide, 200.0);   // e^200 is beyond float32 either way, and inside Exp's range
    return hn::DemoteTo(half, hn::Exp(wide, hn::Max(hn::Min(product, limit), hn::Neg(limit))));
  };
  return hn::Combine(d, of_half(hn::UpperHalf(half, x), hn::UpperHalf(half, y)), of_half(hn::LowerHalf(half, x), hn::LowerHalf(half, y)));
}
#endif

// x ^ y as C's pow. In float32 a vector without zeros, negative numbers, infinities and NaN takes a fast way.
template <class D, class V>
HWY_INLINE V pow(D d, V x, V y) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (sizeof(T<D>) == 4) {
    const auto largest = hn::Set(d, std::numeric_limits<float>::max());
    const auto is_ordinary = hn::And(hn::And(hn::Gt(x, hn::Zero(d)), hn::Le(x, largest)), hn::Le(hn::Abs(y), largest));
    if (hn::AllTrue(d, is_ordinary)) return power_of_ordinary(d, x, y);
  }
#endif
  return pow_of_lanes(d, x, y);
}

// Min and Max that hand on a NaN from either side, as PyTorch's.
template <class D, class V>
HWY_INLINE V max_or_nan(D, V a, V b) {
  return hn::IfThenElse(hn::Or(hn::Gt(a, b), hn::IsNaN(a)), a, b);
}
template <class D, class V>
HWY_INLINE V min_or_nan(D, V a, V b) {
  return hn::IfThenElse(hn::Or(hn::Lt(a, b), hn::IsNaN(a)), a, b);
}

}  // namespace fovea::kernels::HWY_NAMESPACE::vector_math
HWY_AFTER_NAMESPACE();
#endif
