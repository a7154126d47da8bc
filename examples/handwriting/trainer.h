// Training with everything that a long run needs: progress, history, checkpoints, resuming, and stopping in between.
#pragma once

#include <string>
#include <vector>

#include "reading.h"

struct TrainingOptions {
  std::string out = "out";
  fovea::Device device;                                      // that computes; no part of what the run is: it may be resumed on another one
  LinesOptions lines;
  RecognizerOptions network;
  int64_t steps = 0;                                         // 0: 60 times through a folder's lines
  int64_t batch_size = 16, evaluate_every = 250;
  double lr = 2e-3, weight_decay = 1e-2;
  bool resume = false;
};

struct HistoryRow {
  int64_t step = 0;
  double loss = 0, training_cer = 0, held_out_cer = 0, lr = 0, lines_per_second = 0;      // error rates: NaN where nothing was measured at this step
};

// Trains, and writes model.safetensors, history.csv, history.png and predictions.png into `out`. Ctrl-C saves a checkpoint and stops. Returns the exit code.
// ValueError, before anything is overwritten, when the loss, a gradient or a weight stops being a number.
int train(TrainingOptions options);
