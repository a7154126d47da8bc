// From pictures to text: preparing lines, reading them, and counting mistakes.
#pragma once

#include <string>
#include <vector>

#include "lines.h"

struct Reading {
  std::string text;
  double confidence = 0;                                     // geometric mean of the probabilities along the path read, 0 .. 1
};

// A line as the network takes it: grey, options.height pixels high, contrast stretched so that paper is 0 and ink 1. FileError, naming the picture, for one
// that is no line: far wider than high.
fovea::data::Transform prepare(const RecognizerOptions& options);
fovea::Tensor prepare_picture(const std::string& path, const RecognizerOptions& options);      // [1, height, width]; FileError if it cannot be read

// steps int64 [batch] for widths int64 [batch]
fovea::Tensor steps_of(const fovea::Tensor& widths);
// The best path of each line of logits [time, batch, classes].
std::vector<Reading> read_logits(const fovea::Tensor& logits, const fovea::Tensor& steps, const fovea::data::Alphabet& alphabet);
// What stands in images [batch, 1, height, width] of the CPU, on the device that the network is on.
std::vector<Reading> read_lines(const Model& model, const fovea::Tensor& images, const fovea::Tensor& steps);

struct Evaluation {
  fovea::data::ErrorRate characters, words;
  std::vector<Reading> readings;                             // in the order of the set
  double seconds = 0;
};
// Reads all lines of a set in evaluation mode, in batches of lines of about one width. ValueError if the network gives no numbers (NaN).
Evaluation evaluate(const Model& model, const fovea::data::DatasetPtr& lines, int64_t batch_size);
