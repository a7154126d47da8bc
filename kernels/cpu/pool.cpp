// Max and average pooling over x [n, c, h, w] with kernel, stride, padding, (max:) dilation and ceil_mode, and their backward passes.
//     y[oh, ow] = max or mean over x[oh * stride - pad + i * dilation, ow * stride - pad + j * dilation]; what lies outside x does not count for the maximum and is
//     zero for the mean, which divides by the window clipped to the padded input, or (count_include_pad = false) to the input, as PyTorch does.
// indices: h * w positions within the plane, int64; the first of equals; a NaN wins. Layout: contiguous. Overwrites its outputs. Sums in the element's type.
// Deterministic: overlapping windows meet in the backward pass, where a plane is one thread's work and is walked in the order of the outputs.
// Floor: one read of x, one write of y (and of the 8-byte indices).
#include <algorithm>
#include <cmath>
#include <limits>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/pool.cpp"
#include <fovea/kernels/cpu/simd.h>

#include <fovea/kernels/cpu/simd_tail.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

constexpr int64_t smallest_vector = 4;             // lanes; rows with fewer outputs go one by one
constexpr int64_t gradient_block = 256;

int64_t ceil_divide(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

// One axis of the windows: which taps and which outputs touch the input.
struct Axis {
  int64_t size, kernel, stride, pad, dilation, outputs;

  int64_t start(int64_t output) const { return output * stride - pad; }
  int64_t first_tap(int64_t output) const { return std::max<int64_t>(0, ceil_divide(-start(output), dilation)); }
  int64_t end_tap(int64_t output) const { return std::clamp<int64_t>(ceil_divide(size - start(output), dilation), 0, kernel); }
  // Outputs [first, end) whose tap lies inside the input.
  int64_t first_output(int64_t tap) const { return std::clamp<int64_t>(ceil_divide(pad - tap * dilation, stride), 0, outputs); }
  int64_t end_output(int64_t tap) const { return std::clamp<int64_t>(ceil_divide(size + pad - tap * dilation, stride), 0, outputs); }
  // Outputs whose whole window lies inside the input.
  int64_t first_inside() const { return first_output(0); }
  int64_t end_inside() const { return std::max(end_output(kernel - 1), first_inside()); }
  // How many positions average pooling divides by along this axis.
  int64_t count(int64_t output, bool include_pad) const {
    const int64_t from = start(output), to = std::min(from + kernel, size + pad);
    return include_pad ? to - from : std::min(to, size) - std::max<int64_t>(from, 0);
  }
};

Axis vertical(const PoolGeometry& g) { return {g.h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, g.out_h()}; }
Axis horizontal(const PoolGeometry& g) { return {g.w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, g.out_w()}; }

int64_t grain_for(int64_t elements) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(elements, 1)); }

// Note [Rows of windows in vectors]
// Lanes are neighbouring outputs. With stride 1 a tap of all lanes is one load; with stride 2 one interleaved load serves two neighbouring taps. Other
// strides, and the windows that hang over the left and right border, go one by one. The last vector of a row overlaps the one before.

// f(values of a tap for all lanes, tap) for the taps of one row of the windows; x points at the first tap of the first lane.
template <int stride, class D, class F, class T = hn::TFromD<D>>
HWY_INLINE void visit_taps(D d, const T* x, const Axis& axis, const F& f) {
  for (int64_t tap = 0; tap < axis.kernel; ++tap) {
    if constexpr (stride == 1) {
      f(hn::LoadU(d, x + tap * axis.dilation), tap);
    } else {
#if HWY_TARGET != HWY_SCALAR
      hn::Vec<D> even, odd;
      hn::LoadInterleaved2(d, x + tap * axis.dilation, even, odd);
      f(even, tap);
      if (axis.dilation == 1 && tap + 1 < axis.kernel) f(odd, ++tap);
#endif
    }
  }
}

