// Small helpers of tests that work on tensors: inputs, poisoned outputs, and how far two tensors are apart.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/tensor/creation.h>

#include "devices.h"
#include "messages.h"

namespace fovea::testing {

// Standard normal.
inline Tensor random_tensor(const Shape& shape, DType dtype = DType::float64, unsigned seed = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t) { return normal(generator); };
  return dtype == DType::float32 ? filled<float>(shape, draw) : filled<double>(shape, draw);
}

// Of the same numbers, a float64 leaf for gradient checks.
inline Tensor random_leaf(const Shape& shape, unsigned seed) { return random_tensor(shape, DType::float64, seed).set_requires_grad(); }

inline double quiet_nan() { return std::numeric_limits<double>::quiet_NaN(); }

// An output as a kernel may find it: whatever it does not overwrite stays NaN.
inline Tensor poisoned(const Shape& shape, DType dtype) { return full(shape, is_floating(dtype) ? quiet_nan() : dtype == DType::uint8 ? 77 : -77, dtype); }

inline std::vector<double> values(const Tensor& x) { return x.to_vector<double>(); }

// Largest |a - b|; infinity where only one of them is NaN or the sizes differ.
inline double distance(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (a[i] == b[i]) continue;
    const double difference = std::abs(a[i] - b[i]);
    worst = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(worst, difference);
  }
  return worst;
}
inline double distance(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() ? distance(values(a), values(b)) : std::numeric_limits<double>::infinity();
}
inline double distance(const Tensor& a, const std::vector<double>& b) { return distance(values(a), b); }

class Threads {                              // num_threads() while alive
 public:
  explicit Threads(int threads) : before_(num_threads()) { set_num_threads(threads); }
  ~Threads() { set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

}  // namespace fovea::testing
