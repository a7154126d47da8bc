#include <fovea/autograd/elementwise.h>

#include <cmath>
#include <limits>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {

using kernels::Binary;
using kernels::Scalars;
using kernels::Ternary;
using kernels::Unary;

namespace detail {

bool needs_grad(const Tensor& x) { return grad_mode() && x.requires_grad(); }

Tensor as_floating(const char* name, const Tensor& x) {
  return is_floating(check_defined(name, "x", x).dtype()) ? autocast(name, x) : to(x, DType::float32);
}

DType common_dtype(const char* name, const Tensor& a, const Tensor& b, const char* a_name, const char* b_name) {
  return promote(check_defined(name, a_name, a), check_defined(name, b_name, b));
}

Tensor scalar_tensor(const char* name, Scalar s, TensorOptions options) {
  // Only integers that a double can't hold come from host memory: the copy can't be recorded in a graph.
  if (!s.is_exact() && options.dtype == DType::int64) return from_vector(std::vector<int64_t>{s.integer}, Shape{}, options.device);
  check_fits(name, s.value, options.dtype);
  return scalar(s.value, options);
}

ConstView broadcast_view(const Tensor& x, const Shape& shape) {
  ConstView v = x.view();
  if (v.shape == shape) return v;
  Strides strides = Shape::filled(shape.rank(), 0);
  const int added = shape.rank() - v.shape.rank();
  for (int i = 0; i < v.shape.rank(); ++i)
    if (v.shape[i] != 1) strides[i + added] = v.strides[i];
  v.shape = shape;
  v.strides = strides;
  return v;
}

Tensor unary(const char* name, Unary op, const Tensor& x, Scalars s) { return unary(name, op, x, check_defined(name, "x", x).dtype(), s); }

Tensor unary(const char* name, Unary op, const Tensor& x, DType result, Scalars s) {
  check_defined(name, "x", x);
  Tensor y = empty_for(x.shape(), {result, x.device()}, {x});
  table_of(x).unary(queue_of(x), op, s, x.view(), y.mutable_view());
  return y;
}

Tensor binary(const char* name, Binary op, const Tensor& a, const Tensor& b, DType result, Scalars s) {
  check<DeviceError>(a.device() == b.device(), name, ": a is on ", a.device(), " but b is on ", b.device(),
                     "; move one with to(x, device)");
  if (a.shape() == b.shape()) {
    Tensor y = empty_for(a.shape(), {result, a.device()}, {a, b});
    table_of(a).binary(queue_of(a), op, s, a.view(), b.view(), y.mutable_view());
    return y;
  }
  const Shape shape = broadcast_shapes(a.shape(), b.shape(), name);
  Tensor y = empty_for(shape, {result, a.device()}, {a, b});
  table_of(a).binary(queue_of(a), op, s, broadcast_view(a, shape), broadcast_view(b, shape), y.mutable_view());
  return y;
}

}  // namespace detail

