// Adaptive max and average pooling over x [n, c, h, w] to a given size; the windows are AdaptivePoolGeometry's, and may overlap.
// Layout: contiguous. Overwrites its outputs. indices: h * w positions within the plane, int64; the first of equals; a NaN wins. Sums in the element's type over at
// most 4096 elements, in float64 beyond.
// Deterministic: a plane is one thread's work, in the order of the outputs. Floor: one read of x, one write of y (backward: the other way round).
#include <algorithm>
#include <limits>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/adaptive_pool.cpp"
#include <fovea/kernels/cpu/simd.h>

#include <fovea/kernels/cpu/norm_runs.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

constexpr int64_t column_block = 64;

struct Window {
  int64_t top, bottom, left, right;
  int64_t size() const { return (bottom - top) * (right - left); }
};

// f(plane, output, window) for every output of every plane, threads on different planes. The bounds of a block of columns are worked out once for all planes.
template <class F>
void for_each_window(const AdaptivePoolGeometry& g, const F& f) {
  const int64_t plane_size = std::max<int64_t>(g.h * g.w + g.out_h * g.out_w, 1);
  parallel_for(g.n * g.c, std::max<int64_t>(1, 16384 / plane_size), [&](int64_t begin, int64_t end) {
    int64_t left[column_block], right[column_block];
    for (int64_t first = 0; first < g.out_w; first += column_block) {
      const int64_t count = std::min(column_block, g.out_w - first);
      for (int64_t j = 0; j < count; ++j) {
        left[j] = g.start(first + j, g.w, g.out_w);
        right[j] = g.end(first + j, g.w, g.out_w);
      }
      for (int64_t row = begin * g.out_h; row < end * g.out_h; ++row) {
        const int64_t i = row % g.out_h, top = g.start(i, g.h, g.out_h), bottom = g.end(i, g.h, g.out_h);
        for (int64_t j = 0; j < count; ++j) f(row / g.out_h, row * g.out_w + first + j, Window{top, bottom, left[j], right[j]});
      }
    }
  });
}

template <class T>
double sum_row(const T* x, int64_t n) {
  const hn::ScalableTag<T> d;
  double sum = 0;
  for (int64_t i = 0; i < n; i += moments_chunk) sum += static_cast<double>(sum_run(d, x + i, std::min(moments_chunk, n - i)));
  return sum;
}

template <class T>
double sum_window(const T* plane, int64_t width, const Window& w) {
  if (w.left == 0 && w.right == width) return sum_row(plane + w.top * width, w.size());
  double sum = 0;
  for (int64_t h = w.top; h < w.bottom; ++h) sum += sum_row(plane + h * width + w.left, w.right - w.left);
  return sum;
}

void adaptive_avg_pool(Queue, const AdaptivePoolGeometry& g, const ConstView& x, const View& y) {
  dispatch_real(x.dtype, "adaptive_avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    for_each_window(g, [&](int64_t plane, int64_t output, const Window& w) {
      y.as<T>()[output] = static_cast<T>(sum_window(x.as<T>() + plane * g.h * g.w, g.w, w) / static_cast<double>(w.size()));
    });
  });
}

void adaptive_avg_pool_backward(Queue, const AdaptivePoolGeometry& g, const ConstView& dy, const View& dx) {
  dispatch_real(dy.dtype, "adaptive_avg_pool2d_backward", [&](auto zero) {
    using T = decltype(zero);
    std::fill(dx.as<T>(), dx.as<T>() + dx.numel(), T(0));
    for_each_window(g, [&](int64_t plane, int64_t output, const Window& w) {
      const T share = dy.as<T>()[output] / static_cast<T>(w.size());
      T* out = dx.as<T>() + plane * g.h * g.w;
      for (int64_t h = w.top; h < w.bottom; ++h)
        for (int64_t k = w.left; k < w.right; ++k) out[h * g.w + k] += share;
    });
  });
}

void adaptive_max_pool(Queue, const AdaptivePoolGeometry& g, const ConstView& x, const View& y, const View& indices) {
  dispatch_real(x.dtype, "adaptive_max_pool2d", [&](auto zero) {
    using T = decltype(zero);
    for_each_window(g, [&](int64_t plane, int64_t output, const Window& w) {
      const T* in = x.as<T>() + plane * g.h * g.w;
      T best = -std::numeric_limits<T>::infinity();
      int64_t where = w.top * g.w + w.left;
      for (int64_t h = w.top; h < w.bottom; ++h) {
        for (int64_t k = h * g.w + w.left; k < h * g.w + w.right; ++k) {
          if (in[k] > best || in[k] != in[k]) {
            best = in[k];
            where = k;
          }
        }
      }
      y.as<T>()[output] = best;
      if (indices) indices.as<int64_t>()[output] = where;
    });
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
void add_adaptive_pool(KernelTable& t) {
  t.adaptive_avg_pool = FOVEA_BEST(adaptive_avg_pool);
  t.adaptive_avg_pool_backward = FOVEA_BEST(adaptive_avg_pool_backward);
  t.adaptive_max_pool = FOVEA_BEST(adaptive_max_pool);
}
}  // namespace fovea::kernels
#endif
