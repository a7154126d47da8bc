// Depthwise convolution of contiguous tensors, groups == c: channel k of y is made from channel k / (k per c) of x alone. The formulas are those of conv.cu.
// There is no matrix product in it. In the two directions over pixels a thread makes a strip of pixels below each other, so that its neighbours read neighbouring
// addresses and a row that was read serves all windows of the strip that it lies in; square kernels of 3, 5 and 7 are unrolled.
// The gradient of the weight: a block sums one channel over a part of the images, each thread over its own pixels, all taps of a row of the kernel at once.
// Overwrites. float32 and float64 are summed in their own type, the half types in float32; in a fixed order: deterministic.
// Floor: memory, one read of each input and one write of each output.
#include <fovea/kernels/cuda/conv_functions.h>

#include <algorithm>

#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads_per_block = 256;
constexpr int strip = 4;                               // pixels of a thread, below each other
constexpr int most_row_taps = 4;                       // columns of the kernel that a thread of the weight's gradient sums at once
constexpr int64_t most_blocks_z = 65535;

// --- over pixels ---

// out[plane, i, j] = bias + sum over `sources` planes and taps of weight * source[plane', ...], where each axis goes by its WindowAxis. In the forward direction a
// plane of y has one source; a plane of dx has all the planes of dy that its channel was multiplied into.
struct PlaneProduct {
  WindowAxis vertical, horizontal;
  int32_t rows = 0, columns = 0;                       // of out
  int32_t source_size = 0;                             // elements of a source plane
  int32_t channels = 0, source_channels = 0, sources = 1;
  int32_t weight_r = 0, weight_s = 1, weight_first = 0;   // a tap's place in the kernel; backwards where the kernel is mirrored
  int32_t kernel_size = 0;
  FastDivide by_plane, by_columns;                     // a thread's number into plane, strip, column
  FastDivide by_channels, by_outs;                     // a plane into image and channel, and a channel into the first of its sources
  FastDivide by_stride_h, by_stride_w;                 // of add_scattered_windows
};

template <class T>
__device__ Accumulate<T> load_inside(const T* plane, const PlaneProduct& p, int32_t row, int32_t column) {
  const bool is_inside = static_cast<uint32_t>(row) < static_cast<uint32_t>(p.vertical.size) && static_cast<uint32_t>(column) < static_cast<uint32_t>(p.horizontal.size);
  return is_inside ? widen(plane[row * p.horizontal.size + column]) : Accumulate<T>(0);
}

// kernel: taps of a square kernel whose steps and deltas are one, 0 for any other.
template <class T, int kernel>
__device__ void add_windows(const PlaneProduct& p, const T* plane, const T* weight, int32_t first_row, int32_t column, Accumulate<T> (&sums)[strip]) {
  const int32_t right = p.horizontal.step * column + p.horizontal.base;
  if constexpr (kernel > 0) {
    const int32_t top = first_row + p.vertical.base;
#pragma unroll
    for (int i = 0; i < strip + kernel - 1; ++i) {     // a row of the source, for all windows it lies in
      Accumulate<T> values[kernel];
#pragma unroll
      for (int s = 0; s < kernel; ++s) values[s] = load_inside(plane, p, top + i, right + s);
#pragma unroll
      for (int v = 0; v < strip; ++v) {
        const int r = i - v;
        if (r < 0 || r >= kernel) continue;
#pragma unroll
        for (int s = 0; s < kernel; ++s) sums[v] += widen(weight[p.weight_first + r * p.weight_r + s * p.weight_s]) * values[s];
      }
    }
  } else {
    for (int32_t r = 0; r < p.vertical.taps; ++r)
      for (int32_t s = 0; s < p.horizontal.taps; ++s) {
        const Accumulate<T> w = widen(weight[p.weight_first + r * p.weight_r + s * p.weight_s]);
#pragma unroll
        for (int v = 0; v < strip; ++v)
          sums[v] += w * load_inside(plane, p, p.vertical.step * (first_row + v) + p.vertical.base + r * p.vertical.delta, right + s * p.horizontal.delta);
      }
  }
}

