// Picture files as tensors: [channels, height, width], uint8 (0 .. 255) or float32 (0 .. 1).
#pragma once

#include <string>

#include <fovea/tensor/image_tensor.h>

namespace fovea::data {

// PNG, JPEG and BMP; channels 0 as in the file, 1 grey, 3 RGB. FileError as in tensor/image_file.h.
Tensor read_image(const std::string& path, int64_t channels = 0, const ImageLimits& limits = {});             // uint8
Tensor read_image_float(const std::string& path, int64_t channels = 0, const ImageLimits& limits = {});
void write_image(const std::string& path, const Tensor& x, int jpeg_quality = 90);                             // .png, .jpg, .jpeg

}  // namespace fovea::data
