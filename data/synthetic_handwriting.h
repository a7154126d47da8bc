// Lines of handwriting drawn by strokes of a pen: an endless stream of pictures with their texts, without fonts and without files.
//
// Each line has a hand of its own: which of several shapes each letter has, slant, size, spacing, pen width and pressure, how often letters are joined,
// and how steady the hand is. Paper differs in brightness, texture, ruling and noise.
#pragma once

#include <cstdint>
#include <string>

#include <fovea/tensor/image_file.h>

namespace fovea::data {

struct SyntheticHandwritingOptions {
  int64_t height = 32;                  // pixels; at least 16
  int64_t min_characters = 4, max_characters = 24;
  float variation = 1;                  // how far hands differ from one another and from the letters' skeletons: 0 (not at all) to about 1.5
  float disturbance = 1;                // noise, texture, ruling and low contrast of the paper: 0 (dark ink on clean paper) to about 1.5
};

struct HandwritingLine {
  ImageBytes image;                     // grey, dark ink on light paper; its width follows from the text
  std::string text;
};

// Line `index` of stream `seed`: a pure function, whatever was drawn before and on whatever thread.
HandwritingLine draw_handwriting(const SyntheticHandwritingOptions& options, uint64_t seed, uint64_t index);
// The same hand and paper for a given text. ValueError for characters that have no glyph.
ImageBytes draw_handwriting(const SyntheticHandwritingOptions& options, uint64_t seed, uint64_t index, const std::string& text);

// The space and every character that is drawn, in ASCII order.
std::string handwriting_characters();

}  // namespace fovea::data
