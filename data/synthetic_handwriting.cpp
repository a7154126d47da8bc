// Text -> pen path in glyph units -> path in pixels -> ink coverage by distance to the path -> grey values on paper.
#include <fovea/data/synthetic_handwriting.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include <fovea/data/glyphs.h>
#include <fovea/data/line_text.h>
#include <fovea/data/pixel_noise.h>
#include <fovea/data/random_stream.h>
#include <fovea/kernels/error.h>

namespace fovea::data {
namespace {

constexpr float ascent = 18, descent = 7;      // of the glyphs, in units

// What the letters of one line have in common. Lengths in glyph units unless said otherwise.
struct Hand {
  uint64_t shapes = 0;                         // chooses among the ways to write each character
  float unit = 1;                              // pixels per unit
  float baseline = 0;                          // pixels from the top
  float stretch = 1, slant = 0, slope = 0;     // x per x, x per y, y per x
  float letter_gap = 2, word_gap = 9;
  float wander = 0, wander_length = 60, wander_phase = 0;
  float unsteadiness = 0;                      // standard deviation of each point of a stroke
  float size_change = 0, lift = 0, turn = 0;   // of single letters: relative, units, radians
  float joined = 0;                            // how often neighbours that can be joined are
  float pen_radius = 1, pressure_change = 0;   // pixels, relative
  float ink = 1;                               // darkness of the ink, 0 .. 1
};

struct Paper {
  float brightness = 250, contrast = 220, gradient = 0, texture = 0, noise = 0;
  int64_t ruling = 0;                          // 0 plain, 1 ruled, 2 grid
  float ruling_darkness = 0, ruling_step = 16, ruling_start = 0;
};

// A piece of the pen's path, in pixels.
struct Segment {
  float x0, y0, x1, y1, radius, ink;
};

struct Point {
  float x = 0, y = 0;
  bool corner = false;
};

Hand random_hand(RandomStream& random, const SyntheticHandwritingOptions& options) {
  const float v = options.variation;
  const float height = static_cast<float>(options.height), largest_unit = height / (ascent + descent + 1.5f);
  Hand hand;
  hand.shapes = uint64_t{random.word()} << 32 | random.word();
  hand.unit = largest_unit * (1 - 0.3f * std::min(v, 1.5f) * random.uniform());
  const float slack = height - hand.unit * (ascent + descent);
  hand.baseline = hand.unit * ascent + slack * std::clamp(0.5f + v * random.uniform(-0.5f, 0.5f), 0.0f, 1.0f);
  hand.stretch = 1 + v * random.uniform(-0.2f, 0.25f);
  hand.slant = v * random.uniform(-0.2f, 0.55f);
  hand.slope = v * random.uniform(-0.008f, 0.008f);
  hand.letter_gap = 2.2f + v * random.uniform(-0.8f, 1.3f);
  hand.word_gap = 8.5f + v * random.uniform(-2.0f, 4.0f);
  hand.wander = v * random.uniform(0, 0.8f);
  hand.wander_length = random.uniform(40, 150);
  hand.wander_phase = random.uniform(0, 6.28f);
  hand.unsteadiness = v * random.uniform(0.05f, 0.5f);
  hand.size_change = v * random.uniform(0.01f, 0.07f);
  hand.lift = v * random.uniform(0.05f, 0.5f);
  hand.turn = v * random.uniform(0.0f, 0.06f);
  const float habit = random.uniform();
  hand.joined = habit < 0.4f ? 0.0f : habit < 0.65f ? random.uniform(0.2f, 0.7f) : random.uniform(0.85f, 1.0f);
  if (v == 0) hand.joined = 0;
  hand.pen_radius = std::max(0.45f, height / 32 * (0.8f + v * random.uniform(-0.35f, 0.55f)));
  hand.pressure_change = v * random.uniform(0.05f, 0.35f);
  hand.ink = 1 - 0.25f * v * random.uniform();
  return hand;
}

Paper random_paper(RandomStream& random, const SyntheticHandwritingOptions& options) {
  const float d = options.disturbance, height = static_cast<float>(options.height);
  Paper paper;
  paper.brightness = 252 - d * random.uniform(0, 50);
  paper.contrast = std::max(60.0f, paper.brightness - 10 - d * random.uniform(0, 110));
  paper.gradient = d * random.uniform(-18, 18);
  paper.texture = d * random.uniform(0, 12);
  paper.noise = d * random.uniform(0, 9);
  const float kind = random.uniform();
  if (d > 0) paper.ruling = kind < 0.14f ? 1 : kind < 0.22f ? 2 : 0;
  paper.ruling_darkness = d * random.uniform(10, 45);
  paper.ruling_step = height * random.uniform(0.35f, 0.8f);
  paper.ruling_start = random.uniform(0, paper.ruling_step);
  return paper;
}

const Glyph& shape_of(const Hand& hand, char character) {
  const std::span<const Glyph> ways = glyphs_of(character);
  return ways[mix_seed(hand.shapes, static_cast<uint64_t>(character)) % ways.size()];
}

// Writes a text: from letters to segments in pixels.
class Writer {
 public:
  Writer(const Hand& hand, RandomStream& random) : hand_(hand), random_(random) {}

