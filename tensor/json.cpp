#include <fovea/tensor/json.h>

#include <charconv>

#include <fovea/kernels/error.h>

namespace fovea {
namespace {

void append_utf8(std::string& out, uint32_t c) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((c >> shift) & 0x3f)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | (c >> 6));
    tail(0);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | (c >> 12));
    tail(6), tail(0);
  } else {
    out += static_cast<char>(0xf0 | (c >> 18));
    tail(12), tail(6), tail(0);
  }
}

}  // namespace

// RFC 3629: no surrogates, nothing above 10FFFF, and no character written longer than it need be.
bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const uint8_t first = static_cast<uint8_t>(text[i]);
    const int length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length == 0 || i + static_cast<size_t>(length) > text.size()) return false;
    uint32_t c = length == 1 ? first : first & (0x7fu >> length);
    for (int k = 1; k < length; ++k) {
      const uint8_t next = static_cast<uint8_t>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      c = c << 6 | (next & 0x3fu);
    }
    const bool is_too_long = (length == 3 && c < 0x800) || (length == 4 && c < 0x10000);
    if (is_too_long || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff) return false;
    i += static_cast<size_t>(length);
  }
  return true;
}

std::string json_quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<uint8_t>(c) < 0x20) {
      const char* digits = "0123456789abcdef";
      out += "\\u00";
      out += digits[c >> 4];
      out += digits[c & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

JsonReader::JsonReader(std::string_view text, const std::string& what) : text_(text), what_(what) {
  check<FileError>(is_utf8(text), what, ": the JSON text is not UTF-8");
}

void JsonReader::fail_here(const std::string& reason) const {
  fail<FileError>(what_, ": the JSON text cannot be read: ", reason, " at byte ", at_, " of ", text_.size());
}

void JsonReader::skip_space() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
}

bool JsonReader::accept(char c) {
  skip_space();
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

void JsonReader::expect(char c) {
  if (!accept(c)) fail_here(std::string("expected ") + c);
}

void JsonReader::object(const std::function<void(const std::string& key)>& member) {
  expect('{');
  if (accept('}')) return;
  do {
    const std::string key = string();
    expect(':');
    member(key);
  } while (accept(','));
  expect('}');
}

void JsonReader::array(const std::function<void()>& element) {
  expect('[');
  if (accept(']')) return;
  do element();
  while (accept(','));
  expect(']');
}

std::string JsonReader::string() {
  expect('"');
  std::string out;
  for (;;) {
    if (at_ == text_.size()) fail_here("a string without end");
    const char c = text_[at_++];
    if (c == '"') return out;
    if (static_cast<uint8_t>(c) < 0x20) fail_here("a control character in a string");
    if (c == '\\') escape(out);
    else out += c;
  }
}

uint32_t JsonReader::hex4() {
  if (text_.size() - at_ < 4) fail_here("an escape without end");
  uint32_t value = 0;
  const char* begin = text_.data() + at_;
  const auto [end, error] = std::from_chars(begin, begin + 4, value, 16);
  if (error != std::errc() || end != begin + 4) fail_here("expected four hexadecimal digits");
  at_ += 4;
  return value;
}

void JsonReader::escape(std::string& out) {
  if (at_ == text_.size()) fail_here("an escape without end");
  const char c = text_[at_++];
  switch (c) {
    case '"': case '\\': case '/': out += c; return;
    case 'b': out += '\b'; return;
    case 'f': out += '\f'; return;
    case 'n': out += '\n'; return;
    case 'r': out += '\r'; return;
    case 't': out += '\t'; return;
    case 'u': break;
    default: fail_here("an unknown escape");
  }
  uint32_t value = hex4();
  if (value >= 0xdc00 && value < 0xe000) fail_here("half a surrogate pair");
  if (value >= 0xd800 && value < 0xdc00) {
    if (text_.substr(at_, 2) != "\\u") fail_here("half a surrogate pair");
    at_ += 2;
    const uint32_t low = hex4();
    if (low < 0xdc00 || low >= 0xe000) fail_here("half a surrogate pair");
    value = 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(out, value);
}

int64_t JsonReader::integer() {
  skip_space();
  int64_t value = 0;
  const char* begin = text_.data() + at_;
  const char* const last = text_.data() + text_.size();
  const auto [end, error] = std::from_chars(begin, last, value);
  if (error != std::errc()) fail_here("expected an integer of 64 bits");
  const char* digits = *begin == '-' ? begin + 1 : begin;
  if (*digits == '0' && end - digits > 1) fail_here("a number with a leading zero");
  if (end != last && (*end == '.' || *end == 'e' || *end == 'E')) fail_here("expected an integer, not a fraction");
  at_ = static_cast<size_t>(end - text_.data());
  return value;
}

void JsonReader::end() {
  skip_space();
  if (at_ != text_.size()) fail_here("text after the end");
}

}  // namespace fovea
