#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include <fovea/data/augment.h>
#include <fovea/tensor/creation.h>

using namespace fovea;
using namespace fovea::data;

namespace {

Tensor pattern(int64_t channels, int64_t height, int64_t width) {
  Tensor x = empty({channels, height, width});
  float* values = x.mutable_data<float>();
  for (int64_t i = 0; i < x.numel(); ++i) values[i] = static_cast<float>((i * 37 + i / 7 * 11) % 101) / 100;
  return x;
}

Tensor copy_of(const Tensor& x) { return from_vector(x.to_vector<float>(), x.shape()); }

float at(const Tensor& x, int64_t c, int64_t row, int64_t column) { return x.data<float>()[(c * x.size(1) + row) * x.size(2) + column]; }

double mean(const Tensor& x) {
  double sum = 0;
  for (const float v : x.to_vector<float>()) sum += v;
  return sum / static_cast<double>(x.numel());
}

double variance(const Tensor& x) {
  const double m = mean(x);
  double sum = 0;
  for (const float v : x.to_vector<float>()) sum += (v - m) * (v - m);
  return sum / static_cast<double>(x.numel());
}

Tensor warp(const Tensor& x, const Warp& settings, uint64_t seed = 1) {
  RandomStream random(seed);
  return warp_image(x, settings, random);
}

Tensor changed(const Tensor& x, const Photometry& settings, uint64_t seed = 1) {
  RandomStream random(seed);
  Tensor y = copy_of(x);
  apply_photometry(y, settings, random);
  return y;
}

}  // namespace

TEST_CASE("warp: no change leaves every pixel as it is") {
  const Tensor x = pattern(3, 9, 14);
  CHECK(warp(x, {}).to_vector<float>() == x.to_vector<float>());
  CHECK(warp(x, {.keep_width = false}).to_vector<float>() == x.to_vector<float>());
  CHECK(warp(pattern(1, 1, 1), {}).item<float>() == pattern(1, 1, 1).item<float>());
}

TEST_CASE("warp: a shift by whole pixels moves them, and the fill comes in") {
  const Tensor x = pattern(2, 6, 8), y = warp(x, {.shift_x = 2, .shift_y = -1, .fill = -5.0f}), edge = warp(x, {.shift_x = 2});
  for (int64_t c = 0; c < 2; ++c)
    for (int64_t row = 0; row < 6; ++row)
      for (int64_t column = 0; column < 8; ++column) {
        const bool is_inside = column >= 2 && row + 1 < 6;
        CHECK(at(y, c, row, column) == doctest::Approx(is_inside ? at(x, c, row + 1, column - 2) : -5.0f));
        CHECK(at(edge, c, row, column) == doctest::Approx(at(x, c, row, std::max<int64_t>(column - 2, 0))));
      }
}

TEST_CASE("warp: a quarter turn, a mirror and a doubled width are exact") {
  const Tensor x = pattern(1, 7, 7), turned = warp(x, {.rotation = 1.57079633f}), mirrored = warp(x, {.mirror = true});
  for (int64_t row = 0; row < 7; ++row)
    for (int64_t column = 0; column < 7; ++column) {
      CHECK(at(turned, 0, row, column) == doctest::Approx(at(x, 0, 6 - column, row)).epsilon(0.001));      // clockwise: the left column becomes the top row
      CHECK(at(mirrored, 0, row, column) == doctest::Approx(at(x, 0, row, 6 - column)));
    }
  const Tensor wide = warp(pattern(1, 4, 10), {.stretch = 2, .keep_width = false});
  CHECK(wide.shape() == Shape{1, 4, 20});
  CHECK(mean(wide) == doctest::Approx(mean(pattern(1, 4, 10))).epsilon(0.05));
}

TEST_CASE("warp: a slanted stroke leans to the right at the top, and grows the picture by its lean") {
  Tensor x = zeros({1, 21, 31});
  for (int64_t row = 0; row < 21; ++row) x.mutable_data<float>()[row * 31 + 15] = 1;
  const Tensor y = warp(x, {.slant = 0.5f, .fill = 0.0f}), grown = warp(x, {.slant = 0.5f, .fill = 0.0f, .keep_width = false});
  CHECK(at(y, 0, 0, 20) == doctest::Approx(1));
  CHECK(at(y, 0, 20, 10) == doctest::Approx(1));
  CHECK(at(y, 0, 10, 15) == doctest::Approx(1));
  CHECK(grown.size(2) == 42);
  CHECK(mean(grown) * 42 == doctest::Approx(mean(x) * 31).epsilon(0.01));
}

TEST_CASE("warp: elastic distortion moves pixels by about its strength, and is drawn anew for each stream") {
  Tensor ramp = empty({1, 64, 256});
  for (int64_t i = 0; i < ramp.numel(); ++i) ramp.mutable_data<float>()[i] = static_cast<float>(i % 256);
  const Warp settings{.elastic = 2, .elastic_cell = 8};
  const Tensor y = warp(ramp, settings, 1);
  double squares = 0;
  int64_t count = 0;
  for (int64_t row = 0; row < 64; ++row)
    for (int64_t column = 16; column < 240; ++column, ++count) squares += std::pow(at(y, 0, row, column) - static_cast<float>(column), 2);
  const double moved = std::sqrt(squares / static_cast<double>(count));
  CHECK(moved > 1.0);                           // between the knots less than 2
  CHECK(moved < 2.1);
  CHECK(warp(ramp, settings, 1).to_vector<float>() == y.to_vector<float>());
  CHECK(warp(ramp, settings, 2).to_vector<float>() != y.to_vector<float>());
}

