#include <doctest/doctest.h>

#include <cmath>

#include <fovea/data/text.h>
#include <fovea/kernels/error.h>

#include "temporary_folder.h"

using namespace fovea;
using namespace fovea::data;

TEST_CASE("utf-8: every code point survives the way there and back") {
  for (uint32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    const char32_t character = c;
    CHECK(decode_utf8(encode_utf8(std::u32string_view(&character, 1))) == std::u32string(1, character));
  }
  CHECK(decode_utf8("l\u2019\u00E9t\u00E9") == U"l\u2019\u00E9t\u00E9");
  CHECK(encode_utf8(U"\U0001F58B") == "\xF0\x9F\x96\x8B");
}

TEST_CASE("utf-8: what is not UTF-8 is refused with its place") {
  for (const char* bad : {"a\x80", "a\xC3", "a\xC0\x80", "a\xE0\x80\x80", "a\xED\xA0\x80", "a\xF4\x90\x80\x80", "a\xFF", "a\xE2\x82" "b"})
    CHECK_THROWS_WITH_AS(decode_utf8(bad), doctest::Contains("byte 1 "), ValueError);
  CHECK_THROWS_AS(encode_utf8(std::u32string(1, char32_t{0xD800})), ValueError);
}

TEST_CASE("alphabet: labels follow the code points, 0 is free for the blank") {
  const Alphabet alphabet = Alphabet::of_texts({"b\u00E9a", "ab", ""});
  CHECK(alphabet.characters() == "ab\u00E9");
  CHECK(alphabet.classes() == 4);
  CHECK(alphabet.encode("\u00E9ab") == std::vector<int64_t>{3, 1, 2});
  CHECK(alphabet.decode(std::vector<int64_t>{3, 1, 2}) == "\u00E9ab");
  CHECK(alphabet.decode_path(std::vector<int64_t>{0, 1, 1, 0, 1, 2, 2, 3, 0}) == "aab\u00E9");
  CHECK(Alphabet("baab") == Alphabet("ab"));
  CHECK_THROWS_WITH_AS(alphabet.encode("a\u2019"), doctest::Contains("\u2019\" (U+2019) is not among the 3 known ones"), ValueError);
  CHECK_THROWS_AS(alphabet.decode(std::vector<int64_t>{0}), IndexError);
  CHECK_THROWS_AS(alphabet.decode_path(std::vector<int64_t>{4}), IndexError);
}

TEST_CASE("alphabet: a saved one is loaded as it was; files that are no alphabet are errors") {
  const TemporaryFolder folder;
  const Alphabet alphabet(" \n\t\"\\\u00E9\u2019z");
  alphabet.save(folder / "alphabet.txt");
  CHECK(Alphabet::load(folder / "alphabet.txt") == alphabet);
  CHECK_THROWS_AS(Alphabet::load(folder / "none"), FileError);
  CHECK_THROWS_AS(alphabet.save(folder / "no/such/folder"), FileError);
}

TEST_CASE("edit distance: known values, symmetry and the triangle") {
  CHECK(edit_distance(U"kitten", U"sitting") == 3);
  CHECK(edit_distance(U"", U"abc") == 3);
  CHECK(edit_distance(U"abc", U"") == 3);
  CHECK(edit_distance(U"", U"") == 0);
  const std::vector<std::u32string> words = {U"flaw", U"lawn", U"flow", U"", U"aflawn", U"wlfa"};
  for (const auto& a : words)
    for (const auto& b : words) {
      CHECK(edit_distance(a, b) == edit_distance(b, a));
      CHECK((edit_distance(a, b) == 0) == (a == b));
      for (const auto& c : words) CHECK(edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c));
    }
}

TEST_CASE("error rates count characters, not bytes, and sum over lines") {
  ErrorRate cer = character_errors("\u00E9t\u00E9", "ete");
  CHECK(cer.edits == 2);
  CHECK(cer.length == 3);
  cer += character_errors("ab", "ab");
  CHECK(cer.rate() == doctest::Approx(0.4));
  const ErrorRate wer = word_errors("  the quick\tbrown fox ", "the quick brawn");
  CHECK(wer.edits == 2);
  CHECK(wer.length == 4);
  CHECK(std::isnan(ErrorRate{}.rate()));                // nothing measured is not a rate of 0
  CHECK(character_errors("", "a").rate() == 1);
}