// The window of a pixel of dx with strides: row p of dy meets it through tap r when p * stride = h + pad - r * dilation comes out even.
template <class T>
__device__ void add_scattered_windows(const PlaneProduct& p, const T* plane, const T* weight, int32_t first_row, int32_t column, Accumulate<T> (&sums)[strip]) {
  for (int32_t s = 0; s < p.horizontal.taps; ++s) {
    const int32_t right = column + p.horizontal.base + s * p.horizontal.delta;
    const int32_t from_column = whole_quotient(right, p.by_stride_w);
    if (from_column < 0) continue;
#pragma unroll
    for (int v = 0; v < strip; ++v)
      for (int32_t r = 0; r < p.vertical.taps; ++r) {
        const int32_t down = first_row + v + p.vertical.base + r * p.vertical.delta;
        const int32_t from_row = whole_quotient(down, p.by_stride_h);
        if (from_row < 0) continue;
        sums[v] += widen(weight[p.weight_first + r * p.weight_r + s * p.weight_s]) * load_inside(plane, p, from_row, from_column);
      }
  }
}

template <class T, int kernel, bool is_scattered>
__global__ void __launch_bounds__(threads_per_block, is_scattered ? 4 : 1) plane_product(PlaneProduct p, int32_t count, const T* source, const T* weight, const T* bias, T* out) {
  const int64_t number = global_thread();
  if (number >= count) return;
  const int32_t plane = static_cast<int32_t>(p.by_plane.quotient(static_cast<uint32_t>(number))), within = static_cast<int32_t>(number) - plane * static_cast<int32_t>(p.by_plane.divisor);
  const int32_t strip_index = static_cast<int32_t>(p.by_columns.quotient(static_cast<uint32_t>(within))), column = within - strip_index * p.columns;
  const int32_t first_row = strip_index * strip;
  const int32_t image = static_cast<int32_t>(p.by_channels.quotient(static_cast<uint32_t>(plane))), channel = plane - image * p.channels;
  const int32_t first_source = static_cast<int32_t>(p.by_outs.quotient(static_cast<uint32_t>(channel))) * p.sources;      // among the image's
  Accumulate<T> sums[strip] = {};
  for (int32_t k = 0; k < p.sources; ++k) {
    const T* const from = source + (static_cast<int64_t>(image) * p.source_channels + first_source + k) * p.source_size;
    const T* const taps = weight + static_cast<int64_t>(p.sources == 1 ? channel : first_source + k) * p.kernel_size;
    if constexpr (is_scattered) add_scattered_windows(p, from, taps, first_row, column, sums);
    else add_windows<T, kernel>(p, from, taps, first_row, column, sums);
  }
  const Accumulate<T> start = bias ? widen(bias[channel]) : Accumulate<T>(0);
#pragma unroll
  for (int v = 0; v < strip; ++v)
    if (first_row + v < p.rows) out[(static_cast<int64_t>(plane) * p.rows + first_row + v) * p.columns + column] = narrow<T>(sums[v] + start);
}

template <class T>
void run_planes(Queue queue, bool is_forward, bool is_scattered, PlaneProduct p, int64_t images, int64_t outs_per_source, const T* source, const T* weight, const T* bias, T* out) {
  const int64_t per_plane = ceil_div<int64_t>(p.rows, strip) * p.columns, per_image = per_plane * p.channels;
  p.by_plane = divide_by(per_plane);
  p.by_channels = divide_by(p.channels);
  p.by_outs = divide_by(outs_per_source);
  p.by_columns = divide_by(p.columns);
  const bool is_dense = p.vertical.step == 1 && p.horizontal.step == 1 && p.vertical.delta == 1 && p.horizontal.delta == 1 && p.vertical.taps == p.horizontal.taps;
  const int kernel = is_dense && !is_scattered ? p.vertical.taps : 0;
  const int64_t at_once = std::max<int64_t>(1, (index_limit / 2) / per_image);      // images, so that their strips can be numbered
  for (int64_t first = 0; first < images; first += at_once) {
    const int64_t count = std::min(at_once, images - first) * per_image;
    const T* const from = source + first * p.source_channels * p.source_size;
    T* const to = out + first * p.channels * p.rows * p.columns;
    const Grid grid{dim3(static_cast<unsigned>(ceil_div<int64_t>(count, threads_per_block))), dim3(threads_per_block)};
    const char* const name = is_forward ? "conv2d_forward_depthwise" : "conv2d_backward_data_depthwise";
    const auto start = [&](auto kernel_function) { launch(queue, name, grid, kernel_function, p, static_cast<int32_t>(count), from, weight, bias, to); };
    if (is_scattered) start(plane_product<T, 0, true>);
    else if (kernel == 3) start(plane_product<T, 3, false>);
    else if (kernel == 5) start(plane_product<T, 5, false>);
    else if (kernel == 7) start(plane_product<T, 7, false>);
    else start(plane_product<T, 0, false>);
  }
}