namespace {

using detail::as_floating;
using detail::check_defined;
using detail::common_dtype;
using detail::kind_of;
using detail::needs_grad;

DType common_dtype(const char* name, const Tensor& x, Scalar s, const char* x_name = "a") {
  return detail::dtype_beside(check_defined(name, x_name, x), s.is_integer);
}

// g summed to the shape of input i, or nothing if nobody wants it.
template <class F>
Tensor gradient_for(const Saved& s, int input, const Shape& shape, const F& f) {
  return s.needs(input) ? sum_to(f(), shape) : Tensor();
}

Tensor saved_if(bool is_needed, const Tensor& x) { return is_needed ? x : Tensor(); }

Tensor compare(const char* name, Binary op, const Tensor& a, const Tensor& b) {
  const cuda::Range range(name);
  const DType dtype = common_dtype(name, a, b);
  return detail::binary(name, op, to(a.detach(), dtype), to(b.detach(), dtype), DType::boolean);
}

Tensor compare(const char* name, Binary op, const Tensor& a, Scalar b) {
  const cuda::Range range(name);
  DType dtype = common_dtype(name, a, b);
  if (!is_floating(dtype) && !detail::fits(b.value, dtype)) dtype = DType::int64;      // 300 is above every uint8
  return detail::binary(name, op, to(a.detach(), dtype), detail::scalar_tensor(name, b, {dtype, a.device()}), DType::boolean);
}

// Arithmetic with the number in the kernel goes through a double; an integer that a double cannot hold goes as a tensor beside int64.
bool needs_tensor(const Tensor& a, Scalar s) { return !s.is_exact() && a.dtype() == DType::int64; }

Tensor as_tensor(const char* name, const Tensor& a, Scalar s) { return detail::scalar_tensor(name, s, {a.dtype(), a.device()}); }

// The share of the gradient that a gets from maximum (is_max) or minimum of a and b: all, half or none.
Tensor share_of_first(const Tensor& a, const Tensor& b, bool is_max) {
  const Tensor wins = to(is_max ? gt(a, b) : lt(a, b), a.dtype());
  return add(wins, mul(to(eq(a, b), a.dtype()), 0.5));
}

Tensor extreme(const char* name, Binary op, const Tensor& a0, const Tensor& b0, bool is_max) {
  const cuda::Range range(name);
  const DType dtype = common_dtype(name, a0, b0);
  const Tensor a = to(a0, dtype), b = to(b0, dtype);
  return record(name, detail::binary(name, op, a, b, dtype), {a, b}, saving(a, b), [is_max](const Saved& s, const Tensor& g) {
    const Tensor x = s[0], y = s[1];
    return grads(gradient_for(s, 0, x.shape(), [&] { return mul(g, share_of_first(x, y, is_max)); }),
                 gradient_for(s, 1, y.shape(), [&] { return mul(g, share_of_first(y, x, is_max)); }));
  });
}

// y = f(x) computed in floating point, whose gradient is f'(x, y) g.
template <class F>
Tensor real_function(const char* name, Unary op, const Tensor& x0, bool saves_x, bool saves_y, F slope_times) {
  const cuda::Range range(name);
  const Tensor x = as_floating(name, x0);
  const Tensor y = detail::unary(name, op, x);
  return record(name, y, {x}, saving(saved_if(saves_x, x), saved_if(saves_y, y)),
                [slope_times](const Saved& s, const Tensor& g) { return grads(slope_times(s, g)); });
}

// A function that is constant almost everywhere; integers stay as they are.
Tensor step_function(const char* name, Unary op, const Tensor& x) {
  const cuda::Range range(name);
  return record(name, detail::unary(name, op, x), {x}, saving(), [](const Saved&, const Tensor& g) { return grads(zeros_like(g)); });
}

// a * x + b of constants, whose gradient is a g.
Tensor scaled(const char* name, Unary op, const Tensor& x, double value, double slope) {
  return record(name, detail::unary(name, op, x, {value, 0}), {x}, saving(),
                [slope](const Saved&, const Tensor& g) { return grads(slope == 1 ? g : mul(g, slope)); });
}

Tensor clamp_backward(const Tensor& g, const Tensor& x, double low, double high) {
  return record("clamp_backward", detail::binary("clamp_backward", Binary::clamp_backward, g, x, g.dtype(), {low, high}), {g, x},
                saving(x), [low, high](const Saved& s, const Tensor& gg) { return grads(clamp_backward(gg, s[0], low, high), Tensor()); });
}

Tensor clamped(const char* name, const Tensor& x, double low, double high) {
  const cuda::Range range(name);
  check<ValueError>(!std::isnan(low) && !std::isnan(high), name, ": the bounds cannot be NaN");
  return record(name, detail::unary(name, Unary::clamp, x, {low, high}), {x}, saving(x),
                [low, high](const Saved& s, const Tensor& g) { return grads(clamp_backward(g, s[0], low, high)); });
}

Tensor ternary(const char* name, Ternary op, const Tensor& a, const Tensor& b, const Tensor& c, Scalars s) {
  check<DeviceError>(a.device() == b.device() && b.device() == c.device(), name, ": the arguments are on ", a.device(), ", ", b.device(),
                     " and ", c.device(), "; move them together with to(x, device)");
  const Shape shape = broadcast_shapes(broadcast_shapes(a.shape(), b.shape(), name), c.shape(), name);
  Tensor y = detail::empty_for(shape, {c.dtype(), a.device()}, {a, b, c});
  table_of(a).ternary(queue_of(a), op, s, detail::broadcast_view(a, shape), detail::broadcast_view(b, shape),
                      detail::broadcast_view(c, shape), y.mutable_view());
  return y;
}

}  // namespace

