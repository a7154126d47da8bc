#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>
#include <set>

#include <fovea/kernels/error.h>
#include <fovea/tensor/creation.h>
#include <fovea/viz/canvas.h>
#include <fovea/viz/font.h>
#include <fovea/viz/plot.h>

#include "temporary_folder.h"

using namespace fovea;
using namespace fovea::viz;

namespace {

constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();
constexpr Color red{255, 0, 0};

int64_t count(const Canvas& canvas, Color color) {
  int64_t found = 0;
  for (int64_t y = 0; y < canvas.height(); ++y)
    for (int64_t x = 0; x < canvas.width(); ++x) found += canvas.at(x, y) == color;
  return found;
}

// How dark a canvas with black on white is, in whole black pixels.
double ink(const Canvas& canvas) {
  double sum = 0;
  for (int64_t y = 0; y < canvas.height(); ++y)
    for (int64_t x = 0; x < canvas.width(); ++x) sum += (255 - canvas.at(x, y).red) / 255.0;
  return sum;
}

}  // namespace

TEST_CASE("canvas: rectangles, frames and pixels cover what they should, and nothing outside") {
  Canvas canvas(20, 10);
  canvas.fill(2, 3, 5, 4, red);
  CHECK(count(canvas, red) == 20);
  CHECK(canvas.at(2, 3) == red);
  CHECK(canvas.at(6, 6) == red);
  CHECK(canvas.at(7, 6) == white);
  canvas.fill(-5, -5, 6, 100, black);
  CHECK(count(canvas, black) == 10);
  canvas.set(-1, 0, red);
  canvas.set(20, 9, red);
  CHECK(count(canvas, red) == 20);
  canvas.frame(10, 1, 6, 5, grey);
  CHECK(count(canvas, grey) == 2 * 6 + 2 * 3);
  CHECK_THROWS_AS(canvas.at(20, 0), IndexError);
  CHECK_THROWS_AS(Canvas(0, 5), ShapeError);
  CHECK_THROWS_AS(Canvas(1 << 20, 1 << 20), ShapeError);
}

TEST_CASE("canvas: a line has the area of its length times its thickness, in every direction") {
  for (double angle = 0; angle < 6.3; angle += 0.37) {
    Canvas canvas(120, 120);
    canvas.line(60, 60, 60 + 50 * std::cos(angle), 60 + 50 * std::sin(angle), black, 3);
    CHECK(ink(canvas) == doctest::Approx(50 * 3 + 3.14159 * 1.5 * 1.5).epsilon(0.05));
  }
  Canvas canvas(50, 50);
  canvas.line(-1e9, 25, 1e9, 25, black, 1);
  CHECK(count(canvas, black) == 50);
  canvas.line(nan_value, 0, 10, 10, red, 1);
  canvas.line(0, 0, std::numeric_limits<double>::infinity(), 10, red, 1);
  CHECK(count(canvas, red) == 0);
}

TEST_CASE("canvas: every letter of ASCII and of French has a shape of its own, inside its cell") {
  const auto box = font_rows_of(U'\u65E5');
  std::set<std::array<uint8_t, font_rows>> shapes;
  std::u32string letters = U"\u00E0\u00E2\u00E4\u00E7\u00E9\u00E8\u00EA\u00EB\u00EE\u00EF\u00F4\u00F6\u00F9\u00FB\u00FC\u00FF\u0153\u00E6"
                           U"\u00C0\u00C2\u00C4\u00C7\u00C9\u00C8\u00CA\u00CB\u00CE\u00CF\u00D4\u00D6\u00D9\u00DB\u00DC\u0152\u00C6\u00AB\u00BB\u2019";
  for (char32_t c = 32; c < 127; ++c) letters += c;
  for (const char32_t c : letters) {
    const auto rows = font_rows_of(c);
    CHECK(rows != box);
    for (const uint8_t row : rows) CHECK(row < 32);
    shapes.insert(rows);
  }
  CHECK(shapes.size() == letters.size());
}

TEST_CASE("canvas: text is placed, scaled and turned, and its width counts characters, not bytes") {
  CHECK(text_width("\u00E9t\u00E9") == 3 * font_advance);
  Canvas small(60, 20), large(120, 40), turned(20, 60);
  small.text(1, 2, "Ag\u00E9", black, 1);
  large.text(2, 4, "Ag\u00E9", black, 2);
  turned.vertical_text(2, 59, "Ag\u00E9", black, 1);
  CHECK(ink(small) > 20);
  CHECK(ink(large) == 4 * ink(small));
  CHECK(ink(turned) == ink(small));
  for (int64_t y = 0; y < 20; ++y)
    for (int64_t x = 0; x < 60; ++x) {
      CHECK(large.at(2 * x, 2 * y) == small.at(x, y));
      CHECK(turned.at(y, 59 - x) == small.at(x, y));
    }
  CHECK_THROWS_AS(small.text(0, 0, "a\xFF"), ValueError);
}

