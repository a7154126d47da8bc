#include "model_file.h"

#include <sstream>

#include <fovea/tensor/number.h>

using namespace fovea;

namespace {

constexpr int64_t largest_size = 4096;                     // of anything a file may ask for; far above what is useful

std::string joined(const std::vector<int64_t>& numbers) {
  std::ostringstream text;
  for (size_t i = 0; i < numbers.size(); ++i) text << (i ? " " : "") << numbers[i];
  return text.str();
}

const std::string& entry(const Metadata& metadata, const std::string& key, const std::string& path) {
  const auto found = metadata.find(key);
  check<FileError>(found != metadata.end(), path, ": is not a model of this program (its metadata has no \"", key, "\")");
  return found->second;
}

std::vector<int64_t> numbers(const Metadata& metadata, const std::string& key, const std::string& path) {
  std::vector<int64_t> list;
  std::istringstream words(entry(metadata, key, path));
  for (std::string word; words >> word;) {
    const std::optional<int64_t> value = number_in<int64_t>(word);
    check<FileError>(value && *value > 0 && *value <= largest_size, path, ": \"", key, "\" holds \"", word, "\", expected numbers from 1 to ", largest_size);
    list.push_back(*value);
  }
  check<FileError>(!list.empty() && list.size() <= 16, path, ": \"", key, "\" holds ", list.size(), " numbers");
  return list;
}

}  // namespace

Model::Model(RecognizerOptions o, data::Alphabet a) : options(std::move(o)), alphabet(std::move(a)) {
  options.classes = alphabet.classes();
  network = std::make_unique<Recognizer>(options);
}

Metadata describe(const Model& model) {
  const RecognizerOptions& o = model.options;
  return {{"program", "fovea-handwriting"}, {"alphabet", model.alphabet.characters()}, {"height", std::to_string(o.height)}, {"channels", joined(o.channels)},
          {"hidden", std::to_string(o.hidden)}, {"rnn_layers", std::to_string(o.rnn_layers)}};
}

Model model_from(const Metadata& metadata, const std::string& path) {
  RecognizerOptions o;
  o.height = numbers(metadata, "height", path).front();
  o.channels = numbers(metadata, "channels", path);
  o.hidden = numbers(metadata, "hidden", path).front();
  o.rnn_layers = numbers(metadata, "rnn_layers", path).front();
  try {
    return Model(o, data::Alphabet(entry(metadata, "alphabet", path)));
  } catch (const ValueError& error) {
    fail<FileError>(path, ": describes no network that can be built: ", error.what());
  }
}

void save_model(const std::string& path, const Model& model) { save_safetensors(path, layers::state_dict(*model.network), describe(model)); }

Model load_model(const std::string& path) {
  const Safetensors file = load_safetensors(path);
  Model model = model_from(file.metadata, path);
  try {
    layers::load_state_dict(*model.network, file.tensors);
  } catch (const ValueError& error) {
    fail<FileError>(path, ": ", error.what());
  }
  model.network->eval();
  return model;
}
