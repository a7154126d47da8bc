#include <fovea/data/augment.h>

#include <algorithm>
#include <array>
#include <cmath>

#include <fovea/data/pixel_noise.h>
#include <fovea/tensor/creation.h>

namespace fovea::data {
namespace {

void check_image(const Tensor& image, const char* op) {
  check<ShapeError>(image.defined() && image.rank() == 3, op, ": image must be [C,H,W], got ", image.defined() ? str(image.shape()) : std::string("none"));
}

// --- photometry ---

std::vector<float> gaussian_weights(float deviation) {
  const int radius = std::max(1, static_cast<int>(std::ceil(2.5f * deviation)));
  std::vector<float> weights;
  float sum = 0;
  for (int i = -radius; i <= radius; ++i) {
    weights.push_back(std::exp(-0.5f * static_cast<float>(i * i) / (deviation * deviation)));
    sum += weights.back();
  }
  for (float& weight : weights) weight /= sum;
  return weights;
}

// Along one axis of a plane: `count` values `step` apart, for each of `lines` lines that are `line_step` apart. Values beyond the ends are those at the ends.
void blur_axis(float* plane, int64_t count, int64_t step, int64_t lines, int64_t line_step, const std::vector<float>& weights) {
  const auto radius = static_cast<int64_t>(weights.size() / 2);
  std::vector<float> padded(static_cast<size_t>(count + 2 * radius));
  for (int64_t line = 0; line < lines; ++line) {
    float* values = plane + line * line_step;
    for (int64_t i = -radius; i < count + radius; ++i) padded[static_cast<size_t>(i + radius)] = values[std::clamp<int64_t>(i, 0, count - 1) * step];
    for (int64_t i = 0; i < count; ++i) {
      float sum = 0;
      for (size_t k = 0; k < weights.size(); ++k) sum += weights[k] * padded[static_cast<size_t>(i) + k];
      values[i * step] = sum;
    }
  }
}

void blur(float* values, const Shape& shape, float deviation) {
  const std::vector<float> weights = gaussian_weights(deviation);
  const int64_t height = shape[1], width = shape[2];
  for (int64_t c = 0; c < shape[0]; ++c, values += height * width) {
    blur_axis(values, width, 1, height, width, weights);
    blur_axis(values, height, width, width, 1, weights);
  }
}

// x^gamma for 0 <= x <= 1, straight between the entries of a table.
class GammaTable {
 public:
  explicit GammaTable(float gamma) {
    for (size_t i = 0; i < table_.size(); ++i) table_[i] = std::pow(static_cast<float>(i) / steps, gamma);
    table_.back() = 1;
  }
  float operator()(float x) const {
    const auto i = std::min(static_cast<size_t>(x * steps), table_.size() - 2);
    return table_[i] + (x * steps - static_cast<float>(i)) * (table_[i + 1] - table_[i]);
  }

