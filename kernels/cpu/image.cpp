// Resizing of planes (nearest and bilinear) and sampling at the points of a grid (bilinear, zero outside), with their gradients.
// Positions are PyTorch's: nearest floor(i * in / out); bilinear i * (in - 1) / (out - 1) with align_corners, else max((i + 0.5) * in / out - 0.5, 0); a grid's x in
// [-1, 1] is (x + 1) / 2 * (w - 1) with align_corners, else ((x + 1) * w - 1) / 2. Floor: one read of x, one write of y.
// Layout: contiguous. Overwrites its outputs. Positions and sums in the element's type (nearest: float32, as PyTorch's).
// Deterministic: what meets in one element of a gradient comes in the order of the outputs, since a plane is one thread's work.
#include <algorithm>
#include <cmath>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels {
namespace {

constexpr int64_t column_block = 256;

int64_t grain_for(int64_t elements) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(elements, 1)); }

// --- nearest ---

int64_t nearest_source(int64_t i, int64_t in, int64_t out) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  return std::min(static_cast<int64_t>(std::floor(static_cast<float>(i) * scale)), in - 1);
}

// f(plane, row of the output, source row, first column, count, source columns) for the outputs of planes [begin, end), columns in blocks.
template <class F>
void walk_nearest(const ResizeGeometry& g, int64_t begin, int64_t end, const F& f) {
  int64_t columns[column_block];
  for (int64_t first = 0; first < g.out_w; first += column_block) {
    const int64_t count = std::min(column_block, g.out_w - first);
    for (int64_t k = 0; k < count; ++k) columns[k] = nearest_source(first + k, g.w, g.out_w);
    for (int64_t plane = begin; plane < end; ++plane)
      for (int64_t row = 0; row < g.out_h; ++row) f(plane * g.h + nearest_source(row, g.h, g.out_h), plane * g.out_h + row, first, count, columns);
  }
}

void resize_nearest(Queue, const ResizeGeometry& g, const ConstView& x, const View& y) {
  dispatch_real(x.dtype, "interpolate", [&](auto zero) {
    using T = decltype(zero);
    parallel_for(g.planes, grain_for(g.out_h * g.out_w), [&](int64_t begin, int64_t end) {
      walk_nearest(g, begin, end, [&](int64_t source, int64_t row, int64_t first, int64_t count, const int64_t* columns) {
        const T* in = x.as<T>() + source * g.w;
        T* out = y.as<T>() + row * g.out_w + first;
        for (int64_t k = 0; k < count; ++k) out[k] = in[columns[k]];
      });
    });
  });
}

void resize_nearest_backward(Queue, const ResizeGeometry& g, const ConstView& dy, const View& dx) {
  dispatch_real(dy.dtype, "interpolate_backward", [&](auto zero) {
    using T = decltype(zero);
    std::fill(dx.as<T>(), dx.as<T>() + dx.numel(), T(0));
    parallel_for(g.planes, grain_for(g.out_h * g.out_w), [&](int64_t begin, int64_t end) {
      walk_nearest(g, begin, end, [&](int64_t source, int64_t row, int64_t first, int64_t count, const int64_t* columns) {
        T* out = dx.as<T>() + source * g.w;
        const T* gradient = dy.as<T>() + row * g.out_w + first;
        for (int64_t k = 0; k < count; ++k) out[columns[k]] += gradient[k];
      });
    });
  });
}

// --- bilinear ---

// Between which two elements of an axis a position lies, and how far.
template <class T>
struct Between {
  int64_t low, high;
  T to_high;                                           // weight of `high`; `low` has the rest

  static Between of(int64_t i, int64_t in, int64_t out, bool align_corners) {
    T position;
    if (align_corners) position = out > 1 ? static_cast<T>(i) * (static_cast<T>(in - 1) / static_cast<T>(out - 1)) : T(0);
    else position = std::max((static_cast<T>(i) + T(0.5)) * (static_cast<T>(in) / static_cast<T>(out)) - T(0.5), T(0));
    const int64_t low = std::min(static_cast<int64_t>(position), in - 1);
    return {low, std::min(low + 1, in - 1), std::clamp(position - static_cast<T>(low), T(0), T(1))};
  }
};

