#include <fovea/autograd/reduce.h>

#include <algorithm>
#include <cmath>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {

using detail::autocast;
using detail::check_defined;
using kernels::ArgReduce;
using kernels::Reduce;

namespace {

// A reduction's shapes, worked out once.
struct Plan {
  Shape full, kept;                            // of x; of x with the reduced axes at 1
  bool is_reduced[max_rank] = {};
  int64_t count = 1;                           // elements that are folded into one

  Plan(const char* op, const Tensor& x, const Axes& axes) : full(check_defined(op, "x", x).shape()), kept(full) {
    for (int64_t axis : axes.list()) {
      const int i = wrap_axis(axis, x.rank(), op);
      check<ValueError>(!is_reduced[i], op, ": axis ", i, " comes twice");
      is_reduced[i] = true;
    }
    for (int i = 0; i < x.rank(); ++i) {
      is_reduced[i] = is_reduced[i] || axes.list().empty();
      if (!is_reduced[i]) continue;
      count *= full[i];
      kept[i] = 1;
    }
  }
  Shape result(bool keepdims) const {
    if (keepdims) return kept;
    Shape shape;
    for (int i = 0; i < full.rank(); ++i)
      if (!is_reduced[i]) shape.push_back(full[i]);
    return shape;
  }
};

// A contiguous y of plan.kept, without the reduced axes unless they are kept.
Tensor shaped(const Tensor& y, const Plan& plan, bool keepdims) {
  if (keepdims) return y;
  const Shape shape = plan.result(false);
  return Tensor(y.storage(), shape, contiguous_strides(shape), 0, y.dtype());
}

Tensor reduced(Reduce op, const Tensor& x, const Plan& plan, bool keepdims, DType result) {
  Tensor y = empty(plan.kept, {result, x.device()});
  table_of(x).reduce(queue_of(x), op, x.view(), y.mutable_view());
  return shaped(y, plan, keepdims);
}

// The dtype of a result that is of `dtype` but where autocast wants it wider: kernels read x as it is.
DType result_dtype(const char* op, const Tensor& x, DType dtype) { return detail::widens_result(op, {}, x) ? DType::float32 : dtype; }

// A reduced tensor (a result, or its gradient) beside x again.
Tensor restored(const Tensor& y, const Plan& plan) { return expand(reshape(y, plan.kept), plan.full); }

DType sum_dtype(const Tensor& x) { return is_floating(x.dtype()) ? x.dtype() : DType::int64; }

void check_real(const char* op, const Tensor& x) {
  check_defined(op, "x", x);
  check<DTypeError>(is_floating(x.dtype()), op, ": takes a floating-point tensor, got ", x.dtype(),
                    "; convert it with to(x, DType::float32)");
}

void check_not_empty(const char* op, const Plan& plan) {
  check<ValueError>(plan.count > 0, op, ": x ", plan.full, " has no elements to choose from along the reduced axes");
}

Tensor extreme(const char* op, Reduce reduce, const Tensor& x, const Axes& axes, bool keepdims) {
  const cuda::Range range(op);
  const Plan plan(op, x, axes);
  check_not_empty(op, plan);
  const Tensor y = reduced(reduce, x, plan, keepdims, x.dtype());
  return record(op, y, {x}, saving(x, y), [plan](const Saved& s, const Tensor& g) {
    const Tensor x = s[0].detach(), y = reshape(s[1].detach(), plan.kept);
    const Tensor is_extreme = to(eq(x, y), g.dtype());
    const Tensor share = div(is_extreme, reduced(Reduce::sum, is_extreme, plan, true, g.dtype()));
    return grads(mul(restored(g, plan), share));
  });
}

Tensor arg_extreme(const char* op, ArgReduce reduce, const Tensor& x, int64_t axis, bool keepdims) {
  const cuda::Range range(op);
  const Plan plan(op, x, axis);
  check_not_empty(op, plan);
  Tensor y = empty(plan.kept, {DType::int64, x.device()});
  table_of(x).arg_reduce(queue_of(x), reduce, wrap_axis(axis, x.rank(), op), x.view(), y.mutable_view());
  return keepdims ? y : reshape(y, plan.result(false));
}

// Values with positions along one axis; a tensor of rank 0 counts as one of one element.
Extremes extremes(const char* op, Reduce reduce, ArgReduce arg_reduce, const Tensor& x, int64_t axis, bool keepdims) {
  const cuda::Range range(op);
  if (check_defined(op, "x", x).rank() == 0) return extremes(op, reduce, arg_reduce, reshape(x, {1}), axis, false);
  const Plan plan(op, x, axis);
  const Tensor indices = arg_extreme(op, arg_reduce, x, axis, true);
  const int at = wrap_axis(axis, x.rank(), op);
  const Tensor values =
      record(op, reduced(reduce, x, plan, keepdims, x.dtype()), {x}, saving(indices), [plan, at](const Saved& s, const Tensor& g) {
        Shape line = Shape::filled(plan.full.rank(), 1);
        line[at] = plan.full[at];
        const Tensor positions = reshape(arange(plan.full[at], {DType::int64, g.device()}), line);
        return grads(where(eq(positions, s[0]), reshape(g, plan.kept), 0));
      });
  return {values, keepdims ? indices : reshape(indices, plan.result(false))};
}

// Multiplies neighbours until one is left, so that gradients of any order are right where factors are zero.
Tensor product_along(const Tensor& x, int axis) {
  if (x.shape()[axis] == 0) {
    Shape shape = x.shape();
    shape[axis] = 1;
    return ones(shape, {x.dtype(), x.device()});
  }
  Tensor y = x;
  while (y.shape()[axis] > 1) {
    const int64_t n = y.shape()[axis], half = n / 2;
    const Tensor pairs = mul(narrow(y, axis, 0, half), narrow(y, axis, half, half));
    y = n % 2 == 0 ? pairs : concat({pairs, narrow(y, axis, n - 1, 1)}, axis);
  }
  return y;
}

Tensor cumsum_along(const Tensor& x, int axis, bool is_reversed) {
  Tensor y = empty_like(x, sum_dtype(x));
  table_of(x).cumsum(queue_of(x), axis, is_reversed, x.view(), y.mutable_view());
  return record("cumsum", y, {x}, saving(),
                [axis, is_reversed](const Saved&, const Tensor& g) { return grads(cumsum_along(g, axis, !is_reversed)); });
}

}  // namespace

