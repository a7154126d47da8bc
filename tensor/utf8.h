// UTF-8 and code points.
#pragma once

#include <string>
#include <string_view>

namespace fovea {

// The code point that begins at text[at]; `at` moves behind it. ValueError, naming the byte, for what is not UTF-8 (RFC 3629: no overlong forms, no
// surrogates, nothing above U+10FFFF).
char32_t next_code_point(std::string_view text, size_t& at);

bool is_utf8(std::string_view text);

std::u32string decode_utf8(std::string_view text);
std::string encode_utf8(std::u32string_view code_points);

}  // namespace fovea
