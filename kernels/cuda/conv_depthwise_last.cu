// Depthwise convolution of tensors that lie channels-last, [n,h,w,c] in memory, with one channel of y for each of x. The formulas are those
// of conv.cu.
// Neighbouring threads have neighbouring channels, 16 bytes of them each where c and all addresses allow it, else one.
// In the two directions over pixels a thread makes strips of pixels beside each other; the block's weights lie in shared memory, one after
// the other for each tap. Square kernels of 3, 5 and 7 with unit steps are unrolled, and read a pixel once for all windows of the strip
// that it lies in.
// The gradient of the weight: a block sums some channels over a part of the pixels, all taps of a kernel of 3 x 3 at once, else up to four
// of a row.
// Overwrites. float32 and float64 are summed in their own type, the half types in float32; in a fixed order: deterministic.
// Floor: memory, one read of each input and one write of each output.
#include <fovea/kernels/cuda/conv_functions.h>

#include <algorithm>

#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads_per_block = 256;
constexpr int strip = 4;              // pixels of a thread, beside each other
constexpr int strips_per_thread = 4;  // one after the other: the weights are worth it
constexpr int most_row_taps = 4;
constexpr size_t most_weight_bytes = 48 << 10;  // of shared memory

// How a block's threads are shared out: to `lanes` neighbours of `width` channels each, and to places beside each other.
template <int width>
struct Block {
  static constexpr int lanes = width > 1 ? 8 : 32, lines = threads_per_block / lanes, channels = lanes * width;
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % lanes; }
  __device__ static int line() { return static_cast<int>(threadIdx.x) / lanes; }
};

// --- over pixels ---

struct ChannelProduct {
  WindowAxis vertical, horizontal;
  int32_t rows = 0, columns = 0, channels = 0, taps = 0;  // of out
  int32_t strips = 0, strips_per_row = 0, chunks = 0;     // of all images of the launch; of a row; of channels
  bool is_mirrored = false;
  int64_t source_image = 0;
  FastDivide by_chunks, by_strips, by_rows;
  FastDivide by_stride_h, by_stride_w;  // of add_scattered_windows
};

template <class A, int width>
__device__ void load_weights(A (&w)[width], const A* from) {
  constexpr int n = width < full_pack<A> ? width : full_pack<A>;
#pragma unroll
  for (int first = 0; first < width; first += n) {
    const Pack<A, n> part = load_pack<A, n>(from + first, 0);
#pragma unroll
    for (int c = 0; c < n; ++c) w[first + c] = part[c];
  }
}

// A thread's view of what it multiplies: its channels of the source's image and of the block's weights.
template <class T, int width>
struct Operands {
  using A = Accumulate<T>;
  const ChannelProduct& p;
  const T* source;
  const A* weights;

  __device__ bool is_row(int32_t row) const { return static_cast<uint32_t>(row) < static_cast<uint32_t>(p.vertical.size); }
  __device__ bool is_column(int32_t column) const { return static_cast<uint32_t>(column) < static_cast<uint32_t>(p.horizontal.size); }
  __device__ void load_tap(A (&w)[width], int32_t tap) const { load_weights(w, weights + tap * Block<width>::channels); }
  __device__ Pack<T, width> pixel(int32_t row, int32_t column) const {
    return load_pack<T, width>(source + (static_cast<int64_t>(row) * p.horizontal.size + column) * p.channels, 0);
  }
};

template <class T, int width>
__device__ void add_product(Accumulate<T> (&sums)[width], const Accumulate<T> (&w)[width], const Pack<T, width>& values) {
#pragma unroll
  for (int c = 0; c < width; ++c) sums[c] += w[c] * widen(values[c]);
}