Tensor sum(const Tensor& x, const Axes& axes, bool keepdims) {
  const cuda::Range range("sum");
  const Plan plan("sum", x, axes);
  const DType result = result_dtype("sum", x, sum_dtype(x));
  return record("sum", reduced(Reduce::sum, x, plan, keepdims, result), {x}, saving(),
                [plan, source = x.dtype()](const Saved&, const Tensor& g) { return grads(restored(to(g, source), plan)); });
}

Tensor mean(const Tensor& x, const Axes& axes, bool keepdims) {
  const cuda::Range range("mean");
  check_real("mean", x);
  const Plan plan("mean", x, axes);
  const DType result = result_dtype("mean", x, x.dtype());
  return record("mean", reduced(Reduce::mean, x, plan, keepdims, result), {x}, saving(), [plan, source = x.dtype()](const Saved&, const Tensor& g) {
    return grads(restored(to(div(g, static_cast<double>(plan.count)), source), plan));
  });
}

Tensor prod(const Tensor& x_any, const Axes& axes, bool keepdims) {
  const cuda::Range range("prod");
  const Plan plan("prod", x_any, axes);
  if (!detail::needs_grad(x_any)) return reduced(Reduce::product, x_any, plan, keepdims, result_dtype("prod", x_any, sum_dtype(x_any)));
  const Tensor x = autocast("prod", x_any);
  Tensor y = x;
  for (int i = 0; i < x.rank(); ++i)
    if (plan.is_reduced[i]) y = product_along(y, i);
  return reshape(y, plan.result(keepdims));
}

Tensor amax(const Tensor& x, const Axes& axes, bool keepdims) { return extreme("amax", Reduce::max, x, axes, keepdims); }
Tensor amin(const Tensor& x, const Axes& axes, bool keepdims) { return extreme("amin", Reduce::min, x, axes, keepdims); }
Tensor max(const Tensor& x) { return extreme("max", Reduce::max, x, {}, false); }
Tensor min(const Tensor& x) { return extreme("min", Reduce::min, x, {}, false); }
Extremes max(const Tensor& x, int64_t axis, bool keepdims) { return extremes("max", Reduce::max, ArgReduce::argmax, x, axis, keepdims); }
Extremes min(const Tensor& x, int64_t axis, bool keepdims) { return extremes("min", Reduce::min, ArgReduce::argmin, x, axis, keepdims); }
Tensor argmax(const Tensor& x) { return arg_extreme("argmax", ArgReduce::argmax, reshape(check_defined("argmax", "x", x).detach(), {-1}), 0, false); }
Tensor argmin(const Tensor& x) { return arg_extreme("argmin", ArgReduce::argmin, reshape(check_defined("argmin", "x", x).detach(), {-1}), 0, false); }
Tensor argmax(const Tensor& x, int64_t axis, bool keepdims) { return arg_extreme("argmax", ArgReduce::argmax, check_defined("argmax", "x", x).detach(), axis, keepdims); }
Tensor argmin(const Tensor& x, int64_t axis, bool keepdims) { return arg_extreme("argmin", ArgReduce::argmin, check_defined("argmin", "x", x).detach(), axis, keepdims); }