// Outputs that vectors may serve: [first_inside, this), where interleaved loads stay within the row.
template <int stride>
int64_t end_of_vectors(const Axis& axis) {
  if (stride == 1) return axis.end_inside();
  const bool is_paired = axis.dilation == 1 && axis.kernel % 2 == 0;
  const int64_t reach = (axis.kernel - 1) * axis.dilation + (is_paired ? 0 : 1);         // last element read, from the start of a window
  return std::clamp<int64_t>(ceil_divide(axis.size - reach + axis.pad, 2), axis.first_inside(), axis.end_inside());
}

// Calls vector(d, output) to cover [begin, end) with the widest vectors that fit; returns false if the range is too short for any.
template <class D, class F>
HWY_INLINE bool cover(D d, int64_t begin, int64_t end, const F& vector) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (end - begin >= lanes) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) vector(d, i);
    if (i < end) vector(d, end - lanes);
    return true;
  }
  if constexpr (hn::MaxLanes(D()) > smallest_vector) return cover(hn::Half<D>(), begin, end, vector);
  else return false;
}

// --- max pooling ---

template <class T>
struct MaxRow {
  const T* plane;
  const Axis &vertical, &horizontal;
  int64_t output_row;
  T* y;
  int64_t* indices;                                  // may be null

  void one(int64_t ow) const {
    const int64_t h0 = vertical.start(output_row), w0 = horizontal.start(ow);
    T best = -std::numeric_limits<T>::infinity();
    int64_t where = (h0 + vertical.first_tap(output_row) * vertical.dilation) * horizontal.size + w0 + horizontal.first_tap(ow) * horizontal.dilation;
    for (int64_t i = vertical.first_tap(output_row); i < vertical.end_tap(output_row); ++i) {
      for (int64_t j = horizontal.first_tap(ow); j < horizontal.end_tap(ow); ++j) {
        const int64_t at = (h0 + i * vertical.dilation) * horizontal.size + w0 + j * horizontal.dilation;
        if (plane[at] > best || plane[at] != plane[at]) {
          best = plane[at];
          where = at;
        }
      }
    }
    y[ow] = best;
    if (indices) indices[ow] = where;
  }

  template <int stride, class D>
  HWY_INLINE void vector(D d, int64_t ow) const {
    const hn::RebindToSigned<D> di;
    using I = hn::TFromD<decltype(di)>;
    const int64_t first = vertical.first_tap(output_row), end = vertical.end_tap(output_row);
    const int64_t row0 = (vertical.start(output_row) + first * vertical.dilation) * horizontal.size, w0 = horizontal.start(ow);
    auto best = hn::Set(d, -std::numeric_limits<T>::infinity());
    auto where = hn::Zero(di);                       // counted from the first tap of the lane's window
    for (int64_t i = first; i < end; ++i) {
      const int64_t down = (i - first) * vertical.dilation * horizontal.size;
      visit_taps<stride>(d, plane + row0 + down + w0, horizontal, [&](auto v, int64_t tap) HWY_ATTR {
        const auto wins = hn::Or(hn::Gt(v, best), hn::IsNaN(v));
        best = hn::IfThenElse(wins, v, best);
        where = hn::IfThenElse(hn::RebindMask(di, wins), hn::Set(di, static_cast<I>(down + tap * horizontal.dilation)), where);
      });
    }
    hn::StoreU(best, d, y + ow);
    if (!indices) return;
    HWY_ALIGN I lanes[HWY_MAX_BYTES / sizeof(I)];
    hn::Store(where, di, lanes);
    for (size_t k = 0; k < hn::Lanes(d); ++k) indices[ow + static_cast<int64_t>(k)] = row0 + w0 + static_cast<int64_t>(k) * stride + static_cast<int64_t>(lanes[k]);
  }
};

// --- average pooling ---

template <class T>
struct MeanRow {
  const T* plane;
  const Axis &vertical, &horizontal;
  int64_t output_row;
  T* y;
  bool count_include_pad;

