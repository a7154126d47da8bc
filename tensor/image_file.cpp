// Pictures as bytes, by stb_image and stb_image_write, which are private to this file.
#include <fovea/tensor/image_file.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <memory>

#include <fovea/kernels/error.h>
#include <fovea/tensor/file.h>

namespace {

// Note [A picture's memory is bounded by its header]
// stb unpacks PNG data into a buffer that it doubles for as long as data comes, whatever the header said, so a small file could ask for gigabytes.
// Blocks larger than what a picture of the declared size can need are refused here; stb then reports that it is out of memory.
thread_local size_t largest_block = 0;

void* bounded_realloc(void* old, size_t bytes) { return bytes <= largest_block ? std::realloc(old, bytes) : nullptr; }
// Zeroed: stb decodes with Huffman tables that a damaged JPEG file never defined, and must not find leftovers there.
void* bounded_malloc(size_t bytes) { return bytes <= largest_block ? std::calloc(bytes ? bytes : 1, 1) : nullptr; }

}  // namespace

#define STBI_MALLOC(bytes) bounded_malloc(bytes)
#define STBI_REALLOC(old, bytes) bounded_realloc(old, bytes)
#define STBI_FREE(old) std::free(old)
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#include <stb_image.h>

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#include <stb_image_write.h>

