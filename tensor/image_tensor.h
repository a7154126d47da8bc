// Pictures as tensors: [channels, height, width], uint8 (0 .. 255) or float32 (0 .. 1).
#pragma once

#include <fovea/tensor/image_file.h>
#include <fovea/tensor/tensor.h>

namespace fovea {

Tensor image_to_uint8(const ImageBytes& image);      // [C,H,W] uint8
Tensor image_to_float(const ImageBytes& image);      // [C,H,W] float32, divided by 255
// x: [C,H,W] or [H,W], uint8, float32 or float64; real values are clamped to 0 .. 1 (NaN becomes 0) and rounded.
ImageBytes image_from_tensor(const Tensor& x);

}  // namespace fovea