TEST_CASE("canvas: pictures are copied, grey or coloured, cut off at the edge") {
  Canvas canvas(6, 6, grey);
  canvas.picture(1, 1, from_vector(std::vector<float>{0, 1, 1, 0}, {1, 2, 2}), 2);
  CHECK(canvas.at(1, 1) == black);
  CHECK(canvas.at(2, 2) == black);
  CHECK(canvas.at(3, 1) == white);
  CHECK(canvas.at(5, 1) == grey);
  canvas.picture(5, 5, from_vector(std::vector<uint8_t>{255, 9, 0, 9, 0, 9}, {3, 1, 2}));
  CHECK(canvas.at(5, 5) == red);
  CHECK_THROWS_AS(canvas.picture(0, 0, zeros({2, 2, 2})), ShapeError);
  const Tensor tensor = canvas.to_tensor();
  CHECK(tensor.shape() == Shape{3, 6, 6});
  CHECK(tensor.data<uint8_t>()[5 * 6 + 5] == 255);
  const TemporaryFolder folder;
  canvas.write(folder / "a.png");
  CHECK(read_image_bytes(folder / "a.png").pixels == canvas.image().pixels);
}

TEST_CASE("ticks: round numbers, within the range, about as many as asked for") {
  CHECK(nice_ticks(0, 1, 5) == std::vector<double>{0, 0.2, 0.4, 0.6000000000000001, 0.8, 1});
  for (const auto& [low, high] : {std::pair{0.0, 3000.0}, {-1.0, 1.0}, {1e-9, 3e-9}, {1e12, 1e12 + 7}, {-5e-3, 8e5}})
    for (int64_t wanted = 2; wanted < 12; ++wanted) {
      const std::vector<double> ticks = nice_ticks(low, high, wanted);
      CHECK(ticks.size() >= 1);
      CHECK(static_cast<int64_t>(ticks.size()) <= 2 * wanted + 1);
      for (const double tick : ticks) {
        CHECK(tick >= low - 1e-6 * (high - low));
        CHECK(tick <= high + 1e-6 * (high - low));
      }
    }
  CHECK(log_ticks(0.9, 1100, 4) == std::vector<double>{1, 10, 100, 1000});
  CHECK(log_ticks(0.08, 0.6, 6) == std::vector<double>{0.1, 0.2, 0.5});
  CHECK(log_ticks(1e-12, 1e12, 5).size() <= 8);
  CHECK_THROWS_AS(nice_ticks(1, 1, 5), ValueError);
  CHECK_THROWS_AS(log_ticks(0, 1, 5), ValueError);
  CHECK(tick_label(0) == "0");
  CHECK(tick_label(0.05) == "0.05");
  CHECK(tick_label(1500) == "1500");
  CHECK(tick_label(1e-5) == "1e-05");
}

TEST_CASE("plot: a curve is drawn in its panel, and gaps stay gaps") {
  const Color first{0, 114, 178};
  const Curve whole{"", {0, 1, 2, 3}, {0, 1, 0, 1}}, broken{"", {0, 1, 2, 3}, {0, 1, nan_value, 1}};
  const Canvas a = plot({{"y", {whole}}}), b = plot({{"y", {broken}}});
  CHECK(a.width() == 1100);
  CHECK(count(a, first) > 1000);
  CHECK(count(b, first) < 0.5 * static_cast<double>(count(a, first)));
  const Canvas two = plot({{"y", {whole}}, {"z", {whole}}});
  CHECK(two.height() - a.height() == 260);
  CHECK(count(two, first) > 1.9 * static_cast<double>(count(a, first)));
}

TEST_CASE("plot: a logarithmic axis turns a power law into a straight line, and leaves out what is not positive") {
  Curve curve{"", {}, {}}, with_zero;
  for (int i = 0; i <= 100; ++i) {
    curve.x.push_back(i);
    curve.y.push_back(std::pow(10.0, -i / 20.0));
  }
  with_zero = curve;
  with_zero.y[50] = 0;
  with_zero.y[51] = -1;
  const Canvas canvas = plot({{"", {curve}, true}}), gap = plot({{"", {with_zero}, true}});
  // The line's middle lies half-way between its ends.
  const auto height_at = [&](int64_t x) {
    double sum = 0, weight = 0;
    for (int64_t y = 0; y < canvas.height(); ++y)
      if (canvas.at(x, y) == Color{0, 114, 178}) { sum += static_cast<double>(y); ++weight; }
    return sum / weight;
  };
  CHECK(height_at(600) == doctest::Approx((height_at(300) + height_at(900)) / 2).epsilon(0.01));
  CHECK(count(gap, Color{0, 114, 178}) < count(canvas, Color{0, 114, 178}));
}

TEST_CASE("plot: empty, constant, single and wild data give a picture, and wrong input an error") {
  const double huge = 1e300;
  for (const Curve& curve : {Curve{"a", {}, {}}, Curve{"a", {1}, {2}}, Curve{"a", {1, 2}, {5, 5}}, Curve{"a", {0, 0}, {0, 0}}, Curve{"a", {nan_value}, {1}},
                             Curve{"a", {1, 2}, {-huge, huge}}, Curve{"a", {1, 2}, {std::numeric_limits<double>::infinity(), 1}}})
    for (const bool is_log : {false, true}) CHECK(plot({{"y", {curve}, is_log}}).width() == 1100);
  CHECK_THROWS_AS(plot({}), ValueError);
  CHECK_THROWS_WITH_AS(plot({{"y", {{"loss", {1, 2}, {1}}}}}), doctest::Contains("the curve \"loss\" has 2 x but 1 y values"), ShapeError);
  CHECK_THROWS_AS(plot({{"y", {}}}, {.width = 100}), ShapeError);
}
