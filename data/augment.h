// Augmentation: changes of a picture that leave its meaning as it is. What is drawn depends on the sample's random stream alone.
#pragma once

#include <optional>

#include <fovea/data/dataset.h>

namespace fovea::data {

// Brightness, contrast and the like of one picture, applied in this order: blur, contrast, brightness, gamma, noise. Values are clamped to 0 .. 1.
struct Photometry {
  float blur = 0;                              // standard deviation of a Gaussian, pixels
  float contrast = 1;                          // factor on the difference from the picture's mean
  float brightness = 0;                        // added
  float gamma = 1;                             // exponent
  float noise = 0;                             // standard deviation
};
// image: [C,H,W] float32, changed in place. ValueError for settings that are not finite, or negative where that means nothing.
void apply_photometry(Tensor& image, const Photometry& settings, RandomStream& random);

// A smooth change of place, about the picture's centre: first stretch and scale, then slant, then rotation, then shift; last the elastic displacement.
struct Warp {
  float shift_x = 0, shift_y = 0;              // pixels, to the right and down
  float rotation = 0;                          // radians, clockwise as seen
  float scale = 1, stretch = 1;                // of both axes; of x alone
  float slant = 0;                             // x per y: above 0 the upper part leans to the right
  bool mirror = false;                         // left and right exchanged
  float elastic = 0;                           // standard deviation of the displacement at the knots of a grid, pixels
  float elastic_cell = 16;                     // distance of the knots, pixels; bilinear in between
  std::optional<float> fill = {};              // for what comes from outside; nothing: the nearest pixel of the edge
  bool keep_width = true;                      // false: the width follows, so that no part of a line is cut off
};
// [C,H,W] float32 to [C,H,W'], bilinear, in one pass over the result.
Tensor warp_image(const Tensor& image, const Warp& warp, RandomStream& random);
// Where a box lies afterwards (the elastic part left out): the smallest upright box around its corners, cut off at the edges; nothing if it is outside.
std::optional<Box> warp_box(const Box& box, const Warp& warp, int64_t height, int64_t width);

// Ranges to draw from. Each value is drawn evenly from -range .. range around no change; factors from 1 / (1 + range) .. 1 + range, evenly in their logarithm.
struct PhotometryRanges {
  float blur = 0;                              // 0 .. blur
  float contrast = 0, brightness = 0, gamma = 0;
  float noise = 0;                             // 0 .. noise
};
struct WarpRanges {
  float shift_x = 0, shift_y = 0, rotation = 0, scale = 0, stretch = 0, slant = 0;
  float mirror = 0;                            // how often
  float elastic = 0;                           // 0 .. elastic
  float elastic_cell = 16;
  std::optional<float> fill = {};
  bool keep_width = true;
};
Transform random_photometry(const PhotometryRanges& ranges);
Transform random_warp(const WarpRanges& ranges);      // boxes go with the picture

}  // namespace fovea::data
