// Elements as files store them: which types there are, and what becomes of those that Tensor has no dtype for.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <fovea/tensor/tensor.h>

namespace fovea {

struct ElementType {
  enum class Kind : uint8_t { real, brain, integer, natural, boolean };   // IEEE float, bfloat16, signed, unsigned, bool
  Kind kind = Kind::real;
  int bytes = 4;
  bool is_big_endian = false;
};

// The dtype that holds all values of a stored type: its own, or for 8- and 16-bit integers int32 and for 32-bit unsigned ones int64 (uint8 stays).
// FileError beginning with `what` for a type that none holds.
DType dtype_for(ElementType type, const std::string& what);

// A contiguous CPU tensor from stored elements, which must be shape.numel() * type.bytes bytes.
Tensor tensor_from_elements(std::span<const uint8_t> bytes, ElementType type, const Shape& shape, const std::string& what);

// x itself if it is contiguous and on the CPU, else a copy that is. DeviceError beginning with `what` on meta.
Tensor contiguous_on_cpu(const Tensor& x, const std::string& what);
// The memory of a tensor that contiguous_on_cpu() gave.
std::span<const uint8_t> bytes_of(const Tensor& x);

// Multiplies sizes read from a file; FileError when one is negative, there are more than max_rank, or the bytes do not fit.
int64_t checked_bytes(std::span<const int64_t> sizes, int64_t element_bytes, const std::string& what);

}  // namespace fovea
