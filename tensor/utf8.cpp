#include <fovea/tensor/utf8.h>

#include <cstdint>

#include <fovea/kernels/error.h>

namespace fovea {
namespace {

// The length of a character from its first byte; 0 if no character begins so.
size_t utf8_length(uint8_t first) {
  if (first < 0x80) return 1;
  if (first < 0xC2) return 0;                  // a continuation, or an overlong form of ASCII
  if (first < 0xE0) return 2;
  if (first < 0xF0) return 3;
  return first < 0xF5 ? 4 : 0;
}

bool is_code_point(uint32_t value, size_t length) {
  constexpr uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  return value >= least[length] && value <= 0x10FFFF && !(value >= 0xD800 && value <= 0xDFFF);
}

// The code point at text[at] and how many bytes it takes; none, if there is no valid one.
struct CodePoint {
  uint32_t value = 0;
  size_t length = 0;
};

CodePoint code_point_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const size_t length = utf8_length(byte(at));
  if (length == 0 || at + length > text.size()) return {};
  uint32_t value = length == 1 ? byte(at) : byte(at) & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return {};
    value = value << 6 | (byte(at + i) & 0x3Fu);
  }
  return is_code_point(value, length) ? CodePoint{value, length} : CodePoint{};
}

}  // namespace

char32_t next_code_point(std::string_view text, size_t& at) {
  const CodePoint next = code_point_at(text, at);
  check<ValueError>(next.length > 0, "decode_utf8: byte ", at, " (value ", int{static_cast<uint8_t>(text[at])}, ") of a text of ", text.size(),
                    " bytes is not UTF-8; convert the text first");
  at += next.length;
  return next.value;
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = code_point_at(text, at).length;
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::u32string decode_utf8(std::string_view text) {
  std::u32string code_points;
  code_points.reserve(text.size());
  for (size_t at = 0; at < text.size();) code_points += next_code_point(text, at);
  return code_points;
}

std::string encode_utf8(std::u32string_view code_points) {
  std::string text;
  const auto put = [&](uint32_t byte) { text += static_cast<char>(byte); };
  for (const char32_t c : code_points) {
    check<ValueError>(is_code_point(c, 1), "encode_utf8: ", static_cast<uint32_t>(c), " is not a Unicode code point");
    if (c < 0x80) {
      put(c);
    } else if (c < 0x800) {
      put(0xC0 | c >> 6);
      put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
      put(0xE0 | c >> 12);
      put(0x80 | (c >> 6 & 0x3F));
      put(0x80 | (c & 0x3F));
    } else {
      put(0xF0 | c >> 18);
      put(0x80 | (c >> 12 & 0x3F));
      put(0x80 | (c >> 6 & 0x3F));
      put(0x80 | (c & 0x3F));
    }
  }
  return text;
}

}  // namespace fovea
