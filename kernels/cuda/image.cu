// Resizing of planes (nearest and bilinear) and sampling at the points of a grid (bilinear, zero outside), with their gradients.
// Positions are PyTorch's: nearest floor(i * in / out); bilinear i * (in - 1) / (out - 1) with align_corners, else max((i + 0.5) * in / out - 0.5, 0); a grid's x in
// [-1, 1] is (x + 1) / 2 * (w - 1) with align_corners, else ((x + 1) * w - 1) / 2. Floor: one read of x, one write of y.
// Layout: contiguous. Overwrites its outputs. float32, float64, and the half types. Positions and sums in the element's type, of half
// types in float32 (positions of nearest: float32, as PyTorch's).
// Deterministic: the gradient of a resize is gathered, since positions rise with the output's index, and so the outputs that an input went into are neighbours; those of a
// sampled image are added by threads that take turns (turns.h).
#include <fovea/kernels/cuda/core/warp.h>
#include <fovea/kernels/cuda/planes.h>
#include <fovea/kernels/cuda/turns.h>
#include <fovea/kernels/cuda/wide_sums.h>

#include <cmath>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads_per_block = 256;

struct ResizeIndex {
  FastDivide by_plane, by_width;
  int32_t count = 0;                                   // elements of the launch

  ResizeIndex(int64_t planes, int64_t height, int64_t width) : by_plane(divide_by(height * width)), by_width(divide_by(width)), count(static_cast<int32_t>(planes * height * width)) {}
  struct Place {
    int32_t plane, row, column;
  };
  __device__ Place place(int32_t number) const {
    const int32_t plane = static_cast<int32_t>(by_plane.quotient(number)), within = number - plane * static_cast<int32_t>(by_plane.divisor);
    const int32_t row = static_cast<int32_t>(by_width.quotient(within));
    return {plane, row, within - row * static_cast<int32_t>(by_width.divisor)};
  }
};

void check_planes(const char* op, int64_t inputs, int64_t outputs) {
  check<ShapeError>(std::max(inputs, outputs) < index_limit / 2, op, ": a plane of ", std::max(inputs, outputs), " elements is too large for the CUDA kernels, which take fewer than 2^30");
}

// --- nearest ---

struct NearestAxis {
  int32_t in = 0, out = 0;
  float scale = 1, inverse = 1;

  NearestAxis(int64_t in, int64_t out)
      : in(static_cast<int32_t>(in)), out(static_cast<int32_t>(out)), scale(static_cast<float>(in) / static_cast<float>(out)), inverse(static_cast<float>(out) / static_cast<float>(in)) {}
  __device__ int32_t source(int32_t i) const { return min(static_cast<int32_t>(floorf(static_cast<float>(i) * scale)), in - 1); }
  // The first output whose source is `input` or beyond; `out` where there is none. The guess is off by a rounding at most.
  __device__ int32_t first_output(int32_t input) const {
    int32_t i = min(max(static_cast<int32_t>(static_cast<float>(input) * inverse), 0), out);
    while (i > 0 && source(i - 1) >= input) --i;
    while (i < out && source(i) < input) ++i;
    return i;
  }
};

template <class T>
__global__ void __launch_bounds__(threads_per_block) resize_nearest_kernel(ResizeIndex index, NearestAxis v, NearestAxis h, const T* x, T* y) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const ResizeIndex::Place p = index.place(static_cast<int32_t>(number));
  y[number] = x[(static_cast<int64_t>(p.plane) * v.in + v.source(p.row)) * h.in + h.source(p.column)];
}

template <class T>
__global__ void __launch_bounds__(threads_per_block) resize_nearest_backward_kernel(ResizeIndex index, NearestAxis v, NearestAxis h, const T* dy, T* dx) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const ResizeIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const gradient = dy + static_cast<int64_t>(p.plane) * v.out * h.out;
  const int32_t first_column = h.first_output(p.column);
  Accumulate<T> sum = 0;
  for (int32_t i = v.first_output(p.row); i < v.out && v.source(i) == p.row; ++i)
    for (int32_t j = first_column; j < h.out && h.source(j) == p.column; ++j) sum += widen(gradient[i * h.out + j]);
  dx[number] = narrow<T>(sum);
}

