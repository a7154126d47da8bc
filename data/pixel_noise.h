// Normal noise for many pixels, an order of magnitude faster than RandomStream::normal: each value is the sum of four random bytes.
#pragma once

#include <cstdint>

#include <fovea/data/random_stream.h>

namespace fovea::data {

class PixelNoise {
 public:
  PixelNoise(RandomStream& random, float deviation) : state_((uint64_t{random.word()} << 32 | random.word()) | 1), scale_(deviation / bytes_deviation) {}

  float next() {
    if (used_ == 2) {                          // xorshift (Marsaglia 2003) gives eight bytes, enough for two values
      state_ ^= state_ << 13;
      state_ ^= state_ >> 7;
      state_ ^= state_ << 17;
      used_ = 0;
    }
    const auto word = static_cast<uint32_t>(state_ >> (32 * used_++));
    const uint32_t pairs = (word & 0x00FF00FFu) + (word >> 8 & 0x00FF00FFu);
    return (static_cast<float>((pairs & 0xFFFFu) + (pairs >> 16)) - bytes_mean) * scale_;
  }

 private:
  static constexpr float bytes_mean = 510, bytes_deviation = 147.8f;      // of four bytes: 4 * 127.5, sqrt(4 * (256^2 - 1) / 12)
  uint64_t state_;
  int used_ = 2;
  float scale_;
};

}  // namespace fovea::data
