// Where tensors are made for a while, in tests and benchmarks.
#pragma once

#include <fovea/tensor/creation.h>

namespace fovea::testing {

// While it is alive.
class DefaultDevice {
 public:
  explicit DefaultDevice(Device device) : before_(default_device()) { set_default_device(device); }
  ~DefaultDevice() { set_default_device(before_); }
  DefaultDevice(const DefaultDevice&) = delete;
  DefaultDevice& operator=(const DefaultDevice&) = delete;

 private:
  Device before_;
};

}  // namespace fovea::testing