void resize_nearest(Queue queue, const ResizeGeometry& g, const ConstView& x, const View& y) {
  dispatch_floating(x.dtype, "interpolate", [&](auto zero) {
    using T = decltype(zero);
    check_planes("interpolate", g.h * g.w, g.out_h * g.out_w);
    for_each_run_of_planes(g.planes, g.out_h * g.out_w, [&](int64_t first, int64_t count) {
      launch(queue, "resize_nearest", thread_each(count * g.out_h * g.out_w), resize_nearest_kernel<T>, ResizeIndex(count, g.out_h, g.out_w), NearestAxis(g.h, g.out_h),
             NearestAxis(g.w, g.out_w), x.as<T>() + first * g.h * g.w, y.as<T>() + first * g.out_h * g.out_w);
    });
  });
}

void resize_nearest_backward(Queue queue, const ResizeGeometry& g, const ConstView& dy, const View& dx) {
  dispatch_floating(dy.dtype, "interpolate_backward", [&](auto zero) {
    using T = decltype(zero);
    check_planes("interpolate_backward", g.h * g.w, g.out_h * g.out_w);
    for_each_run_of_planes(g.planes, g.h * g.w, [&](int64_t first, int64_t count) {
      launch(queue, "resize_nearest_backward", thread_each(count * g.h * g.w), resize_nearest_backward_kernel<T>, ResizeIndex(count, g.h, g.w), NearestAxis(g.h, g.out_h),
             NearestAxis(g.w, g.out_w), dy.as<T>() + first * g.out_h * g.out_w, dx.as<T>() + first * g.h * g.w);
    });
  });
}

// --- bilinear ---

// Between which two elements of an axis a position lies, and how far.
template <class T>
struct Between {
  int32_t low, high;
  T to_high;                                           // weight of `high`; `low` has the rest
};

template <class T>
struct BilinearAxis {
  int32_t in = 0, out = 0;
  bool align_corners = false;
  T scale = 0;                                         // inputs an output

  BilinearAxis(int64_t in, int64_t out, bool align_corners) : in(static_cast<int32_t>(in)), out(static_cast<int32_t>(out)), align_corners(align_corners) {
    if (!align_corners) scale = static_cast<T>(in) / static_cast<T>(out);
    else if (out > 1) scale = static_cast<T>(in - 1) / static_cast<T>(out - 1);
  }
  __device__ Between<T> between(int32_t i) const {
    T position = align_corners ? static_cast<T>(i) * scale : (static_cast<T>(i) + T(0.5)) * scale - T(0.5);
    if (position < T(0)) position = T(0);
    const int32_t low = min(static_cast<int32_t>(position), in - 1);
    T to_high = position - static_cast<T>(low);
    if (to_high > T(1)) to_high = T(1);
    return {low, min(low + 1, in - 1), to_high};
  }
  __device__ int32_t low(int32_t i) const { return between(i).low; }
  // The first output that has `input` as its low or its high element; `out` where there is none beyond it.
  __device__ int32_t first_output(int32_t input) const {
    if (input == 0) return 0;
    const T guess = scale > T(0) ? static_cast<T>(input - 1) / scale : T(0);
    int32_t i = guess < static_cast<T>(out) ? static_cast<int32_t>(guess) : out;
    while (i > 0 && low(i - 1) >= input - 1) --i;
    while (i < out && low(i) < input - 1) ++i;
    return i;
  }
};

template <class T>
__global__ void __launch_bounds__(threads_per_block) resize_bilinear_kernel(ResizeIndex index, BilinearAxis<Accumulate<T>> v, BilinearAxis<Accumulate<T>> h, const T* x, T* y) {
  using A = Accumulate<T>;
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const ResizeIndex::Place p = index.place(static_cast<int32_t>(number));
  const Between<A> rows = v.between(p.row), columns = h.between(p.column);
  const T* const plane = x + static_cast<int64_t>(p.plane) * v.in * h.in;
  const T *top = plane + rows.low * h.in, *bottom = plane + rows.high * h.in;
  const A down = rows.to_high, up = A(1) - down, right = columns.to_high, left = A(1) - right;
  y[number] = narrow<T>(up * (left * widen(top[columns.low]) + right * widen(top[columns.high])) +
                        down * (left * widen(bottom[columns.low]) + right * widen(bottom[columns.high])));
}

