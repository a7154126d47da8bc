#pragma once

#include <fovea/kernels/cuda/runtime.h>

namespace fovea::testing {

// allow_tf32() for as long as it lives.
class Tf32Scope {
 public:
  explicit Tf32Scope(bool is_on) : before_(fovea::cuda::allow_tf32()) { fovea::cuda::set_allow_tf32(is_on); }
  ~Tf32Scope() { fovea::cuda::set_allow_tf32(before_); }

 private:
  bool before_;
};

}  // namespace fovea::testing
