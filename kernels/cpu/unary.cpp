// y[i] = f(x[i]) over contiguous runs; called by elementwise.cpp, which see for layout and determinism. NaN in gives NaN out (sign: 0), as
// PyTorch. Formulas: gelu x Phi(x) (Hendrycks & Gimpel 2016), gelu_tanh their tanh approximation; silu x sigmoid(x); softplus ln(1 +
// e^(alpha x)) / alpha, linear where alpha x > beta; elu alpha (e^x - 1) below zero. Error against float64, in units of the last place: see
// tests/elementwise_accuracy_test.cpp.
#include <cmath>
#include <cstring>

#include <fovea/kernels/cpu/elementwise_blocks.h>
#include <fovea/kernels/cpu/wrapped.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/unary.cpp"
#include <fovea/kernels/cpu/simd.h>
#include <fovea/kernels/cpu/vector_math.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
namespace vm = vector_math;

// f on whole vectors; the rest goes through one padded vector, so every element takes the same path.
template <class T, class F>
HWY_INLINE void for_vectors(bool streams, const void* x_data, void* y_data, int64_t n, const F& f) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* x = static_cast<const T*>(x_data);
  T* y = static_cast<T*>(y_data);
  int64_t i = 0;
  if (streams && n >= 2 * lanes) {
    hn::StoreU(f(d, hn::LoadU(d, x)), d, y);
    for (i = vm::elements_to_alignment(y, lanes); i + lanes <= n; i += lanes) hn::Stream(f(d, hn::LoadU(d, x + i)), d, y + i);
    hwy::FlushStream();
  }
  for (; i + lanes <= n; i += lanes) hn::StoreU(f(d, hn::LoadU(d, x + i)), d, y + i);
  if (i == n) return;
  HWY_ALIGN T rest[hn::MaxLanes(d)] = {};
  const size_t bytes = static_cast<size_t>(n - i) * sizeof(T);
  std::memcpy(rest, x + i, bytes);
  hn::Store(f(d, hn::Load(d, rest)), d, rest);
  std::memcpy(y + i, rest, bytes);
}

