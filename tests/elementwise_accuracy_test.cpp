// Elementary functions against the standard library in a wider type: error in units of the last place over their whole range, and special
// values.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <vector>

#include <fovea/kernels/table.h>
#include <fovea/tensor/creation.h>

using namespace fovea;
using kernels::Unary;

namespace {

using Real = long double;

template <class T>
std::vector<T> apply(Unary op, const std::vector<T>& x, kernels::Scalars s = {}) {
  const Tensor input = from_vector(x);
  Tensor y = empty_like(input);
  kernels::cpu_table().unary(nullptr, op, s, input.view(), y.mutable_view());
  return y.to_vector<T>();
}

// Numbers over [low, high]: evenly spread, and down to the smallest by powers of two.
template <class T>
std::vector<T> samples(double low, double high) {
  std::vector<T> x;
  uint64_t state = 12345;
  for (int i = 0; i < 60001; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const double u = static_cast<double>(state >> 11) * 0x1p-53;
    x.push_back(static_cast<T>(low + (high - low) * u));
  }
  for (int e = -std::numeric_limits<T>::max_exponent; e < 12; ++e) {
    for (double m : {1.0, 1.1, 1.37, 1.5, 1.99}) {
      const double v = std::ldexp(m, e);
      for (double signed_v : {v, -v})
        if (signed_v >= low && signed_v <= high) x.push_back(static_cast<T>(signed_v));
    }
  }
  return x;
}

// Largest distance to the exact value, in units of the last place of T there (subnormals: of the smallest).
template <class T>
double worst_ulp(Unary op, const std::function<Real(Real)>& exact, double low, double high, kernels::Scalars s = {}) {
  const std::vector<T> x = samples<T>(low, high), y = apply(op, x, s);
  double worst = 0;
  T worst_at = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const Real want = exact(static_cast<Real>(x[i]));
    const T rounded = static_cast<T>(want);
    if (std::isinf(rounded) || std::isinf(y[i])) {
      if (rounded != y[i]) worst = std::numeric_limits<double>::infinity(), worst_at = x[i];
      continue;
    }
    const T magnitude = std::max(std::abs(rounded), std::numeric_limits<T>::min());
    const Real ulp = std::nextafter(magnitude, std::numeric_limits<T>::infinity()) - magnitude;
    const double error = static_cast<double>(std::abs(static_cast<Real>(y[i]) - want) / ulp);
    if (!(error <= worst)) worst = error, worst_at = x[i];
  }
  if (std::getenv("FOVEA_PRINT_ULP")) MESSAGE(static_cast<int>(op) << ": " << worst << " ulp at " << worst_at);
  return worst;
}

struct Function {
  const char* name;
  Unary op;
  std::function<Real(Real)> exact;
  double low, high;                            // for float32; float64 has its own where that is wider
  double low64, high64;
  double ulp, ulp64;                           // bounds
  kernels::Scalars scalars = {};
};

Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }
Real gelu(Real x) { return 0.5L * x * std::erfc(-x * 0.70710678118654752440084436L); }
Real gelu_tanh(Real x) { return x * sigmoid(2 * 0.79788456080286535587989212L * (x + 0.044715L * x * x * x)); }

const std::vector<Function>& functions() {
  static const std::vector<Function> all = {
      {"exp", Unary::exp, [](Real x) { return std::exp(x); }, -110, 90, -750, 712, 2, 2},
      {"expm1", Unary::expm1, [](Real x) { return std::expm1(x); }, -110, 90, -750, 712, 4, 4},
      {"log", Unary::log, [](Real x) { return std::log(x); }, 0, 1e4, 0, 1e4, 2, 2},
      {"log of large", Unary::log, [](Real x) { return std::log(x); }, 1, 3e38, 1, 1e308, 2, 2},
      {"log1p", Unary::log1p, [](Real x) { return std::log1p(x); }, -0.99, 1000, -0.99, 1000, 4, 5},
      {"sin", Unary::sin, [](Real x) { return std::sin(x); }, -2000, 2000, -2000, 2000, 4, 4},
      {"cos", Unary::cos, [](Real x) { return std::cos(x); }, -2000, 2000, -2000, 2000, 4, 4},
      {"sin of large", Unary::sin, [](Real x) { return std::sin(x); }, -1e6, 1e6, -1e9, 1e9, 4, 4},
      {"tanh", Unary::tanh, [](Real x) { return std::tanh(x); }, -20, 20, -40, 40, 4, 5},
      {"sigmoid", Unary::sigmoid, [](Real x) { return sigmoid(x); }, -87, 110, -700, 710, 4, 4},
      {"erf", Unary::erf, [](Real x) { return std::erf(x); }, -10, 10, -10, 10, 3, 3},
      {"sqrt", Unary::sqrt, [](Real x) { return std::sqrt(x); }, 0, 1e30, 0, 1e300, 0.501, 0.501},
      {"rsqrt", Unary::rsqrt, [](Real x) { return 1 / std::sqrt(x); }, 1e-30, 1e30, 1e-300, 1e300, 2, 2},
      {"silu", Unary::silu, [](Real x) { return x * sigmoid(x); }, -80, 80, -700, 700, 4, 4},
      {"softplus", Unary::softplus, [](Real x) { return std::log1p(std::exp(x)); }, -80, 20, -700, 20, 5, 5, {1, 40}},
      {"elu", Unary::elu, [](Real x) { return x > 0 ? x : std::expm1(x); }, -100, 100, -100, 100, 4, 4, {1, 0}},
      {"gelu", Unary::gelu, [](Real x) { return gelu(x); }, 0, 100, 0, 100, 4, 4},
      {"gelu_tanh", Unary::gelu_tanh, [](Real x) { return gelu_tanh(x); }, 0, 100, 0, 100, 5, 5},
      {"x ^ 2.5", Unary::pow_scalar, [](Real x) { return std::pow(x, 2.5L); }, 0, 1e10, 0, 1e100, 1, 1, {2.5, 0}},
  };
  return all;
}

}  // namespace

