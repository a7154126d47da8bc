// A picture to draw on: lines, rectangles, text and other pictures.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <fovea/tensor/image_file.h>
#include <fovea/tensor/tensor.h>

namespace fovea::viz {

struct Color {
  uint8_t red = 0, green = 0, blue = 0;
  bool operator==(const Color&) const = default;
};
inline constexpr Color black{0, 0, 0}, white{255, 255, 255}, grey{128, 128, 128};

// Coordinates are pixels from the upper left corner; what lies outside is left out.
class Canvas {
 public:
  Canvas(int64_t width, int64_t height, Color background = white);

  int64_t width() const { return image_.width; }
  int64_t height() const { return image_.height; }
  Color at(int64_t x, int64_t y) const;                                        // IndexError outside
  void set(int64_t x, int64_t y, Color color);
  void blend(int64_t x, int64_t y, Color color, float opacity);
  void fill(int64_t x, int64_t y, int64_t width, int64_t height, Color color);
  void frame(int64_t x, int64_t y, int64_t width, int64_t height, Color color);     // one pixel thick, inside
  // Anti-aliased, with round ends; (x, y) are centres of pixels. Nothing is drawn for coordinates that are not finite.
  void line(double x0, double y0, double x1, double y1, Color color, double thickness = 1);
  // UTF-8; (x, y) is the upper left corner of the first character's cell. Characters without a shape are drawn as a box.
  void text(int64_t x, int64_t y, std::string_view text, Color color = black, int64_t scale = 1);
  void vertical_text(int64_t x, int64_t y, std::string_view text, Color color = black, int64_t scale = 1);      // upwards; (x, y): the lower left corner
  // [C,H,W] or [H,W] with 1 or 3 channels; each pixel becomes scale x scale.
  void picture(int64_t x, int64_t y, const Tensor& image, int64_t scale = 1);
  void picture(int64_t x, int64_t y, const ImageBytes& image, int64_t scale = 1);

  const ImageBytes& image() const { return image_; }                           // RGB
  Tensor to_tensor() const;                                                     // [3,H,W] uint8
  void write(const std::string& path) const;                                    // .png, .jpg

 private:
  template <class Put>
  static void each_text_pixel(std::string_view text, const Put& put);
  uint8_t* pixel(int64_t x, int64_t y) { return image_.pixels.data() + 3 * (y * image_.width + x); }

  ImageBytes image_;
};

int64_t text_width(std::string_view text, int64_t scale = 1);                  // pixels
int64_t text_height(int64_t scale = 1);                                        // of a cell: accents above, descenders below

}  // namespace fovea::viz
