#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include <fovea/data/glyphs.h>
#include <fovea/data/synthetic_handwriting.h>
#include <fovea/kernels/error.h>

using namespace fovea;
using namespace fovea::data;

namespace {

const SyntheticHandwritingOptions plain{.variation = 0, .disturbance = 0};

int darkest(const ImageBytes& image) { return *std::min_element(image.pixels.begin(), image.pixels.end()); }

// Sum over pixels of the difference of two pictures, the narrower one filled up with paper.
double difference(const ImageBytes& a, const ImageBytes& b) {
  const int64_t width = std::max(a.width, b.width);
  double sum = 0;
  for (int64_t y = 0; y < a.height; ++y)
    for (int64_t x = 0; x < width; ++x) {
      const int left = x < a.width ? a.pixels[static_cast<size_t>(y * a.width + x)] : 252;
      const int right = x < b.width ? b.pixels[static_cast<size_t>(y * b.width + x)] : 252;
      sum += std::abs(left - right);
    }
  return sum;
}

}  // namespace

TEST_CASE("synthetic handwriting: a line depends on seed and index alone, not on what was drawn before") {
  const SyntheticHandwritingOptions options;
  const HandwritingLine once = draw_handwriting(options, 5, 1000);
  draw_handwriting(options, 5, 3);
  const HandwritingLine again = draw_handwriting(options, 5, 1000);
  CHECK(once.text == again.text);
  CHECK(once.image.width == again.image.width);
  CHECK(once.image.pixels == again.image.pixels);
  CHECK(draw_handwriting(options, 5, 1001).image.pixels != once.image.pixels);
  CHECK(draw_handwriting(options, 6, 1000).image.pixels != once.image.pixels);
}

TEST_CASE("synthetic handwriting: the first line of a stream stays what it is") {
  const HandwritingLine line = draw_handwriting({}, 1, 0);
  CHECK(line.text == "job still letter");
  CHECK(line.image.height == 32);
  CHECK(std::abs(line.image.width - 146) <= 1);      // the last digits of sine and logarithm are the C library's
}

TEST_CASE("synthetic handwriting: texts have the asked length, no stray spaces, and use every character") {
  const std::string characters = handwriting_characters();
  CHECK(std::is_sorted(characters.begin(), characters.end()));
  std::set<char> seen;
  std::set<std::string> texts;
  const SyntheticHandwritingOptions options{.min_characters = 3, .max_characters = 9};
  for (uint64_t i = 0; i < 2000; ++i) {
    const std::string text = draw_handwriting(options, 1, i).text;
    CHECK(text.size() >= 3);
    CHECK(text.size() <= 9);
    CHECK(text.front() != ' ');
    CHECK(text.back() != ' ');
    CHECK(text.find("  ") == std::string::npos);
    texts.insert(text);
    seen.insert(text.begin(), text.end());
  }
  CHECK(texts.size() > 1900);
  CHECK(std::string(seen.begin(), seen.end()) == characters);
}

TEST_CASE("synthetic handwriting: letters of both cases, digits and punctuation have shapes that differ from each other") {
  const std::string characters = handwriting_characters();
  for (const char c : std::string("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'\"-()/&"))
    CHECK(characters.find(c) != std::string::npos);
  CHECK(characters.size() == 76);
  std::vector<ImageBytes> pictures;
  for (const char c : characters)
    if (c != ' ') pictures.push_back(draw_handwriting(plain, 1, 1, std::string(1, c)));
  for (size_t i = 0; i < pictures.size(); ++i)
    for (size_t j = 0; j < i; ++j) CHECK_MESSAGE(difference(pictures[i], pictures[j]) > 800, "pictures ", i, " and ", j);
}

TEST_CASE("synthetic handwriting: every stroke of every glyph lies where a letter may be") {
  for (const char c : glyph_characters()) {
    CHECK(!glyphs_of(c).empty());
    for (const Glyph& glyph : glyphs_of(c)) {
      CHECK(glyph.width > 0);
      for (const auto& stroke : glyph.strokes) {
        CHECK(stroke.size() >= 2);
        for (const GlyphPoint& point : stroke) {
          CHECK(point.x >= -2);
          CHECK(point.x <= glyph.width + 2.5f);
          CHECK(point.y >= -7.1f);
          CHECK(point.y <= 18.1f);
        }
      }
    }
  }
  CHECK(glyphs_of('\x01').empty());
  CHECK(glyphs_of('\xE9').empty());
}

TEST_CASE("synthetic handwriting: ink is visible on every line, and the margins are paper") {
  for (uint64_t i = 0; i < 300; ++i) {
    SyntheticHandwritingOptions options;
    options.height = 24 + static_cast<int64_t>(i % 3) * 20;
    const ImageBytes image = draw_handwriting(options, 9, i).image;
    CHECK(image.channels == 1);
    CHECK(image.height == options.height);
    CHECK(static_cast<int64_t>(image.pixels.size()) == image.width * image.height);
    const int brightest = *std::max_element(image.pixels.begin(), image.pixels.end());
    CHECK(brightest - darkest(image) > 50);
  }
  const ImageBytes image = draw_handwriting(plain, 9, 1, "HHH");
  for (int64_t y = 0; y < image.height; ++y) {
    CHECK(image.pixels[static_cast<size_t>(y * image.width)] == 252);
    CHECK(image.pixels[static_cast<size_t>((y + 1) * image.width - 1)] == 252);
  }
}

TEST_CASE("synthetic handwriting: hands differ, and without variation they do not") {
  const ImageBytes a = draw_handwriting({}, 1, 1, "hand"), b = draw_handwriting({}, 1, 2, "hand");
  CHECK(difference(a, b) > 20000);
  CHECK(draw_handwriting(plain, 1, 1, "Ho").pixels.size() == draw_handwriting(plain, 1, 1, "Ho").pixels.size());
  CHECK(draw_handwriting({}, 1, 1, "").width > 0);
}

TEST_CASE("synthetic handwriting: impossible options and characters are named in the error") {
  CHECK_THROWS_WITH_AS(draw_handwriting({.height = 8}, 1, 1), doctest::Contains("height must be 16 to 512, got 8"), ValueError);
  CHECK_THROWS_AS(draw_handwriting({.min_characters = 5, .max_characters = 4}, 1, 1), ValueError);
  CHECK_THROWS_AS(draw_handwriting({.variation = NAN}, 1, 1), ValueError);
  CHECK_THROWS_WITH_AS(draw_handwriting({}, 1, 1, "caf\xC3\xA9"), doctest::Contains("no glyph for the byte 195"), ValueError);
}