// --- dtypes ---

DType promote(DType a, DType b) {
  if (a == b) return a;
  if (kind_of(a) != kind_of(b)) return kind_of(a) > kind_of(b) ? a : b;
  if (size_of(a) != size_of(b)) return size_of(a) > size_of(b) ? a : b;
  return DType::float32;                       // float16 and bfloat16
}

DType promote(const Tensor& a, const Tensor& b) {
  if (a.dtype() == b.dtype()) return a.dtype();
  if (a.rank() > 0 && b.rank() == 0 && kind_of(b.dtype()) <= kind_of(a.dtype())) return a.dtype();
  if (b.rank() > 0 && a.rank() == 0 && kind_of(a.dtype()) <= kind_of(b.dtype())) return b.dtype();
  return promote(a.dtype(), b.dtype());
}

// --- arithmetic ---

Tensor add(const Tensor& a0, const Tensor& b0) {
  const cuda::Range range("add");
  const DType dtype = common_dtype("add", a0, b0);
  const Tensor a = to(a0, dtype), b = to(b0, dtype);
  return record("add", detail::binary("add", Binary::add, a, b, dtype), {a, b}, saving(),
                [sa = a.shape(), sb = b.shape()](const Saved& s, const Tensor& g) {
                  return grads(gradient_for(s, 0, sa, [&] { return g; }), gradient_for(s, 1, sb, [&] { return g; }));
                });
}

Tensor sub(const Tensor& a0, const Tensor& b0) {
  const cuda::Range range("sub");
  const DType dtype = common_dtype("sub", a0, b0);
  check<DTypeError>(dtype != DType::boolean, "sub: takes numbers, got two bool tensors; use logical_xor, or logical_not");
  const Tensor a = to(a0, dtype), b = to(b0, dtype);
  return record("sub", detail::binary("sub", Binary::subtract, a, b, dtype), {a, b}, saving(),
                [sa = a.shape(), sb = b.shape()](const Saved& s, const Tensor& g) {
                  return grads(gradient_for(s, 0, sa, [&] { return g; }), s.needs(1) ? neg(sum_to(g, sb)) : Tensor());
                });
}

Tensor mul(const Tensor& a0, const Tensor& b0) {
  const cuda::Range range("mul");
  const DType dtype = common_dtype("mul", a0, b0);
  const Tensor a = to(a0, dtype), b = to(b0, dtype);
  const Tensor y = detail::binary("mul", Binary::multiply, a, b, dtype);
  return record("mul", y, {a, b}, saving(saved_if(needs_grad(b), a), saved_if(needs_grad(a), b)),
                [sa = a.shape(), sb = b.shape()](const Saved& s, const Tensor& g) {
    return grads(gradient_for(s, 0, sa, [&] { return mul(g, s[1]); }), gradient_for(s, 1, sb, [&] { return mul(g, s[0]); }));
  });
}

Tensor div(const Tensor& a0, const Tensor& b0) {
  const cuda::Range range("div");
  const DType common = common_dtype("div", a0, b0), dtype = is_floating(common) ? common : DType::float32;
  const Tensor a = to(a0, dtype), b = to(b0, dtype);
  const Tensor y = detail::binary("div", Binary::divide, a, b, dtype);
  return record("div", y, {a, b}, saving(saved_if(needs_grad(b), a), b), [sa = a.shape(), sb = b.shape()](const Saved& s, const Tensor& g) {
    const Tensor divisor = s[1];
    return grads(gradient_for(s, 0, sa, [&] { return div(g, divisor); }),
                 gradient_for(s, 1, sb, [&] { return mul(neg(g), div(div(s[0], divisor), divisor)); }));
  });
}

Tensor add(const Tensor& a0, Scalar b) {
  const cuda::Range range("add");
  const Tensor a = to(a0, common_dtype("add", a0, b));
  return needs_tensor(a, b) ? add(a, as_tensor("add", a, b)) : scaled("add", Unary::add_scalar, a, b.value, 1);
}
Tensor sub(const Tensor& a0, Scalar b) {
  const cuda::Range range("sub");
  const Tensor a = to(a0, common_dtype("sub", a0, b));
  return needs_tensor(a, b) ? sub(a, as_tensor("sub", a, b)) : scaled("sub", Unary::add_scalar, a, -b.value, 1);
}
Tensor mul(const Tensor& a0, Scalar b) {
  const cuda::Range range("mul");
  const Tensor a = to(a0, common_dtype("mul", a0, b));
  return needs_tensor(a, b) ? mul(a, as_tensor("mul", a, b)) : scaled("mul", Unary::mul_scalar, a, b.value, b.value);
}

