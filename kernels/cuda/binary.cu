// y = f(a, b; alpha, beta), element by element, with the formulas of kernels/cpu/binary.cpp: maximum and minimum hand on NaN; remainder has the
// divisor's sign; comparisons with NaN are false. The *_backward rows are gradient * f'(saved value).
// Layout: any strides; operands already broadcast to y's shape. Overwrites y, which may be an operand itself. Computed in float32 (for float16 and
// bfloat16 too), float64 or int64. Deterministic. Floor: one read of each operand, one write. Which loop runs: see Note [Two loops] in elementwise.h.
#include <fovea/kernels/cuda/elementwise_functions.h>

#include <array>
#include <utility>

namespace fovea::kernels::cuda {
namespace {

template <class C>
__device__ C remainder_of_sign(C a, C b) {
  const C r = std::fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

template <class C> __device__ C sigmoid(C x) { return C(1) / (C(1) + std::exp(-x)); }

// d gelu / dx = Phi(x) + x phi(x)
template <class C>
__device__ C gelu_slope(C x) {
  const C phi = C(0.39894228040143267794) * std::exp(x * x * C(-0.5));
  const C cumulative = std::fma(C(0.5), std::erf(x * C(0.70710678118654752440)), C(0.5));
  return std::fma(x, phi, cumulative);
}

// With t = tanh(k (x + c x^3)): (1 + t) / 2 + x / 2 (1 - t^2) k (1 + 3 c x^2)
template <class C>
__device__ C gelu_tanh_slope(C x) {
  constexpr C k = C(0.79788456080286535588), c = C(0.044715);
  const C square = x * x, t = std::tanh(k * std::fma(c * square, x, x));
  const C inner_slope = k * std::fma(3 * c, square, C(1));
  const C tail = C(0.5) * x * (std::fma(-t, t, C(1)) * inner_slope);
  return std::fma(C(0.5), t, C(0.5)) + tail;
}

// s (1 + x (1 - s)), s = sigmoid(x)
template <class C>
__device__ C silu_slope(C x) {
  const C s = sigmoid(x);
  return s * std::fma(x, C(1) - s, C(1));
}

template <class C>
__device__ C softplus_slope(C x, C beta, C threshold) {
  const C scaled = x * beta;
  return scaled > threshold ? C(1) : sigmoid(scaled);
}

// u, v: a and b, or the gradient and the saved value.
template <Binary op, class C>
__device__ C real_function(C u, C v, C alpha, C beta) {
  if constexpr (op == Binary::add) return u + v;
  else if constexpr (op == Binary::subtract) return u - v;
  else if constexpr (op == Binary::multiply) return u * v;
  else if constexpr (op == Binary::divide) return u / v;
  else if constexpr (op == Binary::power) return std::pow(u, v);
  else if constexpr (op == Binary::maximum) return u > v || u != u ? u : v;
  else if constexpr (op == Binary::minimum) return u < v || u != u ? u : v;
  else if constexpr (op == Binary::atan2) return std::atan2(u, v);
  else if constexpr (op == Binary::remainder) return remainder_of_sign(u, v);
  else if constexpr (op == Binary::relu_backward) return v <= 0 ? C(0) : u;
  else if constexpr (op == Binary::tanh_backward) return u * std::fma(-v, v, C(1));
  else if constexpr (op == Binary::sigmoid_backward) return u * (v * (C(1) - v));
  else if constexpr (op == Binary::gelu_backward) return u * gelu_slope(v);
  else if constexpr (op == Binary::gelu_tanh_backward) return u * gelu_tanh_slope(v);
  else if constexpr (op == Binary::silu_backward) return u * silu_slope(v);
  else if constexpr (op == Binary::softplus_backward) return u * softplus_slope(v, alpha, beta);
  else if constexpr (op == Binary::leaky_relu_backward) return v > 0 ? u : u * alpha;
  else if constexpr (op == Binary::elu_backward) return v > 0 ? u : u * (alpha * std::exp(v));
  else if constexpr (op == Binary::hardtanh_backward) return v <= alpha || v >= beta ? C(0) : u;
  else if constexpr (op == Binary::clamp_backward) return v >= alpha && v <= beta ? u : C(0);
  else static_assert(op != op, "an operation without a formula");
}

constexpr bool takes_integers(Binary op) {
  switch (op) {
    case Binary::add: case Binary::subtract: case Binary::multiply: case Binary::divide: case Binary::power: case Binary::maximum: case Binary::minimum:
    case Binary::remainder: case Binary::relu_backward:
      return true;
    default: return yields_bool(op);
  }
}

// Rounds towards zero; by zero gives 0, as there is no integer infinity.
__device__ int64_t integer_quotient(int64_t a, int64_t b) { return b == 0 ? 0 : b == -1 ? wrapped_subtract(0, a) : a / b; }
__device__ int64_t integer_remainder(int64_t a, int64_t b) {
  if (b == 0 || b == -1) return 0;
  const int64_t r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

template <Binary op>
__device__ int64_t integer_function(int64_t u, int64_t v) {
  if constexpr (op == Binary::add) return wrapped_add(u, v);
  else if constexpr (op == Binary::subtract) return wrapped_subtract(u, v);
  else if constexpr (op == Binary::multiply) return wrapped_multiply(u, v);
  else if constexpr (op == Binary::divide) return integer_quotient(u, v);
  else if constexpr (op == Binary::power) return integer_power(u, v);
  else if constexpr (op == Binary::maximum) return u > v ? u : v;
  else if constexpr (op == Binary::minimum) return u < v ? u : v;
  else if constexpr (op == Binary::remainder) return integer_remainder(u, v);
  else if constexpr (op == Binary::relu_backward) return v > 0 ? u : 0;
  else static_assert(op != op, "an operation without a formula");
}

template <Binary op, class C>
__device__ bool test(C u, C v) {
  if constexpr (op == Binary::logical_and) return u != 0 && v != 0;
  else if constexpr (op == Binary::logical_or) return u != 0 || v != 0;
  else if constexpr (op == Binary::logical_xor) return (u != 0) != (v != 0);
  else if constexpr (op == Binary::equal) return u == v;
  else if constexpr (op == Binary::not_equal) return u != v;
  else if constexpr (op == Binary::less) return u < v;
  else if constexpr (op == Binary::less_equal) return u <= v;
  else if constexpr (op == Binary::greater) return u > v;
  else if constexpr (op == Binary::greater_equal) return u >= v;
  else static_assert(op != op, "an operation without a formula");
}

template <Binary op, class C>
struct BinaryFunction {
  C alpha, beta;
  __device__ auto operator()(C u, C v) const {
    if constexpr (yields_bool(op)) return test<op>(u, v);
    else if constexpr (std::is_integral_v<C>) return integer_function<op>(u, v);
    else return real_function<op>(u, v, alpha, beta);
  }
};

template <Binary op, class T>
void run(Queue queue, Scalars s, Loop<2>& loop) {
  using C = Compute<T>;
  if constexpr (std::is_integral_v<C> && !takes_integers(op)) {
    fail<DTypeError>("this elementwise operation takes floating-point tensors, got integers; convert with to(x, DType::float32)");
  } else {
    map<T, C, T, std::conditional_t<yields_bool(op), bool, T>>(queue, "binary", loop, BinaryFunction<op, C>{scalar<C>(s.alpha), scalar<C>(s.beta)});
  }
}

constexpr size_t num_operations = static_cast<size_t>(Binary::greater_equal) + 1;

template <class T, size_t... operations>
void run_any(Queue queue, Binary op, Scalars s, Loop<2>& loop, std::index_sequence<operations...>) {
  static constexpr std::array all = {&run<static_cast<Binary>(operations), T>...};
  all[static_cast<size_t>(op)](queue, s, loop);
}

}  // namespace

void binary(Queue queue, Binary op, Scalars s, const ConstView& a, const ConstView& b, const View& y) {
  if (y.numel() == 0) return;
  Loop<2> loop = loop_over<2>(y, {&a, &b});
  dispatch(yields_bool(op) ? a.dtype : y.dtype, [&](auto zero) { run_any<decltype(zero)>(queue, op, s, loop, std::make_index_sequence<num_operations>()); });
}

}  // namespace fovea::kernels::cuda