template <class T>
__global__ void __launch_bounds__(threads_per_block) resize_bilinear_backward_kernel(ResizeIndex index, BilinearAxis<Accumulate<T>> v, BilinearAxis<Accumulate<T>> h, const T* dy, T* dx) {
  using A = Accumulate<T>;
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const ResizeIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const gradient = dy + static_cast<int64_t>(p.plane) * v.out * h.out;
  const int32_t first_column = h.first_output(p.column);
  A sum = 0;
  for (int32_t i = v.first_output(p.row); i < v.out; ++i) {
    const Between<A> rows = v.between(i);
    if (rows.low > p.row) break;
    const A down = rows.high == p.row ? rows.to_high : A(0), up = rows.low == p.row ? A(1) - rows.to_high : A(0);
    for (int32_t j = first_column; j < h.out; ++j) {
      const Between<A> columns = h.between(j);
      if (columns.low > p.column) break;
      const A right = columns.high == p.column ? columns.to_high : A(0), left = columns.low == p.column ? A(1) - columns.to_high : A(0);
      sum += (up + down) * (left + right) * widen(gradient[i * h.out + j]);      // where low and high are the same element, it has both weights
    }
  }
  dx[number] = narrow<T>(sum);
}

void resize_bilinear(Queue queue, const ResizeGeometry& g, const ConstView& x, const View& y) {
  dispatch_floating(x.dtype, "interpolate", [&](auto zero) {
    using T = decltype(zero);
    check_planes("interpolate", g.h * g.w, g.out_h * g.out_w);
    for_each_run_of_planes(g.planes, g.out_h * g.out_w, [&](int64_t first, int64_t count) {
      launch(queue, "resize_bilinear", thread_each(count * g.out_h * g.out_w), resize_bilinear_kernel<T>, ResizeIndex(count, g.out_h, g.out_w), BilinearAxis<Accumulate<T>>(g.h, g.out_h, g.align_corners),
             BilinearAxis<Accumulate<T>>(g.w, g.out_w, g.align_corners), x.as<T>() + first * g.h * g.w, y.as<T>() + first * g.out_h * g.out_w);
    });
  });
}

void resize_bilinear_backward(Queue queue, const ResizeGeometry& g, const ConstView& dy, const View& dx) {
  dispatch_floating(dy.dtype, "interpolate_backward", [&](auto zero) {
    using T = decltype(zero);
    check_planes("interpolate_backward", g.h * g.w, g.out_h * g.out_w);
    for_each_run_of_planes(g.planes, g.h * g.w, [&](int64_t first, int64_t count) {
      launch(queue, "resize_bilinear_backward", thread_each(count * g.h * g.w), resize_bilinear_backward_kernel<T>, ResizeIndex(count, g.h, g.w), BilinearAxis<Accumulate<T>>(g.h, g.out_h, g.align_corners),
             BilinearAxis<Accumulate<T>>(g.w, g.out_w, g.align_corners), dy.as<T>() + first * g.out_h * g.out_w, dx.as<T>() + first * g.h * g.w);
    });
  });
}

// --- grid sample ---

struct GridShape {
  int64_t n = 0, c = 0, points = 0;
  int32_t h = 0, w = 0;
  bool align_corners = false;

  GridShape(const char* op, const ConstView& x, const ConstView& grid, bool align_corners)
      : n(x.shape[0]), c(x.shape[1]), points(grid.shape[1] * grid.shape[2]), h(static_cast<int32_t>(x.shape[2])), w(static_cast<int32_t>(x.shape[3])), align_corners(align_corners) {
    check_planes(op, x.shape[2] * x.shape[3], points);
    check<ShapeError>(n * points < index_limit * threads_per_block && n * c < index_limit, op, ": ", n, " images of ", c, " channels at ", points, " points each are too many for the CUDA kernels");
  }
};