  void write(const std::string& text) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == ' ') {
        pen_x_ += hand_.word_gap * random_.uniform(0.75f, 1.3f);
        exit_.possible = false;
        continue;
      }
      write_letter(shape_of(hand_, text[i]));
    }
  }

  std::vector<Segment>& segments() { return segments_; }

 private:
  // One letter's deviation from its skeleton: turned about its foot, resized, lifted.
  struct Placement {
    float x, size, lift, cosine, sine;
  };

  void write_letter(const Glyph& glyph) {
    constexpr float dot_gap = 1.5f;              // a dot must not drown in the tail of the letter before it
    if (glyph.character == '.' || glyph.character == ',' || glyph.character == ';' || glyph.character == ':') pen_x_ += dot_gap;
    const float turn = hand_.turn * random_.normal();
    const Placement place = {pen_x_, 1 + hand_.size_change * random_.normal(), hand_.lift * random_.normal(), std::cos(turn), std::sin(turn)};
    if (exit_.possible && glyph.entry.possible && random_.chance(hand_.joined)) join(put(place, glyph.entry.x, glyph.entry.y));
    for (const auto& stroke : glyph.strokes) {
      path_.clear();
      for (const GlyphPoint& point : stroke) {
        Point at = put(place, point.x + hand_.unsteadiness * random_.normal(), point.y + hand_.unsteadiness * random_.normal());
        at.corner = point.corner;
        path_.push_back(at);
      }
      draw_path();
    }
    exit_ = {glyph.exit.possible, 0, 0};
    if (glyph.exit.possible) {
      const Point end = put(place, glyph.exit.x, glyph.exit.y);
      exit_ = {true, end.x, end.y};
    }
    pen_x_ += (glyph.width + std::max(0.8f, hand_.letter_gap + 0.5f * hand_.unsteadiness * random_.normal())) * hand_.stretch;
  }

  // From a letter's coordinates to pixels (y downwards).
  Point put(const Placement& place, float x, float y) const {
    const float turned_x = place.size * (place.cosine * x * hand_.stretch - place.sine * y);
    const float turned_y = place.size * (place.sine * x * hand_.stretch + place.cosine * y) + place.lift;
    const float line_x = place.x + turned_x + hand_.slant * turned_y;
    const float line_y = turned_y + hand_.slope * line_x + hand_.wander * std::sin(hand_.wander_phase + 6.2831853f * line_x / hand_.wander_length);
    return {line_x * hand_.unit, hand_.baseline - line_y * hand_.unit};
  }

  void join(const Point& entry) {
    const float sag = exit_.y < entry.y - 2 * hand_.unit ? -0.2f : 0.3f;      // from high to low over the top, otherwise through below
    const float middle_y = 0.5f * (exit_.y + entry.y) + sag * 3 * hand_.unit;
    path_ = {{exit_.x, exit_.y}, {0.5f * (exit_.x + entry.x), middle_y}, entry};
    draw_path();
  }

  // Catmull-Rom curves (Catmull & Rom 1974) from corner to corner.
  void draw_path() {
    const float pressure_phase = random_.uniform(0, 6.28f), radius = hand_.pen_radius;
    const size_t count = path_.size();
    float x = path_[0].x, y = path_[0].y, travelled = 0;
    for (size_t i = 0; i + 1 < count; ++i) {
      const Point &b = path_[i], &c = path_[i + 1];
      const Point& a = i > 0 && !b.corner ? path_[i - 1] : b;
      const Point& d = i + 2 < count && !c.corner ? path_[i + 2] : c;
      const float length = std::hypot(c.x - b.x, c.y - b.y);
      const bool is_straight = count == 2 || (i > 0 && b.corner && c.corner);
      const int pieces = is_straight ? std::max(1, static_cast<int>(length / 5)) : std::clamp(static_cast<int>(length / 1.8f), 2, 12);
      for (int piece = 1; piece <= pieces; ++piece) {
        const float t = static_cast<float>(piece) / static_cast<float>(pieces);
        const float next_x = curve(a.x, b.x, c.x, d.x, t), next_y = curve(a.y, b.y, c.y, d.y, t);
        travelled += length / static_cast<float>(pieces);
        const float pressure = 1 + hand_.pressure_change * std::sin(pressure_phase + travelled * 0.25f / hand_.unit);
        segments_.push_back({x, y, next_x, next_y, radius * (0.6f + 0.4f * pressure), std::min(1.0f, hand_.ink * (0.5f + 0.5f * pressure))});
        x = next_x;
        y = next_y;
      }
    }
  }

  static float curve(float a, float b, float c, float d, float t) {
    const float t2 = t * t, t3 = t2 * t;
    return 0.5f * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t2 + (3 * b - a - 3 * c + d) * t3);
  }

  const Hand& hand_;
  RandomStream& random_;
  float pen_x_ = 0;
  GlyphJoin exit_;                              // in pixels
  std::vector<Point> path_;
  std::vector<Segment> segments_;
};

