#include <fovea/tensor/compare.h>

#include <cmath>
#include <limits>
#include <ostream>
#include <sstream>
#include <type_traits>
#include <vector>

#include <fovea/kernels/coordinates.h>
#include <fovea/tensor/elements.h>
#include <fovea/tensor/print.h>

namespace fovea {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

template <class T>
std::string text_of(T value) {
  if constexpr (std::is_same_v<T, bool>) return value ? "True" : "False";
  else if constexpr (std::is_integral_v<T>) return std::to_string(value);
  else if constexpr (std::is_same_v<T, double>) return to_text(value);
  else return to_text(static_cast<float>(value));
}

// How far a is from b, for the worst element; -1 if they are close.
template <class T>
double error_of(T a, T b, const CompareOptions& options) {
  if constexpr (std::is_integral_v<T>) {
    return a == b ? -1 : std::abs(static_cast<double>(a) - static_cast<double>(b));
  } else {
    const double x = static_cast<double>(a), y = static_cast<double>(b);
    if (x == y) return -1;
    if (std::isnan(x) && std::isnan(y) && options.equal_nan) return -1;
    if (!std::isfinite(x) || !std::isfinite(y)) return infinity;
    const double error = std::abs(x - y);
    return error <= options.atol + options.rtol * std::abs(y) ? -1 : error;
  }
}

template <class T>
Comparison compare_elements(const Tensor& a, const Tensor& b, const CompareOptions& options) {
  const T *x = a.data<T>(), *y = b.data<T>();
  Comparison result;
  std::vector<int64_t> first;
  int64_t worst = -1;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double error = error_of(x[i], y[i], options);
    if (error < 0) continue;
    ++result.mismatches;
    if (static_cast<int>(first.size()) < options.listed) first.push_back(i);
    if (worst < 0 || error > result.worst_error) worst = i, result.worst_error = error;
  }
  result.is_close = result.mismatches == 0;
  if (result.is_close) return result;

  std::ostringstream text;
  const auto line = [&](int64_t i) { text << coordinates_of(i, a.shape()) << ": " << text_of(x[i]) << " against " << text_of(y[i]); };
  text << result.mismatches << " of " << a.numel() << (a.numel() == 1 ? " element" : " elements") << (result.mismatches == 1 ? " differs" : " differ");
  if constexpr (!std::is_integral_v<T>) text << " (rtol " << options.rtol << ", atol " << options.atol << ")";
  text << "; worst at ";
  line(worst);
  if (std::isfinite(result.worst_error)) text << ", off by " << result.worst_error;
  if (static_cast<double>(y[worst]) != 0 && std::isfinite(result.worst_error))
    text << " (relative " << result.worst_error / std::abs(static_cast<double>(y[worst])) << ")";
  if (result.mismatches > 1 && !first.empty()) text << (result.mismatches > static_cast<int64_t>(first.size()) ? "; the first:" : "; they are:");
  if (result.mismatches > 1) {
    for (const int64_t i : first) {
      text << "\n  ";
      line(i);
    }
  }
  result.report = text.str();
  return result;
}

Comparison unlike(std::string report) {
  Comparison result;
  result.is_close = false;
  result.report = std::move(report);
  return result;
}

}  // namespace

Comparison compare(const Tensor& a, const Tensor& b, CompareOptions options) {
  check<ValueError>(options.rtol >= 0 && options.atol >= 0, "compare: rtol and atol must not be negative, got ", options.rtol, " and ", options.atol);
  if (!a.defined() || !b.defined()) {
    if (a.defined() == b.defined()) return {};
    return unlike(str(a.defined() ? "a tensor" : "no tensor", " against ", b.defined() ? "a tensor" : "no tensor"));
  }
  if (a.shape() != b.shape()) return unlike(str("shape ", a.shape(), " against ", b.shape()));
  if (a.dtype() != b.dtype()) return unlike(str("dtype ", a.dtype(), " against ", b.dtype()));
  const Tensor x = contiguous_on_cpu(a, "compare"), y = contiguous_on_cpu(b, "compare");
  return dispatch(a.dtype(), [&](auto zero) { return compare_elements<decltype(zero)>(x, y, options); });
}

bool equal(const Tensor& a, const Tensor& b) { return compare(a, b, {.rtol = 0, .atol = 0, .listed = 0}).is_close; }

bool allclose(const Tensor& a, const Tensor& b, double rtol, double atol, bool equal_nan) {
  return compare(a, b, {.rtol = rtol, .atol = atol, .equal_nan = equal_nan, .listed = 0}).is_close;
}

std::ostream& operator<<(std::ostream& out, const Comparison& comparison) { return out << (comparison.is_close ? "close" : comparison.report); }

}  // namespace fovea