// The four pixels around a point of the grid; T: what is computed in. Pixels outside the image count as zero; a point that sees none of them, NaN included, has none.
template <class T>
struct Corners {
  int32_t offset[4];                                   // in the plane: top left, top right, bottom left, bottom right; -1 outside
  T across, down;                                      // how far from the left and the top pixel

  __device__ Corners(const GridShape& g, T grid_x, T grid_y) : offset{-1, -1, -1, -1}, across(0), down(0) {
    const T x = position(grid_x, g.w, g.align_corners), y = position(grid_y, g.h, g.align_corners);
    if (!(x > T(-1) && x < static_cast<T>(g.w) && y > T(-1) && y < static_cast<T>(g.h))) return;
    const int32_t left = static_cast<int32_t>(std::floor(x)), top = static_cast<int32_t>(std::floor(y));
    across = x - static_cast<T>(left);
    down = y - static_cast<T>(top);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int32_t column = left + k % 2, row = top + k / 2;
      if (column >= 0 && column < g.w && row >= 0 && row < g.h) offset[k] = row * g.w + column;
    }
  }
  __device__ static T position(T grid, int32_t size, bool align_corners) {
    return align_corners ? (grid + T(1)) / T(2) * static_cast<T>(size - 1) : ((grid + T(1)) * static_cast<T>(size) - T(1)) / T(2);
  }
  __device__ T weight(int k) const { return (k % 2 ? across : T(1) - across) * (k / 2 ? down : T(1) - down); }
  template <class Element>
  __device__ T pixel(const Element* plane, int k) const { return offset[k] >= 0 ? widen(plane[offset[k]]) : T(0); }
};

constexpr int64_t channels_beside = 8;                 // that a thread samples at its point
constexpr int64_t most_blocks_y = 65535;

template <class T>
__global__ void __launch_bounds__(threads_per_block) grid_sample_kernel(GridShape g, int64_t channels_each, const T* x, const T* grid, T* y) {
  const int64_t i = global_thread();
  if (i >= g.n * g.points) return;
  using A = Accumulate<T>;
  const Corners<A> corners(g, widen(grid[2 * i]), widen(grid[2 * i + 1]));
  const int64_t n = i / g.points, point = i - n * g.points, first = static_cast<int64_t>(blockIdx.y) * channels_each, plane_size = static_cast<int64_t>(g.h) * g.w;
  for (int64_t c = first; c < first + channels_each && c < g.c; ++c) {
    const T* const plane = x + (n * g.c + c) * plane_size;
    A sum = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (corners.offset[k] >= 0) sum += corners.weight(k) * widen(plane[corners.offset[k]]);
    y[(n * g.c + c) * g.points + point] = narrow<T>(sum);
  }
}

void grid_sample(Queue queue, bool align_corners, const ConstView& x, const ConstView& grid, const View& y) {
  dispatch_floating(x.dtype, "grid_sample", [&](auto zero) {
    using T = decltype(zero);
    const GridShape g("grid_sample", x, grid, align_corners);
    const int64_t channels_each = std::max(channels_beside, ceil_div(g.c, most_blocks_y));
    Grid shape = thread_each(g.n * g.points);
    shape.blocks.y = static_cast<unsigned>(ceil_div(g.c, channels_each));
    launch(queue, "grid_sample", shape, grid_sample_kernel<T>, g, channels_each, x.as<T>(), grid.as<T>(), y.as<T>());
  });
}

