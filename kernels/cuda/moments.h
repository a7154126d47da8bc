// Means and variances of numbers that come in batches.
//
// Note [Variance without cancellation]
// E[x^2] - E[x]^2 loses everything when the mean is large beside the deviation. A lane takes a batch of elements into registers, finds their mean and the squared
// deviations from it, and combines batches by Chan, Golub & LeVeque 1979, eq. 2.1; lanes and blocks are combined the same way in float64.
#pragma once

#include <fovea/kernels/cuda/core/device.h>

namespace fovea::kernels::cuda {

struct Moments {
  double count = 0, mean = 0, m2 = 0;        // m2: sum of squared deviations from the mean

  __device__ double variance() const { return count > 0 ? (m2 < 0 ? 0.0 : m2 / count) : 0.0; }
};

struct JoinMoments {
  __device__ Moments operator()(const Moments& a, const Moments& b) const {
    if (a.count == 0 || b.count == 0) return a.count == 0 ? b : a;
    const double count = a.count + b.count, delta = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + delta * share, a.m2 + b.m2 + delta * (a.count * share) * delta};
  }
};

// Of what a lane has seen.
template <class A>
struct LaneMoments {
  A count = 0, mean = 0, m2 = 0;

  // The first `filled` of the values, one at least; the others are 0.
  template <int n>
  __device__ void add(const A (&values)[n], int filled) {
    A sum = 0, off = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < n; ++k) sum += values[k];
    const A size = static_cast<A>(filled), center = sum / size;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const A distance = k < filled ? values[k] - center : A(0);
      off += distance;
      squares += distance * distance;
    }
    off /= size;                             // how far the rounded mean was off: that is taken back
    const A total = count + size, delta = center - mean + off, share = size / total;
    mean += delta * share;
    m2 += squares - size * off * off + delta * (count * share) * delta;        // in this order: of a first batch that is 0, however large the mean
    count = total;
  }
  __device__ Moments wide() const { return {static_cast<double>(count), static_cast<double>(mean), static_cast<double>(m2)}; }
};

}  // namespace fovea::kernels::cuda