namespace {

// Whether a * (1 / b) is a / b for every a that is not of a half type: b is a power of two, and not so far from 1 that a power of it leaves float32's range.
bool has_exact_reciprocal(const Tensor& a, double b) {
  int exponent = 0;
  return std::abs(std::frexp(b, &exponent)) == 0.5 && std::abs(exponent) < 64 && !detail::is_half(a);
}

}  // namespace

Tensor div(const Tensor& a0, Scalar b) {
  const cuda::Range range("div");
  const Tensor a = as_floating("div", a0);
  if (has_exact_reciprocal(a, b.value)) return scaled("div", Unary::mul_scalar, a, 1 / b.value, 1 / b.value);      // one kernel instead of two
  const Tensor divisor = scalar(b.value, {a.dtype(), a.device()});   // not a * (1 / b), which rounds twice
  return record("div", detail::binary("div", Binary::divide, a, divisor, a.dtype()), {a}, saving(),
                [b](const Saved&, const Tensor& g) { return grads(div(g, b)); });
}

Tensor pow(const Tensor& a0, const Tensor& b0) {
  const cuda::Range range("pow");
  if (const detail::Cast cast("pow", {}, {a0, b0}); cast) return pow(cast(a0), cast(b0));
  const DType dtype = common_dtype("pow", a0, b0, "base", "exponent");
  const Tensor a = to(a0, dtype), b = to(b0, dtype);
  const Tensor y = detail::binary("pow", Binary::power, a, b, dtype);
  return record("pow", y, {a, b}, saving(a, b, saved_if(needs_grad(b), y)), [](const Saved& s, const Tensor& g) {
    const Tensor base = s[0], exponent = s[1];
    return grads(
        gradient_for(s, 0, base.shape(), [&] { return where(eq(exponent, 0), 0, mul(g, mul(exponent, pow(base, sub(exponent, 1))))); }),
        gradient_for(s, 1, exponent.shape(), [&] {  // 0 ^ b is 0 near any b > 0
          return where(logical_and(eq(base, 0), ge(exponent, 0)), 0, mul(g, mul(s[2], log(base))));
        }));
  });
}

Tensor pow(const Tensor& a, Scalar exponent) {
  const cuda::Range range("pow");
  const Tensor x = detail::autocast("pow", to(a, common_dtype("pow", a, exponent, "base")));
  check<ValueError>(is_floating(x.dtype()) || exponent.value >= 0, "pow: integers cannot be raised to the negative power ", exponent.value,
                    "; convert with to(x, DType::float32)");
  const double p = exponent.value;
  return record("pow", detail::unary("pow", Unary::pow_scalar, x, {p, 0}), {x}, saving(x), [p](const Saved& s, const Tensor& g) {
    if (p == 0) return grads(zeros_like(g));
    return grads(mul(g, mul(pow(s[0], p - 1), p)));
  });
}

Tensor maximum(const Tensor& a, const Tensor& b) { return extreme("maximum", Binary::maximum, a, b, true); }
Tensor minimum(const Tensor& a, const Tensor& b) { return extreme("minimum", Binary::minimum, a, b, false); }

Tensor atan2(const Tensor& y0, const Tensor& x0) {
  const cuda::Range range("atan2");
  const DType common = common_dtype("atan2", y0, x0, "y", "x"), dtype = is_floating(common) ? common : DType::float32;
  const Tensor y = to(y0, dtype), x = to(x0, dtype);
  return record("atan2", detail::binary("atan2", Binary::atan2, y, x, dtype), {y, x}, saving(y, x), [](const Saved& s, const Tensor& g) {
    const Tensor b = s[0], a = s[1], scaled_g = div(g, add(square(a), square(b)));
    return grads(gradient_for(s, 0, b.shape(), [&] { return mul(scaled_g, a); }),
                 gradient_for(s, 1, a.shape(), [&] { return neg(mul(scaled_g, b)); }));
  });
}

