// Transposing a tile of a matrix, element sizes 1, 2, 4 and 8 bytes.
#pragma once

#include <cstdint>

namespace fovea::kernels {

inline constexpr int64_t transpose_tile = 64;

// y[r][c] = x[c][r] for r < rows, c < columns, each at most transpose_tile: x's columns are `x_column` bytes apart and contiguous along r,
// y's rows are `y_row` bytes apart and contiguous along c. `streams`: write past the caches where y is aligned, as it is too large to stay
// in them.
using TransposeTile = void (*)(bool streams, const void* x, int64_t x_column, void* y, int64_t y_row, int64_t rows, int64_t columns);

TransposeTile transpose_tile_of(int64_t element_bytes);

}  // namespace fovea::kernels
