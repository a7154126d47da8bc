// Text as code points and labels, and how far a reading is from the truth.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <fovea/tensor/utf8.h>

namespace fovea::data {

// The characters that a recognizer knows. Label 0 is the blank of CTC; the characters have labels 1 .. size(), in code-point order.
class Alphabet {
 public:
  Alphabet() = default;
  explicit Alphabet(std::string_view characters);                  // UTF-8; every character once or more, in any order
  static Alphabet of_texts(const std::vector<std::string>& texts);

  int64_t size() const { return static_cast<int64_t>(characters_.size()); }
  int64_t classes() const { return size() + 1; }                   // with the blank
  std::string characters() const { return encode_utf8(characters_); }
  bool contains(char32_t character) const { return labels_.contains(character); }

  std::vector<int64_t> encode(std::string_view text) const;        // ValueError, naming it, for a character that is not known
  std::string decode(std::span<const int64_t> labels) const;       // IndexError for labels outside 1 .. size()
  // The reading of a CTC path: repeats are joined, then blanks are left out.
  std::string decode_path(std::span<const int64_t> path) const;

  void save(const std::string& path) const;                        // a UTF-8 file of the characters, nothing else
  static Alphabet load(const std::string& path);
  bool operator==(const Alphabet& other) const { return characters_ == other.characters_; }

 private:
  explicit Alphabet(std::u32string characters);

  std::u32string characters_;
  std::unordered_map<char32_t, int64_t> labels_;
};

// The least number of insertions, deletions and replacements that turn one into the other (Levenshtein 1965). Memory: one row.
int64_t edit_distance(std::u32string_view a, std::u32string_view b);
int64_t edit_distance(const std::vector<std::string>& a, const std::vector<std::string>& b);

// Edits over the length of the truth, summed over lines: CER with characters, WER with words. The rate of nothing is NaN: nothing was measured.
struct ErrorRate {
  int64_t edits = 0, length = 0;
  double rate() const { return length > 0 ? static_cast<double>(edits) / static_cast<double>(length) : edits > 0 ? 1.0 : std::nan(""); }
  ErrorRate& operator+=(const ErrorRate& other) {
    edits += other.edits;
    length += other.length;
    return *this;
  }
};
ErrorRate character_errors(std::string_view truth, std::string_view reading);      // both UTF-8
ErrorRate word_errors(std::string_view truth, std::string_view reading);           // words are divided by blanks, tabs and line ends
std::vector<std::string> split_into_words(std::string_view text);

}  // namespace fovea::data