// kernel: taps of a square kernel whose steps and deltas are one, 0 for any other.
template <class T, int width, int kernel>
__device__ void add_windows(const Operands<T, width>& o, int32_t out_row, int32_t first_column, Accumulate<T> (&sums)[strip][width]) {
  using A = Accumulate<T>;
  const ChannelProduct& p = o.p;
  if constexpr (kernel > 0) {
    const int32_t left = first_column + p.horizontal.base;
#pragma unroll(kernel == 3 ? 3 : 1)
    for (int r = 0; r < kernel; ++r) {
      const int32_t row = out_row + p.vertical.base + r;
      if (!o.is_row(row)) continue;
      A w[kernel][width];
#pragma unroll
      for (int s = 0; s < kernel; ++s) o.load_tap(w[s], r * kernel + s);
#pragma unroll
      for (int i = 0; i < strip + kernel - 1; ++i) {  // a pixel of the source, for all windows it lies in
        if (!o.is_column(left + i)) continue;
        const Pack<T, width> values = o.pixel(row, left + i);
#pragma unroll
        for (int v = 0; v < strip; ++v)
          if (i - v >= 0 && i - v < kernel) add_product<T>(sums[v], w[i - v], values);
      }
    }
  } else {
    for (int32_t r = 0; r < p.vertical.taps; ++r) {
      const int32_t row = p.vertical.step * out_row + p.vertical.base + r * p.vertical.delta;
      if (!o.is_row(row)) continue;
      for (int32_t s = 0; s < p.horizontal.taps; ++s) {
        A w[width];
        o.load_tap(w, r * p.horizontal.taps + s);
#pragma unroll
        for (int v = 0; v < strip; ++v) {
          const int32_t column = p.horizontal.step * (first_column + v) + p.horizontal.base + s * p.horizontal.delta;
          if (o.is_column(column)) add_product<T>(sums[v], w, o.pixel(row, column));
        }
      }
    }
  }
}

// The window of a pixel of dx with strides: row p of dy meets it through tap r when p * stride = h + pad - r * dilation comes out even.
template <class T, int width>
__device__ void add_scattered_windows(const Operands<T, width>& o, int32_t out_row, int32_t first_column,
                                      Accumulate<T> (&sums)[strip][width]) {
  const ChannelProduct& p = o.p;
  for (int32_t r = 0; r < p.vertical.taps; ++r) {
    const int32_t row = whole_quotient(out_row + p.vertical.base + r * p.vertical.delta, p.by_stride_h);
    if (!o.is_row(row)) continue;
    for (int32_t s = 0; s < p.horizontal.taps; ++s) {
      Accumulate<T> w[width];
      o.load_tap(w, r * p.horizontal.taps + s);
#pragma unroll
      for (int v = 0; v < strip; ++v) {
        const int32_t column = whole_quotient(first_column + v + p.horizontal.base + s * p.horizontal.delta, p.by_stride_w);
        if (o.is_column(column)) add_product<T>(sums[v], w, o.pixel(row, column));
      }
    }
  }
}

// blockIdx.x: strips, and chunks of channels, these fastest.
template <class T, int width, int kernel, bool is_scattered>
__global__ void __launch_bounds__(threads_per_block, 2)
    channel_product(ChannelProduct p, const T* source, const T* weight, const T* bias, T* out) {
  using A = Accumulate<T>;
  using B = Block<width>;
  A* const weights = &shared<A>();  // [tap][channel]
  const int32_t group = static_cast<int32_t>(p.by_chunks.quotient(blockIdx.x)),
                first_channel = (static_cast<int32_t>(blockIdx.x) - group * p.chunks) * B::channels;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.taps * B::channels; i += threads_per_block) {
    const int32_t tap = i / B::channels, channel = first_channel + i % B::channels;
    weights[i] =
        channel < p.channels ? widen(weight[static_cast<int64_t>(channel) * p.taps + (p.is_mirrored ? p.taps - 1 - tap : tap)]) : A(0);
  }
  __syncthreads();
  const int32_t channel = first_channel + B::lane() * width;
  if (channel >= p.channels) return;
  A start[width] = {};
  if (bias) {
#pragma unroll
    for (int c = 0; c < width; ++c) start[c] = widen(bias[channel + c]);
  }
  for (int turn = 0; turn < strips_per_thread; ++turn) {
    const int64_t number = (static_cast<int64_t>(group) * strips_per_thread + turn) * B::lines + B::line();
    if (number >= p.strips) return;
    const int32_t line = static_cast<int32_t>(p.by_strips.quotient(static_cast<uint32_t>(number))),
                  first_column = (static_cast<int32_t>(number) - line * p.strips_per_row) * strip;
    const int32_t image = static_cast<int32_t>(p.by_rows.quotient(static_cast<uint32_t>(line))), row = line - image * p.rows;
    const Operands<T, width> operands{p, source + image * p.source_image + channel, weights + B::lane() * width};
    A sums[strip][width] = {};
    if constexpr (is_scattered) add_scattered_windows(operands, row, first_column, sums);
    else add_windows<T, width, kernel>(operands, row, first_column, sums);
    T* const to = out + (static_cast<int64_t>(line) * p.columns + first_column) * p.channels + channel;
#pragma unroll
    for (int v = 0; v < strip; ++v) {
      if (first_column + v >= p.columns) continue;
      Pack<T, width> result;
#pragma unroll
      for (int c = 0; c < width; ++c) result[c] = narrow<T>(sums[v][c] + start[c]);
      store_pack(to + static_cast<int64_t>(v) * p.channels, 0, result);
    }
  }
}

