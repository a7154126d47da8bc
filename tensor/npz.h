// NumPy's .npz files: a zip archive of .npy files, one an array.
//
// Read: stored and deflated entries, with their checksums; also zip64, as NumPy marks its entries. Written: stored, like numpy.savez.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <fovea/tensor/named_tensors.h>

namespace fovea {

NamedTensors load_npz(const std::string& path);                           // in the order of the archive; FileError with path and reason if it is damaged
void save_npz(const std::string& path, const NamedTensors& tensors);      // atomically; together less than 4 GiB

NamedTensors parse_npz(std::span<const uint8_t> file, const std::string& what);   // from memory; `what` begins every error message

}  // namespace fovea