TEST_CASE("elementary functions are right to a few units of the last place") {
  for (const Function& f : functions()) {
    CAPTURE(f.name);
    CHECK(worst_ulp<float>(f.op, f.exact, f.low, f.high, f.scalars) <= f.ulp);
    CHECK(worst_ulp<double>(f.op, f.exact, f.low64, f.high64, f.scalars) <= f.ulp64);
  }
}

TEST_CASE("negative tails that cancel are right to the last place of 1") {
  for (const auto& [op, exact] : {std::pair<Unary, Real (*)(Real)>{Unary::gelu, gelu}, {Unary::gelu_tanh, gelu_tanh}}) {
    const std::vector<float> x = samples<float>(-20, 0), y = apply(op, x);
    const std::vector<double> x64 = samples<double>(-20, 0), y64 = apply(op, x64);
    for (size_t i = 0; i < x.size(); ++i) CHECK_MESSAGE(std::abs(y[i] - exact(x[i])) <= 5e-7, x[i]);
    for (size_t i = 0; i < x64.size(); ++i) CHECK_MESSAGE(std::abs(y64[i] - exact(x64[i])) <= 2e-15, x64[i]);
  }
}

TEST_CASE_TEMPLATE("special values are those of the standard library", T, float, double) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN(), tiny = std::numeric_limits<T>::denorm_min();
  const std::vector<T> x = {0,
                            static_cast<T>(-0.0),
                            1,
                            -1,
                            inf,
                            -inf,
                            nan,
                            tiny,
                            -tiny,
                            std::numeric_limits<T>::max(),
                            std::numeric_limits<T>::lowest(),
                            static_cast<T>(0.5),
                            static_cast<T>(-0.5),
                            static_cast<T>(1.5),
                            static_cast<T>(2.5),
                            static_cast<T>(-2)};
  struct Special {
    const char* name;
    Unary op;
    std::function<T(T)> want;
    kernels::Scalars s = {};
  };
  const Special all[] = {
      {"exp", Unary::exp, [](T v) { return std::exp(v); }},
      {"expm1", Unary::expm1, [](T v) { return std::expm1(v); }},
      {"log", Unary::log, [](T v) { return std::log(v); }},
      {"log1p", Unary::log1p, [](T v) { return std::log1p(v); }},
      {"sin", Unary::sin, [](T v) { return std::sin(v); }},
      {"cos", Unary::cos, [](T v) { return std::cos(v); }},
      {"tanh", Unary::tanh, [](T v) { return std::tanh(v); }},
      {"sigmoid", Unary::sigmoid, [](T v) { return 1 / (1 + std::exp(-v)); }},
      {"erf", Unary::erf, [](T v) { return std::erf(v); }},
      {"sqrt", Unary::sqrt, [](T v) { return std::sqrt(v); }},
      {"reciprocal", Unary::reciprocal, [](T v) { return 1 / v; }},
      {"floor", Unary::floor, [](T v) { return std::floor(v); }},
      {"ceil", Unary::ceil, [](T v) { return std::ceil(v); }},
      {"round", Unary::round, [](T v) { return std::nearbyint(v); }},
      {"absolute", Unary::absolute, [](T v) { return std::abs(v); }},
      {"negative", Unary::negative, [](T v) { return -v; }},
      {"sign", Unary::sign, [](T v) { return static_cast<T>((v > 0) - (v < 0)); }},
      {"relu", Unary::relu, [](T v) { return v < 0 ? 0 : v; }},
      {"relu6", Unary::relu6, [](T v) { return v < 0 ? 0 : v > 6 ? 6 : v; }},
      {"leaky_relu", Unary::leaky_relu, [](T v) { return v > 0 ? v : v * static_cast<T>(0.1); }, {0.1, 0}},
      {"clamp", Unary::clamp, [](T v) { return v < -1 ? -1 : v > static_cast<T>(1.2) ? static_cast<T>(1.2) : v; }, {-1, 1.2}},
      {"softplus", Unary::softplus, [](T v) { return v > 20 ? v : std::log1p(std::exp(v)); }, {1, 20}},
      {"elu", Unary::elu, [](T v) { return v > 0 ? v : std::expm1(v); }, {1, 0}},
      {"silu", Unary::silu, [](T v) { return v / (1 + std::exp(-v)); }},
      {"pow 2.5", Unary::pow_scalar, [](T v) { return std::pow(v, static_cast<T>(2.5)); }, {2.5, 0}},
      {"pow -3", Unary::pow_scalar, [](T v) { return std::pow(v, static_cast<T>(-3)); }, {-3, 0}},
      {"pow 0.5", Unary::pow_scalar, [](T v) { return std::pow(v, static_cast<T>(0.5)); }, {0.5, 0}},
  };
  for (const Special& f : all) {
    const std::vector<T> y = apply(f.op, x, f.s);
    for (size_t i = 0; i < x.size(); ++i) {
      CAPTURE(f.name);
      CAPTURE(x[i]);
      const T want = f.want(x[i]);
      if (std::isnan(want)) CHECK(std::isnan(y[i]));
      else if (std::isinf(want) || want == 0) CHECK(y[i] == want);
      else CHECK(std::abs(y[i] - want) <= std::abs(want) * 8 * std::numeric_limits<T>::epsilon() + tiny);
    }
  }
}