// A block for `channels_each` channels of one image, whose planes it alone writes.
template <class T>
__global__ void __launch_bounds__(threads_per_block, 4) grid_sample_backward_x(GridShape g, int64_t channels_each, const T* dy, const T* grid, Accumulate<T>* dx) {
  using A = Accumulate<T>;
  auto& claims = shared<Claims>();
  const int64_t n = blockIdx.x, first = static_cast<int64_t>(blockIdx.y) * channels_each, plane_size = static_cast<int64_t>(g.h) * g.w;
  const int64_t channels = g.c - first < channels_each ? g.c - first : channels_each;
  A* const planes = dx + (n * g.c + first) * plane_size;
  claims.clear();
  for (int64_t i = threadIdx.x; i < channels * plane_size; i += threads_per_block) planes[i] = A(0);
  for (int64_t start = 0; start < g.points; start += threads_per_block) {
    const int64_t point = start + threadIdx.x, i = n * g.points + (point < g.points ? point : 0);
    const Corners<A> corners(g, widen(grid[2 * i]), widen(grid[2 * i + 1]));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      bool waits = point < g.points && corners.offset[k] >= 0;
      while (__syncthreads_or(waits)) {
        if (!claims.take_turn(waits, corners.offset[k])) continue;
        for (int64_t c = 0; c < channels; ++c) planes[c * plane_size + corners.offset[k]] += corners.weight(k) * widen(dy[(n * g.c + first + c) * g.points + point]);
        waits = false;
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(threads_per_block) grid_sample_backward_grid(GridShape g, const T* dy, const T* x, const T* grid, T* dgrid) {
  const int64_t i = global_thread();
  if (i >= g.n * g.points) return;
  using A = Accumulate<T>;
  const Corners<A> corners(g, widen(grid[2 * i]), widen(grid[2 * i + 1]));
  const int64_t n = i / g.points, point = i - n * g.points, plane_size = static_cast<int64_t>(g.h) * g.w;
  A along_x = 0, along_y = 0;
  for (int64_t c = 0; c < g.c; ++c) {
    const T* const plane = x + (n * g.c + c) * plane_size;
    const A p0 = corners.pixel(plane, 0), p1 = corners.pixel(plane, 1), p2 = corners.pixel(plane, 2), p3 = corners.pixel(plane, 3);
    const bool is_outside = corners.offset[0] < 0 && corners.offset[1] < 0 && corners.offset[2] < 0 && corners.offset[3] < 0;
    if (is_outside) break;
    const A upstream = widen(dy[(n * g.c + c) * g.points + point]);
    along_x += upstream * ((p1 - p0) * (A(1) - corners.down) + (p3 - p2) * corners.down);
    along_y += upstream * ((p2 - p0) * (A(1) - corners.across) + (p3 - p1) * corners.across);
  }
  dgrid[2 * i] = narrow<T>(along_x * (static_cast<A>(g.align_corners ? g.w - 1 : g.w) / A(2)));
  dgrid[2 * i + 1] = narrow<T>(along_y * (static_cast<A>(g.align_corners ? g.h - 1 : g.h) / A(2)));
}

// As many channels a block as leave enough blocks for a whole GPU; the sums do not depend on it.
int64_t channels_together(const GridShape& g) { return g.n * g.c >= 2048 ? 4 : 1; }

void grid_sample_backward(Queue queue, bool align_corners, const ConstView& dy, const ConstView& x, const ConstView& grid, const View& dx, const View& dgrid) {
  dispatch_floating(x.dtype, "grid_sample_backward", [&](auto zero) {
    using T = decltype(zero);
    const GridShape g("grid_sample_backward", x, grid, align_corners);
    if (dx) {
      const int64_t channels_each = std::max(channels_together(g), ceil_div(g.c, most_blocks_y));
      const Grid shape{dim3(static_cast<unsigned>(g.n), static_cast<unsigned>(ceil_div(g.c, channels_each))), dim3(threads_per_block), sizeof(Claims)};
      with_wide_sums<T>(queue, dx, [&](auto* sums) {
        launch(queue, "grid_sample_backward_x", shape, grid_sample_backward_x<T>, g, channels_each, dy.as<T>(), grid.as<T>(), sums);
      });
    }
    if (dgrid) launch(queue, "grid_sample_backward_grid", thread_each(g.n * g.points), grid_sample_backward_grid<T>, g, dy.as<T>(), x.as<T>(), grid.as<T>(), dgrid.as<T>());
  });
}

}  // namespace

void add_image(KernelTable& t) {
  t.computes_half.add(Family::image);
  t.resize_nearest = resize_nearest;
  t.resize_nearest_backward = resize_nearest_backward;
  t.resize_bilinear = resize_bilinear;
  t.resize_bilinear_backward = resize_bilinear_backward;
  t.grid_sample = grid_sample;
  t.grid_sample_backward = grid_sample_backward;
}

}  // namespace fovea::kernels::cuda