template <class T, class F>
void walk_bilinear(const ResizeGeometry& g, int64_t begin, int64_t end, const F& f) {
  Between<T> columns[column_block];
  for (int64_t first = 0; first < g.out_w; first += column_block) {
    const int64_t count = std::min(column_block, g.out_w - first);
    for (int64_t k = 0; k < count; ++k) columns[k] = Between<T>::of(first + k, g.w, g.out_w, g.align_corners);
    for (int64_t row = 0; row < g.out_h; ++row) {
      const Between<T> rows = Between<T>::of(row, g.h, g.out_h, g.align_corners);
      for (int64_t plane = begin; plane < end; ++plane) f(plane, rows, (plane * g.out_h + row) * g.out_w + first, count, columns);
    }
  }
}

void resize_bilinear(Queue, const ResizeGeometry& g, const ConstView& x, const View& y) {
  dispatch_real(x.dtype, "interpolate", [&](auto zero) {
    using T = decltype(zero);
    parallel_for(g.planes, grain_for(g.out_h * g.out_w), [&](int64_t begin, int64_t end) {
      walk_bilinear<T>(g, begin, end, [&](int64_t plane, const Between<T>& rows, int64_t at, int64_t count, const Between<T>* columns) {
        const T *top = x.as<T>() + (plane * g.h + rows.low) * g.w, *bottom = x.as<T>() + (plane * g.h + rows.high) * g.w;
        const T down = rows.to_high, up = T(1) - down;
        T* out = y.as<T>() + at;
        for (int64_t k = 0; k < count; ++k) {
          const T right = columns[k].to_high, left = T(1) - right;
          out[k] = up * (left * top[columns[k].low] + right * top[columns[k].high]) + down * (left * bottom[columns[k].low] + right * bottom[columns[k].high]);
        }
      });
    });
  });
}

void resize_bilinear_backward(Queue, const ResizeGeometry& g, const ConstView& dy, const View& dx) {
  dispatch_real(dy.dtype, "interpolate_backward", [&](auto zero) {
    using T = decltype(zero);
    std::fill(dx.as<T>(), dx.as<T>() + dx.numel(), T(0));
    parallel_for(g.planes, grain_for(g.out_h * g.out_w), [&](int64_t begin, int64_t end) {
      walk_bilinear<T>(g, begin, end, [&](int64_t plane, const Between<T>& rows, int64_t at, int64_t count, const Between<T>* columns) {
        T *top = dx.as<T>() + (plane * g.h + rows.low) * g.w, *bottom = dx.as<T>() + (plane * g.h + rows.high) * g.w;
        const T down = rows.to_high, up = T(1) - down;
        const T* gradient = dy.as<T>() + at;
        for (int64_t k = 0; k < count; ++k) {
          const T right = columns[k].to_high, left = T(1) - right;
          top[columns[k].low] += up * left * gradient[k];
          top[columns[k].high] += up * right * gradient[k];
          bottom[columns[k].low] += down * left * gradient[k];
          bottom[columns[k].high] += down * right * gradient[k];
        }
      });
    });
  });
}

// --- grid sample ---

// The four pixels around a point of the grid. Pixels outside the image count as zero; a point that sees none of them, NaN included, has none.
template <class T>
struct Corners {
  int64_t offset[4];                                   // in the plane: top left, top right, bottom left, bottom right; -1 outside
  T across, down;                                      // how far from the left and the top pixel
  bool is_outside;

  static Corners of(T grid_x, T grid_y, int64_t h, int64_t w, bool align_corners) {
    const T x = position(grid_x, w, align_corners), y = position(grid_y, h, align_corners);
    Corners c{{-1, -1, -1, -1}, 0, 0, true};
    if (!(x > T(-1) && x < static_cast<T>(w) && y > T(-1) && y < static_cast<T>(h))) return c;
    c.is_outside = false;
    const int64_t left = static_cast<int64_t>(std::floor(x)), top = static_cast<int64_t>(std::floor(y));
    c.across = x - static_cast<T>(left);
    c.down = y - static_cast<T>(top);
    for (int k = 0; k < 4; ++k) {
      const int64_t column = left + k % 2, row = top + k / 2;
      if (column >= 0 && column < w && row >= 0 && row < h) c.offset[k] = row * w + column;
    }
    return c;
  }
  static T position(T grid, int64_t size, bool align_corners) {
    return align_corners ? (grid + T(1)) / T(2) * static_cast<T>(size - 1) : ((grid + T(1)) * static_cast<T>(size) - T(1)) / T(2);
  }
  T weight(int k) const { return (k % 2 ? across : T(1) - across) * (k / 2 ? down : T(1) - down); }
  T pixel(const T* plane, int k) const { return offset[k] >= 0 ? plane[offset[k]] : T(0); }
};

