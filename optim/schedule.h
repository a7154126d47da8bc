// Schedules: pure functions from the step (counted from 0) to a number, as a rule the learning rate. A run that resumes at step n only has to ask for n again.
//
//     const Schedule lr = sequence({{linear_warmup(1e-3, 500), 500}}, cosine(1e-3, 9500, 1e-6));
//     for (int64_t step = 0; step < 10000; ++step) { optimizer.set_lr(lr(step)); ... optimizer.step(); }
//
// Any std::function<double(int64_t)> is a schedule.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace fovea::optim {

using Schedule = std::function<double(int64_t step)>;

Schedule constant(double value);
Schedule step_decay(double value, int64_t every, double factor = 0.1);                                // value * factor^(step / every), rounded down
Schedule multi_step(double value, std::vector<int64_t> milestones, double factor = 0.1);              // times factor from each milestone on
Schedule exponential(double value, double factor);                                                    // value * factor^step
// From value down to minimum along half a cosine over `steps` steps, then minimum (Loshchilov & Hutter 2017, eq. 5).
Schedule cosine(double value, int64_t steps, double minimum = 0);
Schedule linear(double from, double to, int64_t steps);                                               // `to` at step `steps` and after it
Schedule linear_warmup(double value, int64_t steps, double start = 0);                                // linear(start, value, steps)
Schedule exponential_warmup(double value, int64_t steps, double start);                               // start * (value / start)^(step / steps), then value

// One schedule after the other: each runs for its number of steps and counts them from 0; the last goes on for ever.
struct Phase {
  Schedule schedule;
  int64_t steps = 0;
};
Schedule sequence(std::vector<Phase> phases, Schedule last);

}  // namespace fovea::optim