  void one(int64_t ow) const {
    T sum = 0;
    for (int64_t i = vertical.first_tap(output_row); i < vertical.end_tap(output_row); ++i) {
      const T* row = plane + (vertical.start(output_row) + i) * horizontal.size + horizontal.start(ow);
      for (int64_t j = horizontal.first_tap(ow); j < horizontal.end_tap(ow); ++j) sum += row[j];
    }
    y[ow] = sum / static_cast<T>(vertical.count(output_row, count_include_pad) * horizontal.count(ow, count_include_pad));
  }

  template <int stride, class D>
  HWY_INLINE void vector(D d, int64_t ow) const {
    auto sum = hn::Zero(d);
    for (int64_t i = vertical.first_tap(output_row); i < vertical.end_tap(output_row); ++i) {
      const T* row = plane + (vertical.start(output_row) + i) * horizontal.size + horizontal.start(ow);
      visit_taps<stride>(d, row, horizontal, [&](auto v, int64_t) HWY_ATTR { sum = hn::Add(sum, v); });
    }
    const int64_t count = vertical.count(output_row, count_include_pad) * horizontal.kernel;
    hn::StoreU(hn::Div(sum, hn::Set(d, static_cast<T>(count))), d, y + ow);
  }
};

template <int stride, class T, class Row>
void run_row_in_vectors(const Row& row, const Axis& horizontal) {
  const int64_t begin = horizontal.first_inside(), end = end_of_vectors<stride>(horizontal);
  const bool has_vectors = cover(hn::ScalableTag<T>(), begin, end, [&](auto d, int64_t ow) HWY_ATTR { row.template vector<stride>(d, ow); });
  for (int64_t ow = 0; ow < (has_vectors ? begin : end); ++ow) row.one(ow);
  for (int64_t ow = end; ow < horizontal.outputs; ++ow) row.one(ow);
}

template <class T, class Row>
void run_row(const Row& row, const Axis& horizontal) {
  if (horizontal.stride == 1) return run_row_in_vectors<1, T>(row, horizontal);
#if HWY_TARGET != HWY_SCALAR
  if (horizontal.stride == 2) return run_row_in_vectors<2, T>(row, horizontal);
#endif
  for (int64_t ow = 0; ow < horizontal.outputs; ++ow) row.one(ow);
}

void max_pool(Queue, const PoolGeometry& g, const ConstView& x, const View& y, const View& indices) {
  dispatch_real(x.dtype, "max_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical(g), h = horizontal(g);
    if (v.outputs == 0 || h.outputs == 0) return;
    parallel_for(g.n * g.c * v.outputs, grain_for(h.outputs * g.kernel_h * g.kernel_w), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t plane = row / v.outputs, at = row * h.outputs;
        run_row<T>(MaxRow<T>{x.as<T>() + plane * g.h * g.w, v, h, row % v.outputs, y.as<T>() + at, indices ? indices.as<int64_t>() + at : nullptr}, h);
      }
    });
  });
}

void avg_pool(Queue, const PoolGeometry& g, const ConstView& x, const View& y) {
  dispatch_real(x.dtype, "avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical(g), h = horizontal(g);
    if (v.outputs == 0 || h.outputs == 0) return;
    parallel_for(g.n * g.c * v.outputs, grain_for(h.outputs * g.kernel_h * g.kernel_w), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t plane = row / v.outputs;
        run_row<T>(MeanRow<T>{x.as<T>() + plane * g.h * g.w, v, h, row % v.outputs, y.as<T>() + row * h.outputs, g.count_include_pad}, h);
      }
    });
  });
}

// --- backward ---

void max_pool_backward(Queue, const PoolGeometry*, const ConstView& dy, const ConstView& indices, const View& dx) {
  dispatch_real(dy.dtype, "max_pool2d_backward", [&](auto zero) {
    using T = decltype(zero);
    const int64_t planes = dx.shape[0] * dx.shape[1];
    if (planes == 0) return;
    const int64_t inputs = dx.numel() / planes, outputs = dy.numel() / planes;
    parallel_for(planes, grain_for(inputs + outputs), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        T* out = dx.as<T>() + plane * inputs;
        const T* gradient = dy.as<T>() + plane * outputs;
        const int64_t* where = indices.as<int64_t>() + plane * outputs;
        std::fill(out, out + inputs, T(0));
        for (int64_t i = 0; i < outputs; ++i) out[where[i]] += gradient[i];
      }
    });
  });
}