TEST_CASE("warp: boxes go with the picture") {
  Sample sample;
  sample.image = zeros({1, 40, 60});
  for (int64_t row = 10; row < 20; ++row)
    for (int64_t column = 20; column < 40; ++column) sample.image.mutable_data<float>()[row * 60 + column] = 1;
  for (const Warp& settings : {Warp{.shift_x = 7, .shift_y = 3}, Warp{.scale = 1.3f, .mirror = true}, Warp{.rotation = 0.2f, .stretch = 1.2f},
                               Warp{.slant = 0.3f, .keep_width = false}}) {
    Warp filled = settings;
    filled.fill = 0.0f;
    const Tensor y = warp(sample.image, filled);
    const Box box = warp_box({20, 10, 40, 20, 3}, settings, 40, 60).value();
    CHECK(box.label == 3);
    double left = 1e9, right = 0, top = 1e9, bottom = 0;
    for (int64_t row = 0; row < 40; ++row)
      for (int64_t column = 0; column < y.size(2); ++column)
        if (at(y, 0, row, column) > 0.5f) {
          left = std::min<double>(left, static_cast<double>(column));
          right = std::max<double>(right, static_cast<double>(column) + 1);
          top = std::min<double>(top, static_cast<double>(row));
          bottom = std::max<double>(bottom, static_cast<double>(row) + 1);
        }
    CHECK(std::abs(left - box.left) <= 2);
    CHECK(std::abs(right - box.right) <= 2);
    CHECK(std::abs(top - box.top) <= 2);
    CHECK(std::abs(bottom - box.bottom) <= 2);
  }
  CHECK(!warp_box({20, 10, 40, 20, 3}, {.shift_x = 100}, 40, 60));
  sample.boxes = {{20, 10, 40, 20, 3}, {0, 0, 2, 2, 1}};
  RandomStream random(1);
  random_warp({.mirror = 1})(sample, random);
  REQUIRE(sample.boxes.size() == 2);
  CHECK(sample.boxes[1].left == 58);
}

TEST_CASE("photometry: each setting does what it says") {
  const Tensor x = pattern(1, 24, 40);
  CHECK(changed(x, {}).to_vector<float>() == x.to_vector<float>());
  const Tensor brighter = changed(x, {.brightness = 0.25f}), flatter = changed(x, {.contrast = 0.5f}), gamma = changed(x, {.gamma = 2});
  for (int64_t i = 0; i < x.numel(); ++i) {
    const float v = x.data<float>()[i];
    CHECK(brighter.data<float>()[i] == doctest::Approx(std::min(v + 0.25f, 1.0f)));
    CHECK(flatter.data<float>()[i] == doctest::Approx(mean(x) + 0.5 * (v - mean(x))));
    CHECK(gamma.data<float>()[i] == doctest::Approx(v * v).epsilon(1e-4));
  }
  const Tensor blurred = changed(x, {.blur = 1.5f});
  CHECK(mean(blurred) == doctest::Approx(mean(x)).epsilon(0.02));
  CHECK(variance(blurred) < 0.2 * variance(x));
  const Tensor flat = changed(full({3, 5, 4}, 0.5), {.blur = 3});
  for (const float v : flat.to_vector<float>()) CHECK(v == doctest::Approx(0.5f));
  const Tensor noisy = changed(full({1, 200, 200}, 0.5), {.noise = 0.1f});
  CHECK(mean(noisy) == doctest::Approx(0.5).epsilon(0.01));
  CHECK(std::sqrt(variance(noisy)) == doctest::Approx(0.1).epsilon(0.03));
}

TEST_CASE("augmentation: the same stream gives the same picture, and values stay within 0 .. 1") {
  const Transform transform =
      compose({random_warp({.shift_x = 3, .shift_y = 2, .rotation = 0.05f, .scale = 0.1f, .stretch = 0.2f, .slant = 0.3f, .mirror = 0.5f, .elastic = 2,
                            .fill = 1.0f, .keep_width = false}),
               random_photometry({.blur = 1, .contrast = 0.4f, .brightness = 0.2f, .gamma = 0.5f, .noise = 0.1f})});
  const auto run = [&](uint64_t seed) {
    Sample sample;
    sample.image = pattern(1, 32, 100);
    RandomStream random(seed);
    transform(sample, random);
    return sample.image;
  };
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Tensor y = run(seed);
    CHECK(y.size(1) == 32);
    for (const float v : y.to_vector<float>()) CHECK((v >= 0 && v <= 1));
  }
  CHECK(run(3).to_vector<float>() == run(3).to_vector<float>());
  CHECK(run(3).to_vector<float>() != run(4).to_vector<float>());
}

TEST_CASE("augmentation: settings and pictures that cannot be are refused") {
  RandomStream random(1);
  Tensor x = pattern(1, 8, 8), none = zeros({1, 0, 4}), flat = zeros({4, 4});
  CHECK_THROWS_AS(warp(x, {.scale = 0}), ValueError);
  CHECK_THROWS_AS(warp(x, {.rotation = NAN}), ValueError);
  CHECK_THROWS_AS(warp(x, {.elastic_cell = 0}), ValueError);
  CHECK_THROWS_AS(warp(x, {.slant = 9000, .keep_width = false}), ShapeError);
  CHECK_THROWS_AS(warp(flat, {}), ShapeError);
  CHECK_THROWS_AS(warp(none, {}), ShapeError);
  CHECK_THROWS_AS(warp(zeros({1, 4, 4}, DType::uint8), {}), DTypeError);
  apply_photometry(none, {.blur = 1, .contrast = 2}, random);
  CHECK_THROWS_AS(apply_photometry(x, {.gamma = 0}, random), ValueError);
  CHECK_THROWS_AS(apply_photometry(x, {.brightness = NAN}, random), ValueError);
  CHECK_THROWS_AS(apply_photometry(flat, {}, random), ShapeError);
}
