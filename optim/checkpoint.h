// Checkpoints: everything that a cut-off run needs to go on bit for bit, in one .safetensors file.
//
// The file holds the model's state dict ("model.NAME"), the optimizer's state ("optimizer.NAME"), the step, the random state of the calling thread's default
// generator, the data position, and texts and tensors of the user's own ("user.NAME"). It is written atomically (tensor/file.h): whatever goes wrong while a
// checkpoint is saved, the one before stays.
//
//     optim::save_checkpoint(path, model, optimizer, {.step = step, .position = {{"epoch", p.epoch}, {"batch", p.batch}}});
//     ...
//     const optim::TrainingState at = optim::load_checkpoint(path, model, optimizer);
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include <fovea/layers/state_dict.h>
#include <fovea/optim/optimizer.h>
#include <fovea/tensor/safetensors.h>

namespace fovea::optim {

struct TrainingState {
  int64_t step = 0;                                                  // what the schedule is asked for next
  std::map<std::string, int64_t> position = {};                      // where the data stands
  Metadata metadata = {};                                            // the user's texts
  NamedTensors tensors = {};                                         // the user's tensors
};

// A checkpoint as it lies in the file, not yet put into a model. To read the weights alone: load_state_dict(model, read_checkpoint(path).model).
struct Checkpoint {
  layers::StateDict model;
  NamedTensors optimizer;
  TrainingState state;
  uint64_t random_seed = 0, random_offset = 0;
  std::string optimizer_name;                // Adam; empty in files of versions that did not write it
};

void save_checkpoint(const std::string& path, const layers::Module& model, const Optimizer& optimizer, const TrainingState& state);

// FileError with path and reason if the file is damaged or no checkpoint.
Checkpoint read_checkpoint(const std::string& path);
Checkpoint parse_checkpoint(std::span<const uint8_t> file, const std::string& what);   // from memory; `what` begins every error message

// Puts a checkpoint into the model, the optimizer and the random generator. Names, shapes and dtypes must be those that were saved. On an error (FileError
// for the file, ValueError for what does not fit) all three are as they were.
TrainingState load_checkpoint(const std::string& path, layers::Module& model, Optimizer& optimizer);

}  // namespace fovea::optim
