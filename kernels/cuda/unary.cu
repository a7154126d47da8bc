// y = f(x; alpha, beta), element by element, with the formulas of kernels/cpu/unary.cpp and its rule that NaN in gives NaN out (sign: 0).
// Layout: any strides. Overwrites y, which may be x itself. Computed in float32 (for float16 and bfloat16 too), float64 or int64. Deterministic.
// Floor: one read of x, one write of y. Which loop runs: see Note [Two loops] in elementwise.h.
#include <fovea/kernels/cuda/elementwise_functions.h>

#include <array>
#include <utility>

namespace fovea::kernels::cuda {
namespace {

template <class C>
__device__ C clamped(C x, C low, C high) {
  const C raised = x < low ? low : x;
  return raised > high ? high : raised;
}

template <class C> __device__ C sigmoid(C x) { return C(1) / (C(1) + std::exp(-x)); }

template <class C>
__device__ C gelu(C x) {
  const C half_x = x * C(0.5);
  return std::fma(half_x, std::erf(x * C(0.70710678118654752440)), half_x);
}

template <class C>
__device__ C gelu_tanh(C x) {
  const C inner = C(0.79788456080286535588) * std::fma(C(0.044715), x * x * x, x), half_x = x * C(0.5);
  return std::fma(half_x, std::tanh(inner), half_x);
}

template <class C>
__device__ C softplus(C x, C beta, C threshold) {
  const C scaled = x * beta;
  return scaled > threshold ? x : std::log1p(std::exp(scaled)) / beta;
}

template <class C>
__device__ C pow_scalar(C x, C exponent) {
  if (exponent == 2) return x * x;
  if (exponent == 3) return x * x * x;
  if (exponent == -1) return C(1) / x;
  return std::pow(x, exponent);
}

template <Unary op, class C>
__device__ C real_function(C v, C alpha, C beta) {
  if constexpr (op == Unary::negative) return -v;
  else if constexpr (op == Unary::absolute) return std::fabs(v);
  else if constexpr (op == Unary::sign) return static_cast<C>((v > 0) - (v < 0));
  else if constexpr (op == Unary::square) return v * v;
  else if constexpr (op == Unary::sqrt) return std::sqrt(v);
  else if constexpr (op == Unary::rsqrt) return C(1) / std::sqrt(v);
  else if constexpr (op == Unary::reciprocal) return C(1) / v;
  else if constexpr (op == Unary::exp) return std::exp(v);
  else if constexpr (op == Unary::expm1) return std::expm1(v);
  else if constexpr (op == Unary::log) return std::log(v);
  else if constexpr (op == Unary::log1p) return std::log1p(v);
  else if constexpr (op == Unary::sin) return std::sin(v);
  else if constexpr (op == Unary::cos) return std::cos(v);
  else if constexpr (op == Unary::tanh) return std::tanh(v);
  else if constexpr (op == Unary::sigmoid) return sigmoid(v);
  else if constexpr (op == Unary::erf) return std::erf(v);
  else if constexpr (op == Unary::floor) return std::floor(v);
  else if constexpr (op == Unary::ceil) return std::ceil(v);
  else if constexpr (op == Unary::round) return std::rint(v);
  else if constexpr (op == Unary::relu) return v < 0 ? C(0) : v;
  else if constexpr (op == Unary::relu6) return clamped(v, C(0), C(6));
  else if constexpr (op == Unary::gelu) return gelu(v);
  else if constexpr (op == Unary::gelu_tanh) return gelu_tanh(v);
  else if constexpr (op == Unary::silu) return v / (C(1) + std::exp(-v));
  else if constexpr (op == Unary::softplus) return softplus(v, alpha, beta);
  else if constexpr (op == Unary::leaky_relu) return v > 0 ? v : v * alpha;
  else if constexpr (op == Unary::elu) return v > 0 ? v : alpha * std::expm1(v);
  else if constexpr (op == Unary::hardtanh || op == Unary::clamp) return clamped(v, alpha, beta);
  else if constexpr (op == Unary::add_scalar) return v + alpha;
  else if constexpr (op == Unary::mul_scalar) return v * alpha;
  else if constexpr (op == Unary::rsub_scalar) return alpha - v;
  else if constexpr (op == Unary::rdiv_scalar) return alpha / v;
  else if constexpr (op == Unary::pow_scalar) return pow_scalar(v, alpha);
  else static_assert(op != op, "an operation without a formula");
}

constexpr bool takes_integers(Unary op) {
  switch (op) {
    case Unary::negative: case Unary::absolute: case Unary::sign: case Unary::square: case Unary::floor: case Unary::ceil: case Unary::round: case Unary::relu:
    case Unary::relu6: case Unary::hardtanh: case Unary::clamp: case Unary::add_scalar: case Unary::mul_scalar: case Unary::rsub_scalar: case Unary::pow_scalar:
      return true;
    default: return yields_bool(op);
  }
}

template <Unary op>
__device__ int64_t integer_function(int64_t v, int64_t alpha, int64_t beta) {
  if constexpr (op == Unary::negative) return wrapped_subtract(0, v);
  else if constexpr (op == Unary::absolute) return v < 0 ? wrapped_subtract(0, v) : v;
  else if constexpr (op == Unary::sign) return (v > 0) - (v < 0);
  else if constexpr (op == Unary::square) return wrapped_multiply(v, v);
  else if constexpr (op == Unary::relu) return v < 0 ? 0 : v;
  else if constexpr (op == Unary::relu6) return clamped<int64_t>(v, 0, 6);
  else if constexpr (op == Unary::hardtanh || op == Unary::clamp) return clamped(v, alpha, beta);
  else if constexpr (op == Unary::add_scalar) return wrapped_add(v, alpha);
  else if constexpr (op == Unary::mul_scalar) return wrapped_multiply(v, alpha);
  else if constexpr (op == Unary::rsub_scalar) return wrapped_subtract(alpha, v);
  else if constexpr (op == Unary::pow_scalar) return integer_power(v, alpha);
  else return v;                                              // floor, ceil, round
}

template <Unary op, class C>
__device__ bool test(C v) {
  if constexpr (op == Unary::logical_not) return v == 0;
  else if constexpr (std::is_integral_v<C>) return op == Unary::is_finite;
  else if constexpr (op == Unary::is_nan) return v != v;
  else return v - v == 0;
}

template <Unary op, class C>
struct UnaryFunction {
  C alpha, beta;
  __device__ auto operator()(C v) const {
    if constexpr (yields_bool(op)) return test<op>(v);
    else if constexpr (std::is_integral_v<C>) return integer_function<op>(v, alpha, beta);
    else return real_function<op>(v, alpha, beta);
  }
};

template <Unary op, class T>
void run(Queue queue, Scalars s, Loop<1>& loop) {
  using C = Compute<T>;
  if constexpr (std::is_integral_v<C> && !takes_integers(op)) {
    fail<DTypeError>("this elementwise operation takes floating-point tensors, got an integer one; convert with to(x, DType::float32)");
  } else {
    map<T, C, T, std::conditional_t<yields_bool(op), bool, T>>(queue, "unary", loop, UnaryFunction<op, C>{scalar<C>(s.alpha), scalar<C>(s.beta)});
  }
}

constexpr size_t num_operations = static_cast<size_t>(Unary::is_finite) + 1;

template <class T, size_t... operations>
void run_any(Queue queue, Unary op, Scalars s, Loop<1>& loop, std::index_sequence<operations...>) {
  static constexpr std::array all = {&run<static_cast<Unary>(operations), T>...};
  all[static_cast<size_t>(op)](queue, s, loop);
}

}  // namespace

void unary(Queue queue, Unary op, Scalars s, const ConstView& x, const View& y) {
  if (y.numel() == 0) return;
  Loop<1> loop = loop_over<1>(y, {&x});
  dispatch(yields_bool(op) ? x.dtype : y.dtype, [&](auto zero) { run_any<decltype(zero)>(queue, op, s, loop, std::make_index_sequence<num_operations>()); });
}

}  // namespace fovea::kernels::cuda
