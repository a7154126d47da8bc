// Line charts: panels one below the other that share the x axis.
#pragma once

#include <string>
#include <vector>

#include <fovea/viz/canvas.h>

namespace fovea::viz {

// Points where x or y is not finite or beyond 1e300 (or, on a logarithmic axis, y is not above 0) are left out and break the line.
struct Curve {
  std::string name = {};                       // in the legend; empty: not listed
  std::vector<double> x = {}, y = {};          // equally long
};

struct Panel {
  std::string label = {};                      // beside the y axis
  std::vector<Curve> curves = {};
  bool log_scale = false;
};

struct PlotOptions {
  std::string title = {}, x_label = {};
  int64_t width = 1100, panel_height = 260;    // pixels; a panel with its space around it
};

// ValueError when there is no panel; ShapeError when the x and y of a curve differ in length or the size leaves no room. Panels without points are drawn empty.
Canvas plot(const std::vector<Panel>& panels, const PlotOptions& options = {});

// Round numbers (1, 2 or 5 times a power of ten) within low .. high, about `count` of them; low < high, both finite.
std::vector<double> nice_ticks(double low, double high, int64_t count);
// 1, 2 and 5 times powers of ten, or powers of ten alone where these are enough; 0 < low < high.
std::vector<double> log_ticks(double low, double high, int64_t count);
std::string tick_label(double value);          // 0, 0.05, 1500, 1e-05, 2e+06

}  // namespace fovea::viz