struct GridShape {
  int64_t n, c, h, w, points;
  GridShape(const ConstView& x, const ConstView& grid) : n(x.shape[0]), c(x.shape[1]), h(x.shape[2]), w(x.shape[3]), points(grid.shape[1] * grid.shape[2]) {}
};

void grid_sample(Queue, bool align_corners, const ConstView& x, const ConstView& grid, const View& y) {
  dispatch_real(x.dtype, "grid_sample", [&](auto zero) {
    using T = decltype(zero);
    const GridShape g(x, grid);
    parallel_for(g.n * g.points, grain_for(g.c * 4), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Corners<T> corners = Corners<T>::of(grid.as<T>()[2 * i], grid.as<T>()[2 * i + 1], g.h, g.w, align_corners);
        const int64_t n = i / g.points, point = i % g.points;
        for (int64_t c = 0; c < g.c; ++c) {
          const T* plane = x.as<T>() + (n * g.c + c) * g.h * g.w;
          T sum = 0;
          for (int k = 0; k < 4 && !corners.is_outside; ++k) sum += corners.weight(k) * corners.pixel(plane, k);
          y.as<T>()[(n * g.c + c) * g.points + point] = sum;
        }
      }
    });
  });
}

template <class T>
void grid_sample_backward_x(const GridShape& g, bool align_corners, const T* dy, const T* grid, T* dx) {
  parallel_for(g.n * g.c, grain_for(g.h * g.w + 4 * g.points), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      T* out = dx + plane * g.h * g.w;
      std::fill(out, out + g.h * g.w, T(0));
      const T* points = grid + plane / g.c * g.points * 2;
      for (int64_t i = 0; i < g.points; ++i) {
        const Corners<T> corners = Corners<T>::of(points[2 * i], points[2 * i + 1], g.h, g.w, align_corners);
        for (int k = 0; k < 4; ++k)
          if (corners.offset[k] >= 0) out[corners.offset[k]] += corners.weight(k) * dy[plane * g.points + i];
      }
    }
  });
}

template <class T>
void grid_sample_backward_grid(const GridShape& g, bool align_corners, const T* dy, const T* x, const T* grid, T* dgrid) {
  const T per_unit_x = static_cast<T>(align_corners ? g.w - 1 : g.w) / T(2), per_unit_y = static_cast<T>(align_corners ? g.h - 1 : g.h) / T(2);
  parallel_for(g.n * g.points, grain_for(g.c * 8), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Corners<T> corners = Corners<T>::of(grid[2 * i], grid[2 * i + 1], g.h, g.w, align_corners);
      const int64_t n = i / g.points, point = i % g.points;
      T along_x = 0, along_y = 0;
      for (int64_t c = 0; c < g.c && !corners.is_outside; ++c) {
        const T* plane = x + (n * g.c + c) * g.h * g.w;
        const T upstream = dy[(n * g.c + c) * g.points + point];
        const T p0 = corners.pixel(plane, 0), p1 = corners.pixel(plane, 1), p2 = corners.pixel(plane, 2), p3 = corners.pixel(plane, 3);
        along_x += upstream * ((p1 - p0) * (T(1) - corners.down) + (p3 - p2) * corners.down);
        along_y += upstream * ((p2 - p0) * (T(1) - corners.across) + (p3 - p1) * corners.across);
      }
      dgrid[2 * i] = along_x * per_unit_x;
      dgrid[2 * i + 1] = along_y * per_unit_y;
    }
  });
}

void grid_sample_backward(Queue, bool align_corners, const ConstView& dy, const ConstView& x, const ConstView& grid, const View& dx, const View& dgrid) {
  dispatch_real(x.dtype, "grid_sample_backward", [&](auto zero) {
    using T = decltype(zero);
    const GridShape g(x, grid);
    if (dx) grid_sample_backward_x(g, align_corners, dy.as<T>(), grid.as<T>(), dx.as<T>());
    if (dgrid) grid_sample_backward_grid(g, align_corners, dy.as<T>(), x.as<T>(), grid.as<T>(), dgrid.as<T>());
  });
}

}  // namespace

void add_image(KernelTable& t) {
  t.resize_nearest = resize_nearest;
  t.resize_nearest_backward = resize_nearest_backward;
  t.resize_bilinear = resize_bilinear;
  t.resize_bilinear_backward = resize_bilinear_backward;
  t.grid_sample = grid_sample;
  t.grid_sample_backward = grid_sample_backward;
}

}  // namespace fovea::kernels
