// The readers that must stand any bytes: what the fuzzers of this folder and tests/hostile_files_test.cpp run. A damaged file is a FileError; anything else that
// is thrown, a crash, or a read outside of memory is a bug.
#pragma once

#include <cstdint>
#include <span>

#include <fovea/data/idx.h>
#include <fovea/optim/checkpoint.h>
#include <fovea/tensor/elements.h>
#include <fovea/tensor/image_file.h>
#include <fovea/tensor/inflate.h>
#include <fovea/tensor/npy.h>
#include <fovea/tensor/npz.h>
#include <fovea/tensor/safetensors.h>

namespace fovea::fuzz {

using Bytes = std::span<const uint8_t>;

// Reads every element, so that a tensor that is larger than its memory is noticed.
inline uint64_t touch(Bytes bytes) {
  uint64_t sum = 0;
  for (const uint8_t byte : bytes) sum += byte;
  return sum;
}
inline uint64_t touch(const Tensor& x) { return touch(bytes_of(x)); }
inline uint64_t touch(const NamedTensors& tensors) {
  uint64_t sum = 0;
  for (const auto& [name, tensor] : tensors) sum += touch(tensor);
  return sum;
}

inline uint64_t read_npy(Bytes file) { return touch(parse_npy(file, "fuzz")); }
inline uint64_t read_npz(Bytes file) { return touch(parse_npz(file, "fuzz")); }
inline uint64_t read_gzip(Bytes file) { return touch(Bytes(gunzip(file, "fuzz"))); }
inline uint64_t read_idx(Bytes file) { return touch(data::decode_idx(file, "fuzz")); }
inline uint64_t read_safetensors(Bytes file) { return touch(parse_safetensors(file, "fuzz").tensors); }
inline uint64_t read_checkpoint(Bytes file) {
  const optim::Checkpoint checkpoint = optim::parse_checkpoint(file, "fuzz");
  return touch(checkpoint.model) + touch(checkpoint.optimizer) + touch(checkpoint.state.tensors);
}
inline uint64_t read_image(Bytes file) { return touch(Bytes(decode_image(file, "fuzz", 0, {.max_pixels = 1 << 16}).pixels)); }

// Whether the file was read; false: it was refused with a FileError.
inline bool stands(uint64_t (*read)(Bytes), Bytes file) {
  try {
    [[maybe_unused]] static volatile uint64_t sink;                  // so that the compiler does not leave out the reading
    sink = read(file);
    return true;
  } catch (const FileError&) {
    return false;
  }
}

}  // namespace fovea::fuzz
