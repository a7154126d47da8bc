// What instructions of tensor cores compute, as plain functions of matrices, and where the elements of those matrices lie in the registers of a warp ("Matrix
// Fragments for mma.m16n8k16" and the sections beside it, PTX ISA). The model of tests/host_cuda runs them; tests compare them with hardware.
//
// Products of float16, bfloat16 and TF32 numbers are exact in float32. Their sum is not specified by the PTX ISA: hardware adds several products at once, cuts off
// low bits, and differs from one generation to the next. Here products are added one by one, in order, in float32; the two agree exactly where the sums are exact.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace host_cuda {

struct Place {
  int row, column;
};

// The lane's 32-bit register number `index` of the left matrix [16,16] of 16-bit elements: the place of its low half; the high half is the next column.
constexpr Place place_in_left(int lane, int index) { return {lane / 4 + index % 2 * 8, lane % 4 * 2 + index / 2 * 8}; }
// Of the right matrix [16,8]: the high half is the next row.
constexpr Place place_in_right(int lane, int index) { return {lane % 4 * 2 + index * 8, lane / 4}; }
// Of the left matrix [16,8] and the right one [8,8] of 32-bit elements (TF32).
constexpr Place place_in_left_tf32(int lane, int index) { return {lane / 4 + index % 2 * 8, lane % 4 + index / 2 * 4}; }
constexpr Place place_in_right_tf32(int lane, int index) { return {lane % 4 + index * 4, lane / 4}; }
// Of the sums [16,8] in float32.
constexpr Place place_in_sums(int lane, int index) { return {lane / 4 + index / 2 * 8, lane % 4 * 2 + index % 2}; }
// ldmatrix: register `index` of the lane holds this place of matrix number `index`, and the next column; transposed, this is the place in the transposed matrix.
constexpr Place place_in_matrix(int lane) { return {lane / 4, lane % 4 * 2}; }

// Where what belongs at an address of shared memory lies, with a swizzle of 16 << swizzle bytes.
constexpr uint32_t swizzled_address(uint32_t address, int swizzle) { return address ^ ((address >> 7 & ((1u << swizzle) - 1)) << 4); }

// d += a b.
template <int inner>
void multiply_tiles(float (&d)[16][8], const float (&a)[16][inner], const float (&b)[inner][8]) {
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < inner; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
}

// Tensor cores look at the upper 19 bits of a TF32 operand.
inline float as_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

// cvt.rna.tf32.f32: to the nearest, ties away from zero.
inline uint32_t round_to_tf32(float value) {
  if (std::isnan(value)) return 0x7fffe000u;
  return (std::bit_cast<uint32_t>(value) + 0x1000u) & 0xffffe000u;
}

}  // namespace host_cuda
