#include <fovea/viz/font.h>

#include <cstddef>

namespace fovea::viz {
namespace {

constexpr int64_t body_row = 3, body_rows = 9;      // seven for the body, two for descenders

// Rows of the body from the top of a capital; the last two lie below the baseline.
struct Shape {
  char32_t character;
  uint8_t rows[body_rows];
};

constexpr Shape shapes[] = {
    {U' ', {}},
    {U'!', {4, 4, 4, 4, 4, 0, 4}},
    {U'"', {10, 10, 10}},
    {U'#', {10, 10, 31, 10, 31, 10, 10}},
    {U'$', {4, 15, 20, 14, 5, 30, 4}},
    {U'%', {24, 25, 2, 4, 8, 19, 3}},
    {U'&', {12, 18, 20, 8, 21, 18, 13}},
    {U'\'', {4, 4, 4}},
    {U'(', {2, 4, 8, 8, 8, 4, 2}},
    {U')', {8, 4, 2, 2, 2, 4, 8}},
    {U'*', {0, 4, 21, 14, 21, 4, 0}},
    {U'+', {0, 4, 4, 31, 4, 4, 0}},
    {U',', {0, 0, 0, 0, 0, 12, 4, 8}},
    {U'-', {0, 0, 0, 14, 0, 0, 0}},
    {U'.', {0, 0, 0, 0, 0, 12, 12}},
    {U'/', {1, 1, 2, 4, 8, 16, 16}},
    {U'0', {14, 17, 19, 21, 25, 17, 14}},
    {U'1', {4, 12, 4, 4, 4, 4, 14}},
    {U'2', {14, 17, 1, 2, 4, 8, 31}},
    {U'3', {31, 2, 4, 2, 1, 17, 14}},
    {U'4', {2, 6, 10, 18, 31, 2, 2}},
    {U'5', {31, 16, 30, 1, 1, 17, 14}},
    {U'6', {6, 8, 16, 30, 17, 17, 14}},
    {U'7', {31, 1, 2, 4, 8, 8, 8}},
    {U'8', {14, 17, 17, 14, 17, 17, 14}},
    {U'9', {14, 17, 17, 15, 1, 2, 12}},
    {U':', {0, 12, 12, 0, 12, 12, 0}},
    {U';', {0, 12, 12, 0, 0, 12, 4, 8}},
    {U'<', {2, 4, 8, 16, 8, 4, 2}},
    {U'=', {0, 0, 31, 0, 31, 0, 0}},
    {U'>', {8, 4, 2, 1, 2, 4, 8}},
    {U'?', {14, 17, 1, 2, 4, 0, 4}},
    {U'@', {14, 17, 1, 13, 21, 21, 14}},
    {U'A', {14, 17, 17, 17, 31, 17, 17}},
    {U'B', {30, 17, 17, 30, 17, 17, 30}},
    {U'C', {14, 17, 16, 16, 16, 17, 14}},
    {U'D', {28, 18, 17, 17, 17, 18, 28}},
    {U'E', {31, 16, 16, 30, 16, 16, 31}},
    {U'F', {31, 16, 16, 30, 16, 16, 16}},
    {U'G', {14, 17, 16, 23, 17, 17, 15}},
    {U'H', {17, 17, 17, 31, 17, 17, 17}},
    {U'I', {14, 4, 4, 4, 4, 4, 14}},
    {U'J', {7, 2, 2, 2, 2, 18, 12}},
    {U'K', {17, 18, 20, 24, 20, 18, 17}},
    {U'L', {16, 16, 16, 16, 16, 16, 31}},
    {U'M', {17, 27, 21, 21, 17, 17, 17}},
    {U'N', {17, 17, 25, 21, 19, 17, 17}},
    {U'O', {14, 17, 17, 17, 17, 17, 14}},
    {U'P', {30, 17, 17, 30, 16, 16, 16}},
    {U'Q', {14, 17, 17, 17, 21, 18, 13}},
    {U'R', {30, 17, 17, 30, 20, 18, 17}},
    {U'S', {15, 16, 16, 14, 1, 1, 30}},
    {U'T', {31, 4, 4, 4, 4, 4, 4}},
    {U'U', {17, 17, 17, 17, 17, 17, 14}},
    {U'V', {17, 17, 17, 17, 17, 10, 4}},
    {U'W', {17, 17, 17, 21, 21, 21, 10}},
    {U'X', {17, 17, 10, 4, 10, 17, 17}},
    {U'Y', {17, 17, 17, 10, 4, 4, 4}},
    {U'Z', {31, 1, 2, 4, 8, 16, 31}},
    {U'[', {14, 8, 8, 8, 8, 8, 14}},
    {U'\\', {16, 16, 8, 4, 2, 1, 1}},
    {U']', {14, 2, 2, 2, 2, 2, 14}},
    {U'^', {4, 10, 17}},
    {U'_', {0, 0, 0, 0, 0, 0, 0, 31}},
    {U'`', {8, 4, 2}},
    {U'a', {0, 0, 14, 1, 15, 17, 15}},
    {U'b', {16, 16, 22, 25, 17, 17, 30}},
    {U'c', {0, 0, 14, 16, 16, 17, 14}},
    {U'd', {1, 1, 13, 19, 17, 17, 15}},
    {U'e', {0, 0, 14, 17, 31, 16, 14}},
    {U'f', {6, 9, 8, 28, 8, 8, 8}},
    {U'g', {0, 0, 15, 17, 17, 17, 15, 1, 14}},
    {U'h', {16, 16, 22, 25, 17, 17, 17}},
    {U'i', {4, 0, 12, 4, 4, 4, 14}},
    {U'j', {2, 0, 6, 2, 2, 2, 2, 18, 12}},
    {U'k', {16, 16, 18, 20, 24, 20, 18}},
    {U'l', {12, 4, 4, 4, 4, 4, 14}},
    {U'm', {0, 0, 26, 21, 21, 21, 21}},
    {U'n', {0, 0, 22, 25, 17, 17, 17}},
    {U'o', {0, 0, 14, 17, 17, 17, 14}},
    {U'p', {0, 0, 30, 17, 17, 17, 30, 16, 16}},
    {U'q', {0, 0, 15, 17, 17, 17, 15, 1, 1}},
    {U'r', {0, 0, 22, 25, 16, 16, 16}},
    {U's', {0, 0, 15, 16, 14, 1, 30}},
    {U't', {8, 8, 28, 8, 8, 9, 6}},
    {U'u', {0, 0, 17, 17, 17, 19, 13}},
    {U'v', {0, 0, 17, 17, 17, 10, 4}},
    {U'w', {0, 0, 17, 17, 21, 21, 10}},
    {U'x', {0, 0, 17, 10, 4, 10, 17}},
    {U'y', {0, 0, 17, 17, 17, 17, 15, 1, 14}},
    {U'z', {0, 0, 31, 2, 4, 8, 31}},
    {U'{', {2, 4, 4, 8, 4, 4, 2}},
    {U'|', {4, 4, 4, 4, 4, 4, 4}},
    {U'}', {8, 4, 4, 2, 4, 4, 8}},
    {U'~', {0, 0, 8, 21, 2, 0, 0}},
    {U'\u0131', {0, 0, 12, 4, 4, 4, 14}},                 // i without its dot, to carry accents
    {U'\u0153', {0, 0, 10, 21, 23, 20, 11}},              // oe
    {U'\u0152', {15, 20, 20, 23, 20, 20, 15}},            // OE
    {U'\u00E6', {0, 0, 26, 5, 15, 20, 11}},               // ae
    {U'\u00C6', {15, 20, 20, 31, 20, 20, 23}},            // AE
    {U'\u00AB', {0, 5, 10, 20, 10, 5, 0}},                // quotation marks
    {U'\u00BB', {0, 20, 10, 5, 10, 20, 0}},
    {U'\u2018', {2, 4, 4}},
    {U'\u2019', {4, 4, 8}},
    {U'\u201C', {5, 10, 10}},
    {U'\u201D', {5, 5, 10}},
    {U'\u2013', {0, 0, 0, 30, 0, 0, 0}},                  // dashes
    {U'\u2014', {0, 0, 0, 31, 0, 0, 0}},
    {U'\u2026', {0, 0, 0, 0, 0, 0, 21}},                  // ellipsis
    {U'\u00B0', {6, 9, 6}},                               // degree
    {U'\u20AC', {7, 8, 30, 8, 30, 8, 7}},                 // euro
    {U'\u00A3', {6, 9, 8, 28, 8, 8, 31}},                 // pound
    {U'\u00A7', {7, 8, 14, 17, 14, 2, 28}},               // section
    {U'\u00B7', {0, 0, 0, 4, 0, 0, 0}},                   // middle dot
    {U'\u00D7', {0, 17, 10, 4, 10, 17, 0}},               // times
    {U'\u00B1', {4, 4, 31, 4, 4, 0, 31}},                 // plus or minus
    {U'\u00B2', {12, 2, 4, 14}},                          // squared
};

constexpr uint8_t unknown[body_rows] = {31, 17, 17, 17, 17, 17, 31};

// Two rows above a letter, or below it for the cedilla.
enum class Mark : uint8_t { grave, acute, circumflex, diaeresis, tilde, ring, cedilla };
constexpr uint8_t marks[][2] = {{8, 4}, {2, 4}, {4, 10}, {10, 0}, {13, 22}, {4, 4}, {4, 8}};

struct Marked {
  char32_t character, base;
  Mark mark;
};

constexpr Marked marked[] = {
    {U'\u00E0', U'a', Mark::grave},      {U'\u00E1', U'a', Mark::acute},     {U'\u00E2', U'a', Mark::circumflex}, {U'\u00E3', U'a', Mark::tilde},
    {U'\u00E4', U'a', Mark::diaeresis},  {U'\u00E5', U'a', Mark::ring},      {U'\u00E7', U'c', Mark::cedilla},    {U'\u00E8', U'e', Mark::grave},
    {U'\u00E9', U'e', Mark::acute},      {U'\u00EA', U'e', Mark::circumflex}, {U'\u00EB', U'e', Mark::diaeresis}, {U'\u00EC', U'\u0131', Mark::grave},
    {U'\u00ED', U'\u0131', Mark::acute}, {U'\u00EE', U'\u0131', Mark::circumflex}, {U'\u00EF', U'\u0131', Mark::diaeresis}, {U'\u00F1', U'n', Mark::tilde},
    {U'\u00F2', U'o', Mark::grave},      {U'\u00F3', U'o', Mark::acute},     {U'\u00F4', U'o', Mark::circumflex}, {U'\u00F5', U'o', Mark::tilde},
    {U'\u00F6', U'o', Mark::diaeresis},  {U'\u00F9', U'u', Mark::grave},     {U'\u00FA', U'u', Mark::acute},      {U'\u00FB', U'u', Mark::circumflex},
    {U'\u00FC', U'u', Mark::diaeresis},  {U'\u00FF', U'y', Mark::diaeresis}, {U'\u00C0', U'A', Mark::grave},      {U'\u00C1', U'A', Mark::acute},
    {U'\u00C2', U'A', Mark::circumflex}, {U'\u00C4', U'A', Mark::diaeresis}, {U'\u00C7', U'C', Mark::cedilla},    {U'\u00C8', U'E', Mark::grave},
    {U'\u00C9', U'E', Mark::acute},      {U'\u00CA', U'E', Mark::circumflex}, {U'\u00CB', U'E', Mark::diaeresis}, {U'\u00CE', U'I', Mark::circumflex},
    {U'\u00CF', U'I', Mark::diaeresis},  {U'\u00D1', U'N', Mark::tilde},     {U'\u00D4', U'O', Mark::circumflex}, {U'\u00D6', U'O', Mark::diaeresis},
    {U'\u00D9', U'U', Mark::grave},      {U'\u00DB', U'U', Mark::circumflex}, {U'\u00DC', U'U', Mark::diaeresis},
};

const uint8_t* body_of(char32_t character) {
  for (const Shape& shape : shapes)
    if (shape.character == character) return shape.rows;
  return unknown;
}

}  // namespace

std::array<uint8_t, font_rows> font_rows_of(char32_t character) {
  const Marked* mark = nullptr;
  for (const Marked& candidate : marked)
    if (candidate.character == character) mark = &candidate;
  const uint8_t* body = body_of(mark ? mark->base : character);
  std::array<uint8_t, font_rows> rows{};
  for (int64_t i = 0; i < body_rows; ++i) rows[static_cast<size_t>(body_row + i)] = body[i];
  if (mark) {
    const bool is_capital = mark->base >= U'A' && mark->base <= U'Z';
    const int64_t first = mark->mark == Mark::cedilla ? body_row + 7 : is_capital ? 0 : body_row - 1;
    for (int64_t i = 0; i < 2; ++i) rows[static_cast<size_t>(first + i)] |= marks[static_cast<size_t>(mark->mark)][i];
  }
  return rows;
}

}  // namespace fovea::viz
