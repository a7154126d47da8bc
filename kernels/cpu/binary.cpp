// y[i] = f(a[i], b[i]) and y[i] = f(a[i], b[i], c[i]) over contiguous runs; called by elementwise.cpp, which see for layout and
// determinism. maximum and minimum hand on NaN; remainder has the divisor's sign; comparisons with NaN are false. The *_backward rows are g
// f'(x), with f of unary.cpp.
#include <cmath>
#include <cstring>

#include <fovea/kernels/cpu/elementwise_blocks.h>
#include <fovea/kernels/cpu/wrapped.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/binary.cpp"
#include <fovea/kernels/cpu/simd.h>
#include <fovea/kernels/cpu/vector_math.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
namespace vm = vector_math;

template <class T, class F>
HWY_INLINE void for_vectors(bool streams, const void* a_data, const void* b_data, void* y_data, int64_t n, const F& f) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* a = static_cast<const T*>(a_data);
  const T* b = static_cast<const T*>(b_data);
  T* y = static_cast<T*>(y_data);
  int64_t i = 0;
  if (streams && n >= 2 * lanes) {
    hn::StoreU(f(d, hn::LoadU(d, a), hn::LoadU(d, b)), d, y);
    for (i = vm::elements_to_alignment(y, lanes); i + lanes <= n; i += lanes)
      hn::Stream(f(d, hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, y + i);
    hwy::FlushStream();
  }
  for (; i + lanes <= n; i += lanes) hn::StoreU(f(d, hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, y + i);
  if (i == n) return;
  HWY_ALIGN T a_rest[hn::MaxLanes(d)] = {}, b_rest[hn::MaxLanes(d)] = {};
  const size_t bytes = static_cast<size_t>(n - i) * sizeof(T);
  std::memcpy(a_rest, a + i, bytes);
  std::memcpy(b_rest, b + i, bytes);
  hn::Store(f(d, hn::Load(d, a_rest), hn::Load(d, b_rest)), d, a_rest);
  std::memcpy(y + i, a_rest, bytes);
}

template <class T, class F>
HWY_INLINE void for_elements(const void* a_data, const void* b_data, void* y_data, int64_t n, const F& f) {
  const T* a = static_cast<const T*>(a_data);
  const T* b = static_cast<const T*>(b_data);
  auto* y = static_cast<decltype(f(T{}, T{}))*>(y_data);
  for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
}

template <class T>
HWY_INLINE T remainder_of_sign(T a, T b) {
  const T r = std::fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

// d gelu / dx = Phi(x) + x phi(x)
template <class D, class V>
HWY_INLINE V gelu_slope(D d, V x) {
  const V half = vm::constant(d, 0.5);
  const V phi = hn::Mul(vm::constant(d, 0.39894228040143267794), vm::exp(d, hn::Mul(hn::Mul(x, x), vm::constant(d, -0.5))));
  const V cumulative = hn::MulAdd(half, vm::erf(d, hn::Mul(x, vm::constant(d, 0.70710678118654752440))), half);
  return hn::MulAdd(x, phi, cumulative);
}

// With t = tanh(k (x + c x^3)): (1 + t) / 2 + x / 2 (1 - t^2) k (1 + 3 c x^2)
template <class D, class V>
HWY_INLINE V gelu_tanh_slope(D d, V x) {
  const V half = vm::constant(d, 0.5), one = vm::constant(d, 1), k = vm::constant(d, 0.79788456080286535588), c = vm::constant(d, 0.044715);
  const V square = hn::Mul(x, x);
  const V t = vm::tanh(d, hn::Mul(k, hn::MulAdd(hn::Mul(c, square), x, x)));
  const V inner_slope = hn::Mul(k, hn::MulAdd(hn::Mul(vm::constant(d, 3), c), square, one));
  const V tail = hn::Mul(hn::Mul(half, x), hn::Mul(hn::NegMulAdd(t, t, one), inner_slope));
  return hn::Add(hn::MulAdd(half, t, half), tail);
}

// s (1 + x (1 - s)), s = sigmoid(x)
template <class D, class V>
HWY_INLINE V silu_slope(D d, V x) {
  const V one = vm::constant(d, 1), s = vm::sigmoid(d, x);
  return hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
}

template <class D, class V>
HWY_INLINE V softplus_slope(D d, V x, double beta, double threshold) {
  const V scaled = hn::Mul(x, vm::constant(d, beta));
  return hn::IfThenElse(hn::Gt(scaled, vm::constant(d, threshold)), vm::constant(d, 1), vm::sigmoid(d, scaled));
}

#define FOVEA_MAP(expression) for_vectors<T>(streams, a, b, y, n, [=](auto d, auto u, auto v) HWY_ATTR { (void)d; return expression; })
#define FOVEA_EACH(expression) for_elements<T>(a, b, y, n, [](T u, T v) HWY_ATTR { return expression; })

template <class T>
void compare(Binary op, const void* a, const void* b, void* y, int64_t n) {
  switch (op) {
    case Binary::logical_and: return FOVEA_EACH(((u != 0) & (v != 0)) != 0);
    case Binary::logical_or: return FOVEA_EACH(((u != 0) | (v != 0)) != 0);
    case Binary::logical_xor: return FOVEA_EACH((u != 0) != (v != 0));
    case Binary::equal: return FOVEA_EACH(u == v);
    case Binary::not_equal: return FOVEA_EACH(u != v);
    case Binary::less: return FOVEA_EACH(u < v);
    case Binary::less_equal: return FOVEA_EACH(u <= v);
    case Binary::greater: return FOVEA_EACH(u > v);
    default: return FOVEA_EACH(u >= v);
  }
}

template <class T>
void binary_real(Binary op, Scalars s, bool streams, const void* a, const void* b, void* y, int64_t n) {
  const double alpha = s.alpha, beta = s.beta;
  switch (op) {
    case Binary::add: return FOVEA_MAP(hn::Add(u, v));
    case Binary::subtract: return FOVEA_MAP(hn::Sub(u, v));
    case Binary::multiply: return FOVEA_MAP(hn::Mul(u, v));
    case Binary::divide: return FOVEA_MAP(hn::Div(u, v));
    case Binary::power: return FOVEA_MAP(vm::pow(d, u, v));
    case Binary::maximum: return FOVEA_MAP(vm::max_or_nan(d, u, v));
    case Binary::minimum: return FOVEA_MAP(vm::min_or_nan(d, u, v));
    case Binary::atan2: return FOVEA_EACH(std::atan2(u, v));
    case Binary::remainder: return FOVEA_EACH(remainder_of_sign(u, v));
    case Binary::relu_backward: return FOVEA_MAP(hn::IfThenZeroElse(hn::Le(v, hn::Zero(d)), u));
    case Binary::tanh_backward: return FOVEA_MAP(hn::Mul(u, hn::NegMulAdd(v, v, vm::constant(d, 1))));
    case Binary::sigmoid_backward: return FOVEA_MAP(hn::Mul(u, hn::Mul(v, hn::Sub(vm::constant(d, 1), v))));
    case Binary::gelu_backward: return FOVEA_MAP(hn::Mul(u, gelu_slope(d, v)));
    case Binary::gelu_tanh_backward: return FOVEA_MAP(hn::Mul(u, gelu_tanh_slope(d, v)));
    case Binary::silu_backward: return FOVEA_MAP(hn::Mul(u, silu_slope(d, v)));
    case Binary::softplus_backward: return FOVEA_MAP(hn::Mul(u, softplus_slope(d, v, alpha, beta)));
    case Binary::leaky_relu_backward: return FOVEA_MAP(hn::IfThenElse(hn::Gt(v, hn::Zero(d)), u, hn::Mul(u, vm::constant(d, alpha))));
    case Binary::elu_backward:
      return FOVEA_MAP(hn::IfThenElse(hn::Gt(v, hn::Zero(d)), u, hn::Mul(u, hn::Mul(vm::constant(d, alpha), vm::exp(d, v)))));
    case Binary::hardtanh_backward:
      return FOVEA_MAP(hn::IfThenZeroElse(hn::Or(hn::Le(v, vm::constant(d, alpha)), hn::Ge(v, vm::constant(d, beta))), u));
    case Binary::clamp_backward:
      return FOVEA_MAP(hn::IfThenElseZero(hn::And(hn::Ge(v, vm::constant(d, alpha)), hn::Le(v, vm::constant(d, beta))), u));
    default: return compare<T>(op, a, b, y, n);
  }
}

// Rounds towards zero; by zero gives 0, as there is no integer infinity.
int64_t integer_quotient(int64_t a, int64_t b) { return b == 0 ? 0 : b == -1 ? wrapped_subtract(0, a) : a / b; }
int64_t integer_remainder(int64_t a, int64_t b) {
  if (b == 0 || b == -1) return 0;
  const int64_t r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

void binary_int64(Binary op, Scalars, bool, const void* a, const void* b, void* y, int64_t n) {
  using T = int64_t;
  switch (op) {
    case Binary::add: return FOVEA_EACH(wrapped_add(u, v));
    case Binary::subtract: return FOVEA_EACH(wrapped_subtract(u, v));
    case Binary::multiply: return FOVEA_EACH(wrapped_multiply(u, v));
    case Binary::divide: return FOVEA_EACH(integer_quotient(u, v));
    case Binary::power: return FOVEA_EACH(integer_power(u, v));
    case Binary::maximum: return FOVEA_EACH(u > v ? u : v);
    case Binary::minimum: return FOVEA_EACH(u < v ? u : v);
    case Binary::remainder: return FOVEA_EACH(integer_remainder(u, v));
    case Binary::relu_backward: return FOVEA_EACH(v > 0 ? u : 0);
    default:
      if (yields_bool(op)) return compare<T>(op, a, b, y, n);
      fail<DTypeError>("this elementwise operation takes floating-point tensors, got integers; convert with to(x, DType::float32)");
  }
}

#undef FOVEA_MAP
#undef FOVEA_EACH

template <class T>
void where(const void* a, const void* b, const void* c, void* y, int64_t n) {
  const uint8_t* condition = static_cast<const uint8_t*>(a);
  const T* yes = static_cast<const T*>(b);
  const T* no = static_cast<const T*>(c);
  T* out = static_cast<T*>(y);
  for (int64_t i = 0; i < n; ++i) {
    const T u = yes[i], v = no[i];
    out[i] = condition[i] ? u : v;
  }
}

template <class T, class F>
HWY_INLINE void for_vectors(bool streams, const void* a_data, const void* b_data, const void* c_data, void* y_data, int64_t n, const F& f) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* a = static_cast<const T*>(a_data);
  const T* b = static_cast<const T*>(b_data);
  const T* c = static_cast<const T*>(c_data);
  T* y = static_cast<T*>(y_data);
  int64_t i = 0;
  if (streams && n >= 2 * lanes) {
    hn::StoreU(f(d, hn::LoadU(d, a), hn::LoadU(d, b), hn::LoadU(d, c)), d, y);
    i = vm::elements_to_alignment(y, lanes);
    for (; i + lanes <= n; i += lanes) hn::Stream(f(d, hn::LoadU(d, a + i), hn::LoadU(d, b + i), hn::LoadU(d, c + i)), d, y + i);
    hwy::FlushStream();
  }
  for (; i + lanes <= n; i += lanes) hn::StoreU(f(d, hn::LoadU(d, a + i), hn::LoadU(d, b + i), hn::LoadU(d, c + i)), d, y + i);
  if (i == n) return;
  HWY_ALIGN T rest[3][hn::MaxLanes(d)] = {};
  const size_t bytes = static_cast<size_t>(n - i) * sizeof(T);
  std::memcpy(rest[0], a + i, bytes);
  std::memcpy(rest[1], b + i, bytes);
  std::memcpy(rest[2], c + i, bytes);
  hn::Store(f(d, hn::Load(d, rest[0]), hn::Load(d, rest[1]), hn::Load(d, rest[2])), d, rest[0]);
  std::memcpy(y + i, rest[0], bytes);
}

// Exact at both ends, as PyTorch's: from a below 1/2, from b above.
template <class D, class V>
HWY_INLINE V lerp(D d, V a, V b, V weight) {
  const V difference = hn::Sub(b, a);
  const V from_b = hn::NegMulAdd(difference, hn::Sub(vm::constant(d, 1), weight), b);
  return hn::IfThenElse(hn::Lt(hn::Abs(weight), vm::constant(d, 0.5)), hn::MulAdd(weight, difference, a), from_b);
}

template <class T>
void ternary_real(Ternary op, Scalars s, bool streams, const void* a, const void* b, const void* c, void* y, int64_t n) {
  const double alpha = s.alpha;
  switch (op) {
    case Ternary::where: return where<T>(a, b, c, y, n);
    case Ternary::add_product:
      return for_vectors<T>(streams, a, b, c, y, n, [=](auto d, auto u, auto v, auto w) HWY_ATTR {
        return hn::MulAdd(hn::Mul(vm::constant(d, alpha), v), w, u);
      });
    case Ternary::add_quotient:
      return for_vectors<T>(streams, a, b, c, y, n, [=](auto d, auto u, auto v, auto w) HWY_ATTR {
        return hn::Add(u, hn::Div(hn::Mul(vm::constant(d, alpha), v), w));
      });
    case Ternary::lerp:
      return for_vectors<T>(streams, a, b, c, y, n, [](auto d, auto u, auto v, auto w) HWY_ATTR { return lerp(d, u, v, w); });
  }
}

void ternary_int64(Ternary op, Scalars s, bool, const void* a, const void* b, const void* c, void* y, int64_t n) {
  if (op == Ternary::where) return where<int64_t>(a, b, c, y, n);
  check<DTypeError>(op == Ternary::add_product,
                    "this elementwise operation takes floating-point tensors, got integers; convert with to(x, DType::float32)");
  const int64_t alpha = static_cast<int64_t>(s.alpha);
  const int64_t* u = static_cast<const int64_t*>(a);
  const int64_t* v = static_cast<const int64_t*>(b);
  const int64_t* w = static_cast<const int64_t*>(c);
  int64_t* out = static_cast<int64_t*>(y);
  for (int64_t i = 0; i < n; ++i) out[i] = wrapped_add(u[i], wrapped_multiply(alpha, wrapped_multiply(v[i], w[i])));
}

void binary_float32(Binary op, Scalars s, bool streams, const void* a, const void* b, void* y, int64_t n) {
  binary_real<float>(op, s, streams, a, b, y, n);
}
void binary_float64(Binary op, Scalars s, bool streams, const void* a, const void* b, void* y, int64_t n) {
  binary_real<double>(op, s, streams, a, b, y, n);
}
void ternary_float32(Ternary op, Scalars s, bool streams, const void* a, const void* b, const void* c, void* y, int64_t n) {
  ternary_real<float>(op, s, streams, a, b, c, y, n);
}
void ternary_float64(Ternary op, Scalars s, bool streams, const void* a, const void* b, const void* c, void* y, int64_t n) {
  ternary_real<double>(op, s, streams, a, b, c, y, n);
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

const Blocks<BinaryBlock>& binary_blocks() {
  static const Blocks<BinaryBlock> blocks = {FOVEA_BEST(binary_float32), FOVEA_BEST(binary_float64), FOVEA_BEST(binary_int64)};
  return blocks;
}

const Blocks<TernaryBlock>& ternary_blocks() {
  static const Blocks<TernaryBlock> blocks = {FOVEA_BEST(ternary_float32), FOVEA_BEST(ternary_float64), FOVEA_BEST(ternary_int64)};
  return blocks;
}

}  // namespace fovea::kernels
#endif