template <class T, int width>
void run_channels(Queue queue, const char* name, bool is_scattered, ChannelProduct p, int64_t images, const T* source, const T* weight,
                  const T* bias, T* out) {
  using B = Block<width>;
  p.strips_per_row = ceil_div(p.columns, strip);
  p.chunks = ceil_div(p.channels, B::channels);
  p.source_image = static_cast<int64_t>(p.vertical.size) * p.horizontal.size * p.channels;
  p.by_chunks = divide_by(p.chunks);
  p.by_strips = divide_by(p.strips_per_row);
  p.by_rows = divide_by(p.rows);
  const bool is_dense = p.vertical.step == 1 && p.horizontal.step == 1 && p.vertical.delta == 1 && p.horizontal.delta == 1 &&
                        p.vertical.taps == p.horizontal.taps;
  const int kernel = is_dense && !is_scattered ? p.vertical.taps : 0;
  const int64_t image_strips = static_cast<int64_t>(p.rows) * p.strips_per_row,
                out_image = static_cast<int64_t>(p.rows) * p.columns * p.channels;
  for_each_run_of_planes(images, image_strips * p.chunks, [&](int64_t first, int64_t count) {
    p.strips = static_cast<int32_t>(count * image_strips);
    const int64_t blocks = ceil_div<int64_t>(p.strips, B::lines * strips_per_thread) * p.chunks;
    const Grid grid{blocks_of(blocks), dim3(threads_per_block), sizeof(Accumulate<T>) * static_cast<size_t>(p.taps) * B::channels};
    const auto start = [&](auto function) {
      launch(queue, name, grid, function, p, source + first * p.source_image, weight, bias, out + first * out_image);
    };
    if (is_scattered) start(channel_product<T, width, 0, true>);
    else if (kernel == 3) start(channel_product<T, width, 3, false>);
    else if (kernel == 5) start(channel_product<T, width, 5, false>);
    else if (kernel == 7) start(channel_product<T, width, 7, false>);
    else start(channel_product<T, width, 0, false>);
  });
}

// As wide as all addresses and the number of channels allow.
template <class T, class F>
void dispatch_width(int64_t channels, std::initializer_list<const void*> pointers, F&& f) {
  const bool has_packs =
      channels % full_pack<T> == 0 && std::all_of(pointers.begin(), pointers.end(), [](const void* p) { return is_aligned(p); });
  if (has_packs) f(std::integral_constant<int, full_pack<T>>());
  else f(std::integral_constant<int, 1>());
}

// --- gradient of the weight ---

struct ChannelTaps {
  WindowAxis vertical, horizontal;
  int32_t channels = 0, taps = 0, pieces = 1;  // pieces: a row of the kernel is cut into as many
  int32_t pixels = 0, pixels_per_split = 0;
  int64_t source_image = 0, out_split = 0;
  FastDivide by_plane, by_columns;  // a pixel's number into image, row, column
};