// Moves the path so that it begins behind the left margin; returns the picture's width.
int64_t place_between_margins(std::vector<Segment>& segments, float left, float right) {
  float low = 0, high = 0;
  if (!segments.empty()) low = high = segments[0].x0;
  for (const Segment& s : segments) {
    low = std::min({low, s.x0 - s.radius, s.x1 - s.radius});
    high = std::max({high, s.x0 + s.radius, s.x1 + s.radius});
  }
  for (Segment& s : segments) {
    s.x0 += left - low;
    s.x1 += left - low;
  }
  return static_cast<int64_t>(std::ceil(high - low + left + right));
}

// ink[y * width + x] becomes the largest coverage that a segment has there: 1 within the pen's radius, falling to 0 over one pixel.
void add_ink(const Segment& s, int64_t width, int64_t height, std::vector<float>& ink) {
  const float reach = s.radius + 0.5f;
  const auto first_x = std::max<int64_t>(0, static_cast<int64_t>(std::floor(std::min(s.x0, s.x1) - reach)));
  const auto last_x = std::min<int64_t>(width - 1, static_cast<int64_t>(std::ceil(std::max(s.x0, s.x1) + reach)));
  const auto first_y = std::max<int64_t>(0, static_cast<int64_t>(std::floor(std::min(s.y0, s.y1) - reach)));
  const auto last_y = std::min<int64_t>(height - 1, static_cast<int64_t>(std::ceil(std::max(s.y0, s.y1) + reach)));
  const float dx = s.x1 - s.x0, dy = s.y1 - s.y0, scale = 1 / std::max(dx * dx + dy * dy, 1e-6f);
  for (int64_t y = first_y; y <= last_y; ++y) {
    float* row = ink.data() + y * width;
    const float py = static_cast<float>(y) - s.y0;
    for (int64_t x = first_x; x <= last_x; ++x) {
      const float px = static_cast<float>(x) - s.x0;
      const float along = std::clamp((px * dx + py * dy) * scale, 0.0f, 1.0f);
      const float away_x = px - along * dx, away_y = py - along * dy;
      const float coverage = std::clamp(reach - std::sqrt(away_x * away_x + away_y * away_y), 0.0f, 1.0f);
      row[x] = std::max(row[x], coverage * s.ink);
    }
  }
}

// Smooth random brightness: values on a coarse grid, bilinear in between.
class Texture {
 public:
  Texture(RandomStream& random, int64_t width, int64_t height, float amplitude) : columns_(width / cell + 2) {
    values_.resize(static_cast<size_t>(columns_ * (height / cell + 2)));
    for (float& value : values_) value = amplitude * random.uniform(-1, 1);
  }
  // The grid's values along the row y, so that a pixel needs one interpolation only.
  void set_row(int64_t y) {
    const float* upper = values_.data() + y / cell * columns_;
    const float t = static_cast<float>(y % cell) / cell;
    row_.resize(static_cast<size_t>(columns_));
    for (int64_t i = 0; i < columns_; ++i) row_[static_cast<size_t>(i)] = upper[i] + t * (upper[i + columns_] - upper[i]);
  }
  float at(int64_t x) const {
    const float* left = row_.data() + x / cell;
    return left[0] + static_cast<float>(x % cell) / cell * (left[1] - left[0]);
  }

 private:
  static constexpr int64_t cell = 8;
  int64_t columns_;
  std::vector<float> values_, row_;
};

bool is_ruled(const Paper& paper, int64_t at) {
  const float from_line = std::fmod(static_cast<float>(at) + paper.ruling_start, paper.ruling_step);
  return paper.ruling != 0 && from_line < 1;
}

