// Reductions: what is left of a tensor when axes of it are summed, multiplied, searched ... away.
//
// Axes may be counted from the back. No axes means all of them. keepdims leaves the reduced axes in place with size 1. Sums of integers and
// bool are int64.
#pragma once

#include <initializer_list>
#include <vector>

#include <fovea/autograd/tape.h>

namespace fovea {

// The axes of a reduction: none (all of them), one, or several: sum(x), sum(x, -1), sum(x, {0, 2}).
class Axes {
 public:
  Axes() = default;
  Axes(int64_t axis) : list_{axis} {}
  Axes(std::initializer_list<int64_t> axes) : list_(axes) {}
  Axes(const std::vector<int64_t>& axes) : list_(axes) {}
  const std::vector<int64_t>& list() const { return list_; }

 private:
  std::vector<int64_t> list_;
};

Tensor sum(const Tensor& x, const Axes& axes = {}, bool keepdims = false);
Tensor mean(const Tensor& x, const Axes& axes = {}, bool keepdims = false);          // floating point; NaN of no elements
Tensor prod(const Tensor& x, const Axes& axes = {}, bool keepdims = false);
// Largest and smallest; NaN if there is one. ValueError of no elements. Equal extremes share the gradient evenly.
Tensor amax(const Tensor& x, const Axes& axes = {}, bool keepdims = false);
Tensor amin(const Tensor& x, const Axes& axes = {}, bool keepdims = false);
Tensor max(const Tensor& x);
Tensor min(const Tensor& x);

// Along one axis, with the int64 position of the first of them; that one gets the whole gradient.
struct Extremes {
  Tensor values, indices;
};
Extremes max(const Tensor& x, int64_t axis, bool keepdims = false);
Extremes min(const Tensor& x, int64_t axis, bool keepdims = false);
Tensor argmax(const Tensor& x);                                                      // position in row-major order
Tensor argmin(const Tensor& x);
Tensor argmax(const Tensor& x, int64_t axis, bool keepdims = false);
Tensor argmin(const Tensor& x, int64_t axis, bool keepdims = false);

// Sum of squared distances from the mean over n - correction (1: unbiased, 0: the biased one that batch norm uses), and its root.
Tensor var(const Tensor& x, const Axes& axes = {}, bool keepdims = false, double correction = 1);
Tensor stddev(const Tensor& x, const Axes& axes = {}, bool keepdims = false, double correction = 1);
// (sum |x|^p)^(1/p); p may be infinity. At zero the gradient is 0.
Tensor norm(const Tensor& x, double p = 2, const Axes& axes = {}, bool keepdims = false);
Tensor logsumexp(const Tensor& x, const Axes& axes = {}, bool keepdims = false);     // log(sum e^x) without overflow
Tensor any(const Tensor& x, const Axes& axes = {}, bool keepdims = false);            // bool: is anything not zero?
Tensor all(const Tensor& x, const Axes& axes = {}, bool keepdims = false);            // bool: is nothing zero?
Tensor cumsum(const Tensor& x, int64_t axis);                                         // running sums

}  // namespace fovea
