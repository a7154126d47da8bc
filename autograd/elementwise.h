// Arithmetic element by element: functions of one, two and three tensors, with broadcasting (NumPy's rule), and the operators.
//
// Dtypes are promoted as in PyTorch: bool < integers < floating point; a rank-0 tensor or a number only decides between these three kinds,
// not within them. Functions that need real numbers (exp, divide, ...) turn integers into float32. Gradients are summed back over the axes
// that were broadcast.
#pragma once

#include <type_traits>

#include <fovea/autograd/tape.h>
#include <fovea/tensor/creation.h>

namespace fovea {

// A number beside a tensor, that remembers whether it was written as an integer, and then which: beyond 2^53 a double is not exact.
struct Scalar {
  double value = 0;
  int64_t integer = 0;
  bool is_integer = false;
  template <class T>
    requires std::is_arithmetic_v<T>
  Scalar(T number) : value(static_cast<double>(number)), is_integer(std::is_integral_v<T>) {
    if constexpr (std::is_integral_v<T>) integer = static_cast<int64_t>(number);
  }
  bool is_exact() const { return !is_integer || (integer >= -(int64_t{1} << 53) && integer <= int64_t{1} << 53); }
};

// --- of two tensors, or a tensor and a number ---
Tensor add(const Tensor& a, const Tensor& b);
Tensor add(const Tensor& a, Scalar b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, Scalar b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, Scalar b);
Tensor div(const Tensor& a, const Tensor& b);                 // true division: integers give float32
Tensor div(const Tensor& a, Scalar b);
Tensor pow(const Tensor& base, const Tensor& exponent);
Tensor pow(const Tensor& base, Scalar exponent);
Tensor maximum(const Tensor& a, const Tensor& b);              // NaN if either is; where equal, both get half the gradient
Tensor minimum(const Tensor& a, const Tensor& b);
Tensor atan2(const Tensor& y, const Tensor& x);
Tensor remainder(const Tensor& a, const Tensor& b);            // Python's %: the sign of b; by 0: NaN, and 0 for integers
Tensor remainder(const Tensor& a, Scalar b);

Tensor operator+(const Tensor& a, const Tensor& b);
Tensor operator+(const Tensor& a, Scalar b);
Tensor operator+(Scalar a, const Tensor& b);
Tensor operator-(const Tensor& a, const Tensor& b);
Tensor operator-(const Tensor& a, Scalar b);
Tensor operator-(Scalar a, const Tensor& b);
Tensor operator*(const Tensor& a, const Tensor& b);
Tensor operator*(const Tensor& a, Scalar b);
Tensor operator*(Scalar a, const Tensor& b);
Tensor operator/(const Tensor& a, const Tensor& b);
Tensor operator/(const Tensor& a, Scalar b);
Tensor operator/(Scalar a, const Tensor& b);
Tensor operator-(const Tensor& x);

// --- comparisons: bool tensors, without a gradient. NaN is unequal to everything. There is no operator==, because `if (a == b)` would ask
//     whether the result is defined; all(eq(a, b)) says whether two tensors are equal. ---
Tensor eq(const Tensor& a, const Tensor& b);
Tensor eq(const Tensor& a, Scalar b);
Tensor ne(const Tensor& a, const Tensor& b);
Tensor ne(const Tensor& a, Scalar b);
Tensor lt(const Tensor& a, const Tensor& b);
Tensor lt(const Tensor& a, Scalar b);
Tensor le(const Tensor& a, const Tensor& b);
Tensor le(const Tensor& a, Scalar b);
Tensor gt(const Tensor& a, const Tensor& b);
Tensor gt(const Tensor& a, Scalar b);
Tensor ge(const Tensor& a, const Tensor& b);
Tensor ge(const Tensor& a, Scalar b);
inline Tensor operator<(const Tensor& a, const Tensor& b) { return lt(a, b); }
inline Tensor operator<(const Tensor& a, Scalar b) { return lt(a, b); }
inline Tensor operator<(Scalar a, const Tensor& b) { return gt(b, a); }
inline Tensor operator<=(const Tensor& a, const Tensor& b) { return le(a, b); }
inline Tensor operator<=(const Tensor& a, Scalar b) { return le(a, b); }
inline Tensor operator<=(Scalar a, const Tensor& b) { return ge(b, a); }
inline Tensor operator>(const Tensor& a, const Tensor& b) { return gt(a, b); }
inline Tensor operator>(const Tensor& a, Scalar b) { return gt(a, b); }
inline Tensor operator>(Scalar a, const Tensor& b) { return lt(b, a); }
inline Tensor operator>=(const Tensor& a, const Tensor& b) { return ge(a, b); }
inline Tensor operator>=(const Tensor& a, Scalar b) { return ge(a, b); }
inline Tensor operator>=(Scalar a, const Tensor& b) { return le(b, a); }

// --- truth values: anything but zero is true; bool tensors, without a gradient ---
Tensor logical_and(const Tensor& a, const Tensor& b);
Tensor logical_or(const Tensor& a, const Tensor& b);
Tensor logical_xor(const Tensor& a, const Tensor& b);
Tensor logical_not(const Tensor& x);
Tensor isnan(const Tensor& x);
Tensor isfinite(const Tensor& x);

// --- of one tensor ---
Tensor neg(const Tensor& x);
Tensor abs(const Tensor& x);
Tensor sign(const Tensor& x);                                  // of NaN: 0; gradient 0
Tensor square(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor rsqrt(const Tensor& x);                                 // 1 / sqrt(x)
Tensor reciprocal(const Tensor& x);
Tensor exp(const Tensor& x);
Tensor expm1(const Tensor& x);                                 // exp(x) - 1, exact near 0
Tensor log(const Tensor& x);
Tensor log1p(const Tensor& x);                                 // log(1 + x), exact near 0
Tensor sin(const Tensor& x);
Tensor cos(const Tensor& x);
Tensor erf(const Tensor& x);
Tensor floor(const Tensor& x);                                 // gradient 0, as of the next two
Tensor ceil(const Tensor& x);
Tensor round(const Tensor& x);                                 // halves to the even neighbour
// To [low, high]; NaN stays. The gradient passes where low <= x <= high, at the bounds too, as PyTorch's (hardtanh's does not). Infinite bounds are none.
Tensor clamp(const Tensor& x, double low, double high);
Tensor clamp_min(const Tensor& x, double low);
Tensor clamp_max(const Tensor& x, double high);

// --- of three ---
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);       // condition ? a : b; condition is bool
Tensor where(const Tensor& condition, const Tensor& a, Scalar b);
Tensor where(const Tensor& condition, Scalar a, const Tensor& b);
Tensor lerp(const Tensor& start, const Tensor& end, const Tensor& weight);     // start + weight * (end - start)
Tensor lerp(const Tensor& start, const Tensor& end, double weight);
Tensor addcmul(const Tensor& x, const Tensor& a, const Tensor& b, double value = 1);   // x + value * a * b
Tensor addcdiv(const Tensor& x, const Tensor& a, const Tensor& b, double value = 1);   // x + value * a / b

// The dtype in which two tensors meet.
DType promote(const Tensor& a, const Tensor& b);
DType promote(DType a, DType b);

// --- pieces that other operations are built from ---
namespace detail {
// One table call, without a record. Inputs are broadcast; the result has dtype `result`, or that of x.
Tensor unary(const char* name, kernels::Unary op, const Tensor& x, kernels::Scalars s = {});
Tensor unary(const char* name, kernels::Unary op, const Tensor& x, DType result, kernels::Scalars s = {});
Tensor binary(const char* name, kernels::Binary op, const Tensor& a, const Tensor& b, DType result, kernels::Scalars s = {});
bool needs_grad(const Tensor& x);                              // will an operation on x be recorded because of x?
Tensor as_floating(const char* name, const Tensor& x);         // integers and bool as float32
// promote() of two arguments of operation `name` that must be there.
DType common_dtype(const char* name, const Tensor& a, const Tensor& b, const char* a_name = "a", const char* b_name = "b");
// The number as a tensor of rank 0, exactly; ValueError naming `name` if it does not fit into an integer dtype.
Tensor scalar_tensor(const char* name, Scalar s, TensorOptions options);
ConstView broadcast_view(const Tensor& x, const Shape& shape); // with zero strides where x is repeated
}  // namespace detail

}  // namespace fovea
