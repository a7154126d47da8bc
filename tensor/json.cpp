#include <fovea/tensor/json.h>

#include <charconv>

#include <fovea/kernels/error.h>
#include <fovea/tensor/utf8.h>

namespace fovea {

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
  const char32_t code_point = value;
  out += encode_utf8({&code_point, 1});
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
