// How the three convolutions see their images: which pixels of x or dy a patch is made of, after the copy of conv_patches.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include <fovea/kernels/cpu/arena.h>
#include <fovea/kernels/cpu/conv_patches.h>
#include <fovea/kernels/geometry.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels {

inline int64_t out_pixels(const ConvGeometry& g) { return g.out_h() * g.out_w(); }
inline int64_t patch_size(const ConvGeometry& g) { return g.group_c() * g.r * g.s; }

// x, padded and split by the stride.
inline PlaneSplit split_of_x(const ConvGeometry& g) {
  PlaneSplit s;
  s.planes = g.n * g.c;
  s.h = g.h;
  s.w = g.w;
  s.step_h = g.stride_h;
  s.step_w = g.stride_w;
  const int64_t reach_h = (g.r - 1) * g.dilation_h, reach_w = (g.s - 1) * g.dilation_w;
  s.phases_h = std::min(g.stride_h, reach_h + 1);
  s.phases_w = std::min(g.stride_w, reach_w + 1);
  s.shift_h = g.pad_h;
  s.shift_w = g.pad_w;
  s.out_h = g.out_h() + reach_h / g.stride_h;
  s.out_w = g.out_w() + reach_w / g.stride_w;
  return s;
}

inline void fill_taps_of_x(const ConvGeometry& g, const PlaneSplit& split, int64_t row_stride, int64_t* taps) {
  for (int64_t r = 0; r < g.r; ++r)
    for (int64_t s = 0; s < g.s; ++s) {
      const int64_t y = r * g.dilation_h, x = s * g.dilation_w;
      const int64_t phase = y % g.stride_h * split.phases_w + x % g.stride_w;
      *taps++ = phase * split.out_h * split.out_w + y / g.stride_h * row_stride + x / g.stride_w;
    }
}

// --- the gradient of x ---

inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// One axis of the phases of dx: pixel first + i * stride sees dy at i + offset(tap).
struct PhaseAxis {
  int64_t size, kernel, stride, pad, dilation;       // of the convolution; size is dx's

  int64_t count(int64_t phase) const { return (size - phase + stride - 1) / stride; }
  bool has(int64_t phase, int64_t tap) const { return (phase + pad - tap * dilation) % stride == 0; }
  int64_t offset(int64_t phase, int64_t tap) const { return floor_div(phase + pad - tap * dilation, stride); }
  // The range of dy that is seen: dy is copied so that it starts at `begin`.
  void range(int64_t& begin, int64_t& end) const {
    begin = INT64_MAX;
    end = INT64_MIN;
    for (int64_t phase = 0; phase < std::min(stride, size); ++phase)
      for (int64_t tap = 0; tap < kernel; ++tap)
        if (has(phase, tap)) {
          begin = std::min(begin, offset(phase, tap));
          end = std::max(end, offset(phase, tap) + count(phase));
        }
    if (begin > end) begin = end = 0;                // nothing is seen
  }
};

inline PhaseAxis phase_axis_h(const ConvGeometry& g) { return {g.h, g.r, g.stride_h, g.pad_h, g.dilation_h}; }
inline PhaseAxis phase_axis_w(const ConvGeometry& g) { return {g.w, g.s, g.stride_w, g.pad_w, g.dilation_w}; }

inline PlaneSplit split_of_dy(const ConvGeometry& g) {
  int64_t begin_h, end_h, begin_w, end_w;
  phase_axis_h(g).range(begin_h, end_h);
  phase_axis_w(g).range(begin_w, end_w);
  PlaneSplit s;
  s.planes = g.n * g.k;
  s.h = g.out_h();
  s.w = g.out_w();
  s.shift_h = -begin_h;
  s.shift_w = -begin_w;
  s.out_h = std::max<int64_t>(1, end_h - begin_h);
  s.out_w = std::max<int64_t>(1, end_w - begin_w);
  return s;
}

// The pixels of dx at (first_h + i * stride_h, first_w + j * stride_w).
struct Phase {
  int64_t first_h, first_w, height, width, taps;
};

template <class F>
void for_each_phase(const ConvGeometry& g, const F& f) {
  const PhaseAxis axis_h = phase_axis_h(g), axis_w = phase_axis_w(g);
  for (int64_t a = 0; a < std::min(g.stride_h, g.h); ++a)
    for (int64_t b = 0; b < std::min(g.stride_w, g.w); ++b) {
      int64_t taps_h = 0, taps_w = 0;
      for (int64_t r = 0; r < g.r; ++r) taps_h += axis_h.has(a, r);
      for (int64_t s = 0; s < g.s; ++s) taps_w += axis_w.has(b, s);
      f(Phase{a, b, axis_h.count(a), axis_w.count(b), taps_h * taps_w});
    }
}

// The taps of a phase: where they stand in the kernel (r * s_size + s), and their offsets in dy as split_of_dy() lays it out.
inline void fill_taps_of_dy(const ConvGeometry& g, const Phase& phase, int64_t row_stride, int64_t* kernel_taps, int64_t* source_taps) {
  const PhaseAxis axis_h = phase_axis_h(g), axis_w = phase_axis_w(g);
  const PlaneSplit split = split_of_dy(g);
  for (int64_t r = 0; r < g.r; ++r)
    for (int64_t s = 0; s < g.s; ++s)
      if (axis_h.has(phase.first_h, r) && axis_w.has(phase.first_w, s)) {
        const int64_t y = axis_h.offset(phase.first_h, r) + split.shift_h, x = axis_w.offset(phase.first_w, s) + split.shift_w;
        *kernel_taps++ = r * g.s + s;
        *source_taps++ = y * row_stride + x;
      }
}

}  // namespace fovea::kernels