// dx[(first + k) * stride + offset(tap)] += g[k] for the outputs of a block and the taps of one row.
template <class T>
void spread_row(const Axis& axis, const T* HWY_RESTRICT g, int64_t first, int64_t count, T* HWY_RESTRICT row) {
  for (int64_t tap = 0; tap < axis.kernel; ++tap) {
    const int64_t begin = std::max(axis.first_output(tap), first), end = std::min(axis.end_output(tap), first + count);
    T* target = row - axis.pad + tap;
    if (axis.stride == 1) {
      for (int64_t ow = begin; ow < end; ++ow) target[ow] += g[ow - first];
    } else {
      for (int64_t ow = begin; ow < end; ++ow) target[ow * axis.stride] += g[ow - first];
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
// The same for a window of two columns, stride 2 and no padding: each gradient goes to two neighbours.
template <class T>
void spread_row_in_pairs(const T* HWY_RESTRICT g, int64_t count, T* HWY_RESTRICT row) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(d, g + i);
    hn::Vec<decltype(d)> even, odd;
    hn::LoadInterleaved2(d, row + 2 * i, even, odd);
    hn::StoreInterleaved2(hn::Add(even, v), hn::Add(odd, v), d, row + 2 * i);
  }
  for (; i < count; ++i) {
    row[2 * i] += g[i];
    row[2 * i + 1] += g[i];
  }
}
#endif

template <class T>
void spread(const Axis& axis, const T* g, int64_t first, int64_t count, T* row) {
#if HWY_TARGET != HWY_SCALAR
  const bool is_pairs = axis.kernel == 2 && axis.stride == 2 && axis.pad == 0 && 2 * (first + count) <= axis.size;
  if (is_pairs) return spread_row_in_pairs(g, count, row + 2 * first);
#endif
  spread_row(axis, g, first, count, row);
}

template <class T>
void avg_pool_backward_plane(const Axis& v, const Axis& h, bool count_include_pad, const T* dy, T* dx) {
  std::fill(dx, dx + v.size * h.size, T(0));
  T shared[gradient_block];                                                // the gradient divided by the size of its window
  for (int64_t first = 0; first < h.outputs; first += gradient_block) {
    const int64_t count = std::min(gradient_block, h.outputs - first);
    for (int64_t oh = 0; oh < v.outputs; ++oh) {
      const int64_t height = v.count(oh, count_include_pad);
      for (int64_t k = 0; k < count; ++k) shared[k] = dy[oh * h.outputs + first + k] / static_cast<T>(height * h.count(first + k, count_include_pad));
      for (int64_t i = v.first_tap(oh); i < v.end_tap(oh); ++i) spread(h, shared, first, count, dx + (v.start(oh) + i) * h.size);
    }
  }
}

void avg_pool_backward(Queue, const PoolGeometry& g, const ConstView& dy, const View& dx) {
  dispatch_real(dy.dtype, "avg_pool2d_backward", [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical(g), h = horizontal(g);
    const int64_t outputs = v.outputs * h.outputs;
    parallel_for(g.n * g.c, grain_for(g.h * g.w + outputs * g.kernel_h * g.kernel_w), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane)
        avg_pool_backward_plane(v, h, g.count_include_pad, dy.as<T>() + plane * outputs, dx.as<T>() + plane * g.h * g.w);
    });
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
void add_pool(KernelTable& t) {
  t.max_pool = FOVEA_BEST(max_pool);
  t.max_pool_backward = FOVEA_BEST(max_pool_backward);
  t.avg_pool = FOVEA_BEST(avg_pool);
  t.avg_pool_backward = FOVEA_BEST(avg_pool_backward);
}
}  // namespace fovea::kernels
#endif
