// Resizing images and sampling them at arbitrary points. float32, float64 or a half type; x [n, channels, h, w].
#pragma once

#include <fovea/autograd/pair.h>
#include <fovea/autograd/tape.h>

namespace fovea {

enum class ResizeMode { nearest, bilinear };

struct InterpolateOptions {
  ResizeMode mode = ResizeMode::nearest;
  bool align_corners = false;                // of bilinear: the centres of the corner pixels stay where they are
};

// x resized to [n, channels, output.h, output.w]; positions as PyTorch's interpolate (without antialiasing). Linear in x, so differentiable any number of times.
Tensor interpolate(const Tensor& x, Pair output, const InterpolateOptions& options = {});

// Samples x at grid [n, out_h, out_w, 2] of points (x, y) in [-1, 1], bilinearly, with zeros outside: y [n, channels, out_h, out_w]. With align_corners, -1 and 1 are
// the centres of the corner pixels, otherwise the borders of the image. Gradients to x and to the grid; only the first derivative.
Tensor grid_sample(const Tensor& x, const Tensor& grid, bool align_corners = false);

// The grid [n, size.h, size.w, 2] on which theta [n, 2, 3] puts each point (x, y, 1) of the output.
Tensor affine_grid(const Tensor& theta, Pair size, bool align_corners = false);

}  // namespace fovea
