// Reading a number from text, whatever the locale.
#pragma once

#include <charconv>
#include <optional>
#include <string_view>

namespace fovea {

// The number that `text` is from its first character to its last, or nothing if it is none or does not fit into T.
template <class T>
std::optional<T> number_in(std::string_view text) {
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace fovea