 private:
  static constexpr float steps = 1024;
  std::array<float, 1025> table_;
};

float mean_of(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  return static_cast<float>(sum / static_cast<double>(count));
}

// --- warp ---

// x' = xx * x + xy * y, y' = yx * x + yy * y
struct Matrix {
  float xx, xy, yx, yy;
  Matrix inverse() const {
    const float determinant = xx * yy - xy * yx;
    return {yy / determinant, -xy / determinant, -yx / determinant, xx / determinant};
  }
};

Matrix matrix_of(const Warp& warp) {
  const float x_scale = warp.scale * warp.stretch * (warp.mirror ? -1.0f : 1.0f), y_scale = warp.scale;
  const float cosine = std::cos(warp.rotation), sine = std::sin(warp.rotation);
  const float slanted = -warp.slant * y_scale;      // y grows downwards
  return {cosine * x_scale, cosine * slanted - sine * y_scale, sine * x_scale, sine * slanted + cosine * y_scale};
}

int64_t warped_width(const Warp& warp, int64_t height, int64_t width) {
  if (warp.keep_width) return width;
  const Matrix m = matrix_of(warp);
  const double extent = std::abs(m.xx) * static_cast<double>(width) + std::abs(m.xy) * static_cast<double>(height);
  return std::max<int64_t>(1, std::llround(extent));
}

// Displacements at the knots of a grid over the result. What does not change from row to row is worked out once, and a row's knots once a row.
class ElasticGrid {
 public:
  ElasticGrid(const Warp& warp, RandomStream& random, int64_t height, int64_t width) : cell_(warp.elastic_cell) {
    if (warp.elastic == 0) return;
    columns_ = static_cast<size_t>(static_cast<float>(width) / cell_) + 2;
    const size_t rows = static_cast<size_t>(static_cast<float>(height) / cell_) + 2;
    for (auto* knots : {&x_, &y_}) {
      knots->resize(rows * columns_);
      for (float& knot : *knots) knot = warp.elastic * random.normal();
    }
    for (int64_t x = 0; x < width; ++x) {
      const float at = static_cast<float>(x) / cell_;
      places_.push_back({static_cast<uint32_t>(at), at - std::floor(at)});
    }
    row_.resize(columns_);
  }

  void add_row(int64_t y, std::vector<float>& source_x, std::vector<float>& source_y) {
    if (places_.empty()) return;
    displace(y, x_, source_x);
    displace(y, y_, source_y);
  }

 private:
  struct Place {
    uint32_t column;
    float part;                                // of the way to the next column
  };

  void displace(int64_t y, const std::vector<float>& knots, std::vector<float>& source) {
    const float at = static_cast<float>(y) / cell_, part = at - std::floor(at);
    const float* upper = knots.data() + static_cast<size_t>(at) * columns_;
    for (size_t i = 0; i < columns_; ++i) row_[i] = upper[i] + part * (upper[i + columns_] - upper[i]);
    for (size_t x = 0; x < source.size(); ++x) {
      const float* left = row_.data() + places_[x].column;
      source[x] += left[0] + places_[x].part * (left[1] - left[0]);
    }
  }

  float cell_;
  size_t columns_ = 0;
  std::vector<float> x_, y_, row_;
  std::vector<Place> places_;
};

// Bilinear reading of a plane, with a rule for what lies outside.
class Sampler {
 public:
  Sampler(const float* plane, int64_t height, int64_t width, std::optional<float> fill) : plane_(plane), height_(height), width_(width), fill_(fill) {}

  float at(float x, float y) const {
    const int32_t left = floor_of(x), top = floor_of(y);
    const float right_part = x - static_cast<float>(left), lower_part = y - static_cast<float>(top);
    if (left >= 0 && top >= 0 && left + 1 < width_ && top + 1 < height_) {
      const float* p = plane_ + top * width_ + left;
      return mix(p[0], p[1], p[width_], p[width_ + 1], right_part, lower_part);
    }
    return mix(pixel(left, top), pixel(left + 1, top), pixel(left, top + 1), pixel(left + 1, top + 1), right_part, lower_part);
  }

 private:
  // std::floor is a call into the C library on the oldest x86-64. Places that an int32 cannot hold are far outside, wherever exactly.
  static int32_t floor_of(float x) {
    x = std::clamp(x, -1e9f, 1e9f);
    const auto truncated = static_cast<int32_t>(x);
    return truncated - (static_cast<float>(truncated) > x ? 1 : 0);
  }
  static float mix(float a, float b, float c, float d, float right, float down) {
    const float above = a + right * (b - a), below = c + right * (d - c);
    return above + down * (below - above);
  }
  float pixel(int64_t x, int64_t y) const {
    const bool is_inside = x >= 0 && y >= 0 && x < width_ && y < height_;
    if (!is_inside && fill_) return *fill_;
    return plane_[std::clamp<int64_t>(y, 0, height_ - 1) * width_ + std::clamp<int64_t>(x, 0, width_ - 1)];
  }

