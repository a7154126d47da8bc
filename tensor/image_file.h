// Pictures as bytes: PNG, JPEG and BMP in, PNG and JPEG out. Tensors of pictures are made by data/image.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace fovea {

struct ImageBytes {
  int64_t width = 0, height = 0, channels = 0;      // 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha
  std::vector<uint8_t> pixels;                       // row by row from the top, the channels of a pixel side by side
};

struct ImageSize {
  int64_t width = 0, height = 0, channels = 0;
};

// Checked against the file's header before anything is decoded, so that a hostile file cannot make a huge allocation.
struct ImageLimits {
  int64_t max_pixels = int64_t{1} << 26;             // 64 Mpixel
  int64_t max_file_bytes = int64_t{1} << 28;
};

// `channels` 0 keeps the file's own; otherwise colours are turned to grey, alpha is dropped or made opaque, as needed. Palettes and 16-bit channels become
// 8-bit channels. FileError, naming `name` or the path, when the picture is damaged, of another format, or over the limits.
ImageBytes decode_image(std::span<const uint8_t> bytes, const std::string& name, int64_t channels = 0, const ImageLimits& limits = {});
ImageBytes read_image_bytes(const std::string& path, int64_t channels = 0, const ImageLimits& limits = {});
ImageSize decode_image_size(std::span<const uint8_t> bytes, const std::string& name, const ImageLimits& limits = {});      // reads the header only

std::vector<uint8_t> encode_png(const ImageBytes& image);
std::vector<uint8_t> encode_jpeg(const ImageBytes& image, int quality = 90);      // 1 or 3 channels; quality 1 .. 100
// By the path's ending: .png, .jpg or .jpeg. Written under a temporary name and renamed.
void write_image_bytes(const std::string& path, const ImageBytes& image, int jpeg_quality = 90);

}  // namespace fovea
