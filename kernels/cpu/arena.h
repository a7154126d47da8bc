// Cutting up the workspace that a kernel is handed.
#pragma once

#include <cstdint>

#include <fovea/kernels/table.h>

namespace fovea::kernels {

// Hands out pieces of a workspace, each on a cache line of its own, or with no memory behind it counts what would be needed.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class U>
  U* take(int64_t count) {
    U* piece = memory_ ? reinterpret_cast<U*>(memory_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(U)) + 63) / 64 * 64;
    return piece;
  }
  int64_t used() const { return used_; }
  Workspace rest(Workspace all) const { return {memory_ + used_, all.bytes - used_}; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace fovea::kernels
