// Training with everything that a long run needs: progress, history, checkpoints, resuming, and stopping in between.
#pragma once

#include <string>
#include <vector>

#include "reading.h"

struct TrainingOptions {
  std::string out = "out";
  std::string data;                                          // a folder with lines.tsv; empty: lines drawn by the synthesizer
  std::string split_by = "auto";                             // "page", "hand", or "auto": by hand where there are several
  RecognizerOptions network;
  int64_t steps = 0;                                         // 0: 60 times through a folder's lines
  int64_t batch_size = 16, evaluate_every = 250;
  int64_t held_out = 400;                                    // drawn lines kept for evaluation
  double held_out_fraction = 0.13;                           // of a folder's lines
  double lr = 2e-3, weight_decay = 1e-2;
  uint64_t seed = 1;
  bool resume = false;
};

struct HistoryRow {
  int64_t step = 0;
  double loss = 0, training_cer = 0, held_out_cer = -1, lr = 0, lines_per_second = 0;      // held_out_cer -1: not measured at this step
};

// Trains, and writes model.safetensors, history.csv, history.png and predictions.png into `out`. Ctrl-C saves a checkpoint and stops. Returns the exit code.
int train(TrainingOptions options);

// The lines that train() with these options would hold out.
fovea::data::DatasetPtr held_out_lines(const TrainingOptions& options);
