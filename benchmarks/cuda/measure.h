// Times of work on the GPU, ours and a vendor's in turn.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <fovea/kernels/cuda/graph.h>
#include <fovea/tensor/tensor.h>

namespace fovea::benchmarks {

// Puts the work of one set of inputs on the current stream, and returns what has to live as long as the work may be repeated.
using Work = std::function<std::vector<Tensor>()>;

// A work that can be repeated and timed: for every set of inputs once, in turn, as often as fits into about a tenth of a millisecond. Recorded in a graph, so that what the
// host does between kernels is not measured; if `is_eager`, or where the work cannot be recorded, it is put on the stream anew each time.
class Shot {
 public:
  Shot(std::vector<Work> sets, bool is_eager);
  double seconds();                                              // of one work, by events around all of the shot
  const std::string& how() const { return how_; }                // "graph of 12", "12 launches", with the reason where it was not by choice
  double estimate() const { return estimate_; }                  // seconds of one work, from the first runs

 private:
  void run();

  std::vector<Work> sets_;
  size_t count_ = 1;
  std::vector<std::vector<Tensor>> kept_;
  std::optional<cuda::Graph> graph_;
  std::string how_;
  double estimate_ = 0;
};

struct Times {
  std::vector<double> samples;                                   // seconds
  double percentile(double q) const;                             // NaN of none
  double median() const { return percentile(0.5); }
};

struct Budget {
  double warm_up = 0.1, seconds = 0.5;                           // seconds of repetition before, and of samples for each side
  int least_samples = 10, most_samples = 100;
};

// Repeats `ours` until the clock is up, then takes samples of ours and the vendor's (null where there is none) in turn.
void measure_in_turn(Shot& ours, Shot* vendor, const Budget& budget, Times& our_times, Times& vendor_times);

}  // namespace fovea::benchmarks
