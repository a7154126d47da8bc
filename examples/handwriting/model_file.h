// A trained recognizer in one file: weights as safetensors; options, alphabet and where it comes from in its metadata.
#pragma once

#include <memory>
#include <string>

#include "recognizer.h"

struct Model {
  RecognizerOptions options;
  fovea::data::Alphabet alphabet;
  std::unique_ptr<Recognizer> network;
  fovea::Metadata run;                                                    // the options of the run that trained it, by name (see lines.h); empty: not known

  Model(RecognizerOptions options, fovea::data::Alphabet alphabet);     // a new network; options.classes follows from the alphabet
};

fovea::Metadata describe(const Model& model);                             // options, alphabet and run as text
// What two descriptions differ in, as a sentence: "--hidden was 16 and is 8, --seed was 1 and is 2"; empty if they are equal.
std::string differences(const fovea::Metadata& before, const fovea::Metadata& now);

void save_model(const std::string& path, const Model& model);
// FileError naming path if it is damaged or no model. What its metadata asks for is compared with its tensors before any memory is taken for it.
Model load_model(const std::string& path);

// The whole of `word` as a number within least .. most; FileError beginning with `what` otherwise.
int64_t parse_integer(const std::string& word, int64_t least, int64_t most, const std::string& what);
