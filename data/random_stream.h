// Random numbers for one sample: stream `index` of `seed`. What is drawn depends on these two alone, so samples can be made in any order and on any thread.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include <fovea/kernels/philox.h>

namespace fovea::data {

// A well mixed combination of two numbers, for example a seed and an epoch (the finaliser of SplitMix64, Steele, Lea & Flood 2014).
inline uint64_t mix_seed(uint64_t a, uint64_t b) {
  uint64_t z = a + 0x9E3779B97F4A7C15u * (b + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

class RandomStream {
 public:
  explicit RandomStream(uint64_t seed, uint64_t index = 0) : seed_(mix_seed(seed, index)) {}

  uint32_t word() {
    if (used_ == 4) {
      words_ = kernels::Philox::words(seed_, counter_++);
      used_ = 0;
    }
    return words_[used_++];
  }
  float uniform() { return kernels::Philox::uniform_float(word()); }                                  // [0, 1)
  float uniform(float low, float high) { return low + (high - low) * uniform(); }
  bool chance(float probability) { return uniform() < probability; }
  int64_t integer(int64_t count) {                                                                     // 0 .. count - 1; count below 2^53
    const uint32_t high = word();
    return static_cast<int64_t>(kernels::Philox::uniform_double(high, word()) * static_cast<double>(count));
  }
  float normal() {                                                                                     // Box & Muller 1958; one of the pair
    const float radius = std::sqrt(-2.0f * std::log(1.0f - uniform()));
    return radius * std::cos(6.2831853f * uniform());
  }

 private:
  uint64_t seed_, counter_ = 0;
  std::array<uint32_t, 4> words_{};
  unsigned used_ = 4;
};

}  // namespace fovea::data
