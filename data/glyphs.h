// The letter shapes of the handwriting synthesizer: skeletons of pen strokes, drawn for this library.
#pragma once

#include <span>
#include <string_view>
#include <vector>

namespace fovea::data {

struct GlyphPoint {
  float x = 0, y = 0;          // units: the baseline is y = 0, small letters are 10 high, capitals 17; y grows upwards
  bool corner = false;         // the stroke may turn sharply here; elsewhere it is a smooth curve through its points
};

// Where a letter may be joined to its neighbour by a stroke.
struct GlyphJoin {
  bool possible = false;
  float x = 0, y = 0;
};

struct Glyph {
  char character = ' ';
  float width = 0;
  std::vector<std::vector<GlyphPoint>> strokes;
  GlyphJoin entry, exit;
};

// All ways to write a character, at least one for each character of glyph_characters(); empty for others.
std::span<const Glyph> glyphs_of(char character);

// Letters, digits and punctuation, without the space.
std::string_view glyph_characters();

}  // namespace fovea::data
