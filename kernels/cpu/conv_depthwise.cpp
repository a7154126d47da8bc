// Depthwise convolution: there is no matrix product in it, each plane is correlated with its own few taps.
//
// Note [Planes are taken as one long row]
// A plane is padded and split by the stride as in conv_patches.h, into scratch memory that stays in L1 or L2. In that layout the tap of every output pixel is
// the same offset away, also across the ends of rows, so that the plane is one long row of rows * row_stride outputs: no vector is cut short at the end of a
// narrow row. What comes out between the rows is dropped when they are copied to y; in the gradient of the weight dy is zero there.
//
// Overwrites. Sums in the element type in a fixed order: deterministic. Floor: memory, one read of each input and one write of each output.
#include <fovea/kernels/cpu/conv_functions.h>

#include <algorithm>

#include <fovea/kernels/cpu/conv_layout.h>
#include <fovea/kernels/cpu/gemm.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/conv_depthwise.cpp"
#include <fovea/kernels/cpu/simd.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t overrun = 128;                     // elements that correlate() and dot() may read or write past their count

// to[i] = sum_t weight[t] from[i + taps[t]] for i < count, added to what is there if `accumulate`. Works on blocks of eight vectors.
template <class T>
void correlate(const T* from, const int64_t* taps, const T* weight, int64_t num_taps, int64_t count, bool accumulate, T* to) {
  const hn::ScalableTag<T> d;
  constexpr int64_t lanes = hn::MaxLanes(hn::ScalableTag<T>()), vectors = 8;
  for (int64_t i = 0; i < count;) {
    if (count - i > 2 * lanes) {
      hn::Vec<decltype(d)> sum[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[v] = accumulate ? hn::LoadU(d, to + i + v * lanes) : hn::Zero(d);
      for (int64_t t = 0; t < num_taps; ++t) {
        const T* source = from + i + taps[t];
        const auto w = hn::Set(d, weight[t]);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[v] = hn::MulAdd(w, hn::LoadU(d, source + v * lanes), sum[v]);
      }
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) hn::StoreU(sum[v], d, to + i + v * lanes);
      i += vectors * lanes;
    } else {
      auto sum = accumulate ? hn::LoadU(d, to + i) : hn::Zero(d);
      for (int64_t t = 0; t < num_taps; ++t) sum = hn::MulAdd(hn::Set(d, weight[t]), hn::LoadU(d, from + i + taps[t]), sum);
      hn::StoreU(sum, d, to + i);
      i += lanes;
    }
  }
}

// sums[t] += sum_i a[i] b[i + taps[t]] for t < num_taps, i < count; a is zero beyond count.
template <class T, int num_taps>
void dot(const T* a, const T* b, const int64_t* taps, int64_t count, T* sums) {
  const hn::ScalableTag<T> d;
  constexpr int64_t lanes = hn::MaxLanes(hn::ScalableTag<T>()), vectors = 4;
  hn::Vec<decltype(d)> sum[num_taps][vectors];
#pragma GCC unroll 3
  for (int t = 0; t < num_taps; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[t][v] = hn::Zero(d);
  for (int64_t i = 0; i < count; i += vectors * lanes) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const auto left = hn::LoadU(d, a + i + v * lanes);
#pragma GCC unroll 3
      for (int t = 0; t < num_taps; ++t) sum[t][v] = hn::MulAdd(left, hn::LoadU(d, b + i + taps[t] + v * lanes), sum[t][v]);
    }
  }
#pragma GCC unroll 3
  for (int t = 0; t < num_taps; ++t)
    sums[t] += hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum[t][0], sum[t][1]), hn::Add(sum[t][2], sum[t][3]))));
}

// What the workers share, and the scratch memory of each.
template <class T>
struct Scratch {
  PlaneSplit x, dy;
  int64_t multiplier;                                // outputs a channel
  int64_t source_size, flat_size;                    // of one worker
  int64_t *x_taps, *kernel_taps, *dy_taps;
  T* memory;
  int64_t bytes;

