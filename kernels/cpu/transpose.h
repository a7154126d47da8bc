// Transposing a tile of a matrix, element sizes 1, 2, 4 and 8 bytes.
#pragma once

#include <cstdint>

namespace fovea::kernels {

inline constexpr int64_t transpose_tile = 64;

// y[r][c] = x[c][r] for r < rows, c < columns: x's columns are `x_column` bytes apart and contiguous along r, y's rows `y_row` bytes apart and contiguous
// along c. rows and columns are at most transpose_tile.
void transpose(int64_t element_bytes, const void* x, int64_t x_column, void* y, int64_t y_row, int64_t rows, int64_t columns);

}  // namespace fovea::kernels