Tensor remainder(const Tensor& a0, const Tensor& b0) {
  const cuda::Range range("remainder");
  const DType dtype = common_dtype("remainder", a0, b0);
  const Tensor a = to(a0, dtype), b = to(b0, dtype);
  check<DTypeError>(dtype != DType::boolean, "remainder: takes numbers, got two bool tensors");
  return record("remainder", detail::binary("remainder", Binary::remainder, a, b, dtype), {a, b}, saving(a, b),
                [](const Saved& s, const Tensor& g) {
                  const Tensor x = s[0], y = s[1];  // a - floor(a / b) b
                  return grads(gradient_for(s, 0, x.shape(), [&] { return g; }),
                               gradient_for(s, 1, y.shape(), [&] { return neg(mul(g, floor(div(x, y)))); }));
                });
}

Tensor remainder(const Tensor& a, Scalar b) {
  const cuda::Range range("remainder");
  return remainder(a, detail::scalar_tensor("remainder", b, {common_dtype("remainder", a, b), a.device()}));
}

Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
Tensor operator+(const Tensor& a, Scalar b) { return add(a, b); }
Tensor operator+(Scalar a, const Tensor& b) { return add(b, a); }
Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
Tensor operator-(const Tensor& a, Scalar b) { return sub(a, b); }
Tensor operator-(Scalar a, const Tensor& b0) {
  const cuda::Range range("sub");
  const Tensor b = to(b0, common_dtype("sub", b0, a, "b"));
  return needs_tensor(b, a) ? sub(as_tensor("sub", b, a), b) : scaled("rsub", Unary::rsub_scalar, b, a.value, -1);
}
Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
Tensor operator*(const Tensor& a, Scalar b) { return mul(a, b); }
Tensor operator*(Scalar a, const Tensor& b) { return mul(b, a); }
Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
Tensor operator/(const Tensor& a, Scalar b) { return div(a, b); }
Tensor operator-(const Tensor& x) { return neg(x); }

Tensor operator/(Scalar a, const Tensor& b) {
  const cuda::Range range("div");
  const Tensor x = as_floating("div", b);
  return record("rdiv", detail::unary("div", Unary::rdiv_scalar, x, {a.value, 0}), {x}, saving(x),
                [a](const Saved& s, const Tensor& g) { return grads(mul(g, -a.value / square(s[0]))); });
}

// --- comparisons and truth values ---

Tensor eq(const Tensor& a, const Tensor& b) { return compare("eq", Binary::equal, a, b); }
Tensor eq(const Tensor& a, Scalar b) { return compare("eq", Binary::equal, a, b); }
Tensor ne(const Tensor& a, const Tensor& b) { return compare("ne", Binary::not_equal, a, b); }
Tensor ne(const Tensor& a, Scalar b) { return compare("ne", Binary::not_equal, a, b); }
Tensor lt(const Tensor& a, const Tensor& b) { return compare("lt", Binary::less, a, b); }
Tensor lt(const Tensor& a, Scalar b) { return compare("lt", Binary::less, a, b); }
Tensor le(const Tensor& a, const Tensor& b) { return compare("le", Binary::less_equal, a, b); }
Tensor le(const Tensor& a, Scalar b) { return compare("le", Binary::less_equal, a, b); }
Tensor gt(const Tensor& a, const Tensor& b) { return compare("gt", Binary::greater, a, b); }
Tensor gt(const Tensor& a, Scalar b) { return compare("gt", Binary::greater, a, b); }
Tensor ge(const Tensor& a, const Tensor& b) { return compare("ge", Binary::greater_equal, a, b); }
Tensor ge(const Tensor& a, Scalar b) { return compare("ge", Binary::greater_equal, a, b); }
Tensor logical_and(const Tensor& a, const Tensor& b) { return compare("logical_and", Binary::logical_and, a, b); }
Tensor logical_or(const Tensor& a, const Tensor& b) { return compare("logical_or", Binary::logical_or, a, b); }
Tensor logical_xor(const Tensor& a, const Tensor& b) { return compare("logical_xor", Binary::logical_xor, a, b); }
Tensor logical_not(const Tensor& x) {
  const cuda::Range range("logical_not");
  return detail::unary("logical_not", Unary::logical_not, x, DType::boolean);
}
Tensor isnan(const Tensor& x) {
  const cuda::Range range("isnan");
  return detail::unary("isnan", Unary::is_nan, x, DType::boolean);
}
Tensor isfinite(const Tensor& x) {
  const cuda::Range range("isfinite");
  return detail::unary("isfinite", Unary::is_finite, x, DType::boolean);
}

