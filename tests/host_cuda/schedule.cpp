#include <cstdlib>

#include "model.h"

namespace host_cuda {
namespace {

uint64_t initial_seed() {
  const char* wish = std::getenv("FOVEA_HOST_CUDA_SEED");
  return wish ? std::strtoull(wish, nullptr, 10) : 1;
}
uint64_t& current_seed() {
  static uint64_t s = initial_seed();
  return s;
}

}  // namespace

// Seeds that differ in one bit must give unlike schedules: one round of splitmix64 (Steele et al. 2014).
Chance::Chance(uint64_t seed) {
  uint64_t z = seed + 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  state_ = (z ^ (z >> 31)) | 1;
}

uint64_t Chance::next() {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return state_ * 0x2545f4914f6cdd1d;
}

Chance& chance() {
  static Chance c(current_seed());
  return c;
}

void set_seed(uint64_t s) {
  current_seed() = s;
  chance() = Chance(s);
}
uint64_t seed() { return current_seed(); }
std::string seed_note() { return text(" (FOVEA_HOST_CUDA_SEED=", current_seed(), ")"); }

}  // namespace host_cuda
