// The gradients of a list of parameters as kernels take them: what clipping and loss scaling share.
#pragma once

#include <vector>

#include <fovea/tensor/named_tensors.h>

namespace fovea::optim {

// Those of one device. A gradient with strides is replaced by a contiguous copy, which store() copies back.
struct DeviceGradients {
  Device device;
  std::vector<Tensor> originals, contiguous;
  std::vector<kernels::GradientSlot> slots;

  kernels::Queue queue() const { return queue_of(originals[0]); }
  const kernels::KernelTable& table() const { return table_of(originals[0]); }
  void store() const;                        // after a change: copies go back to where they came from, and versions are counted
};

// By device, in the order of the parameters; parameters that are undefined or have no gradient are left out.
std::vector<DeviceGradients> gradients_of(const NamedTensors& parameters);

}  // namespace fovea::optim
