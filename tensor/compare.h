// Whether two tensors are the same, exactly or nearly, and where they are not.
#pragma once

#include <iosfwd>
#include <string>

#include <fovea/tensor/tensor.h>

namespace fovea {

struct CompareOptions {
  double rtol = 1e-5, atol = 1e-8;           // elements are close if |a - b| <= atol + rtol * |b|, so b is the expected value
  bool equal_nan = false;                    // NaN is close to NaN
  int listed = 5;                            // how many of the elements that differ are listed
};

struct Comparison {
  bool is_close = true;
  int64_t mismatches = 0;                    // elements that are not close; 0 too where shape, dtype or device differ
  double worst_error = 0;                    // the largest |a - b| of these; infinite where a NaN or an infinity stands against something else
  std::string report;                        // empty if the tensors are close
  explicit operator bool() const { return is_close; }
};
std::ostream& operator<<(std::ostream& out, const Comparison& comparison);     // the report

// CHECK(compare(x, expected)) prints the report when it fails. Shapes and dtypes must be the same; integers and bools are compared exactly.
Comparison compare(const Tensor& a, const Tensor& b, CompareOptions options = {});

bool equal(const Tensor& a, const Tensor& b);                                   // the same shape, dtype and values; NaN is unequal to itself
bool allclose(const Tensor& a, const Tensor& b, double rtol = 1e-5, double atol = 1e-8, bool equal_nan = false);

}  // namespace fovea
