#include "measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include <fovea/kernels/error.h>

namespace fovea::benchmarks {

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double seconds_of(const std::function<void()>& work) {
  cuda::Event begin(0), end(0);
  begin.record();
  work();
  end.record();
  end.synchronize();
  return cuda::seconds_between(begin, end);
}

}  // namespace

Shot::Shot(std::vector<Work> sets, bool is_eager) : sets_(std::move(sets)) {
  for (const Work& set : sets_) kept_.push_back(set());          // what is made on first use is made now
  estimate_ = std::min(seconds_of([&] { kept_[0] = sets_[0](); }), seconds_of([&] { kept_[0] = sets_[0](); }));
  constexpr double enough = 1e-4;
  constexpr size_t most = 64;
  const size_t repeats = static_cast<size_t>(std::ceil(enough / std::max(estimate_, 1e-6)));
  count_ = (std::clamp<size_t>(repeats, sets_.size(), std::max(most, sets_.size())) + sets_.size() - 1) / sets_.size() * sets_.size();
  how_ = std::to_string(count_) + " launches";
  if (is_eager) return;
  try {
    graph_.emplace([&] { run(); });
    how_ = "graph of " + std::to_string(count_);
    graph_->replay();
    cuda::synchronize();
  } catch (const Error& error) {
    graph_.reset();
    how_ += " (host included; no graph: " + std::string(error.what()).substr(0, 80) + ")";
    for (size_t i = 0; i < sets_.size(); ++i) kept_[i] = sets_[i]();      // tensors of the recording that failed are not to be relied on
  }
}

void Shot::run() {
  for (size_t i = 0; i < count_; ++i) kept_[i % sets_.size()] = sets_[i % sets_.size()]();
}

double Shot::seconds() {
  return seconds_of([&] { graph_ ? graph_->replay() : run(); }) / static_cast<double>(count_);
}

double Times::percentile(double q) const {
  if (samples.empty()) return std::nan("");
  std::vector<double> ordered = samples;
  std::sort(ordered.begin(), ordered.end());
  return ordered[std::min(ordered.size() - 1, static_cast<size_t>(q * static_cast<double>(ordered.size())))];
}

void measure_in_turn(Shot& ours, Shot* vendor, const Budget& budget, Times& our_times, Times& vendor_times) {
  const double warm = now() + budget.warm_up;
  do {
    ours.seconds();
  } while (now() < warm);
  const double end = now() + budget.seconds * (vendor ? 2 : 1);
  for (int i = 0; i < budget.most_samples && (i < budget.least_samples || now() < end); ++i) {
    our_times.samples.push_back(ours.seconds());
    if (vendor) vendor_times.samples.push_back(vendor->seconds());
  }
}

}  // namespace fovea::benchmarks