template <class T, class F>
HWY_INLINE void for_elements(const void* x_data, void* y_data, int64_t n, const F& f) {
  const T* x = static_cast<const T*>(x_data);
  auto* y = static_cast<decltype(f(T{}))*>(y_data);
  for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

template <class D, class V>
HWY_INLINE V gelu(D d, V x) {
  const V half_x = hn::Mul(x, vm::constant(d, 0.5));
  return hn::MulAdd(half_x, vm::erf(d, hn::Mul(x, vm::constant(d, 0.70710678118654752440))), half_x);
}

template <class D, class V>
HWY_INLINE V gelu_tanh(D d, V x) {
  const V cube = hn::Mul(hn::Mul(x, x), x);
  const V inner = hn::Mul(vm::constant(d, 0.79788456080286535588), hn::MulAdd(vm::constant(d, 0.044715), cube, x));
  const V half_x = hn::Mul(x, vm::constant(d, 0.5));
  return hn::MulAdd(half_x, vm::tanh(d, inner), half_x);
}

template <class D, class V>
HWY_INLINE V softplus(D d, V x, double beta, double threshold) {
  const V scaled = hn::Mul(x, vm::constant(d, beta));
  const V curved = hn::Div(vm::log1p(d, vm::exp(d, scaled)), vm::constant(d, beta));
  return hn::IfThenElse(hn::Gt(scaled, vm::constant(d, threshold)), x, curved);
}

template <class D, class V>
HWY_INLINE V clamp(D d, V x, double low, double high) {
  const V lo = vm::constant(d, low), hi = vm::constant(d, high);
  x = hn::IfThenElse(hn::Lt(x, lo), lo, x);
  return hn::IfThenElse(hn::Gt(x, hi), hi, x);
}

// x ^ 0.5 as C's pow, which differs from the square root at -0 and -infinity.
template <class D, class V>
HWY_INLINE V half_power(D d, V x) {
  const V infinity = vm::infinity(d);
  return hn::IfThenElse(hn::Eq(x, hn::Neg(infinity)), infinity, hn::Sqrt(hn::Add(x, hn::Zero(d))));
}

template <class D, class V>
HWY_INLINE V pow_scalar(D d, V x, double exponent) {
  if (exponent == 2) return hn::Mul(x, x);
  if (exponent == 3) return hn::Mul(hn::Mul(x, x), x);
  if (exponent == -1) return hn::Div(vm::constant(d, 1), x);
  if (exponent == 0.5) return half_power(d, x);
  if (exponent == -0.5) return hn::Div(vm::constant(d, 1), half_power(d, x));
  return vm::pow(d, x, vm::constant(d, exponent));
}

#define FOVEA_MAP(expression) for_vectors<T>(streams, x, y, n, [=](auto d, auto v) HWY_ATTR { (void)d; return expression; })
#define FOVEA_TEST(expression) for_elements<T>(x, y, n, [](T v) HWY_ATTR -> bool { return expression; })

template <class T>
void unary_real(Unary op, Scalars s, bool streams, const void* x, void* y, int64_t n) {
  const double alpha = s.alpha, beta = s.beta;
  switch (op) {
    case Unary::negative: return FOVEA_MAP(hn::Neg(v));
    case Unary::absolute: return FOVEA_MAP(hn::Abs(v));
    case Unary::sign:
      return FOVEA_MAP(hn::Sub(hn::IfThenElseZero(hn::Gt(v, hn::Zero(d)), vm::constant(d, 1)),
                               hn::IfThenElseZero(hn::Lt(v, hn::Zero(d)), vm::constant(d, 1))));
    case Unary::square: return FOVEA_MAP(hn::Mul(v, v));
    case Unary::sqrt: return FOVEA_MAP(hn::Sqrt(v));
    case Unary::rsqrt: return FOVEA_MAP(hn::Div(vm::constant(d, 1), hn::Sqrt(v)));
    case Unary::reciprocal: return FOVEA_MAP(hn::Div(vm::constant(d, 1), v));
    case Unary::exp: return FOVEA_MAP(vm::exp(d, v));
    case Unary::expm1: return FOVEA_MAP(vm::expm1(d, v));
    case Unary::log: return FOVEA_MAP(vm::log(d, v));
    case Unary::log1p: return FOVEA_MAP(vm::log1p(d, v));
    case Unary::sin: return FOVEA_MAP(vm::sin(d, v));
    case Unary::cos: return FOVEA_MAP(vm::cos(d, v));
    case Unary::tanh: return FOVEA_MAP(vm::tanh(d, v));
    case Unary::sigmoid: return FOVEA_MAP(vm::sigmoid(d, v));
    case Unary::erf: return FOVEA_MAP(vm::erf(d, v));
    case Unary::floor: return FOVEA_MAP(hn::Floor(v));
    case Unary::ceil: return FOVEA_MAP(hn::Ceil(v));
    case Unary::round: return FOVEA_MAP(hn::Round(v));
    case Unary::relu: return FOVEA_MAP(hn::IfThenZeroElse(hn::Lt(v, hn::Zero(d)), v));
    case Unary::relu6: return FOVEA_MAP(clamp(d, v, 0, 6));
    case Unary::gelu: return FOVEA_MAP(gelu(d, v));
    case Unary::gelu_tanh: return FOVEA_MAP(gelu_tanh(d, v));
    case Unary::silu: return FOVEA_MAP(hn::Div(v, hn::Add(vm::constant(d, 1), vm::exp(d, hn::Neg(v)))));
    case Unary::softplus: return FOVEA_MAP(softplus(d, v, alpha, beta));
    case Unary::leaky_relu: return FOVEA_MAP(hn::IfThenElse(hn::Gt(v, hn::Zero(d)), v, hn::Mul(v, vm::constant(d, alpha))));
    case Unary::elu: return FOVEA_MAP(hn::IfThenElse(hn::Gt(v, hn::Zero(d)), v, hn::Mul(vm::constant(d, alpha), vm::expm1(d, v))));
    case Unary::hardtanh:
    case Unary::clamp: return FOVEA_MAP(clamp(d, v, alpha, beta));
    case Unary::add_scalar: return FOVEA_MAP(hn::Add(v, vm::constant(d, alpha)));
    case Unary::mul_scalar: return FOVEA_MAP(hn::Mul(v, vm::constant(d, alpha)));
    case Unary::rsub_scalar: return FOVEA_MAP(hn::Sub(vm::constant(d, alpha), v));
    case Unary::rdiv_scalar: return FOVEA_MAP(hn::Div(vm::constant(d, alpha), v));
    case Unary::pow_scalar: return FOVEA_MAP(pow_scalar(d, v, alpha));
    case Unary::logical_not: return FOVEA_TEST(v == 0);
    case Unary::is_nan: return FOVEA_TEST(v != v);
    case Unary::is_finite: return FOVEA_TEST(v - v == 0);
  }
}

void unary_int64(Unary op, Scalars s, bool, const void* x, void* y, int64_t n) {
  using T = int64_t;
  const auto whole = [](double value) { return value >= 0x1p63 ? INT64_MAX : value >= -0x1p63 ? static_cast<int64_t>(value) : INT64_MIN; };
  const int64_t alpha = whole(s.alpha), beta = whole(s.beta);
  switch (op) {
    case Unary::negative: return for_elements<T>(x, y, n, [](T v) HWY_ATTR { return wrapped_multiply(v, -1); });
    case Unary::absolute: return for_elements<T>(x, y, n, [](T v) HWY_ATTR { return v < 0 ? wrapped_multiply(v, -1) : v; });
    case Unary::sign: return for_elements<T>(x, y, n, [](T v) HWY_ATTR { return static_cast<T>((v > 0) - (v < 0)); });
    case Unary::square: return for_elements<T>(x, y, n, [](T v) HWY_ATTR { return wrapped_multiply(v, v); });
    case Unary::floor:
    case Unary::ceil:
    case Unary::round: return for_elements<T>(x, y, n, [](T v) HWY_ATTR { return v; });
    case Unary::relu: return for_elements<T>(x, y, n, [](T v) HWY_ATTR { return v < 0 ? 0 : v; });
    case Unary::relu6: return for_elements<T>(x, y, n, [](T v) HWY_ATTR { return v < 0 ? 0 : v > 6 ? 6 : v; });
    case Unary::hardtanh:
    case Unary::clamp:
      return for_elements<T>(x, y, n, [=](T v) HWY_ATTR {
        const T raised = v < alpha ? alpha : v;
        return raised > beta ? beta : raised;
      });
    case Unary::add_scalar: return for_elements<T>(x, y, n, [=](T v) HWY_ATTR { return wrapped_add(v, alpha); });
    case Unary::mul_scalar: return for_elements<T>(x, y, n, [=](T v) HWY_ATTR { return wrapped_multiply(v, alpha); });
    case Unary::rsub_scalar: return for_elements<T>(x, y, n, [=](T v) HWY_ATTR { return wrapped_add(alpha, wrapped_multiply(v, -1)); });
    case Unary::pow_scalar: return for_elements<T>(x, y, n, [=](T v) HWY_ATTR { return integer_power(v, alpha); });
    case Unary::logical_not: return FOVEA_TEST(v == 0);
    case Unary::is_nan: return FOVEA_TEST((void(v), false));
    case Unary::is_finite: return FOVEA_TEST((void(v), true));
    default:
      fail<DTypeError>("this elementwise operation takes floating-point tensors, got an integer one; convert with to(x, DType::float32)");
  }
}

#undef FOVEA_MAP
#undef FOVEA_TEST

void unary_float32(Unary op, Scalars s, bool streams, const void* x, void* y, int64_t n) { unary_real<float>(op, s, streams, x, y, n); }
void unary_float64(Unary op, Scalars s, bool streams, const void* x, void* y, int64_t n) { unary_real<double>(op, s, streams, x, y, n); }

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

const Blocks<UnaryBlock>& unary_blocks() {
  static const Blocks<UnaryBlock> blocks = {FOVEA_BEST(unary_float32), FOVEA_BEST(unary_float64), FOVEA_BEST(unary_int64)};
  return blocks;
}

}  // namespace fovea::kernels
#endif
