#include <fovea/optim/checkpoint.h>

#include <fovea/tensor/creation.h>
#include <fovea/tensor/file.h>
#include <fovea/tensor/number.h>
#include <fovea/tensor/random.h>

namespace fovea::optim {
namespace {

// Metadata keys. Numbers are written as decimal text.
constexpr const char *format_key = "fovea.format", *step_key = "fovea.step", *seed_key = "fovea.random_seed", *offset_key = "fovea.random_offset",
                     *optimizer_key = "fovea.optimizer";
constexpr const char* format_value = "checkpoint 1";
constexpr std::string_view position_prefix = "fovea.position.", user_prefix = "user.", model_prefix = "model.", optimizer_prefix = "optimizer.";

template <class T>
T parse_number(const std::string& text, const std::string& key, const std::string& what) {
  const std::optional<T> value = number_in<T>(text);
  check<FileError>(value.has_value(), what, ": \"", key, "\" is \"", text, "\", expected an integer of 64 bits");
  return *value;
}

template <class T>
T number_at(const Metadata& metadata, const char* key, const std::string& what) {
  const auto found = metadata.find(key);
  check<FileError>(found != metadata.end(), what, ": lacks \"", key, "\"");
  return parse_number<T>(found->second, key, what);
}

void add_all(NamedTensors& to, std::string_view prefix, const NamedTensors& from) {
  for (const auto& [name, tensor] : from) to.add(std::string(prefix) + name, tensor);
}

void sort_tensors(Checkpoint& checkpoint, const NamedTensors& all, const std::string& what) {
  const std::pair<std::string_view, NamedTensors*> parts[] = {
      {model_prefix, &checkpoint.model}, {optimizer_prefix, &checkpoint.optimizer}, {user_prefix, &checkpoint.state.tensors}};
  for (const auto& [name, tensor] : all) {
    bool is_known = false;
    for (const auto& [prefix, part] : parts) {
      if (!name.starts_with(prefix)) continue;
      part->add(name.substr(prefix.size()), tensor);
      is_known = true;
    }
    check<FileError>(is_known, what, ": holds an unexpected tensor \"", name, "\"");
  }
}

// Loading converts dtypes, which is right for weights from elsewhere, but a run would not go on bit for bit.
void check_dtypes(const layers::StateDict& saved, const layers::Module& model, const std::string& what) {
  for (const auto& [name, tensor] : layers::state_dict(model)) {
    const Tensor* found = saved.find(name);
    check<ValueError>(!found || found->dtype() == tensor.dtype(), what, ": \"", name, "\" was saved as ", found ? found->dtype() : DType::float32,
                      " where the model has ", tensor.dtype());
  }
}

}  // namespace

void save_checkpoint(const std::string& path, const layers::Module& model, const Optimizer& optimizer, const TrainingState& state) {
  NamedTensors tensors;
  add_all(tensors, model_prefix, layers::state_dict(model));
  add_all(tensors, optimizer_prefix, optimizer.state());
  add_all(tensors, user_prefix, state.tensors);
  Metadata metadata;
  metadata[format_key] = format_value;
  metadata[optimizer_key] = optimizer.name();
  metadata[step_key] = std::to_string(state.step);
  metadata[seed_key] = std::to_string(default_generator().seed());
  metadata[offset_key] = std::to_string(default_generator().offset());
  for (const auto& [name, value] : state.position) metadata[std::string(position_prefix) + name] = std::to_string(value);
  for (const auto& [name, text] : state.metadata) metadata[std::string(user_prefix) + name] = text;
  save_safetensors(path, tensors, metadata);
}

Checkpoint parse_checkpoint(std::span<const uint8_t> file, const std::string& what) {
  const Safetensors contents = parse_safetensors(file, what);
  const auto format = contents.metadata.find(format_key);
  check<FileError>(format != contents.metadata.end(), what, ": is a .safetensors file but not a checkpoint; load weights with load_safetensors and load_state_dict");
  check<FileError>(format->second == format_value, what, ": is \"", format->second, "\", this version reads \"", format_value, "\"");
  Checkpoint checkpoint;
  checkpoint.state.step = number_at<int64_t>(contents.metadata, step_key, what);
  checkpoint.random_seed = number_at<uint64_t>(contents.metadata, seed_key, what);
  checkpoint.random_offset = number_at<uint64_t>(contents.metadata, offset_key, what);
  if (const auto found = contents.metadata.find(optimizer_key); found != contents.metadata.end()) checkpoint.optimizer_name = found->second;
  for (const auto& [key, text] : contents.metadata) {
    if (key.starts_with(position_prefix)) checkpoint.state.position[key.substr(position_prefix.size())] = parse_number<int64_t>(text, key, what);
    if (key.starts_with(user_prefix)) checkpoint.state.metadata[key.substr(user_prefix.size())] = text;
  }
  sort_tensors(checkpoint, contents.tensors, what);
  return checkpoint;
}

Checkpoint read_checkpoint(const std::string& path) { return parse_checkpoint(read_file(path, "read_checkpoint"), "read_checkpoint: " + path); }

TrainingState load_checkpoint(const std::string& path, layers::Module& model, Optimizer& optimizer) {
  Checkpoint checkpoint = read_checkpoint(path);
  const std::string what = "load_checkpoint: " + path;
  check_dtypes(checkpoint.model, model, what);
  const std::string& saved_by = checkpoint.optimizer_name;                   // two optimizers may keep the same buffers and mean different things by them
  check<ValueError>(saved_by.empty() || saved_by == optimizer.name(), what, ": was saved by ", saved_by, ", and this run has ", optimizer.name());
  NamedTensors before;
  for (const auto& [name, tensor] : optimizer.state())   // load_state gives the optimizer new tensors, so that the old ones keep their values, unless it is capturable
    before.add(name, optimizer.is_capturable() ? copied_to(tensor, tensor.device()) : tensor);
  try {
    optimizer.load_state(checkpoint.optimizer);
    try {
      layers::load_state_dict(model, checkpoint.model);
    } catch (...) {
      optimizer.load_state(before);
      throw;
    }
  } catch (const ValueError& error) {
    fail<ValueError>(what, ": ", error.what());
  }
  default_generator().set_state(checkpoint.random_seed, checkpoint.random_offset);
  return std::move(checkpoint.state);
}

}  // namespace fovea::optim