// --- of one tensor ---

Tensor neg(const Tensor& x) {
  const cuda::Range range("neg");
  check_defined("neg", "x", x);
  check<DTypeError>(x.dtype() != DType::boolean, "neg: takes numbers, got a bool tensor; use logical_not");
  return scaled("neg", Unary::negative, x, 0, -1);
}

Tensor abs(const Tensor& x) {
  const cuda::Range range("abs");
  return record("abs", detail::unary("abs", Unary::absolute, x), {x}, saving(x),
                [](const Saved& s, const Tensor& g) { return grads(mul(g, sign(s[0]))); });
}

Tensor square(const Tensor& x) {
  const cuda::Range range("square");
  return record("square", detail::unary("square", Unary::square, x), {x}, saving(x),
                [](const Saved& s, const Tensor& g) { return grads(mul(mul(g, s[0]), 2)); });
}

Tensor sqrt(const Tensor& x) {
  return real_function("sqrt", Unary::sqrt, x, false, true, [](const Saved& s, const Tensor& g) { return div(g, mul(s[1], 2)); });
}
Tensor rsqrt(const Tensor& x) {
  return real_function("rsqrt", Unary::rsqrt, x, false, true,
                       [](const Saved& s, const Tensor& g) { return mul(mul(g, pow(s[1], 3)), -0.5); });
}
Tensor reciprocal(const Tensor& x) {
  return real_function("reciprocal", Unary::reciprocal, x, false, true,
                       [](const Saved& s, const Tensor& g) { return neg(mul(g, square(s[1]))); });
}
Tensor exp(const Tensor& x) {
  return real_function("exp", Unary::exp, x, false, true, [](const Saved& s, const Tensor& g) { return mul(g, s[1]); });
}
Tensor expm1(const Tensor& x) {
  return real_function("expm1", Unary::expm1, x, false, true, [](const Saved& s, const Tensor& g) { return mul(g, add(s[1], 1)); });
}
Tensor log(const Tensor& x) {
  return real_function("log", Unary::log, x, true, false, [](const Saved& s, const Tensor& g) { return div(g, s[0]); });
}
Tensor log1p(const Tensor& x) {
  return real_function("log1p", Unary::log1p, x, true, false, [](const Saved& s, const Tensor& g) { return div(g, add(s[0], 1)); });
}
Tensor sin(const Tensor& x) {
  return real_function("sin", Unary::sin, x, true, false, [](const Saved& s, const Tensor& g) { return mul(g, cos(s[0])); });
}
Tensor cos(const Tensor& x) {
  return real_function("cos", Unary::cos, x, true, false, [](const Saved& s, const Tensor& g) { return neg(mul(g, sin(s[0]))); });
}
Tensor erf(const Tensor& x) {
  constexpr double two_over_root_pi = 1.12837916709551257390;
  return real_function("erf", Unary::erf, x, true, false,
                       [](const Saved& s, const Tensor& g) { return mul(g, mul(exp(neg(square(s[0]))), two_over_root_pi)); });
}

Tensor sign(const Tensor& x) { return step_function("sign", Unary::sign, x); }
Tensor floor(const Tensor& x) { return step_function("floor", Unary::floor, x); }
Tensor ceil(const Tensor& x) { return step_function("ceil", Unary::ceil, x); }
Tensor round(const Tensor& x) { return step_function("round", Unary::round, x); }

Tensor clamp(const Tensor& x, double low, double high) { return clamped("clamp", x, low, high); }
Tensor clamp_min(const Tensor& x, double low) { return clamped("clamp_min", x, low, std::numeric_limits<double>::infinity()); }
Tensor clamp_max(const Tensor& x, double high) { return clamped("clamp_max", x, -std::numeric_limits<double>::infinity(), high); }

// --- of three ---

