// A trained recognizer in one file: weights as safetensors, options and alphabet in its metadata.
#pragma once

#include <memory>
#include <string>

#include "recognizer.h"

struct Model {
  RecognizerOptions options;
  fovea::data::Alphabet alphabet;
  std::unique_ptr<Recognizer> network;

  Model(RecognizerOptions options, fovea::data::Alphabet alphabet);     // a new network; options.classes follows from the alphabet
};

fovea::Metadata describe(const Model& model);                             // options and alphabet as text
Model model_from(const fovea::Metadata& metadata, const std::string& path);   // the network it describes, not trained; FileError naming path if it does not
void save_model(const std::string& path, const Model& model);
Model load_model(const std::string& path);
