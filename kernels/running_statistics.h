// The statistics that batch norm keeps for evaluation, and how a batch moves them: running = (1 - momentum) * running + momentum * batch, with the unbiased variance.
#pragma once

#include <cstdint>

#include <fovea/kernels/view.h>

namespace fovea::kernels {

// What a training pass of batch norm is to update.
struct RunningUpdate {
  View mean, variance;                       // [channels] with any stride, of the dtype of the batch's statistics; absent: none are kept
  double momentum = 0;
  bool is_cumulative = false;                // instead of `momentum`, 1 / batches: the mean over all batches so far
  View batches;                              // int64, one element: grows by one when all else is done. May be absent, unless is_cumulative
};

// The same as a kernel sees it, T being the type of the statistics. Computed in float64 and rounded once.
template <class T>
struct Running {
  T *mean, *variance;                        // null where nothing is kept
  int64_t mean_step, variance_step;
  double momentum, unbiased;                 // unbiased: what makes the unbiased variance of the biased one
  const int64_t* batches;                    // of a cumulative mean: how many came before this one; null otherwise

  // Of statistics over `count` elements a channel; a batch without elements moves nothing.
  Running(const RunningUpdate& update, int64_t count)
      : mean(count > 0 ? update.mean.as<T>() : nullptr), variance(count > 0 ? update.variance.as<T>() : nullptr), mean_step(mean ? update.mean.strides[0] : 0),
        variance_step(variance ? update.variance.strides[0] : 0), momentum(update.momentum), unbiased(static_cast<double>(count) / static_cast<double>(count - 1)),
        batches(update.is_cumulative ? update.batches.as<int64_t>() : nullptr) {}

  constexpr void update(int64_t channel, double batch_mean, double batch_variance) const {
    const double weight = batches ? 1.0 / static_cast<double>(*batches + 1) : momentum;
    if (mean) move(mean[channel * mean_step], batch_mean, weight);
    if (variance) move(variance[channel * variance_step], batch_variance * unbiased, weight);
  }

 private:
  // Exact at both ends, 0 and 1.
  static constexpr void move(T& place, double batch, double weight) {
    const double from = static_cast<double>(place), difference = batch - from;
    place = static_cast<T>(weight < 0.5 ? from + weight * difference : batch - (1 - weight) * difference);
  }
};

}  // namespace fovea::kernels
