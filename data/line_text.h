// Texts for drawn lines: common English words with capitals, numbers, dates and punctuation, and now and then letters in no order.
#pragma once

#include <string>

#include <fovea/data/random_stream.h>

namespace fovea::data {

// min_characters to max_characters long; no space at either end, and no two in a row. Every character is a space or one of glyph_characters().
std::string random_line_text(RandomStream& random, int64_t min_characters, int64_t max_characters);

}  // namespace fovea::data
