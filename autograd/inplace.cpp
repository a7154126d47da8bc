#include <fovea/autograd/inplace.h>

#include <cmath>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/arguments.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

using kernels::Binary;
using kernels::Scalars;
using kernels::Ternary;
using kernels::Unary;

// Several elements of x lie in one place, so that writing one changes others.
bool has_repeats(const Tensor& x) {
  for (int i = 0; i < x.rank(); ++i)
    if (x.strides()[i] == 0 && x.shape()[i] > 1) return true;
  return false;
}

void check_target(const char* op, const Tensor& x, DType value) {
  detail::check_defined(op, "x", x);
  check<DTypeError>(detail::kind_of(value) <= detail::kind_of(x.dtype()), op, ": the result is ", value, ", which does not fit into x of dtype ",
                    x.dtype(), "; compute a new tensor instead");
  check<ShapeError>(!has_repeats(x), op, ": x ", x.shape(), " repeats elements (it was made by expand); change a contiguous(x) instead");
}

// The operand as the write may read it while x changes: a copy where it shares memory with x but is not x itself.
Tensor operand(const char* op, const Tensor& x, const Tensor& b) {
  detail::check_defined(op, "the operand", b);
  check<DeviceError>(b.device() == x.device(), op, ": x is on ", x.device(), " but the operand is on ", b.device(),
                     "; move it with to(b, device)");
  check<ShapeError>(broadcast_shapes(x.shape(), b.shape(), op) == x.shape(), op, ": the operand ", b.shape(), " cannot be broadcast to x ",
                    x.shape());
  const bool is_same_view = b.offset() == x.offset() && b.shape() == x.shape() && b.strides() == x.strides() && b.dtype() == x.dtype();
  if (b.storage() != x.storage() || is_same_view) return b;
  NoGrad no_grad;
  return clone(b);
}

// Note [The recorded value is computed from a copy]
// value(old, b) may save its arguments for the backward pass. If that were x itself, the saved value would change under it, and x would own
// itself through its own node. So `old` is a clone of x, and so is b where it is x.
template <class Value>
Tensor change(const char* op, Binary kernel, const Tensor& x, const Tensor& b, DType result, const Value& value) {
  const cuda::Range range(op);
  check_target(op, x, result);
  const Tensor other = operand(op, x, b);
  const auto write = [&] {
    table_of(x).binary(queue_of(x), kernel, {}, x.view(), detail::broadcast_view(other, x.shape()), x.mutable_view());
  };
  change_in_place(op, x, {b}, write, [&] {
    const Tensor old = clone(x);
    return to(value(old, b.is_same(x) ? old : b), x.dtype());
  });
  return x;
}

template <class Value>
Tensor change(const char* op, Unary kernel, Scalars s, const Tensor& x, DType result, const Value& value) {
  const cuda::Range range(op);
  check_target(op, x, result);
  change_in_place(
      op, x, {}, [&] { table_of(x).unary(queue_of(x), kernel, s, x.view(), x.mutable_view()); },
      [&] { return to(value(clone(x)), x.dtype()); });
  return x;
}

bool needs_tensor(const Tensor& x, Scalar b) { return !b.is_exact() && x.defined() && x.dtype() == DType::int64; }      // a double would round it

DType beside(const Tensor& x, Scalar b) { return detail::dtype_beside(x, b.is_integer); }

// x += value * a * b
Tensor add_product(const char* op, const Tensor& x, const Tensor& a, const Tensor& b, double value) {
  const cuda::Range range(op);
  check_target(op, x, promote(detail::common_dtype(op, x, a, "x", "a"), detail::check_defined(op, "b", b).dtype()));
  const Tensor u = operand(op, x, a), v = operand(op, x, b);
  const auto write = [&] {
    table_of(x).ternary(queue_of(x), Ternary::add_product, {value, 0}, x.view(), detail::broadcast_view(u, x.shape()),
                        detail::broadcast_view(v, x.shape()), x.mutable_view());
  };
  change_in_place(op, x, {a, b}, write, [&] {
    const Tensor old = clone(x);
    return to(addcmul(old, a.is_same(x) ? old : a, b.is_same(x) ? old : b, value), x.dtype());
  });
  return x;
}