template <class T>
void forward(Queue queue, const ConvGeometry& g, const T* x, const T* weight, const T* bias, T* y) {
  PlaneProduct p;
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.rows = static_cast<int32_t>(g.out_h());
  p.columns = static_cast<int32_t>(g.out_w());
  p.source_size = static_cast<int32_t>(g.h * g.w);
  p.channels = static_cast<int32_t>(g.k);
  p.source_channels = static_cast<int32_t>(g.c);
  p.weight_r = static_cast<int32_t>(g.s);
  p.kernel_size = static_cast<int32_t>(g.r * g.s);
  run_planes(queue, true, false, p, g.n, g.k / g.c, x, weight, bias, y);
}

template <class T>
void backward_data(Queue queue, const ConvGeometry& g, const T* dy, const T* weight, T* dx) {
  PlaneProduct p;
  p.rows = static_cast<int32_t>(g.h);
  p.columns = static_cast<int32_t>(g.w);
  p.source_size = static_cast<int32_t>(g.out_h() * g.out_w());
  p.channels = static_cast<int32_t>(g.c);
  p.source_channels = static_cast<int32_t>(g.k);
  p.sources = static_cast<int32_t>(g.k / g.c);
  p.kernel_size = static_cast<int32_t>(g.r * g.s);
  p.vertical = mirrored_vertical_of(g);
  p.horizontal = mirrored_horizontal_of(g);
  p.weight_r = static_cast<int32_t>(-g.s);
  p.weight_s = -1;
  p.weight_first = p.kernel_size - 1;
  p.by_stride_h = divide_by(g.stride_h);
  p.by_stride_w = divide_by(g.stride_w);
  run_planes<T>(queue, false, g.stride_h > 1 || g.stride_w > 1, p, g.n, 1, dy, weight, nullptr, dx);
}

// --- gradient of the weight ---

struct TapSums {
  WindowAxis vertical, horizontal;
  int32_t images = 0, images_per_split = 0, channels = 0, outs_per_source = 1, source_channels = 0;
  int32_t rows = 0, columns = 0, source_size = 0, pieces = 1;      // pieces: a row of the kernel is cut into as many
  int64_t out_split = 0;
  FastDivide by_plane, by_columns;                     // a pixel's number into image, row, column
};

