// Note [Random numbers of a recorded graph]
// A graph repeats its kernels with the arguments that they were recorded with, so a dropout would drop the same elements in every run. Kernels that draw while a graph is recorded
// therefore take the default generator's seed and position from device memory, where each run puts them before it begins, and the generator moves past what a run draws: runs draw
// what as many calls of the recorded work would have drawn. Numbers of other generators are the same in every run. Not installed.
#pragma once

#include <fovea/kernels/table.h>

namespace fovea::kernels::cuda {

// What is recorded on this thread now.
struct RecordedRandom {
  PhiloxKey begin;                           // of the default generator, when recording began
  PhiloxKey* of_run = nullptr;               // device memory; null: nothing is recorded
};
RecordedRandom& recorded_random();

// On `queue`: a run begins with the default generator there.
void begin_run(Queue queue, PhiloxKey* of_run, PhiloxKey key);

}  // namespace fovea::kernels::cuda