namespace fovea {
namespace {

constexpr int64_t small_block = int64_t{1} << 20;      // tables and line buffers, whatever the size of the picture

struct FreePixels {
  void operator()(stbi_uc* pixels) const { std::free(pixels); }
};

const char* reason() {
  const char* text = stbi_failure_reason();
  return text ? text : "damaged";
}

// Whether the Huffman tables of a segment (class and slot, 16 counts by length, the symbols) hold at most 256 codes each. Like stb, reads on past the end of
// the segment where a table begins in it, and takes zeros for what comes after the end of the file.
bool huffman_tables_fit(std::span<const uint8_t> bytes, int64_t segment_length) {
  while (segment_length > 0 && !bytes.empty()) {
    int64_t codes = 0;
    for (size_t i = 1; i <= 16 && i < bytes.size(); ++i) codes += bytes[i];
    if (codes > 256) return false;
    bytes = bytes.subspan(std::min(bytes.size(), static_cast<size_t>(17 + codes)));
    segment_length -= 17 + codes;
  }
  return true;
}

// stb 2.27 writes past the end of a table that has more than 256 codes; so the tables of a JPEG file are looked at first. Up to the first scan this walks from
// segment to segment as stb does, skipping what does not begin with 0xFF. Where stb goes on after coded data depends on that data, so from then on every
// place that could begin a table is looked at; in sound files coded data has none.
void check_jpeg_tables(std::span<const uint8_t> bytes, const std::string& name) {
  constexpr uint8_t marker_start = 0xFF, huffman_tables = 0xC4, first_restart = 0xD0, end_of_image = 0xD9, start_of_scan = 0xDA;
  if (bytes.empty() || bytes[0] != marker_start) return;
  bool is_after_first_scan = false;
  for (size_t at = 0; at + 4 <= bytes.size();) {
    const uint8_t marker = bytes[at + 1];
    const bool has_length = bytes[at] == marker_start && marker > 1 && marker != marker_start && !(marker >= first_restart && marker <= end_of_image);
    if (!has_length) {
      ++at;
      continue;
    }
    const int64_t length = bytes[at + 2] << 8 | bytes[at + 3];
    if (marker == huffman_tables)
      check<FileError>(huffman_tables_fit(bytes.subspan(at + 4), length - 2), name, ": a Huffman table has more than 256 codes; the file is damaged");
    is_after_first_scan = is_after_first_scan || marker == start_of_scan;
    at += is_after_first_scan ? 1 : 2 + static_cast<size_t>(length);
  }
}

void append(void* context, void* data, int size) {
  auto& bytes = *static_cast<std::vector<uint8_t>*>(context);
  const auto* first = static_cast<const uint8_t*>(data);
  bytes.insert(bytes.end(), first, first + size);
}

void check_writable(const ImageBytes& image, const char* op, int64_t most_channels) {
  constexpr int64_t most = 1 << 24;
  check<ShapeError>(image.width > 0 && image.height > 0 && image.width <= most && image.height <= most && image.width * image.height <= most * 16, op,
                    ": a picture of ", image.width, " x ", image.height, " pixels cannot be written");
  check<ShapeError>(image.channels >= 1 && image.channels <= most_channels && (image.channels != 2 || most_channels > 3), op, ": cannot write ",
                    image.channels, " channels; use 1 (grey) or 3 (RGB)");
  check<ShapeError>(static_cast<int64_t>(image.pixels.size()) == image.width * image.height * image.channels, op, ": has ", image.pixels.size(),
                    " bytes of pixels, expected ", image.width, " * ", image.height, " * ", image.channels);
}

}  // namespace

ImageSize decode_image_size(std::span<const uint8_t> bytes, const std::string& name, const ImageLimits& limits) {
  check<FileError>(static_cast<int64_t>(bytes.size()) <= std::min<int64_t>(limits.max_file_bytes, std::numeric_limits<int>::max()), name, ": has ",
                   bytes.size(), " bytes, more than the limit of ", limits.max_file_bytes);
  check_jpeg_tables(bytes, name);
  largest_block = small_block;
  int width = 0, height = 0, channels = 0;
  const bool known = !bytes.empty() && stbi_info_from_memory(bytes.data(), static_cast<int>(bytes.size()), &width, &height, &channels) != 0;
  check<FileError>(known, name, ": ", bytes.empty() ? "the file is empty" : "not a PNG, JPEG or BMP picture, or its header is damaged");
  check<FileError>(width > 0 && height > 0 && width <= limits.max_pixels / height, name, ": its header says ", width, " x ", height,
                   " pixels, more than the limit of ", limits.max_pixels, " pixels in all");
  return {width, height, channels};
}

ImageBytes decode_image(std::span<const uint8_t> bytes, const std::string& name, int64_t channels, const ImageLimits& limits) {
  check<ValueError>(channels >= 0 && channels <= 4, "decode_image: channels must be 0 (as in the file) or 1 to 4, got ", channels);
  const ImageSize size = decode_image_size(bytes, name, limits);
  // Four channels of 16 bits each, blocks of 16 pixels filled up, and the compressed data itself, which stb gathers in a doubling buffer.
  const int64_t padded_pixels = (size.width + 64) * (size.height + 64);
  largest_block = static_cast<size_t>(std::max(padded_pixels * 8, static_cast<int64_t>(bytes.size()) * 2) + small_block);
  int width = 0, height = 0, found_channels = 0;
  const std::unique_ptr<stbi_uc, FreePixels> pixels(stbi_load_from_memory(bytes.data(), static_cast<int>(bytes.size()), &width, &height, &found_channels,
                                                                          static_cast<int>(channels)));
  check<FileError>(pixels != nullptr, name, ": the picture is damaged or cut short (", pixels ? "" : reason(), ")");
  ImageBytes image{width, height, channels ? channels : found_channels, {}};
  image.pixels.assign(pixels.get(), pixels.get() + image.width * image.height * image.channels);
  return image;
}

ImageBytes read_image_bytes(const std::string& path, int64_t channels, const ImageLimits& limits) {
  return decode_image(read_file(path, "read_image", limits.max_file_bytes), "read_image: " + path, channels, limits);
}

std::vector<uint8_t> encode_png(const ImageBytes& image) {
  check_writable(image, "encode_png", 4);
  std::vector<uint8_t> bytes;
  const int ok = stbi_write_png_to_func(append, &bytes, static_cast<int>(image.width), static_cast<int>(image.height), static_cast<int>(image.channels),
                                        image.pixels.data(), static_cast<int>(image.width * image.channels));
  check<MemoryError>(ok != 0, "encode_png: out of memory for ", image.width, " x ", image.height, " pixels");
  return bytes;
}

std::vector<uint8_t> encode_jpeg(const ImageBytes& image, int quality) {
  check_writable(image, "encode_jpeg", 3);
  check<ValueError>(quality >= 1 && quality <= 100, "encode_jpeg: quality must be 1 to 100, got ", quality);
  check<ShapeError>(image.width < 65536 && image.height < 65536, "encode_jpeg: at most 65535 pixels a side, got ", image.width, " x ", image.height);
  std::vector<uint8_t> bytes;
  stbi_write_jpg_to_func(append, &bytes, static_cast<int>(image.width), static_cast<int>(image.height), static_cast<int>(image.channels), image.pixels.data(),
                         quality);
  return bytes;
}

void write_image_bytes(const std::string& path, const ImageBytes& image, int jpeg_quality) {
  std::string ending = std::filesystem::path(path).extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool is_png = ending == ".png";
  check<FileError>(is_png || ending == ".jpg" || ending == ".jpeg", "write_image: cannot write ", path, ": its name must end in .png, .jpg or .jpeg");
  const std::vector<uint8_t> bytes = is_png ? encode_png(image) : encode_jpeg(image, jpeg_quality);
  AtomicFile file(path, "write_image");
  file.write(bytes);
  file.commit();
}

}  // namespace fovea
