#include <fovea/data/text.h>

#include <algorithm>

#include <fovea/kernels/error.h>
#include <fovea/tensor/edit_distance.h>
#include <fovea/tensor/file.h>

namespace fovea::data {
namespace {

std::string describe(char32_t character) {
  std::ostringstream code;
  code << "U+" << std::uppercase << std::hex << static_cast<uint32_t>(character);
  return str('"', encode_utf8(std::u32string_view(&character, 1)), "\" (", code.str(), ")");
}

}  // namespace

Alphabet::Alphabet(std::string_view characters) : Alphabet(decode_utf8(characters)) {}

Alphabet::Alphabet(std::u32string characters) : characters_(std::move(characters)) {
  std::sort(characters_.begin(), characters_.end());
  characters_.erase(std::unique(characters_.begin(), characters_.end()), characters_.end());
  for (const char32_t c : characters_) labels_.emplace(c, static_cast<int64_t>(labels_.size()) + 1);
}

Alphabet Alphabet::of_texts(const std::vector<std::string>& texts) {
  std::u32string all;
  for (const std::string& text : texts) all += decode_utf8(text);
  return Alphabet(std::move(all));
}

std::vector<int64_t> Alphabet::encode(std::string_view text) const {
  std::vector<int64_t> labels;
  labels.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const char32_t character = next_code_point(text, at);
    const auto found = labels_.find(character);
    check<ValueError>(found != labels_.end(), "Alphabet::encode: the character ", found == labels_.end() ? describe(character) : "",
                      " is not among the ", size(), " known ones; build the alphabet from all texts, or leave such lines out");
    labels.push_back(found->second);
  }
  return labels;
}

std::string Alphabet::decode(std::span<const int64_t> labels) const {
  std::u32string text;
  for (const int64_t label : labels) {
    check<IndexError>(label >= 1 && label <= size(), "Alphabet::decode: label ", label, " is not in 1 .. ", size());
    text += characters_[static_cast<size_t>(label - 1)];
  }
  return encode_utf8(text);
}

std::string Alphabet::decode_path(std::span<const int64_t> path) const {
  std::vector<int64_t> labels;
  int64_t before = 0;
  for (const int64_t label : path) {
    if (label != before && label != 0) labels.push_back(label);
    before = label;
  }
  return decode(labels);
}

void Alphabet::save(const std::string& path) const {
  AtomicFile file(path, "Alphabet::save");
  file.write(characters());
  file.commit();
}

Alphabet Alphabet::load(const std::string& path) {
  constexpr int64_t largest = 1 << 23;         // more than all of Unicode
  const std::vector<uint8_t> bytes = read_file(path, "Alphabet::load", largest);
  return Alphabet(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

int64_t edit_distance(std::u32string_view a, std::u32string_view b) { return edit_distance_of(a, b); }
int64_t edit_distance(const std::vector<std::string>& a, const std::vector<std::string>& b) { return edit_distance_of(a, b); }

ErrorRate character_errors(std::string_view truth, std::string_view reading) {
  const std::u32string expected = decode_utf8(truth);
  return {edit_distance(expected, decode_utf8(reading)), static_cast<int64_t>(expected.size())};
}

ErrorRate word_errors(std::string_view truth, std::string_view reading) {
  const std::vector<std::string> expected = split_into_words(truth);
  return {edit_distance(expected, split_into_words(reading)), static_cast<int64_t>(expected.size())};
}

std::vector<std::string> split_into_words(std::string_view text) {
  constexpr std::string_view blanks = " \t\r\n";
  std::vector<std::string> words;
  size_t begin = text.find_first_not_of(blanks);
  while (begin != std::string_view::npos) {
    const size_t end = std::min(text.find_first_of(blanks, begin), text.size());
    words.emplace_back(text.substr(begin, end - begin));
    begin = text.find_first_not_of(blanks, end);
  }
  return words;
}

}  // namespace fovea::data
