// Where random numbers come from: a seed and a position in its Philox stream. The same seed draws the same numbers on every device.
#pragma once

#include <cstdint>

#include <fovea/kernels/table.h>

namespace fovea {

class Generator {
 public:
  explicit Generator(uint64_t seed = 0) : seed_(seed) {}

  uint64_t seed() const { return seed_; }
  uint64_t offset() const { return offset_; }
  void set_state(uint64_t seed, uint64_t offset) { seed_ = seed; offset_ = offset; }

  // The key for `numel` numbers; the generator moves past them (at most one Philox block a number).
  kernels::PhiloxKey next(int64_t numel) {
    const kernels::PhiloxKey key{seed_, offset_};
    offset_ += static_cast<uint64_t>(numel);
    return key;
  }

 private:
  uint64_t seed_, offset_ = 0;
};

// The generator used where none is given; each thread has its own, so that what one thread draws does not depend on another.
Generator& default_generator();
void manual_seed(uint64_t seed);             // starts this thread's default generator anew

}  // namespace fovea