// blockIdx: x the channel of y, y a row (piece) of the kernel, z the part of the images.
template <class T>
__global__ void __launch_bounds__(threads_per_block) tap_sums(TapSums p, int32_t first_line, const T* x, const T* dy, Accumulate<T>* out) {
  auto& scratch = shared<Accumulate<T>[warp_size]>();
  const int64_t channel = blockIdx.x, source = static_cast<int32_t>(blockIdx.x) / p.outs_per_source;
  const int32_t line = first_line + static_cast<int32_t>(blockIdx.y);
  const int32_t r = line / p.pieces, first_tap = (line - r * p.pieces) * most_row_taps;
  const int32_t first_image = static_cast<int32_t>(blockIdx.z) * p.images_per_split;
  const int32_t images = min(p.images - first_image, p.images_per_split);
  const int32_t plane = p.rows * p.columns;
  Accumulate<T> sums[most_row_taps] = {};
  // Images are taken together while their pixels can be numbered.
  const int32_t at_once = static_cast<int32_t>((index_limit - 1) / plane);
  for (int32_t done = 0; done < images; done += at_once) {
    const uint32_t count = static_cast<uint32_t>(min(at_once, images - done) * plane);       // close to 2^31, so that the last step would run over with a sign
    for (uint32_t number = threadIdx.x; number < count; number += threads_per_block) {
      const int32_t image = static_cast<int32_t>(p.by_plane.quotient(number)), pixel = static_cast<int32_t>(number) - image * plane;
      const int32_t i = static_cast<int32_t>(p.by_columns.quotient(pixel)), j = pixel - i * p.columns;
      const int32_t row = p.vertical.step * i + p.vertical.base + r * p.vertical.delta, first_column = p.horizontal.step * j + p.horizontal.base + first_tap * p.horizontal.delta;
      if (static_cast<uint32_t>(row) >= static_cast<uint32_t>(p.vertical.size)) continue;
      const int64_t n = first_image + done + image;
      const Accumulate<T> gradient = widen(dy[(n * p.channels + channel) * plane + pixel]);
      const T* const from = x + (n * p.source_channels + source) * p.source_size + static_cast<int64_t>(row) * p.horizontal.size;
#pragma unroll
      for (int s = 0; s < most_row_taps; ++s) {
        const int32_t column = first_column + s * p.horizontal.delta;
        if (first_tap + s < p.horizontal.taps && static_cast<uint32_t>(column) < static_cast<uint32_t>(p.horizontal.size)) sums[s] += gradient * widen(from[column]);
      }
    }
    if (at_once >= images) break;                      // so that `done` does not run over
  }
  Accumulate<T>* const to = out + static_cast<int64_t>(blockIdx.z) * p.out_split + (channel * p.vertical.taps + r) * p.horizontal.taps + first_tap;
#pragma unroll
  for (int s = 0; s < most_row_taps; ++s) {
    const Accumulate<T> total = block_reduce(sums[s], Sum(), Accumulate<T>(0), scratch);
    if (threadIdx.x == 0 && first_tap + s < p.horizontal.taps) to[s] = total;
  }
}

template <class T>
void backward_weight(Queue queue, const ConvGeometry& g, const T* x, const T* dy, int64_t splits, Accumulate<T>* out) {
  TapSums p;
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.images = static_cast<int32_t>(g.n);
  p.images_per_split = static_cast<int32_t>(ceil_div(std::max<int64_t>(g.n, 1), splits));
  p.channels = static_cast<int32_t>(g.k);
  p.outs_per_source = static_cast<int32_t>(g.k / g.c);
  p.source_channels = static_cast<int32_t>(g.c);
  p.rows = static_cast<int32_t>(g.out_h());
  p.columns = static_cast<int32_t>(g.out_w());
  p.source_size = static_cast<int32_t>(g.h * g.w);
  p.pieces = static_cast<int32_t>(ceil_div<int64_t>(g.s, most_row_taps));
  p.out_split = g.weights();
  p.by_plane = divide_by(g.out_h() * g.out_w());
  p.by_columns = divide_by(g.out_w());
  const int64_t lines = g.r * p.pieces;
  for (int64_t first = 0; first < lines; first += most_blocks_z) {
    const Grid grid{dim3(static_cast<unsigned>(g.k), static_cast<unsigned>(std::min(most_blocks_z, lines - first)), static_cast<unsigned>(splits)), dim3(threads_per_block), warp_size * sizeof(Accumulate<T>)};
    launch(queue, "conv2d_backward_weight_depthwise", grid, tap_sums<T>, p, static_cast<int32_t>(first), x, dy, out);
  }
}

}  // namespace

void depthwise_forward(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y) {
  dispatch_floating(y.dtype, "conv2d", [&](auto zero) {
    using T = decltype(zero);
    forward(queue, g, x.as<T>(), weight.as<T>(), bias.as<T>(), y.as<T>());
  });
}

void depthwise_backward_data(Queue queue, const ConvGeometry& g, const ConstView& dy, const ConstView& weight, const View& dx) {
  dispatch_floating(dx.dtype, "conv2d_backward_data", [&](auto zero) {
    using T = decltype(zero);
    backward_data(queue, g, dy.as<T>(), weight.as<T>(), dx.as<T>());
  });
}

void depthwise_backward_weight(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& dy, DType dtype, int64_t splits, void* sums) {
  dispatch_floating(dtype, "conv2d_backward_weight", [&](auto zero) {
    using T = decltype(zero);
    backward_weight(queue, g, x.as<T>(), dy.as<T>(), splits, static_cast<Accumulate<T>*>(sums));
  });
}

}  // namespace fovea::kernels::cuda