ImageBytes print(const Paper& paper, RandomStream& random, const std::vector<float>& ink, int64_t width, int64_t height) {
  ImageBytes image{width, height, 1, std::vector<uint8_t>(static_cast<size_t>(width * height))};
  Texture texture(random, width, height, paper.texture);
  PixelNoise noise(random, paper.noise);
  std::vector<float> column(static_cast<size_t>(width));
  for (int64_t x = 0; x < width; ++x) {
    const bool has_line = paper.ruling == 2 && is_ruled(paper, x);
    column[static_cast<size_t>(x)] = paper.gradient * (static_cast<float>(x) / static_cast<float>(width) - 0.5f) - (has_line ? paper.ruling_darkness : 0);
  }
  for (int64_t y = 0; y < height; ++y) {
    const float base = paper.brightness - (is_ruled(paper, y) ? paper.ruling_darkness : 0);
    texture.set_row(y);
    for (int64_t x = 0; x < width; ++x) {
      const auto at = static_cast<size_t>(y * width + x);
      const float value = base + column[static_cast<size_t>(x)] + texture.at(x) + noise.next() - ink[at] * paper.contrast;
      image.pixels[at] = static_cast<uint8_t>(std::clamp(value, 0.0f, 255.0f) + 0.5f);
    }
  }
  return image;
}

// A weighted mean with both neighbours along x, then along y: a soft lens.
void soften(std::vector<float>& ink, int64_t width, int64_t height, float weight) {
  const float centre = 1 - 2 * weight;
  for (const auto& [count, step, lines, line_step] : {std::array<int64_t, 4>{width, 1, height, width}, std::array<int64_t, 4>{height, width, width, 1}}) {
    for (int64_t line = 0; line < lines; ++line) {
      float* p = ink.data() + line * line_step;
      float before = 0;
      for (int64_t i = 0; i + 1 < count; ++i) {
        const float here = p[i * step];
        p[i * step] = centre * here + weight * (before + p[(i + 1) * step]);
        before = here;
      }
    }
  }
}

ImageBytes draw(const SyntheticHandwritingOptions& options, RandomStream& random, const std::string& text) {
  const Hand hand = random_hand(random, options);
  const Paper paper = random_paper(random, options);
  Writer writer(hand, random);
  writer.write(text);
  const float margin = static_cast<float>(options.height) / 16;
  const float left = margin * random.uniform(1, 3), right = margin * random.uniform(1, 3);
  const int64_t width = place_between_margins(writer.segments(), left, right);
  std::vector<float> ink(static_cast<size_t>(width * options.height));
  for (const Segment& segment : writer.segments()) add_ink(segment, width, options.height, ink);
  if (random.chance(0.3f * options.disturbance)) soften(ink, width, options.height, random.uniform(0.05f, 0.22f));
  return print(paper, random, ink, width, options.height);
}

void check_options(const SyntheticHandwritingOptions& options) {
  check<ValueError>(options.height >= 16 && options.height <= 512, "draw_handwriting: height must be 16 to 512, got ", options.height);
  check<ValueError>(options.min_characters >= 1 && options.min_characters <= options.max_characters && options.max_characters <= 500,
                    "draw_handwriting: min_characters and max_characters must be in order and from 1 to 500, got ", options.min_characters, " and ",
                    options.max_characters);
  check<ValueError>(options.variation >= 0 && options.variation <= 2 && options.disturbance >= 0 && options.disturbance <= 2,
                    "draw_handwriting: variation and disturbance must be 0 to 2, got ", options.variation, " and ", options.disturbance);
}

}  // namespace

HandwritingLine draw_handwriting(const SyntheticHandwritingOptions& options, uint64_t seed, uint64_t index) {
  check_options(options);
  RandomStream random(seed, index);
  HandwritingLine line;
  line.text = random_line_text(random, options.min_characters, options.max_characters);
  line.image = draw(options, random, line.text);
  return line;
}

ImageBytes draw_handwriting(const SyntheticHandwritingOptions& options, uint64_t seed, uint64_t index, const std::string& text) {
  check_options(options);
  for (const char c : text) check<ValueError>(c == ' ' || !glyphs_of(c).empty(), "draw_handwriting: there is no glyph for the byte ", int{static_cast<uint8_t>(c)});
  RandomStream random(seed, index);
  return draw(options, random, text);
}

std::string handwriting_characters() {
  std::string characters(glyph_characters());
  characters += ' ';
  std::sort(characters.begin(), characters.end());
  return characters;
}

}  // namespace fovea::data
