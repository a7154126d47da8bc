// NumPy's .npy files: one array each (numpy.lib.format, versions 1.0 to 3.0).
//
// Read: floats of 16, 32 and 64 bits, bool and integers of any size but 64 bits unsigned, in either byte order and in C or Fortran order. Types that Tensor has no
// dtype for are widened (tensor/elements.h). Written: version 1.0, little-endian, C order; bfloat16, which NumPy does not know, is an error.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <fovea/tensor/tensor.h>

namespace fovea {

Tensor load_npy(const std::string& path);                      // FileError with path and reason if it is damaged
void save_npy(const std::string& path, const Tensor& x);       // atomically (tensor/file.h)

// The same from and to memory. `what` begins every error message.
Tensor parse_npy(std::span<const uint8_t> file, const std::string& what);
std::string npy_header(const Tensor& x, const std::string& what);   // what comes before the elements

}  // namespace fovea
