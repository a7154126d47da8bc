#include "model_file.h"

#include <set>
#include <sstream>

#include <fovea/tensor/number.h>

using namespace fovea;

namespace {

constexpr const char* run_prefix = "run.";                 // of the metadata that tell where a model comes from

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

std::vector<int64_t> numbers(const Metadata& metadata, const std::string& key, int64_t most, const std::string& path) {
  std::vector<int64_t> list;
  std::istringstream words(entry(metadata, key, path));
  for (std::string word; words >> word;) list.push_back(parse_integer(word, 1, most, str(path, ": \"", key, "\"")));
  check<FileError>(!list.empty() && list.size() <= 16, path, ": \"", key, "\" holds ", list.size(), " numbers");
  return list;
}

int64_t number(const Metadata& metadata, const std::string& key, int64_t most, const std::string& path) {
  const std::vector<int64_t> list = numbers(metadata, key, most, path);
  check<FileError>(list.size() == 1, path, ": \"", key, "\" holds ", list.size(), " numbers, expected one");
  return list.front();
}

RecognizerOptions options_from(const Metadata& metadata, const std::string& path) {
  RecognizerOptions o;
  o.height = number(metadata, "height", largest_height, path);
  o.channels = numbers(metadata, "channels", largest_width, path);
  o.hidden = number(metadata, "hidden", largest_width, path);
  o.rnn_layers = number(metadata, "rnn_layers", most_rnn_layers, path);
  return o;
}

data::Alphabet alphabet_from(const Metadata& metadata, const std::string& path) {
  const std::string& characters = entry(metadata, "alphabet", path);
  data::Alphabet alphabet(characters);
  // A letter that stands twice would have two labels where the network was trained, and has one here.
  check<FileError>(!characters.empty() && alphabet.characters() == characters, path,
                   ": its alphabet is empty, or has letters twice or in another order than by code point");
  return alphabet;
}

// The tensors that a network of these options is made of, as far as they tell every size in it; load_state_dict() compares the rest.
std::vector<std::pair<std::string, Shape>> telling_tensors(const RecognizerOptions& o) {
  std::vector<std::pair<std::string, Shape>> list;
  int64_t in = 1;
  for (size_t i = 0; i < o.channels.size(); ++i) {
    list.emplace_back(str("features.", 4 * i, ".weight"), Shape{o.channels[i], in, 3, 3});
    in = o.channels[i];
  }
  int64_t input = in * (o.height >> o.channels.size());
  for (int64_t layer = 0; layer < o.rnn_layers; ++layer) {
    list.emplace_back(str("rnn.weight_ih_l", layer), Shape{4 * o.hidden, input});
    list.emplace_back(str("rnn.weight_hh_l", layer), Shape{4 * o.hidden, o.hidden});
    input = 2 * o.hidden;
  }
  list.emplace_back("head.weight", Shape{o.classes, input});
  return list;
}

void check_sizes(const RecognizerOptions& o, const NamedTensors& tensors, const std::string& path) {
  for (const auto& [name, shape] : telling_tensors(o)) {
    const Tensor* found = tensors.find(name);
    check<FileError>(found != nullptr, path, ": has no tensor \"", name, "\", which its metadata asks for");
    check<FileError>(found->shape() == shape, path, ": \"", name, "\" is ", found->shape(), " where its metadata asks for ", shape);
  }
}

// How an option is called on the command line.
std::string option_name(const std::string& key) {
  if (key == "run.table") return "the text of lines.tsv";
  if (key == "rnn_layers") return "--layers";
  if (key == "hidden" || key == "height") return "--" + key;
  return key.starts_with(run_prefix) ? "--" + key.substr(std::string_view(run_prefix).size()) : "the " + key;
}

std::string value_of(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "not known" : found->second.empty() ? "not given" : found->second;
}

}  // namespace

int64_t parse_integer(const std::string& word, int64_t least, int64_t most, const std::string& what) {
  const std::optional<int64_t> value = number_in<int64_t>(word);
  check<FileError>(value && *value >= least && *value <= most, what, " is \"", word.substr(0, 40), "\", expected a number from ", least, " to ", most);
  return *value;
}

Model::Model(RecognizerOptions o, data::Alphabet a) : options(std::move(o)), alphabet(std::move(a)) {
  options.classes = alphabet.classes();
  network = std::make_unique<Recognizer>(options);
}

Metadata describe(const Model& model) {
  const RecognizerOptions& o = model.options;
  Metadata metadata{{"program", "fovea-handwriting"}, {"alphabet", model.alphabet.characters()}, {"height", std::to_string(o.height)},
                    {"channels", joined(o.channels)}, {"hidden", std::to_string(o.hidden)}, {"rnn_layers", std::to_string(o.rnn_layers)}};
  for (const auto& [name, value] : model.run) metadata[run_prefix + name] = value;
  return metadata;
}

std::string differences(const Metadata& before, const Metadata& now) {
  std::set<std::string> keys;
  for (const Metadata* side : {&before, &now})
    for (const auto& [key, value] : *side) keys.insert(key);
  std::string text;
  for (const std::string& key : keys) {
    const std::string was = value_of(before, key), is = value_of(now, key);
    if (was == is) continue;
    const bool is_short = key != "alphabet" && key != "run.table" && was.size() <= 200 && is.size() <= 200;
    text += str(text.empty() ? "" : ", ", option_name(key), is_short ? " was " + was + " and is " + is : std::string(" is another"));
  }
  return text;
}

void save_model(const std::string& path, const Model& model) { save_safetensors(path, layers::state_dict(*model.network), describe(model)); }

Model load_model(const std::string& path) {
  const Safetensors file = load_safetensors(path);
  check<FileError>(!file.metadata.contains("fovea.format"), path,
                   ": is a checkpoint to go on training from; the model of a finished run lies beside it as model.safetensors");
  RecognizerOptions options = options_from(file.metadata, path);
  try {
    data::Alphabet alphabet = alphabet_from(file.metadata, path);
    options.classes = alphabet.classes();
    check_sizes(options, file.tensors, path);
    Model model(options, std::move(alphabet));
    layers::load_state_dict(*model.network, file.tensors);
    for (const auto& [key, value] : file.metadata)
      if (key.starts_with(run_prefix)) model.run[key.substr(std::string_view(run_prefix).size())] = value;
    model.network->eval();
    return model;
  } catch (const ValueError& error) {
    fail<FileError>(path, ": describes no network that can be built: ", error.what());
  }
}