// x += sign * alpha * b, for add_ and sub_.
Tensor add_multiple(const char* op, const Tensor& x, const Tensor& b, double alpha, double sign) {
  const DType common = detail::common_dtype(op, x, b, "x");
  if (sign * alpha == 1) return change(op, Binary::add, x, b, common, [](const Tensor& old, const Tensor& other) { return add(old, other); });
  if (sign * alpha == -1) return change(op, Binary::subtract, x, b, common, [](const Tensor& old, const Tensor& other) { return sub(old, other); });
  check<DTypeError>(is_floating(x.dtype()) || alpha == std::trunc(alpha), op, ": alpha is ", alpha, ", which an x of dtype ", x.dtype(), " cannot hold; convert with to(x, DType::float32)");
  return add_product(op, x, b, scalar(1, {x.dtype(), x.device()}), sign * alpha);
}

}  // namespace

Tensor add_(const Tensor& x, const Tensor& b, double alpha) { return add_multiple("add_", x, b, alpha, 1); }
Tensor add_(const Tensor& x, Scalar b) {
  if (needs_tensor(x, b)) return add_(x, detail::scalar_tensor("add_", b, {x.dtype(), x.device()}));
  return change("add_", Unary::add_scalar, {b.value, 0}, x, beside(x, b), [b](const Tensor& old) { return add(old, b); });
}
Tensor sub_(const Tensor& x, const Tensor& b, double alpha) { return add_multiple("sub_", x, b, alpha, -1); }
Tensor sub_(const Tensor& x, Scalar b) {
  if (needs_tensor(x, b)) return sub_(x, detail::scalar_tensor("sub_", b, {x.dtype(), x.device()}));
  return change("sub_", Unary::add_scalar, {-b.value, 0}, x, beside(x, b), [b](const Tensor& old) { return sub(old, b); });
}
Tensor mul_(const Tensor& x, const Tensor& b) {
  return change("mul_", Binary::multiply, x, b, detail::common_dtype("mul_", x, b, "x"), [](const Tensor& old, const Tensor& other) { return mul(old, other); });
}
Tensor mul_(const Tensor& x, Scalar b) {
  if (needs_tensor(x, b)) return mul_(x, detail::scalar_tensor("mul_", b, {x.dtype(), x.device()}));
  return change("mul_", Unary::mul_scalar, {b.value, 0}, x, beside(x, b), [b](const Tensor& old) { return mul(old, b); });
}

Tensor div_(const Tensor& x, const Tensor& b) {
  const DType common = detail::common_dtype("div_", x, b, "x");
  return change("div_", Binary::divide, x, b, is_floating(common) ? common : DType::float32,
                [](const Tensor& old, const Tensor& other) { return div(old, other); });
}
Tensor div_(const Tensor& x, Scalar b) {
  return div_(x, scalar(b.value, {is_floating(x.dtype()) ? x.dtype() : DType::float32, x.device()}));
}

Tensor addcmul_(const Tensor& x, const Tensor& a, const Tensor& b, double value) { return add_product("addcmul_", x, a, b, value); }

Tensor clamp_(const Tensor& x, double low, double high) {
  return change("clamp_", Unary::clamp, {low, high}, x, x.dtype(), [=](const Tensor& old) { return clamp(old, low, high); });
}
Tensor relu_(const Tensor& x) { return change("relu_", Unary::relu, {}, x, x.dtype(), [](const Tensor& old) { return relu(old); }); }

namespace {

Tensor filled(const char* op, const Tensor& x, double value) {
  const cuda::Range range(op);
  check_target(op, x, x.dtype());
  detail::check_fits(op, value, x.dtype());
  change_in_place(op, x, {}, [&] { table_of(x).fill(queue_of(x), value, x.mutable_view()); }, [&] { return full_like(x, value); });
  return x;
}

}  // namespace

Tensor fill_(const Tensor& x, double value) { return filled("fill_", x, value); }
Tensor zero_(const Tensor& x) { return filled("zero_", x, 0); }

Tensor copy_(const Tensor& x, const Tensor& source) {
  const cuda::Range range("copy_");
  check_target("copy_", x, x.dtype());
  const Tensor from = operand("copy_", x, source);
  change_in_place("copy_", x, {source}, [&] { table_of(x).copy(queue_of(x), detail::broadcast_view(from, x.shape()), x.mutable_view()); },
                  [&] { return clone(to(expand(source, x.shape()), x.dtype())); });
  return x;
}

}  // namespace fovea