// blockIdx: x a chunk of channels, y a piece of the kernel, z the part of the pixels.
template <class T, int width, int tall, int wide>
__global__ void __launch_bounds__(threads_per_block, 1) channel_tap_sums(ChannelTaps p, const T* x, const T* dy, Accumulate<T>* out) {
  using A = Accumulate<T>;
  using B = Block<width>;
  constexpr int warps = threads_per_block / warp_size;
  auto& scratch = shared<A[warps][B::channels]>();
  const int32_t first_channel = static_cast<int32_t>(blockIdx.x) * B::channels, channel = first_channel + B::lane() * width;
  const int32_t piece_row = static_cast<int32_t>(blockIdx.y) / p.pieces, first_r = piece_row * tall,
                first_s = (static_cast<int32_t>(blockIdx.y) - piece_row * p.pieces) * wide;
  const int64_t begin = static_cast<int64_t>(blockIdx.z) * p.pixels_per_split;
  const int64_t end = begin + p.pixels_per_split < p.pixels ? begin + p.pixels_per_split : p.pixels;
  A sums[tall][wide][width] = {};
  if (channel < p.channels)
    for (int64_t number = begin + B::line(); number < end; number += B::lines) {
      const int32_t image = static_cast<int32_t>(p.by_plane.quotient(static_cast<uint32_t>(number))),
                    pixel = static_cast<int32_t>(number) - image * static_cast<int32_t>(p.by_plane.divisor);
      const int32_t i = static_cast<int32_t>(p.by_columns.quotient(static_cast<uint32_t>(pixel))),
                    j = pixel - i * static_cast<int32_t>(p.by_columns.divisor);
      const Pack<T, width> pack = load_pack<T, width>(dy + number * p.channels + channel, 0);
      A gradient[width];
#pragma unroll
      for (int c = 0; c < width; ++c) gradient[c] = widen(pack[c]);
      const int32_t top = p.vertical.step * i + p.vertical.base + first_r * p.vertical.delta,
                    left = p.horizontal.step * j + p.horizontal.base + first_s * p.horizontal.delta;
      const T* const from = x + image * p.source_image + channel;
#pragma unroll
      for (int a = 0; a < tall; ++a)
#pragma unroll
        for (int b = 0; b < wide; ++b) {
          const int32_t row = top + a * p.vertical.delta, column = left + b * p.horizontal.delta;
          const bool is_inside = first_s + b < p.horizontal.taps && static_cast<uint32_t>(row) < static_cast<uint32_t>(p.vertical.size) &&
                                 static_cast<uint32_t>(column) < static_cast<uint32_t>(p.horizontal.size);
          if (is_inside)
            add_product<T>(sums[a][b], gradient,
                           load_pack<T, width>(from + (static_cast<int64_t>(row) * p.horizontal.size + column) * p.channels, 0));
        }
    }

  // Over the lines of a warp, and then over warps, in order.
  out += static_cast<int64_t>(blockIdx.z) * p.out_split;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
#pragma unroll
  for (int a = 0; a < tall; ++a)
#pragma unroll
    for (int b = 0; b < wide; ++b) {
#pragma unroll
      for (int c = 0; c < width; ++c) {
        A sum = sums[a][b][c];
#pragma unroll
        for (int distance = B::lanes; distance < warp_size; distance *= 2) sum += __shfl_xor_sync(all_lanes, sum, distance);
        if (static_cast<int>(threadIdx.x) % warp_size < B::lanes) scratch[warp][B::lane() * width + c] = sum;
      }
      __syncthreads();
      const int32_t own = static_cast<int32_t>(threadIdx.x);
      if (own < B::channels && first_channel + own < p.channels && first_s + b < p.horizontal.taps) {
        A total = scratch[0][own];
#pragma unroll
        for (int other = 1; other < warps; ++other) total += scratch[other][own];
        out[static_cast<int64_t>(first_channel + own) * p.taps + (first_r + a) * p.horizontal.taps + first_s + b] = total;
      }
      __syncthreads();
    }
}

template <class T, int width, int tall, int wide>
void launch_tap_sums(Queue queue, ChannelTaps p, int64_t splits, const T* x, const T* dy, Accumulate<T>* out) {
  using B = Block<width>;
  p.pieces = ceil_div(p.horizontal.taps, wide);
  const Grid grid{blocks_of(ceil_div(p.channels, B::channels), ceil_div(p.vertical.taps, tall) * p.pieces, splits), dim3(threads_per_block),
                  sizeof(Accumulate<T>) * (threads_per_block / warp_size) * B::channels};
  launch(queue, "conv2d_backward_weight_depthwise_last", grid, channel_tap_sums<T, width, tall, wide>, p, x, dy, out);
}

