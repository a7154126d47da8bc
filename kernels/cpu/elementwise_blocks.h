// The arithmetic of elementwise kernels over contiguous runs of float32, float64 or int64 (uint8 where a truth value is meant).
// elementwise.cpp brings every layout and dtype into this form; unary.cpp and binary.cpp do the sums.
#pragma once

#include <fovea/kernels/table.h>

namespace fovea::kernels {

// `streams`: write past the caches, because y is too large to stay in them; y is none of the operands then.
using UnaryBlock = void (*)(Unary, Scalars, bool streams, const void* x, void* y, int64_t n);
using BinaryBlock = void (*)(Binary, Scalars, bool streams, const void* a, const void* b, void* y, int64_t n);
using TernaryBlock = void (*)(Ternary, Scalars, bool streams, const void* a, const void* b, const void* c, void* y, int64_t n);

// One function for each type that is computed with.
template <class Block>
struct Blocks {
  Block float32, float64, int64;
  Block of(DType compute) const { return compute == DType::float32 ? float32 : compute == DType::float64 ? float64 : int64; }
};

const Blocks<UnaryBlock>& unary_blocks();
const Blocks<BinaryBlock>& binary_blocks();
const Blocks<TernaryBlock>& ternary_blocks();

// float16 and bfloat16 are computed in float32; integers and bool in int64, which wraps to the narrower types as they would themselves.
inline DType compute_dtype(DType dtype) {
  if (dtype == DType::float64) return DType::float64;
  return is_floating(dtype) ? DType::float32 : DType::int64;
}

constexpr bool yields_bool(Unary op) { return op >= Unary::logical_not; }
constexpr bool yields_bool(Binary op) { return op >= Binary::logical_and; }

}  // namespace fovea::kernels
