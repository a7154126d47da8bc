#include <fovea/viz/plot.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>

#include <fovea/kernels/error.h>

namespace fovea::viz {
namespace {

// Told apart by people with any colour vision (Okabe & Ito 2008), the yellow one left out.
constexpr std::array<Color, 6> palette = {Color{0, 114, 178}, Color{213, 94, 0}, Color{0, 158, 115}, Color{204, 121, 167}, Color{86, 180, 233}, Color{230, 159, 0}};
constexpr Color grid_color{226, 226, 226}, axis_color{90, 90, 90}, text_color{40, 40, 40};
constexpr int64_t text_scale = 2, left_space = 150, right_space = 30, title_space = 44, axis_space = 72, panel_gap = 24;

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

bool is_shown(const Panel& panel, const Curve& curve, size_t i) {
  constexpr double most = 1e300, least_logarithmic = 1e-300;      // so that a range with some air around it is finite too; NaN fails as well
  return std::abs(curve.x[i]) <= most && std::abs(curve.y[i]) <= most && (!panel.log_scale || curve.y[i] >= least_logarithmic);
}

// A range with something in it: an empty one becomes 0 .. 1, a single value gets room on both sides, others a little air.
Range with_air(Range range, double air) {
  if (range.low > range.high) return {0, 1};
  const double room = range.high > range.low ? air * (range.high - range.low) : std::max(std::abs(range.low) * 0.1, 0.5);
  return {range.low - room, range.high + room};
}

// Values to pixels along one axis.
struct Axis {
  Range range;
  bool is_log = false;
  double first_pixel = 0, last_pixel = 1;