Tensor where(const Tensor& condition, const Tensor& a0, const Tensor& b0) {
  const cuda::Range range("where");
  check_defined("where", "condition", condition);
  check<DTypeError>(condition.dtype() == DType::boolean, "where: condition must be bool, got ", condition.dtype(), "; compare it with 0");
  const DType dtype = common_dtype("where", a0, b0);
  const Tensor a = to(a0, dtype), b = to(b0, dtype);
  return record("where", ternary("where", Ternary::where, condition, a, b, {}), {a, b}, saving(condition),
                [sa = a.shape(), sb = b.shape()](const Saved& s, const Tensor& g) {
                  return grads(gradient_for(s, 0, sa, [&] { return where(s[0], g, 0); }),
                               gradient_for(s, 1, sb, [&] { return where(s[0], 0, g); }));
                });
}
Tensor where(const Tensor& condition, const Tensor& a, Scalar b) {
  const cuda::Range range("where");
  return where(condition, a, detail::scalar_tensor("where", b, {common_dtype("where", a, b), a.device()}));
}
Tensor where(const Tensor& condition, Scalar a, const Tensor& b) {
  const cuda::Range range("where");
  return where(condition, detail::scalar_tensor("where", a, {common_dtype("where", b, a, "b"), b.device()}), b);
}

Tensor lerp(const Tensor& start0, const Tensor& end0, const Tensor& weight0) {
  const cuda::Range range("lerp");
  const DType dtype = promote(common_dtype("lerp", start0, end0, "start", "end"), check_defined("lerp", "weight", weight0).dtype());
  const Tensor start = to(start0, dtype), end = to(end0, dtype), weight = to(weight0, dtype);
  check<DTypeError>(is_floating(dtype), "lerp: takes floating-point tensors, got ", dtype);
  const Tensor y = ternary("lerp", Ternary::lerp, start, end, weight, {});
  return record("lerp", y, {start, end, weight}, saving(start, end, weight), [](const Saved& s, const Tensor& g) {
    const Tensor a = s[0], b = s[1], w = s[2];
    return grads(gradient_for(s, 0, a.shape(), [&] { return mul(g, 1 - w); }), gradient_for(s, 1, b.shape(), [&] { return mul(g, w); }),
                 gradient_for(s, 2, w.shape(), [&] { return mul(g, sub(b, a)); }));
  });
}

Tensor lerp(const Tensor& start, const Tensor& end, double weight) {
  const cuda::Range range("lerp");
  return lerp(start, end, scalar(weight, {common_dtype("lerp", start, end, "start", "end"), start.device()}));
}

Tensor addcmul(const Tensor& x0, const Tensor& a0, const Tensor& b0, double value) {
  const cuda::Range range("addcmul");
  const DType dtype = promote(common_dtype("addcmul", x0, a0, "x", "a"), check_defined("addcmul", "b", b0).dtype());
  const Tensor x = to(x0, dtype), a = to(a0, dtype), b = to(b0, dtype);
  const Tensor y = ternary("addcmul", Ternary::add_product, x, a, b, {value, 0});
  return record("addcmul", y, {x, a, b}, saving(a, b), [value, sx = x.shape()](const Saved& s, const Tensor& g) {
    const Tensor u = s[0], v = s[1];
    return grads(gradient_for(s, 0, sx, [&] { return g; }), gradient_for(s, 1, u.shape(), [&] { return mul(mul(g, v), value); }),
                 gradient_for(s, 2, v.shape(), [&] { return mul(mul(g, u), value); }));
  });
}

Tensor addcdiv(const Tensor& x0, const Tensor& a0, const Tensor& b0, double value) {
  const cuda::Range range("addcdiv");
  const DType dtype = promote(common_dtype("addcdiv", x0, a0, "x", "a"), check_defined("addcdiv", "b", b0).dtype());
  const Tensor x = to(x0, dtype), a = to(a0, dtype), b = to(b0, dtype);
  check<DTypeError>(is_floating(dtype), "addcdiv: takes floating-point tensors, got ", dtype);
  const Tensor y = ternary("addcdiv", Ternary::add_quotient, x, a, b, {value, 0});
  return record("addcdiv", y, {x, a, b}, saving(a, b), [value, sx = x.shape()](const Saved& s, const Tensor& g) {
    const Tensor u = s[0], v = s[1];
    return grads(gradient_for(s, 0, sx, [&] { return g; }), gradient_for(s, 1, u.shape(), [&] { return mul(div(g, v), value); }),
                 gradient_for(s, 2, v.shape(), [&] { return mul(mul(g, div(div(u, v), v)), -value); }));
  });
}

}  // namespace fovea