template <class T>
void backward_weight(Queue queue, const ConvGeometry& g, const T* x, const T* dy, int64_t splits, Accumulate<T>* out) {
  const int64_t pixels = g.n * g.out_h() * g.out_w();
  check<ShapeError>(pixels < index_limit, "conv2d_backward_weight: ", pixels,
                    " pixels are too many for the CUDA kernels, which take fewer than 2^31; use smaller batches");
  ChannelTaps p;
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.channels = static_cast<int32_t>(g.c);
  p.taps = static_cast<int32_t>(g.r * g.s);
  p.pixels = static_cast<int32_t>(pixels);
  p.pixels_per_split = static_cast<int32_t>(ceil_div(std::max<int64_t>(pixels, 1), splits));
  p.source_image = g.h * g.w * g.c;
  p.out_split = g.weights();
  p.by_plane = divide_by(g.out_h() * g.out_w());
  p.by_columns = divide_by(g.out_w());
  dispatch_width<T>(g.c, {x, dy}, [&](auto width) {
    if (g.r == 3 && g.s == 3) launch_tap_sums<T, width.value, 3, 3>(queue, p, splits, x, dy, out);
    else launch_tap_sums<T, width.value, 1, most_row_taps>(queue, p, splits, x, dy, out);
  });
}

}  // namespace

bool takes_depthwise_last(const ConvGeometry& g, const ConstView& x, const ConstView& y) {
  const bool lies_last = x.is_channels_last() && y.is_channels_last() && !(x.is_contiguous() && y.is_contiguous());
  return lies_last && g.k == g.c &&
         static_cast<size_t>(g.r * g.s) * Block<full_pack<float16>>::channels * sizeof(float) <= most_weight_bytes;
}

void depthwise_last_forward(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& weight, const ConstView& bias,
                            const View& y) {
  ChannelProduct p;
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.rows = static_cast<int32_t>(g.out_h());
  p.columns = static_cast<int32_t>(g.out_w());
  p.channels = static_cast<int32_t>(g.c);
  p.taps = static_cast<int32_t>(g.r * g.s);
  dispatch_floating(y.dtype, "conv2d", [&](auto zero) {
    using T = decltype(zero);
    dispatch_width<T>(g.c, {x.data, y.data}, [&](auto width) {
      run_channels<T, width.value>(queue, "conv2d_forward_depthwise_last", false, p, g.n, x.as<T>(), weight.as<T>(), bias.as<T>(),
                                   y.as<T>());
    });
  });
}

void depthwise_last_backward_data(Queue queue, const ConvGeometry& g, const ConstView& dy, const ConstView& weight, const View& dx) {
  ChannelProduct p;
  p.vertical = mirrored_vertical_of(g);
  p.horizontal = mirrored_horizontal_of(g);
  p.rows = static_cast<int32_t>(g.h);
  p.columns = static_cast<int32_t>(g.w);
  p.channels = static_cast<int32_t>(g.c);
  p.taps = static_cast<int32_t>(g.r * g.s);
  p.is_mirrored = true;
  p.by_stride_h = divide_by(g.stride_h);
  p.by_stride_w = divide_by(g.stride_w);
  dispatch_floating(dx.dtype, "conv2d_backward_data", [&](auto zero) {
    using T = decltype(zero);
    dispatch_width<T>(g.c, {dy.data, dx.data}, [&](auto width) {
      run_channels<T, width.value>(queue, "conv2d_backward_data_depthwise_last", g.stride_h > 1 || g.stride_w > 1, p, g.n, dy.as<T>(),
                                   weight.as<T>(), static_cast<const T*>(nullptr), dx.as<T>());
    });
  });
}

void depthwise_last_backward_weight(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& dy, int64_t splits,
                                    void* sums) {
  dispatch_floating(dy.dtype, "conv2d_backward_weight", [&](auto zero) {
    using T = decltype(zero);
    backward_weight(queue, g, x.as<T>(), dy.as<T>(), splits, static_cast<Accumulate<T>*>(sums));
  });
}

}  // namespace fovea::kernels::cuda
