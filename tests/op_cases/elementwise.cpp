#include <fovea/autograd/activations.h>
#include <fovea/autograd/elementwise.h>

#include "samples.h"

namespace fovea::op_cases {
namespace {

Operation unary(const char* name, Tensor (*f)(const Tensor&), double low = -2, double high = 2) {
  return {name, [f](const Args& x) { return f(x[0]); }, unary_samples(low, high)};
}

Operation binary(const char* name, Tensor (*f)(const Tensor&, const Tensor&), double low = -2, double high = 2, double low_b = -2, double high_b = 2) {
  return {name, [f](const Args& x) { return f(x[0], x[1]); }, binary_samples(low, high, low_b, high_b)};
}

// The result is bool: nothing to differentiate.
Operation test(Operation row) {
  row.gradient = Gradient::none;
  return row;
}

std::vector<Sample> ternary_samples(Kind first = Kind::values, double low_c = 0.5, double high_c = 2) {
  auto three = [=](const Shape& a, const Shape& b, const Shape& c, bool is_large = false) {
    return Sample{{{a, -2, 2, first}, {b}, {c, low_c, high_c}}, is_large};
  };
  return {three({5}, {5}, {5}), three({}, {}, {}), three({0, 2}, {2}, {1}), three({3, 1}, {4}, {2, 1, 1}), three({2, 3}, {}, {3}), three({45, 300}, {300}, {45, 1}, true)};
}

}  // namespace

Rows elementwise_operations() {
  return {
      unary("neg", neg), unary("abs", abs), unary("sign", sign), unary("square", square), unary("sqrt", sqrt, 0.1, 4), unary("rsqrt", rsqrt, 0.1, 4),
      unary("reciprocal", reciprocal, 0.3, 3), unary("exp", exp), unary("expm1", expm1), unary("log", log, 0.1, 4), unary("log1p", log1p, -0.8, 3),
      unary("sin", sin, -4, 4), unary("cos", cos, -4, 4), unary("erf", erf), unary("floor", floor, -3, 3), unary("ceil", ceil, -3, 3),
      unary("round", round, -3, 3),
      {"clamp", [](const Args& x) { return clamp(x[0], -0.5, 1.25); }, unary_samples()},
      {"clamp_min", [](const Args& x) { return clamp_min(x[0], 0.25); }, unary_samples()},
      {"clamp_max", [](const Args& x) { return clamp_max(x[0], 0.25); }, unary_samples()},
      binary("add", add), binary("sub", sub), binary("mul", mul), binary("div", div, -2, 2, 0.4, 3), binary("pow", pow, 0.3, 2),
      binary("maximum", maximum), binary("minimum", minimum), binary("atan2", atan2, -2, 2, 0.3, 2),
      {"remainder", [](const Args& x) { return remainder(x[0], 0.75); }, unary_samples()},
      {"add/number", [](const Args& x) { return 2 + x[0] + 0.5; }, unary_samples()},
      {"sub/number", [](const Args& x) { return 1 - x[0] - 3; }, unary_samples()},
      {"mul/number", [](const Args& x) { return 2 * x[0] * 1.5; }, unary_samples()},
      {"div/number", [](const Args& x) { return 2 / (x[0] / 4); }, unary_samples(0.3, 3)},
      {"pow/number", [](const Args& x) { return pow(x[0], 3); }, unary_samples()},
      {"pow/fraction", [](const Args& x) { return pow(x[0], 0.3); }, unary_samples(0.2, 3)},
      {"where", [](const Args& x) { return where(x[0], x[1], x[2]); }, ternary_samples(Kind::truth)},
      {"where/number", [](const Args& x) { return where(gt(x[0], 0), x[0], -1); }, unary_samples()},
      {"lerp", [](const Args& x) { return lerp(x[0], x[1], x[2]); }, ternary_samples(Kind::values, 0, 1)},
      {"lerp/number", [](const Args& x) { return lerp(x[0], x[1], 0.3); }, {{{{{3, 4}}, {{3, 4}}}}, {{{{60, 90}}, {{60, 90}}}, true}}},
      {"addcmul", [](const Args& x) { return addcmul(x[0], x[1], x[2], 0.7); }, ternary_samples()},
      {"addcdiv", [](const Args& x) { return addcdiv(x[0], x[1], x[2], 0.7); }, ternary_samples()},
      test(binary("eq", eq)), test(binary("ne", ne)), test(binary("lt", lt)), test(binary("le", le)), test(binary("gt", gt)), test(binary("ge", ge)),
      test(binary("logical_and", logical_and)), test(binary("logical_or", logical_or)), test(binary("logical_xor", logical_xor)),
      test(unary("logical_not", logical_not)), test(unary("isnan", isnan)), test(unary("isfinite", isfinite)),
  };
}

Rows activation_operations() {
  return {
      unary("relu", relu), unary("relu6", relu6, -2, 8), unary("sigmoid", sigmoid, -5, 5), unary("tanh", tanh, -3, 3), unary("silu", silu, -4, 4),
      {"leaky_relu", [](const Args& x) { return leaky_relu(x[0], 0.1); }, unary_samples()},
      {"elu", [](const Args& x) { return elu(x[0], 1.5); }, unary_samples()},
      {"softplus", [](const Args& x) { return softplus(x[0], 2, 4); }, unary_samples(-3, 3)},
      {"gelu", [](const Args& x) { return gelu(x[0]); }, unary_samples(-4, 4)},
      {"gelu/tanh", [](const Args& x) { return gelu(x[0], Gelu::tanh); }, unary_samples(-4, 4)},
      {"hardtanh", [](const Args& x) { return hardtanh(x[0], -0.5, 1); }, unary_samples()},
  };
}

}  // namespace fovea::op_cases