namespace {

Tensor variance(const char* op, const Tensor& x, const Axes& axes, bool keepdims, double correction) {
  check_real(op, x);
  const Plan plan(op, x, axes);
  Tensor y = empty(plan.kept, {result_dtype(op, x, x.dtype()), x.device()});
  table_of(x).variance(queue_of(x), correction, x.view(), y.mutable_view());
  const double divisor = std::max(0.0, static_cast<double>(plan.count) - correction);
  return record(op, shaped(y, plan, keepdims), {x}, saving(x), [plan, axes, divisor](const Saved& s, const Tensor& g) {
    const Tensor x = detail::widened(s[0]), slope = div(mul(to(g, x.dtype()), 2), divisor);        // a mean in a half type would be off
    return grads(to(mul(sub(x, mean(x, axes, true)), restored(slope, plan)), s[0].dtype()));
  });
}

}  // namespace

Tensor var(const Tensor& x, const Axes& axes, bool keepdims, double correction) {
  const cuda::Range range("var");
  return variance("var", x, axes, keepdims, correction);
}

Tensor stddev(const Tensor& x, const Axes& axes, bool keepdims, double correction) {
  const cuda::Range range("stddev");
  const Tensor squared = variance("stddev", x, axes, keepdims, correction);
  const Tensor y = detail::unary("stddev", kernels::Unary::sqrt, squared);
  return record("stddev", y, {squared}, saving(y), [](const Saved& s, const Tensor& g) {       // of equal numbers: 0, where the root's slope is infinite
    const Tensor y = s[0], is_zero = eq(y, 0);
    return grads(where(is_zero, 0, div(g, mul(where(is_zero, 1, y), 2))));
  });
}

Tensor norm(const Tensor& x, double p, const Axes& axes, bool keepdims) {
  const cuda::Range range("norm");
  check_real("norm", x);
  check<ValueError>(p > 0, "norm: p must be positive (or infinity), got ", p);
  if (p == 1) return sum(abs(x), axes, keepdims);
  const Plan plan("norm", x, axes);
  if (std::isinf(p)) check_not_empty("norm", plan);
  const DType result = result_dtype("norm", x, x.dtype());
  if (std::isinf(p)) return to(amax(abs(x), axes, keepdims), result);
  if (p != 2) {
    const Tensor total = sum(pow(abs(x), p), axes, keepdims);
    return where(eq(total, 0), 0, pow(where(eq(total, 0), 1, total), 1 / p));      // the root's slope at 0 is infinite
  }
  const Tensor y = detail::unary("norm", kernels::Unary::sqrt, reduced(Reduce::sum_squares, x, plan, keepdims, result), result);
  return record("norm", y, {x}, saving(x, y), [plan](const Saved& s, const Tensor& g) {
    const Tensor length = s[1];
    return grads(to(mul(to(s[0], length.dtype()), restored(div(g, where(eq(length, 0), 1, length)), plan)), s[0].dtype()));
  });
}

Tensor logsumexp(const Tensor& x, const Axes& axes, bool keepdims) {
  const cuda::Range range("logsumexp");
  check_real("logsumexp", x);
  const Plan plan("logsumexp", x, axes);
  const Tensor y = reduced(Reduce::logsumexp, x, plan, keepdims, result_dtype("logsumexp", x, x.dtype()));
  return record("logsumexp", y, {x}, saving(x, y), [plan](const Saved& s, const Tensor& g) {
    const Tensor y = s[1], finite = where(isfinite(y), y, 0);                        // of nothing but -infinity: e^(-inf) = 0, not NaN
    return grads(to(mul(restored(g, plan), exp(sub(to(s[0], y.dtype()), restored(finite, plan)))), s[0].dtype()));
  });
}

Tensor any(const Tensor& x, const Axes& axes, bool keepdims) {
  const cuda::Range range("any");
  return reduced(Reduce::any, x, Plan("any", x, axes), keepdims, DType::boolean);
}
Tensor all(const Tensor& x, const Axes& axes, bool keepdims) {
  const cuda::Range range("all");
  return reduced(Reduce::all, x, Plan("all", x, axes), keepdims, DType::boolean);
}

Tensor cumsum(const Tensor& x_any, int64_t axis) {
  const cuda::Range range("cumsum");
  const Tensor x = autocast("cumsum", x_any);
  if (check_defined("cumsum", "x", x).rank() == 0) return reshape(cumsum(reshape(x, {1}), axis), {});
  return cumsum_along(x, wrap_axis(axis, x.rank(), "cumsum"), false);
}

}  // namespace fovea
