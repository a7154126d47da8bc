#include <fovea/optim/schedule.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fovea/kernels/error.h>

namespace fovea::optim {
namespace {

void check_steps(int64_t steps, const char* schedule, const char* argument) {
  check<ValueError>(steps > 0, schedule, ": ", argument, " must be positive, got ", steps);
}

void check_finite(double value, const char* schedule, const char* argument) {
  check<ValueError>(std::isfinite(value), schedule, ": ", argument, " must be finite, got ", value);
}

double fraction(int64_t step, int64_t steps) { return static_cast<double>(std::clamp<int64_t>(step, 0, steps)) / static_cast<double>(steps); }

}  // namespace

Schedule constant(double value) {
  check_finite(value, "constant", "value");
  return [=](int64_t) { return value; };
}

Schedule step_decay(double value, int64_t every, double factor) {
  check_finite(value, "step_decay", "value");
  check_finite(factor, "step_decay", "factor");
  check_steps(every, "step_decay", "every");
  return [=](int64_t step) { return value * std::pow(factor, static_cast<double>(std::max<int64_t>(step, 0) / every)); };
}

Schedule multi_step(double value, std::vector<int64_t> milestones, double factor) {
  check_finite(value, "multi_step", "value");
  check_finite(factor, "multi_step", "factor");
  std::sort(milestones.begin(), milestones.end());
  return [=](int64_t step) {
    const auto passed = std::upper_bound(milestones.begin(), milestones.end(), step) - milestones.begin();
    return value * std::pow(factor, static_cast<double>(passed));
  };
}

Schedule exponential(double value, double factor) {
  check_finite(value, "exponential", "value");
  check_finite(factor, "exponential", "factor");
  return [=](int64_t step) { return value * std::pow(factor, static_cast<double>(std::max<int64_t>(step, 0))); };
}

Schedule cosine(double value, int64_t steps, double minimum) {
  check_finite(value, "cosine", "value");
  check_finite(minimum, "cosine", "minimum");
  check_steps(steps, "cosine", "steps");
  return [=](int64_t step) { return minimum + (value - minimum) * (1 + std::cos(std::numbers::pi * fraction(step, steps))) / 2; };
}

Schedule linear(double from, double to, int64_t steps) {
  check_finite(from, "linear", "from");
  check_finite(to, "linear", "to");
  check_steps(steps, "linear", "steps");
  return [=](int64_t step) { return step >= steps ? to : from + (to - from) * fraction(step, steps); };
}

Schedule linear_warmup(double value, int64_t steps, double start) { return linear(start, value, steps); }

Schedule exponential_warmup(double value, int64_t steps, double start) {
  check_steps(steps, "exponential_warmup", "steps");
  check<ValueError>(start > 0 && value > 0 && std::isfinite(start) && std::isfinite(value), "exponential_warmup: start and value must be positive, got ", start,
                    " and ", value);
  return [=](int64_t step) { return step >= steps ? value : start * std::pow(value / start, fraction(step, steps)); };
}

Schedule sequence(std::vector<Phase> phases, Schedule last) {
  for (const Phase& phase : phases) {
    check_steps(phase.steps, "sequence", "the steps of each phase");
    check<ValueError>(phase.schedule != nullptr, "sequence: a phase has no schedule");
  }
  check<ValueError>(last != nullptr, "sequence: there is no last schedule");
  return [phases = std::move(phases), last = std::move(last)](int64_t step) {
    for (const Phase& phase : phases) {
      if (step < phase.steps) return phase.schedule(step);
      step -= phase.steps;
    }
    return last(step);
  };
}

}  // namespace fovea::optim
