#include <fovea/viz/canvas.h>

#include <algorithm>
#include <cmath>

#include <fovea/tensor/image_tensor.h>
#include <fovea/tensor/utf8.h>
#include <fovea/viz/font.h>

namespace fovea::viz {

Canvas::Canvas(int64_t width, int64_t height, Color background) : image_{width, height, 3, {}} {
  constexpr int64_t most = 1 << 15;
  check<ShapeError>(width > 0 && height > 0 && width <= most && height <= most, "Canvas: width and height must be 1 to ", most, ", got ", width, " x ", height);
  image_.pixels.resize(static_cast<size_t>(3 * width * height));
  fill(0, 0, width, height, background);
}

Color Canvas::at(int64_t x, int64_t y) const {
  check<IndexError>(x >= 0 && x < width() && y >= 0 && y < height(), "Canvas::at: (", x, ", ", y, ") lies outside ", width(), " x ", height());
  const uint8_t* p = image_.pixels.data() + 3 * (y * image_.width + x);
  return {p[0], p[1], p[2]};
}

void Canvas::set(int64_t x, int64_t y, Color color) {
  if (x < 0 || x >= width() || y < 0 || y >= height()) return;
  uint8_t* p = pixel(x, y);
  p[0] = color.red;
  p[1] = color.green;
  p[2] = color.blue;
}

void Canvas::blend(int64_t x, int64_t y, Color color, float opacity) {
  if (x < 0 || x >= width() || y < 0 || y >= height()) return;
  uint8_t* p = pixel(x, y);
  const uint8_t target[3] = {color.red, color.green, color.blue};
  for (int c = 0; c < 3; ++c) p[c] = static_cast<uint8_t>(std::lround(static_cast<float>(p[c]) + opacity * (static_cast<float>(target[c]) - static_cast<float>(p[c]))));
}

void Canvas::fill(int64_t x, int64_t y, int64_t width, int64_t height, Color color) {
  const int64_t last_x = std::min(x + width, this->width()), last_y = std::min(y + height, this->height());
  for (int64_t row = std::max<int64_t>(y, 0); row < last_y; ++row)
    for (int64_t column = std::max<int64_t>(x, 0); column < last_x; ++column) set(column, row, color);
}

void Canvas::frame(int64_t x, int64_t y, int64_t width, int64_t height, Color color) {
  fill(x, y, width, 1, color);
  fill(x, y + height - 1, width, 1, color);
  fill(x, y, 1, height, color);
  fill(x + width - 1, y, 1, height, color);
}

void Canvas::line(double x0, double y0, double x1, double y1, Color color, double thickness) {
  if (!std::isfinite(x0 + y0 + x1 + y1)) return;
  const double reach = thickness / 2 + 0.5, dx = x1 - x0, dy = y1 - y0, squared = dx * dx + dy * dy;
  const auto limit = [](double value, int64_t size) { return static_cast<int64_t>(std::clamp(value, 0.0, static_cast<double>(size - 1))); };
  const int64_t first_x = limit(std::min(x0, x1) - reach, width()), last_x = limit(std::max(x0, x1) + reach + 1, width());
  const int64_t first_y = limit(std::min(y0, y1) - reach, height()), last_y = limit(std::max(y0, y1) + reach + 1, height());
  for (int64_t y = first_y; y <= last_y; ++y)
    for (int64_t x = first_x; x <= last_x; ++x) {
      const double px = static_cast<double>(x) - x0, py = static_cast<double>(y) - y0;
      const double along = squared > 0 ? std::clamp((px * dx + py * dy) / squared, 0.0, 1.0) : 0;
      const double coverage = std::min(reach - std::hypot(px - along * dx, py - along * dy), 1.0);
      if (coverage > 0) blend(x, y, color, static_cast<float>(coverage));
    }
}

// Calls put(x, y) for every pixel of a text at scale 1, from its upper left corner.
template <class Put>
void Canvas::each_text_pixel(std::string_view text, const Put& put) {
  int64_t left = 0;
  for (size_t at = 0; at < text.size(); left += font_advance) {
    const auto rows = font_rows_of(next_code_point(text, at));
    for (int64_t y = 0; y < font_rows; ++y)
      for (int64_t x = 0; x < 5; ++x)
        if (rows[static_cast<size_t>(y)] >> (4 - x) & 1) put(left + x, y);
  }
}

void Canvas::text(int64_t x, int64_t y, std::string_view text, Color color, int64_t scale) {
  each_text_pixel(text, [&](int64_t column, int64_t row) { fill(x + column * scale, y + row * scale, scale, scale, color); });
}

void Canvas::vertical_text(int64_t x, int64_t y, std::string_view text, Color color, int64_t scale) {
  each_text_pixel(text, [&](int64_t column, int64_t row) { fill(x + row * scale, y - (column + 1) * scale, scale, scale, color); });
}

void Canvas::picture(int64_t x, int64_t y, const Tensor& image, int64_t scale) { picture(x, y, image_from_tensor(image), scale); }

void Canvas::picture(int64_t x, int64_t y, const ImageBytes& image, int64_t scale) {
  check<ShapeError>(image.channels == 1 || image.channels == 3, "Canvas::picture: a picture has 1 or 3 channels, got ", image.channels);
  for (int64_t row = 0; row < image.height; ++row)
    for (int64_t column = 0; column < image.width; ++column) {
      const uint8_t* p = image.pixels.data() + image.channels * (row * image.width + column);
      const Color color = image.channels == 1 ? Color{p[0], p[0], p[0]} : Color{p[0], p[1], p[2]};
      fill(x + column * scale, y + row * scale, scale, scale, color);
    }
}

Tensor Canvas::to_tensor() const { return image_to_uint8(image_); }
void Canvas::write(const std::string& path) const { write_image_bytes(path, image_); }

int64_t text_width(std::string_view text, int64_t scale) { return static_cast<int64_t>(decode_utf8(text).size()) * font_advance * scale; }
int64_t text_height(int64_t scale) { return font_rows * scale; }

}  // namespace fovea::viz