  const float* plane_;
  int64_t height_, width_;
  std::optional<float> fill_;
};

void check_warp(const Warp& warp) {
  const float parts[] = {warp.shift_x, warp.shift_y, warp.rotation, warp.scale, warp.stretch, warp.slant, warp.elastic, warp.elastic_cell};
  bool is_sound = warp.scale >= 0.01f && warp.stretch >= 0.01f && warp.scale <= 100 && warp.stretch <= 100 && warp.elastic >= 0 && warp.elastic_cell >= 1;
  for (const float part : parts) is_sound = is_sound && std::abs(part) < 1e4f;      // NaN fails too
  check<ValueError>(is_sound, "warp_image: scale and stretch must be 0.01 to 100, elastic at least 0, elastic_cell at least 1, and all below 10000 in "
                    "magnitude; got scale ", warp.scale, ", stretch ", warp.stretch, ", elastic ", warp.elastic, ", elastic_cell ", warp.elastic_cell,
                    ", slant ", warp.slant, ", rotation ", warp.rotation, ", shift ", warp.shift_x, " and ", warp.shift_y);
}

float drawn(RandomStream& random, float range) { return random.uniform(-range, range); }
float drawn_factor(RandomStream& random, float range) { return std::exp(random.uniform(-1, 1) * std::log1p(range)); }

}  // namespace

void apply_photometry(Tensor& image, const Photometry& settings, RandomStream& random) {
  check_image(image, "apply_photometry");
  const Photometry& s = settings;
  check<ValueError>(s.blur >= 0 && s.blur <= 100 && s.gamma > 0 && s.noise >= 0 && std::isfinite(s.contrast + s.brightness + s.gamma + s.noise),
                    "apply_photometry: blur must be 0 to 100, gamma above 0, noise at least 0 and all finite; got blur ", s.blur, ", gamma ", s.gamma,
                    ", noise ", s.noise, ", contrast ", s.contrast, ", brightness ", s.brightness);
  if (image.numel() == 0) return;
  float* values = image.mutable_data<float>();
  const int64_t count = image.numel();
  if (s.blur > 0) blur(values, image.shape(), s.blur);
  const float mean = s.contrast == 1 ? 0 : mean_of(values, count);
  const float offset = mean * (1 - s.contrast) + s.brightness;
  for (int64_t i = 0; i < count; ++i) values[i] = std::clamp(values[i] * s.contrast + offset, 0.0f, 1.0f);
  if (s.gamma != 1) {
    const GammaTable gamma(s.gamma);
    for (int64_t i = 0; i < count; ++i) values[i] = gamma(values[i]);
  }
  if (s.noise > 0) {
    PixelNoise noise(random, s.noise);
    for (int64_t i = 0; i < count; ++i) values[i] = std::clamp(values[i] + noise.next(), 0.0f, 1.0f);
  }
}

Tensor warp_image(const Tensor& image, const Warp& warp, RandomStream& random) {
  check_image(image, "warp_image");
  check_warp(warp);
  const int64_t channels = image.size(0), height = image.size(1), width = image.size(2);
  check<ShapeError>(image.numel() > 0, "warp_image: image ", image.shape(), " is empty");
  const int64_t new_width = warped_width(warp, height, width);
  check<ShapeError>(new_width <= 64 * (width + height), "warp_image: ", image.shape(), " would become ", new_width, " pixels wide; use a smaller slant");
  Tensor warped = empty({channels, height, new_width}, Device::cpu());
  const float* from = image.data<float>();
  float* to = warped.mutable_data<float>();
  const Matrix back = matrix_of(warp).inverse();
  ElasticGrid elastic(warp, random, height, new_width);
  const float centre_x = static_cast<float>(width - 1) / 2, centre_y = static_cast<float>(height - 1) / 2, new_centre_x = static_cast<float>(new_width - 1) / 2;
  std::vector<float> source_x(static_cast<size_t>(new_width)), source_y(static_cast<size_t>(new_width));
  for (int64_t y = 0; y < height; ++y) {
    const float dy = static_cast<float>(y) - centre_y - warp.shift_y;
    for (int64_t x = 0; x < new_width; ++x) {
      const float dx = static_cast<float>(x) - new_centre_x - warp.shift_x;
      source_x[static_cast<size_t>(x)] = centre_x + back.xx * dx + back.xy * dy;
      source_y[static_cast<size_t>(x)] = centre_y + back.yx * dx + back.yy * dy;
    }
    elastic.add_row(y, source_x, source_y);
    for (int64_t c = 0; c < channels; ++c) {
      const Sampler sampler(from + c * height * width, height, width, warp.fill);
      float* row = to + (c * height + y) * new_width;
      for (int64_t x = 0; x < new_width; ++x) row[x] = sampler.at(source_x[static_cast<size_t>(x)], source_y[static_cast<size_t>(x)]);
    }
  }
  return warped;
}

std::optional<Box> warp_box(const Box& box, const Warp& warp, int64_t height, int64_t width) {
  check_warp(warp);
  const Matrix m = matrix_of(warp);
  const auto new_width = static_cast<float>(warped_width(warp, height, width)), new_height = static_cast<float>(height);
  const float centre_x = static_cast<float>(width) / 2, centre_y = new_height / 2;      // of edges, not of pixels
  Box result = {1e9f, 1e9f, -1e9f, -1e9f, box.label};
  for (const float x : {box.left, box.right})
    for (const float y : {box.top, box.bottom}) {
      const float new_x = new_width / 2 + m.xx * (x - centre_x) + m.xy * (y - centre_y) + warp.shift_x;
      const float new_y = centre_y + m.yx * (x - centre_x) + m.yy * (y - centre_y) + warp.shift_y;
      result = {std::min(result.left, new_x), std::min(result.top, new_y), std::max(result.right, new_x), std::max(result.bottom, new_y), box.label};
    }
  result = {std::max(result.left, 0.0f), std::max(result.top, 0.0f), std::min(result.right, new_width), std::min(result.bottom, new_height), box.label};
  if (result.left >= result.right || result.top >= result.bottom) return std::nullopt;
  return result;
}

Transform random_photometry(const PhotometryRanges& ranges) {
  return [ranges](Sample& sample, RandomStream& random) {
    Photometry settings;
    settings.blur = random.uniform(0, ranges.blur);
    settings.contrast = drawn_factor(random, ranges.contrast);
    settings.brightness = drawn(random, ranges.brightness);
    settings.gamma = drawn_factor(random, ranges.gamma);
    settings.noise = random.uniform(0, ranges.noise);
    if (settings.blur < 0.2f) settings.blur = 0;      // no visible change, only time
    apply_photometry(sample.image, settings, random);
  };
}

Transform random_warp(const WarpRanges& ranges) {
  return [ranges](Sample& sample, RandomStream& random) {
    Warp warp;
    warp.shift_x = drawn(random, ranges.shift_x);
    warp.shift_y = drawn(random, ranges.shift_y);
    warp.rotation = drawn(random, ranges.rotation);
    warp.scale = drawn_factor(random, ranges.scale);
    warp.stretch = drawn_factor(random, ranges.stretch);
    warp.slant = drawn(random, ranges.slant);
    warp.mirror = random.chance(ranges.mirror);
    warp.elastic = random.uniform(0, ranges.elastic);
    warp.elastic_cell = ranges.elastic_cell;
    warp.fill = ranges.fill;
    warp.keep_width = ranges.keep_width;
    const Tensor before = sample.image;
    sample.image = warp_image(before, warp, random);
    std::vector<Box> boxes;
    for (const Box& box : sample.boxes)
      if (const std::optional<Box> moved = warp_box(box, warp, before.size(1), before.size(2))) boxes.push_back(*moved);
    sample.boxes = std::move(boxes);
  };
}

}  // namespace fovea::data
