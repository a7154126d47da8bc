// Tiles of a matrix, transposed. Floor: one read and one write. Deterministic.
// Sixteen by sixteen elements at a time: whole cache lines of x are copied together, turned over in registers, and written as whole lines
// of y. Reading and writing lines piecemeal is what makes transposes slow where rows are a power of two apart, as those lines all compete
// for the same few places in the cache.
#include <fovea/kernels/cpu/transpose.h>

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/transpose.cpp"
#include <fovea/kernels/cpu/simd.h>
#include <hwy/cache_control.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t side = 16;

// Four columns of x from `block` (column k at block + k * side) become four elements of rows r, r + 1, ... of y.
#if HWY_TARGET != HWY_SCALAR
HWY_INLINE void turn(const uint32_t* block, int64_t r, char* y, int64_t y_row) {
  const hn::FixedTag<uint32_t, 4> d;
  const hn::FixedTag<uint64_t, 2> wide;
  const auto a = hn::LoadU(d, block + r), b = hn::LoadU(d, block + side + r), c = hn::LoadU(d, block + 2 * side + r),
             e = hn::LoadU(d, block + 3 * side + r);
  const auto ab_low = hn::BitCast(wide, hn::InterleaveLower(d, a, b)), ab_high = hn::BitCast(wide, hn::InterleaveUpper(d, a, b));
  const auto ce_low = hn::BitCast(wide, hn::InterleaveLower(d, c, e)), ce_high = hn::BitCast(wide, hn::InterleaveUpper(d, c, e));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, ab_low, ce_low)), d, reinterpret_cast<uint32_t*>(y));
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, ab_low, ce_low)), d, reinterpret_cast<uint32_t*>(y + y_row));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, ab_high, ce_high)), d, reinterpret_cast<uint32_t*>(y + 2 * y_row));
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, ab_high, ce_high)), d, reinterpret_cast<uint32_t*>(y + 3 * y_row));
}

HWY_INLINE void turn(const uint64_t* block, int64_t r, char* y, int64_t y_row) {
  const hn::FixedTag<uint64_t, 2> d;
  for (int64_t k = 0; k < 4; k += 2) {
    const uint64_t* pair = block + k * side + r;
    const auto a0 = hn::LoadU(d, pair), b0 = hn::LoadU(d, pair + side), a1 = hn::LoadU(d, pair + 2), b1 = hn::LoadU(d, pair + side + 2);
    uint64_t* out = reinterpret_cast<uint64_t*>(y) + k;
    const int64_t step = y_row / static_cast<int64_t>(sizeof(uint64_t));
    hn::StoreU(hn::InterleaveLower(d, a0, b0), d, out);
    hn::StoreU(hn::InterleaveUpper(d, a0, b0), d, out + step);
    hn::StoreU(hn::InterleaveLower(d, a1, b1), d, out + 2 * step);
    hn::StoreU(hn::InterleaveUpper(d, a1, b1), d, out + 3 * step);
  }
}
#endif

template <class T>
HWY_INLINE void turn(const T* block, int64_t r, char* y, int64_t y_row) {
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t k = 0; k < 4; ++k) reinterpret_cast<T*>(y + i * y_row)[k] = block[k * side + r + i];
}

template <class T>
HWY_INLINE void turn_block(bool streams, const char* x, int64_t x_column, char* y, int64_t y_row) {
  constexpr int64_t bytes = sizeof(T), row_bytes = side * bytes;
  HWY_ALIGN T block[side * side], turned[side * side];
  for (int64_t k = 0; k < side; ++k) std::memcpy(block + k * side, x + k * x_column, row_bytes);
  char* const out = streams ? reinterpret_cast<char*>(turned) : y;
  const int64_t out_row = streams ? row_bytes : y_row;
  for (int64_t r = 0; r < side; r += 4)
    for (int64_t k = 0; k < side; k += 4) turn(block + k * side, r, out + r * out_row + k * bytes, out_row);
  if (!streams) return;
  const hn::CappedTag<uint8_t, row_bytes> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t r = 0; r < side; ++r)
    for (int64_t i = 0; i < row_bytes; i += lanes)
      hn::Stream(hn::Load(d, reinterpret_cast<const uint8_t*>(turned) + r * row_bytes + i), d,
                 reinterpret_cast<uint8_t*>(y + r * y_row + i));
}

template <class T>
void transpose_elements(bool streams, const void* x_data, int64_t x_column, void* y_data, int64_t y_row, int64_t rows, int64_t columns) {
  const char* x = static_cast<const char*>(x_data);
  char* y = static_cast<char*>(y_data);
  constexpr int64_t bytes = sizeof(T);
  // Streaming stores need whole, aligned lines.
  streams = streams && bytes >= 4 && reinterpret_cast<uintptr_t>(y_data) % 64 == 0 && y_row % 64 == 0;
  for (int64_t c = 0; c < columns; c += side) {
    for (int64_t r = 0; r < rows; r += side) {
      const char* from = x + c * x_column + r * bytes;
      char* to = y + r * y_row + c * bytes;
      if (c + side <= columns && r + side <= rows) {
        turn_block<T>(streams, from, x_column, to, y_row);
        continue;
      }
      for (int64_t i = 0; i < std::min(side, rows - r); ++i)
        for (int64_t k = 0; k < std::min(side, columns - c); ++k)
          reinterpret_cast<T*>(to + i * y_row)[k] = reinterpret_cast<const T*>(from + k * x_column)[i];
    }
  }
  if (streams) hwy::FlushStream();
}

void transpose1(bool streams, const void* x, int64_t x_column, void* y, int64_t y_row, int64_t rows, int64_t columns) {
  transpose_elements<uint8_t>(streams, x, x_column, y, y_row, rows, columns);
}
void transpose2(bool streams, const void* x, int64_t x_column, void* y, int64_t y_row, int64_t rows, int64_t columns) {
  transpose_elements<uint16_t>(streams, x, x_column, y, y_row, rows, columns);
}
void transpose4(bool streams, const void* x, int64_t x_column, void* y, int64_t y_row, int64_t rows, int64_t columns) {
  transpose_elements<uint32_t>(streams, x, x_column, y, y_row, rows, columns);
}
void transpose8(bool streams, const void* x, int64_t x_column, void* y, int64_t y_row, int64_t rows, int64_t columns) {
  transpose_elements<uint64_t>(streams, x, x_column, y, y_row, rows, columns);
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

TransposeTile transpose_tile_of(int64_t element_bytes) {
  static const TransposeTile functions[] = {FOVEA_BEST(transpose1), FOVEA_BEST(transpose2), FOVEA_BEST(transpose4), FOVEA_BEST(transpose8)};
  return functions[element_bytes == 1 ? 0 : element_bytes == 2 ? 1 : element_bytes == 4 ? 2 : 3];
}

}  // namespace fovea::kernels
#endif
