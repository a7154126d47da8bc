#include <fovea/tensor/inflate.h>

#include <algorithm>
#include <array>
#include <limits>

#include <fovea/kernels/error.h>
#include <fovea/tensor/file.h>

// stb's PNG reader brings a zlib decoder that can be used alone. Everything in it is made static here, so that it does not meet the copy of the image reader.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#include <stb_image.h>

namespace fovea {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c & 1u) ? (c >> 1) ^ 0xEDB88320u : c >> 1;
    table[i] = c;
  }
  return table;
}

uint32_t little32(std::span<const uint8_t> bytes, size_t at) {
  return uint32_t{bytes[at]} | uint32_t{bytes[at + 1]} << 8 | uint32_t{bytes[at + 2]} << 16 | uint32_t{bytes[at + 3]} << 24;
}

// Where the deflate stream of a gzip member begins.
size_t end_of_gzip_header(std::span<const uint8_t> file, const std::string& what) {
  const auto require = [&](bool holds, const char* reason) { check<FileError>(holds, what, ": ", reason); };
  require(file.size() >= 18, "too short for a gzip file");
  require(file[0] == 0x1f && file[1] == 0x8b, "not a gzip file (it does not begin with 1f 8b)");
  require(file[2] == 8, "gzip file with a compression method other than deflate");
  const uint8_t flags = file[3];
  size_t at = 10;
  if (flags & 4) at += 2 + (size_t{file[at]} | size_t{file[at + 1]} << 8);       // extra field
  for (const uint8_t text : {8, 16}) {                                            // name, comment: both end with a zero
    if (!(flags & text)) continue;
    while (at < file.size() && file[at] != 0) ++at;
    ++at;
  }
  if (flags & 2) at += 2;                                                         // checksum of the header
  require(at + 8 <= file.size(), "gzip header is cut off");
  return at;
}

}  // namespace

int64_t max_inflated_bytes(int64_t compressed_bytes) { return compressed_bytes * 1032 + 258; }

void inflate(std::span<const uint8_t> compressed, std::span<uint8_t> out, const std::string& what) {
  constexpr size_t limit = std::numeric_limits<int>::max() - 8;
  check<FileError>(compressed.size() <= limit && out.size() <= limit, what, ": deflate data of more than 2 GiB (", out.size(),
                   " bytes) is not supported; write the file without compression");
  // stb looks two bytes ahead, and takes the end of the data there for an error even if the last code has been read: hence a copy with a tail.
  std::vector<char> input(compressed.size() + 4);
  std::copy(compressed.begin(), compressed.end(), input.begin());
  char nothing = 0;                                      // stb copies even no bytes to where it is told, which must not be null
  const int written = stbi_zlib_decode_noheader_buffer(out.empty() ? &nothing : reinterpret_cast<char*>(out.data()), static_cast<int>(out.size()), input.data(),
                                                       static_cast<int>(input.size()));
  check<FileError>(written >= 0, what, ": deflate data is damaged, or longer than the ", out.size(), " bytes announced");
  check<FileError>(static_cast<size_t>(written) == out.size(), what, ": deflate data holds ", written, " bytes, expected ", out.size());
}

std::vector<uint8_t> gunzip(std::span<const uint8_t> file, const std::string& what, int64_t max_bytes) {
  const size_t begin = end_of_gzip_header(file, what);
  const auto compressed = file.subspan(begin, file.size() - 8 - begin);
  const uint32_t size = little32(file, file.size() - 4);
  check<FileError>(size <= max_inflated_bytes(static_cast<int64_t>(compressed.size())), what, ": announces ", size, " bytes, more than its ",
                   compressed.size(), " compressed bytes can hold");
  check<FileError>(size <= max_bytes, what, ": unpacks to ", size, " bytes, more than the limit of ", max_bytes);
  std::vector<uint8_t> out(size);
  inflate(compressed, out, what);
  check<FileError>(crc32(out) == little32(file, file.size() - 8), what, ": the checksum does not match; the file is damaged");
  return out;
}

std::vector<uint8_t> read_maybe_gzip(const std::string& path, const std::string& what, int64_t max_bytes) {
  std::vector<uint8_t> bytes = read_file(path, what, max_bytes);
  const bool is_gzip = bytes.size() >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b;
  return is_gzip ? gunzip(bytes, what + ": " + path, max_bytes) : bytes;
}

uint32_t crc32(std::span<const uint8_t> data, uint32_t crc) {
  static constexpr std::array<uint32_t, 256> table = make_crc_table();
  crc = ~crc;
  for (const uint8_t byte : data) crc = table[(crc ^ byte) & 0xffu] ^ (crc >> 8);
  return ~crc;
}

}  // namespace fovea
