// Tiles of a matrix, transposed. Floor: one read and one write. Deterministic.
#include <fovea/kernels/cpu/transpose.h>

namespace fovea::kernels {
namespace {

// Eight columns of x at a time: eight read streams, and writes of eight neighbours.
template <class T>
void transpose_tile_of(const char* x, int64_t x_column, char* y, int64_t y_row, int64_t rows, int64_t columns) {
  int64_t c = 0;
  for (; c + 8 <= columns; c += 8) {
    for (int64_t r = 0; r < rows; ++r) {
      T* out = reinterpret_cast<T*>(y + r * y_row) + c;
      for (int64_t k = 0; k < 8; ++k) out[k] = reinterpret_cast<const T*>(x + (c + k) * x_column)[r];
    }
  }
  for (; c < columns; ++c)
    for (int64_t r = 0; r < rows; ++r) reinterpret_cast<T*>(y + r * y_row)[c] = reinterpret_cast<const T*>(x + c * x_column)[r];
}

}  // namespace

void transpose(int64_t element_bytes, const void* x, int64_t x_column, void* y, int64_t y_row, int64_t rows, int64_t columns) {
  const char* from = static_cast<const char*>(x);
  char* to = static_cast<char*>(y);
  switch (element_bytes) {
    case 1: return transpose_tile_of<uint8_t>(from, x_column, to, y_row, rows, columns);
    case 2: return transpose_tile_of<uint16_t>(from, x_column, to, y_row, rows, columns);
    case 4: return transpose_tile_of<uint32_t>(from, x_column, to, y_row, rows, columns);
    default: return transpose_tile_of<uint64_t>(from, x_column, to, y_row, rows, columns);
  }
}

}  // namespace fovea::kernels
