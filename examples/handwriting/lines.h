// Which lines a run learns from, and which it is measured on. A model remembers the choice, so that it is never measured on what it has seen.
#pragma once

#include <string>

#include "model_file.h"

struct LinesOptions {
  std::string folder = {};                                   // with lines.tsv; empty: lines drawn by the synthesizer
  std::string split = "auto";                                // "page", "hand", or "auto": by hand where there are several
  double held_out_fraction = 0.13;                           // of a folder's lines
  int64_t held_out_drawn = 400;                              // drawn lines kept for evaluation
  uint64_t seed = 1;
};

struct Lines {
  fovea::data::DatasetPtr training, held_out;
  fovea::data::Alphabet alphabet;
  std::string description;                                   // for people
  fovea::Metadata run;                                       // data, table, split, held-out and seed: what it takes to find the same lines again
};

// `drawn` lines to train on if they are drawn; height is that of their pictures.
Lines choose_lines(const LinesOptions& options, int64_t height, int64_t drawn);

struct MeasuredLines {
  fovea::data::DatasetPtr lines;
  std::string description;
};
// The lines that the run of this model held out; `folder`, if not empty, is where its lines are now. With is_all: all lines of the folder, whatever it is.
// FileError if the model does not say what it was trained on, or if the folder holds other lines: whether it has seen those is not known.
MeasuredLines lines_to_measure(const Model& model, const std::string& model_path, const std::string& folder, bool is_all);

std::string exact_text(double value);                        // the shortest that reads back as the same number