  Scratch(const ConvGeometry& g, void* workspace, int64_t workers) : x(split_of_x(g)), dy(split_of_dy(g)), multiplier(g.group_k()) {
    Arena arena(workspace);
    const int64_t kernel = g.r * g.s, slack = overrun + (g.s + g.r) * (g.dilation_w + g.dilation_h);
    source_size = std::max(x.plane_size(), multiplier * dy.plane_size()) + slack;
    flat_size = std::max(g.out_h() * x.out_w, g.h * dy.out_w + g.w) + kernel + overrun;
    x_taps = arena.take<int64_t>(kernel);
    kernel_taps = arena.take<int64_t>(kernel);
    dy_taps = arena.take<int64_t>(kernel);
    memory = arena.take<T>(workers * (source_size + flat_size));
    bytes = arena.used();
  }
  T* source(int64_t worker) const { return memory + worker * (source_size + flat_size); }
  T* flat(int64_t worker) const { return source(worker) + source_size; }
};

// As many as there is memory for; the number of threads may have grown since the workspace was made.
template <class T>
int64_t workers_for(const ConvGeometry& g, const Workspace& workspace) {
  const int64_t wanted = num_threads();
  return Scratch<T>(g, nullptr, wanted).bytes <= workspace.bytes ? wanted : 1;
}

template <class T>
int64_t workspace(const ConvGeometry& g) { return Scratch<T>(g, nullptr, num_threads()).bytes; }

template <class T>
void forward(const ConvGeometry& g, const T* x, const T* weight, const T* bias, T* y, Workspace workspace) {
  const int64_t workers = workers_for<T>(g, workspace), height = g.out_h(), width = g.out_w(), kernel = g.r * g.s;
  const Scratch<T> scratch(g, workspace.data, workers);
  const int64_t row_stride = scratch.x.out_w;
  fill_taps_of_x(g, scratch.x, row_stride, scratch.x_taps);
  parallel_workers(workers, g.n * g.c, [&](int64_t worker, int64_t plane) HWY_ATTR {
    T *source = scratch.source(worker), *flat = scratch.flat(worker);
    patch_functions<T>().split_plane(scratch.x, x + plane * g.h * g.w, source);
    for (int64_t j = 0; j < scratch.multiplier; ++j) {
      const int64_t k = plane % g.c * scratch.multiplier + j;
      correlate(source, scratch.x_taps, weight + k * kernel, kernel, height * row_stride, false, flat);
      T* out = y + (plane * scratch.multiplier + j) * height * width;
      const T b = bias ? bias[k] : T(0);
      for (int64_t p = 0; p < height; ++p)
        for (int64_t q = 0; q < width; ++q) out[p * width + q] = flat[p * row_stride + q] + b;
    }
  });
}

// One phase of a plane of dx.
template <class T>
void backward_phase(const ConvGeometry& g, const Scratch<T>& scratch, const Phase& phase, int64_t first_tap, const T* weight, const T* source, T* flat, T* dx) {
  const int64_t row_stride = scratch.dy.out_w, count = phase.height * row_stride, kernel = g.r * g.s;
  T* weights = flat + scratch.flat_size - kernel;    // of this phase, behind the long row
  // A phase without taps may be wider than the rows of dy: its pixels were never seen and get zeros.
  if (phase.taps == 0) std::fill(flat, flat + phase.height * row_stride + phase.width, T(0));
  for (int64_t j = 0; j < scratch.multiplier && phase.taps > 0; ++j) {
    for (int64_t t = 0; t < phase.taps; ++t) weights[t] = weight[j * kernel + scratch.kernel_taps[first_tap + t]];
    correlate(source + j * scratch.dy.plane_size(), scratch.dy_taps + first_tap, weights, phase.taps, count, j > 0, flat);
  }
  for (int64_t i = 0; i < phase.height; ++i) {
    const T* from = flat + i * row_stride;
    T* to = dx + (phase.first_h + i * g.stride_h) * g.w + phase.first_w;
    if (g.stride_w == 1) {
      for (int64_t j = 0; j < phase.width; ++j) to[j] = from[j];
    } else {
      for (int64_t j = 0; j < phase.width; ++j) to[j * g.stride_w] = from[j];
    }
  }
}