  double pixel(double value) const {
    const double at = is_log ? std::log10(value) : value;
    return first_pixel + (at - range.low) / (range.high - range.low) * (last_pixel - first_pixel);
  }
  std::vector<double> ticks(int64_t count) const {
    constexpr double most = 307;                 // powers of ten that a double holds
    if (is_log) return log_ticks(std::pow(10, std::max(range.low, -most)), std::pow(10, std::min(range.high, most)), count);
    return nice_ticks(range.low, range.high, count);
  }
};

Range x_range(const std::vector<Panel>& panels) {
  Range range;
  for (const Panel& panel : panels)
    for (const Curve& curve : panel.curves)
      for (size_t i = 0; i < curve.x.size(); ++i)
        if (is_shown(panel, curve, i)) range.include(curve.x[i]);
  return with_air(range, 0.01);
}

Range y_range(const Panel& panel) {
  Range range;
  for (const Curve& curve : panel.curves)
    for (size_t i = 0; i < curve.x.size(); ++i)
      if (is_shown(panel, curve, i)) range.include(panel.log_scale ? std::log10(curve.y[i]) : curve.y[i]);
  if (!panel.log_scale && range.low > 0 && range.low < 0.3 * range.high) range.low = 0;      // a rate or a loss reads best from zero
  Range wide = with_air(range, 0.05);
  if (!panel.log_scale && range.low == 0 && range.high > 0) wide.low = 0;
  return wide;
}

void draw_curve(Canvas& canvas, const Panel& panel, const Curve& curve, const Axis& x_axis, const Axis& y_axis, Color color) {
  const auto shown = [&](size_t i) { return i < curve.x.size() && is_shown(panel, curve, i); };
  for (size_t i = 0; i < curve.x.size(); ++i) {
    if (!shown(i)) continue;
    const double x = x_axis.pixel(curve.x[i]), y = y_axis.pixel(curve.y[i]);
    const bool is_alone = (i == 0 || !shown(i - 1)) && !shown(i + 1);
    if (is_alone) canvas.line(x, y, x, y, color, 6);
    if (shown(i + 1)) canvas.line(x, y, x_axis.pixel(curve.x[i + 1]), y_axis.pixel(curve.y[i + 1]), color, 2);
  }
}

void draw_legend(Canvas& canvas, const Panel& panel, int64_t right, int64_t top) {
  int64_t widest = 0, rows = 0;
  for (const Curve& curve : panel.curves) {
    if (curve.name.empty()) continue;
    widest = std::max(widest, text_width(curve.name, text_scale));
    ++rows;
  }
  if (rows == 0) return;
  constexpr int64_t sample = 34, row_height = 24;
  const int64_t left = right - widest - sample - 20;
  canvas.fill(left, top, right - left, rows * row_height + 6, white);
  canvas.frame(left, top, right - left, rows * row_height + 6, grid_color);
  int64_t y = top + 3;
  for (size_t i = 0; i < panel.curves.size(); ++i) {
    if (panel.curves[i].name.empty()) continue;
    const auto middle = static_cast<double>(y + row_height / 2);
    canvas.line(static_cast<double>(left + 8), middle, static_cast<double>(left + sample - 2), middle, palette[i % palette.size()], 3);
    canvas.text(left + sample + 8, y, panel.curves[i].name, text_color, text_scale);
    y += row_height;
  }
}

void draw_panel(Canvas& canvas, const Panel& panel, const Axis& x_axis, int64_t top, int64_t bottom, bool has_x_labels) {
  const int64_t left = left_space, right = canvas.width() - right_space;
  const Axis y_axis = {y_range(panel), panel.log_scale, static_cast<double>(bottom), static_cast<double>(top)};
  for (const double tick : x_axis.ticks((right - left) / 110)) {
    const auto x = static_cast<int64_t>(std::lround(x_axis.pixel(tick)));
    canvas.fill(x, top, 1, bottom - top, grid_color);
    const std::string label = tick_label(tick);
    if (has_x_labels) canvas.text(x - text_width(label, text_scale) / 2, bottom + 4, label, text_color, text_scale);
  }
  for (const double tick : y_axis.ticks((bottom - top) / 42)) {
    const auto y = static_cast<int64_t>(std::lround(y_axis.pixel(tick)));
    canvas.fill(left, y, right - left, 1, grid_color);
    const std::string label = tick_label(tick);
    canvas.text(left - 8 - text_width(label, text_scale), y - text_height(text_scale) / 2 - 1, label, text_color, text_scale);
  }
  canvas.fill(left, top, 1, bottom - top + 1, axis_color);
  canvas.fill(left, bottom, right - left, 1, axis_color);
  canvas.vertical_text(8, (top + bottom) / 2 + text_width(panel.label, text_scale) / 2, panel.label, text_color, text_scale);
  for (size_t i = 0; i < panel.curves.size(); ++i) draw_curve(canvas, panel, panel.curves[i], x_axis, y_axis, palette[i % palette.size()]);
  draw_legend(canvas, panel, right - 8, top + 8);
}

}  // namespace

Canvas plot(const std::vector<Panel>& panels, const PlotOptions& options) {
  check<ValueError>(!panels.empty(), "plot: there is no panel");
  for (const Panel& panel : panels)
    for (const Curve& curve : panel.curves)
      check<ShapeError>(curve.x.size() == curve.y.size(), "plot: the curve \"", curve.name, "\" has ", curve.x.size(), " x but ", curve.y.size(), " y values");
  check<ShapeError>(options.width >= 400 && options.panel_height >= 100, "plot: width must be at least 400 and panel_height 100, got ", options.width, " and ",
                    options.panel_height);
  const int64_t title_height = options.title.empty() ? panel_gap : title_space;
  Canvas canvas(options.width, title_height + static_cast<int64_t>(panels.size()) * options.panel_height + axis_space - panel_gap);
  canvas.text((options.width - text_width(options.title, text_scale)) / 2, 8, options.title, black, text_scale);
  const Axis x_axis = {x_range(panels), false, static_cast<double>(left_space), static_cast<double>(options.width - right_space)};
  int64_t top = title_height;
  for (size_t i = 0; i < panels.size(); ++i, top += options.panel_height)
    draw_panel(canvas, panels[i], x_axis, top, top + options.panel_height - panel_gap, i + 1 == panels.size());
  const int64_t middle = (left_space + options.width - right_space) / 2;
  canvas.text(middle - text_width(options.x_label, text_scale) / 2, canvas.height() - text_height(text_scale) - 4, options.x_label, text_color, text_scale);
  return canvas;
}

std::vector<double> nice_ticks(double low, double high, int64_t count) {
  check<ValueError>(std::isfinite(low) && std::isfinite(high) && low < high, "nice_ticks: low must be below high, got ", low, " and ", high);
  const double rough = (high - low) / static_cast<double>(std::max<int64_t>(count, 1)), power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power < rough * 0.75) continue;          // rather a few more ticks than half as many
    step = factor * power;
    break;
  }
  std::vector<double> ticks;
  for (double k = std::ceil(low / step - 1e-9); k <= high / step + 1e-9 && ticks.size() < 1000; ++k) ticks.push_back(k == 0 ? 0.0 : k * step);      // never -0
  return ticks;
}

std::vector<double> log_ticks(double low, double high, int64_t count) {
  check<ValueError>(low > 0 && std::isfinite(high) && low < high, "log_ticks: expected 0 < low < high, got ", low, " and ", high);
  std::vector<double> ticks;
  const auto first = static_cast<int64_t>(std::floor(std::log10(low))), last = static_cast<int64_t>(std::ceil(std::log10(high)));
  const int64_t decades = last - first, step = std::max<int64_t>(1, decades / std::max<int64_t>(count, 1));
  const bool has_between = decades * 2 <= count + 1;
  for (int64_t decade = first; decade <= last; decade += step)
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (factor > 1 && !has_between) break;
      const double tick = factor * std::pow(10.0, static_cast<double>(decade));
      if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push_back(tick);
    }
  return ticks;
}

std::string tick_label(double value) {
  char text[32];
  const double magnitude = std::abs(value);
  const bool is_long = magnitude > 0 && (magnitude < 1e-4 || magnitude >= 1e6);
  std::snprintf(text, sizeof text, is_long ? "%.3g" : "%.6g", value);
  return text;
}

}  // namespace fovea::viz
