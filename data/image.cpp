#include <fovea/data/image.h>

namespace fovea::data {

Tensor read_image(const std::string& path, int64_t channels, const ImageLimits& limits) { return image_to_uint8(read_image_bytes(path, channels, limits)); }

Tensor read_image_float(const std::string& path, int64_t channels, const ImageLimits& limits) {
  return image_to_float(read_image_bytes(path, channels, limits));
}

void write_image(const std::string& path, const Tensor& x, int jpeg_quality) { write_image_bytes(path, image_from_tensor(x), jpeg_quality); }

}  // namespace fovea::data