template <class T>
void backward_data(const ConvGeometry& g, const T* dy, const T* weight, T* dx, Workspace workspace) {
  const int64_t workers = workers_for<T>(g, workspace), pixels = out_pixels(g), kernel = g.r * g.s;
  const Scratch<T> scratch(g, workspace.data, workers);
  int64_t filled = 0;
  for_each_phase(g, [&](const Phase& phase) {
    fill_taps_of_dy(g, phase, scratch.dy.out_w, scratch.kernel_taps + filled, scratch.dy_taps + filled);
    filled += phase.taps;
  });
  parallel_workers(workers, g.n * g.c, [&](int64_t worker, int64_t plane) HWY_ATTR {
    T* source = scratch.source(worker);
    for (int64_t j = 0; j < scratch.multiplier; ++j)
      patch_functions<T>().split_plane(scratch.dy, dy + (plane * scratch.multiplier + j) * pixels, source + j * scratch.dy.plane_size());
    int64_t first_tap = 0;
    for_each_phase(g, [&](const Phase& phase) HWY_ATTR {
      backward_phase(g, scratch, phase, first_tap, weight + plane % g.c * scratch.multiplier * kernel, source, scratch.flat(worker), dx + plane * g.h * g.w);
      first_tap += phase.taps;
    });
  });
}

template <class T>
void backward_weight(const ConvGeometry& g, const T* x, const T* dy, T* dweight, Workspace workspace) {
  const int64_t workers = workers_for<T>(g, workspace), height = g.out_h(), width = g.out_w(), kernel = g.r * g.s;
  const Scratch<T> scratch(g, workspace.data, workers);
  const int64_t row_stride = scratch.x.out_w, count = height * row_stride;
  fill_taps_of_x(g, scratch.x, row_stride, scratch.x_taps);
  parallel_workers(workers, g.c, [&](int64_t worker, int64_t channel) HWY_ATTR {
    T *source = scratch.source(worker), *flat = scratch.flat(worker);
    T* sums = dweight + channel * scratch.multiplier * kernel;
    std::fill(sums, sums + scratch.multiplier * kernel, T(0));
    std::fill(source + scratch.x.plane_size(), source + scratch.source_size, T(0));        // read, times zero
    std::fill(flat, flat + scratch.flat_size, T(0));
    for (int64_t n = 0; n < g.n; ++n) {
      patch_functions<T>().split_plane(scratch.x, x + (n * g.c + channel) * g.h * g.w, source);
      for (int64_t j = 0; j < scratch.multiplier; ++j) {
        const T* from = dy + (n * g.k + channel * scratch.multiplier + j) * height * width;
        for (int64_t p = 0; p < height; ++p) std::copy(from + p * width, from + (p + 1) * width, flat + p * row_stride);
        int64_t t = 0;
        for (; t + 3 <= kernel; t += 3) dot<T, 3>(flat, source, scratch.x_taps + t, count, sums + j * kernel + t);
        for (; t < kernel; ++t) dot<T, 1>(flat, source, scratch.x_taps + t, count, sums + j * kernel + t);
      }
    }
  });
}

template <class T>
const ConvFunctions<T>* functions() {
  static constexpr ConvFunctions<T> table = {workspace<T>, forward<T>, backward_data<T>, backward_weight<T>};
  return &table;
}
const ConvFunctions<float>* float_functions() { return functions<float>(); }
const ConvFunctions<double>* double_functions() { return functions<double>(); }

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

template <>
const ConvFunctions<float>& depthwise_functions<float>() {
  static const ConvFunctions<float>& table = *FOVEA_BEST(float_functions)();
  return table;
}

template <>
const ConvFunctions<double>& depthwise_functions<double>() {
  static const ConvFunctions<double>& table = *FOVEA_BEST(double_functions)();
  return table;
}

}  // namespace fovea::kernels
#endif
