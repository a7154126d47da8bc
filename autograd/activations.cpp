#include <fovea/autograd/activations.h>

#include <fovea/autograd/elementwise.h>

namespace fovea {

using detail::as_floating;
using kernels::Binary;
using kernels::Scalars;
using kernels::Unary;

namespace {

constexpr double sqrt_2_over_pi = 0.79788456080286535588, gelu_cubic = 0.044715;

// The gradient g f'(v) in one pass; v is x or y, as Binary says. Its own gradient is the same product for g, and g f''(v) for v.
struct Slope {
  const char* name;
  Binary op;
  Scalars scalars;
  Tensor (*curvature)(const Tensor& v, Scalars s);   // f'', as derivative of the slope by v; null where it is zero
};

Tensor slope_product(const Slope& slope, const Tensor& g, const Tensor& v) {
  const Tensor product = detail::binary(slope.name, slope.op, g, v, g.dtype(), slope.scalars);
  return record(slope.name, product, {g, v}, saving(slope.curvature ? g : Tensor(), v), [slope](const Saved& s, const Tensor& gg) {
    const bool is_curved = slope.curvature && s.needs(1);
    return grads(s.needs(0) ? slope_product(slope, gg, s[1]) : Tensor(),
                 is_curved ? mul(mul(gg, s[0]), slope.curvature(s[1], slope.scalars)) : Tensor());
  });
}

// y = f(x), saving the one of x and y from which the slope is worked out.
Tensor activation(const char* name, Unary op, const Tensor& x0, bool saves_y, const Slope& slope) {
  const cuda::Range range(name);
  const Tensor x = as_floating(name, x0);
  const Tensor y = detail::unary(name, op, x, slope.scalars);
  return record(name, y, {x}, saving(saves_y ? y : x),
                [slope](const Saved& s, const Tensor& g) { return grads(slope_product(slope, g, s[0])); });
}

Tensor tanh_curvature(const Tensor& y, Scalars) { return mul(y, -2); }                         // slope 1 - y^2
Tensor sigmoid_curvature(const Tensor& y, Scalars) { return 1 - mul(y, 2); }                    // slope y (1 - y)
Tensor elu_curvature(const Tensor& x, Scalars s) { return where(gt(x, 0), 0, mul(exp(clamp_max(x, 0)), s.alpha)); }

Tensor silu_curvature(const Tensor& x, Scalars) {                                              // s (1 - s) (2 + x (1 - 2 s))
  const Tensor s = sigmoid(x);
  return mul(mul(s, 1 - s), add(mul(x, 1 - mul(s, 2)), 2));
}

Tensor softplus_curvature(const Tensor& x, Scalars scalars) {                                  // beta s (1 - s) where it is curved at all
  const Tensor scaled = mul(x, scalars.alpha), s = sigmoid(scaled);
  return where(gt(scaled, scalars.beta), 0, mul(mul(s, 1 - s), scalars.alpha));
}

Tensor gelu_curvature(const Tensor& x, Scalars) {                                              // phi(x) (2 - x^2)
  constexpr double one_over_root_two_pi = 0.39894228040143267794;
  const Tensor squared = square(x);
  return mul(mul(exp(mul(squared, -0.5)), one_over_root_two_pi), 2 - squared);
}

// With u = k (x + c x^3), t = tanh(u): u' (1 - t^2) + x / 2 (1 - t^2) (u'' - 2 t u'^2)
Tensor gelu_tanh_curvature(const Tensor& x, Scalars) {
  const Tensor squared = square(x);
  const Tensor t = tanh(mul(mul(x, add(mul(squared, gelu_cubic), 1)), sqrt_2_over_pi));
  const Tensor first = mul(add(mul(squared, 3 * gelu_cubic), 1), sqrt_2_over_pi), second = mul(x, 6 * gelu_cubic * sqrt_2_over_pi);
  const Tensor bend = sub(second, mul(mul(t, square(first)), 2));
  return mul(1 - square(t), add(first, mul(mul(x, 0.5), bend)));
}

}  // namespace

Tensor relu(const Tensor& x) { return activation("relu", Unary::relu, x, true, {"relu_backward", Binary::relu_backward, {}, nullptr}); }
Tensor relu6(const Tensor& x) {
  return activation("relu6", Unary::relu6, x, false, {"relu6_backward", Binary::hardtanh_backward, {0, 6}, nullptr});
}

Tensor leaky_relu(const Tensor& x, double negative_slope) {
  return activation("leaky_relu", Unary::leaky_relu, x, false,
                    {"leaky_relu_backward", Binary::leaky_relu_backward, {negative_slope, 0}, nullptr});
}

Tensor elu(const Tensor& x, double alpha) {
  return activation("elu", Unary::elu, x, false, {"elu_backward", Binary::elu_backward, {alpha, 0}, elu_curvature});
}

Tensor sigmoid(const Tensor& x) {
  return activation("sigmoid", Unary::sigmoid, x, true, {"sigmoid_backward", Binary::sigmoid_backward, {}, sigmoid_curvature});
}

Tensor tanh(const Tensor& x) {
  return activation("tanh", Unary::tanh, x, true, {"tanh_backward", Binary::tanh_backward, {}, tanh_curvature});
}

Tensor softplus(const Tensor& x, double beta, double threshold) {
  check<ValueError>(beta != 0, "softplus: beta cannot be 0");
  return activation("softplus", Unary::softplus, x, false,
                    {"softplus_backward", Binary::softplus_backward, {beta, threshold}, softplus_curvature});
}

Tensor silu(const Tensor& x) {
  return activation("silu", Unary::silu, x, false, {"silu_backward", Binary::silu_backward, {}, silu_curvature});
}

Tensor gelu(const Tensor& x, Gelu approximation) {
  if (approximation == Gelu::tanh)
    return activation("gelu", Unary::gelu_tanh, x, false, {"gelu_backward", Binary::gelu_tanh_backward, {}, gelu_tanh_curvature});
  return activation("gelu", Unary::gelu, x, false, {"gelu_backward", Binary::gelu_backward, {}, gelu_curvature});
}

Tensor hardtanh(const Tensor& x, double minimum, double maximum) {
  check<ValueError>(minimum < maximum, "hardtanh: minimum (", minimum, ") must be below maximum (", maximum, ")");
  return activation("hardtanh", Unary::hardtanh, x, false, {"hardtanh_backward", Binary::hardtanh_backward, {minimum, maximum}, nullptr});
}

}  // namespace fovea
