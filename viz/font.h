// The letters of Canvas::text: a bitmap font of 5 x 7 pixels with room for accents above and descenders below.
#pragma once

#include <array>
#include <cstdint>

namespace fovea::viz {

inline constexpr int64_t font_advance = 6, font_rows = 12;      // the cell; rows 3 .. 9 are the body of a capital

// Row by row from the top; bit 4 is the leftmost of five pixels. ASCII, the letters of French with their accents, and common signs; a box for the rest.
std::array<uint8_t, font_rows> font_rows_of(char32_t character);

}  // namespace fovea::viz
