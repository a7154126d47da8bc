// The tensors of a module under their paths, in order: what is saved, loaded and exchanged with PyTorch.
#pragma once

#include <fovea/layers/module.h>

namespace fovea::layers {

using StateDict = NamedTensors;

// Parameters and buffers under PyTorch's names and in its order. The tensors share the module's memory; clone() them to keep what they are
// now.
StateDict state_dict(const Module& module, const std::string& prefix = "");

struct LoadOptions {
  bool strict = true;                        // false: names that are missing or unexpected are reported, not an error
};

struct LoadReport {
  std::vector<std::string> loaded, missing, unexpected;
};

// Copies values into the module's tensors, converting dtypes and devices. ValueError with one text that lists every missing, unexpected and
// wrongly shaped name; the module is then as it was. A wrong shape is an error even when not strict.
LoadReport load_state_dict(Module& module, const StateDict& state, LoadOptions options = {});

}  // namespace fovea::layers
