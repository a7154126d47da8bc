// What convolutions read, copied from tensors that lie otherwise:
//   channels  [n, h, w, group, channel], each group padded with zeros to whole copies, from [n,c,h,w] or [n,h,w,c]
//   weights   [group, row, r, s, channel], each row padded with zeros, from [k,c/groups,r,s] of any strides
//   and, for the kernels of float32 and float64, [group, r, s, channel, row], each channel's rows padded with zeros, from [k,c/groups,r,s]
// (conv_functions.h says what rows and channels are.)
// Overwrites, padding included. Bits are moved as they are. Deterministic: nothing is added up.
// Floor: reading and writing every element once. Tiles of channels by pixels go through shared memory, so that neighbouring threads read neighbouring
// elements and write neighbouring elements, though these are not the same neighbours.
#include <fovea/kernels/cuda/conv_functions.h>

#include <fovea/kernels/cuda/core/pack.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads_per_block = 256;
constexpr int tile = 64;                                // channels, and pixels, of a block
constexpr int pack = 4;                                 // elements written at once: groups are padded to a multiple of it

struct ChannelCopy {
  int32_t images = 0, pixels = 0, width = 0;            // width: elements written for a pixel, groups * padded
  int32_t c = 0, padded = 0;                            // channels of a group
  int64_t from_image = 0, from_pixel = 0, from_channel = 0;
  FastDivide by_padded, by_pixel_tiles, by_channel_tiles, by_pixels;

  // The channel of the tensor that is written to place `at` of a pixel; -1 in the padding.
  __device__ int32_t channel(int32_t at) const {
    const int32_t group = static_cast<int32_t>(by_padded.quotient(static_cast<uint32_t>(at))), within = at - group * padded;
    return within < c ? group * c + within : -1;
  }
};

template <class Bits>
struct ChannelTile {
  Bits values[tile][tile + 4 / sizeof(Bits)];           // [channel][pixel]; one word more than a row has spreads a column over the banks
};

// blockIdx.x: image, tile of pixels, tile of channels, the last fastest.
template <class Bits>
__global__ void __launch_bounds__(threads_per_block) copy_channel_tiles(ChannelCopy p, const Bits* from, Bits* to) {
  auto& shared_memory = shared<ChannelTile<Bits>>();
  const int32_t column = static_cast<int32_t>(p.by_channel_tiles.quotient(blockIdx.x));
  const int32_t image = static_cast<int32_t>(p.by_pixel_tiles.quotient(static_cast<uint32_t>(column)));
  const int32_t first_channel = (static_cast<int32_t>(blockIdx.x) - column * static_cast<int32_t>(p.by_channel_tiles.divisor)) * tile;
  const int32_t first_pixel = (column - image * static_cast<int32_t>(p.by_pixel_tiles.divisor)) * tile;
  from += image * p.from_image;
  to += static_cast<int64_t>(image) * p.pixels * p.width;

  const bool is_planar = p.from_pixel == 1;
  const int32_t channels = min(tile, p.width - first_channel), pixels = min(tile, p.pixels - first_pixel);
  const int32_t fast = static_cast<int32_t>(threadIdx.x) % tile;
  for (int32_t slow = static_cast<int32_t>(threadIdx.x) / tile; slow < (is_planar ? channels : pixels); slow += threads_per_block / tile) {
    const int32_t at = is_planar ? slow : fast, pixel = is_planar ? fast : slow;
    if (at >= channels || pixel >= pixels) continue;
    const int32_t channel = p.channel(first_channel + at);
    shared_memory.values[at][pixel] = channel < 0 ? Bits(0) : from[channel * p.from_channel + (first_pixel + pixel) * p.from_pixel];
  }
  __syncthreads();
  constexpr int packs = tile / pack;
  const int32_t at = static_cast<int32_t>(threadIdx.x) % packs * pack;
  for (int32_t pixel = static_cast<int32_t>(threadIdx.x) / packs; pixel < pixels; pixel += threads_per_block / packs) {
    if (at >= channels) continue;
    Pack<Bits, pack> values;
#pragma unroll
    for (int v = 0; v < pack; ++v) values[v] = shared_memory.values[at + v][pixel];
    store_pack(to + static_cast<int64_t>(first_pixel + pixel) * p.width + first_channel + at, 0, values);
  }
}

// One group of up to four channels: a thread for each pixel.
template <class Bits>
__global__ void __launch_bounds__(threads_per_block) copy_few_channels(ChannelCopy p, const Bits* from, Bits* to) {
  const int64_t number = global_thread();
  if (number >= static_cast<int64_t>(p.images) * p.pixels) return;
  const int32_t image = static_cast<int32_t>(p.by_pixels.quotient(static_cast<uint32_t>(number))), pixel = static_cast<int32_t>(number) - image * p.pixels;
  Pack<Bits, pack> values;
#pragma unroll
  for (int v = 0; v < pack; ++v) values[v] = v < p.c ? from[image * p.from_image + v * p.from_channel + pixel * p.from_pixel] : Bits(0);
  store_pack(to, number, values);
}

template <class Bits>
void copy_channels(Queue queue, ChannelCopy p, const Bits* from, Bits* to) {
  if (p.width == pack && static_cast<int64_t>(p.images) * p.pixels < index_limit)
    return launch(queue, "conv2d_copy_few_channels", thread_each(static_cast<int64_t>(p.images) * p.pixels, threads_per_block), copy_few_channels<Bits>, p, from, to);
  const int64_t pixel_tiles = ceil_div(p.pixels, tile), channel_tiles = ceil_div(p.width, tile), blocks = p.images * pixel_tiles * channel_tiles;
  check<ShapeError>(blocks < index_limit, "conv2d: ", blocks, " tiles to be copied are more than one launch can have");
  p.by_pixel_tiles = divide_by(pixel_tiles);
  p.by_channel_tiles = divide_by(channel_tiles);
  launch(queue, "conv2d_copy_channels", Grid{dim3(static_cast<unsigned>(blocks)), dim3(threads_per_block), sizeof(ChannelTile<Bits>)}, copy_channel_tiles<Bits>, p, from, to);
}

// --- weights ---

struct WeightCopy {
  int64_t numel = 0;
  int32_t rows = 0, row_length = 0, channels = 0, padded = 0, taps = 0;       // of a group
  bool is_transposed = false;                           // rows are x's channels
  int64_t k = 0, c = 0, r = 0, s = 0;                   // strides
  FastDivide by_row_length, by_rows, by_padded, by_taps_w;
};

__device__ inline int32_t quotient(const FastDivide& by, int32_t n) { return static_cast<int32_t>(by.quotient(static_cast<uint32_t>(n))); }

template <class Bits>
__global__ void __launch_bounds__(threads_per_block) copy_weights(WeightCopy p, const Bits* from, Bits* to) {
  for (int64_t i = global_thread(); i < p.numel; i += global_threads()) {
    const int32_t line = quotient(p.by_row_length, static_cast<int32_t>(i)), within = static_cast<int32_t>(i) - line * p.row_length;
    const int32_t group = quotient(p.by_rows, line), row = line - group * p.rows;
    const int32_t tap = quotient(p.by_padded, within), channel = within - tap * p.padded;
    Bits value = 0;
    if (tap < p.taps && channel < p.channels) {
      const int32_t k = p.is_transposed ? group * p.channels + channel : group * p.rows + row, c = p.is_transposed ? row : channel;
      const int32_t r = quotient(p.by_taps_w, tap), s = tap - r * static_cast<int32_t>(p.by_taps_w.divisor);
      value = from[k * p.k + c * p.c + r * p.r + s * p.s];
    }
    to[i] = value;
  }
}

struct WeightPack {
  int32_t groups = 1, rows = 0, channels = 0, taps = 0, pitch = 0;
  FastDivide by_taps, by_row_tiles, by_column_tiles, by_pitch, by_channels;
};

constexpr int weight_tile = 32;

template <class Bits>
struct TransposedTile {
  Bits values[weight_tile][weight_tile + 1];
};

// Forward, where a row of the weights has its channels and taps beside each other: tiles of rows by (channel, tap) are turned over in shared memory. blockIdx.x: group, tile
// of rows, tile of columns, the last fastest.
template <class Bits>
__global__ void __launch_bounds__(threads_per_block) pack_transposed(WeightPack p, const Bits* from, Bits* to) {
  auto& turned = shared<TransposedTile<Bits>>();
  const int32_t line = quotient(p.by_column_tiles, static_cast<int32_t>(blockIdx.x)), group = quotient(p.by_row_tiles, line), columns = p.channels * p.taps;
  const int32_t first_column = (static_cast<int32_t>(blockIdx.x) - line * static_cast<int32_t>(p.by_column_tiles.divisor)) * weight_tile;
  const int32_t first_row = (line - group * static_cast<int32_t>(p.by_row_tiles.divisor)) * weight_tile;
  const int fast = static_cast<int>(threadIdx.x) % weight_tile, first_slow = static_cast<int>(threadIdx.x) / weight_tile;
  for (int slow = first_slow; slow < weight_tile; slow += threads_per_block / weight_tile) {
    const int32_t row = first_row + slow, column = first_column + fast;
    turned.values[slow][fast] = row < p.rows && column < columns ? from[(static_cast<int64_t>(group) * p.rows + row) * columns + column] : Bits(0);
  }
  __syncthreads();
  for (int slow = first_slow; slow < weight_tile; slow += threads_per_block / weight_tile) {
    const int32_t row = first_row + fast, column = first_column + slow;
    if (row >= p.pitch || column >= columns) continue;
    const int32_t channel = quotient(p.by_taps, column), tap = column - channel * p.taps;
    to[((static_cast<int64_t>(group) * p.taps + tap) * p.channels + channel) * p.pitch + row] = turned.values[fast][slow];
  }
}

// Backwards, where the rows are beside each other but for the taps: a thread for the taps of a row and channel, which its neighbours find in the L1 cache.
template <class Bits>
__global__ void __launch_bounds__(threads_per_block) pack_straight(WeightPack p, int32_t count, const Bits* from, Bits* to) {
  for (int64_t i = global_thread(); i < count; i += global_threads()) {
    const int32_t line = quotient(p.by_pitch, static_cast<int32_t>(i)), row = static_cast<int32_t>(i) - line * p.pitch;
    const int32_t group = quotient(p.by_channels, line), channel = line - group * p.channels;
    for (int32_t tap = 0; tap < p.taps; ++tap)
      to[((static_cast<int64_t>(group) * p.taps + tap) * p.channels + channel) * p.pitch + row] =
          row < p.rows ? from[(static_cast<int64_t>(line) * p.rows + row) * p.taps + tap] : Bits(0);
  }
}

// Calls f with a number of so many bytes.
template <class F>
void dispatch_bits(int64_t size, F&& f) {
  if (size == 2) f(uint16_t{});
  else f(uint32_t{});
}

}  // namespace

bool needs_copy(const Images<const void*>& images, const void* first, int64_t size, int64_t groups, int64_t c, int64_t padded) {
  const bool is_there = images.channel == 1 && images.pixel == groups * c && c == padded;
  return !is_there || !is_aligned(first, static_cast<size_t>(std::min<int64_t>(16, padded * size)));
}

void copy_channels(Queue queue, int64_t size, const Images<const void*>& from, int64_t count, int64_t pixels, int64_t groups, int64_t c, int64_t padded, void* to) {
  ChannelCopy p;
  p.images = static_cast<int32_t>(count);
  p.pixels = static_cast<int32_t>(pixels);
  p.width = static_cast<int32_t>(groups * padded);
  p.c = static_cast<int32_t>(c);
  p.padded = static_cast<int32_t>(padded);
  p.from_image = from.image;
  p.from_pixel = from.pixel;
  p.from_channel = from.channel;
  p.by_padded = divide_by(padded);
  p.by_pixels = divide_by(pixels);
  dispatch_bits(size, [&](auto zero) {
    using Bits = decltype(zero);
    copy_channels(queue, p, static_cast<const Bits*>(from.data), static_cast<Bits*>(to));
  });
}

bool needs_weight_copy(const ConvGeometry& g, const ConvLayout& layout, const ConstView& weight) {
  const int64_t c = g.group_c(), expected[] = {g.r * g.s * c, 1, g.s * c, c};
  for (int axis = 0; axis < 4; ++axis)
    if (weight.size(axis) != 1 && weight.stride(axis) != expected[axis]) return true;
  return layout.x_channels != c || layout.weight_row != g.r * g.s * c || !is_aligned(weight.data);
}

void copy_weights(Queue queue, const ConvGeometry& g, const ConvLayout& layout, ConvPass pass, const ConstView& weight, void* to) {
  WeightCopy p;
  p.is_transposed = pass == ConvPass::backward_data;
  p.rows = static_cast<int32_t>(p.is_transposed ? g.group_c() : g.group_k());
  p.channels = static_cast<int32_t>(p.is_transposed ? g.group_k() : g.group_c());
  p.padded = static_cast<int32_t>(p.is_transposed ? layout.y_channels : layout.x_channels);
  p.row_length = static_cast<int32_t>(layout.weight_row);
  p.taps = static_cast<int32_t>(g.r * g.s);
  p.numel = g.groups * p.rows * layout.weight_row;
  check<ShapeError>(p.numel < index_limit, "conv2d: ", p.numel, " padded weights are too many for the CUDA kernels, which take fewer than 2^31");
  p.k = weight.stride(0);
  p.c = weight.stride(1);
  p.r = weight.stride(2);
  p.s = weight.stride(3);
  p.by_row_length = divide_by(p.row_length);
  p.by_rows = divide_by(p.rows);
  p.by_padded = divide_by(p.padded);
  p.by_taps_w = divide_by(g.s);
  dispatch_bits(size_of(weight.dtype), [&](auto zero) {
    using Bits = decltype(zero);
    launch(queue, "conv2d_copy_weights", grid_for(p.numel, threads_per_block), copy_weights<Bits>, p, weight.as<Bits>(), static_cast<Bits*>(to));
  });
}

void pack_weights(Queue queue, const ConvGeometry& g, ConvPass pass, int64_t size, int64_t pitch, const void* weight, void* to) {
  const bool is_forward = pass == ConvPass::forward;
  WeightPack p;
  p.groups = static_cast<int32_t>(g.groups);
  p.rows = static_cast<int32_t>(is_forward ? g.group_k() : g.group_c());
  p.channels = static_cast<int32_t>(is_forward ? g.group_c() : g.group_k());
  p.taps = static_cast<int32_t>(g.r * g.s);
  p.pitch = static_cast<int32_t>(pitch);
  const int64_t packed = g.groups * p.taps * p.channels * pitch;
  check<ShapeError>(packed < index_limit, "conv2d: ", packed, " padded weights are too many for the CUDA kernels, which take fewer than 2^31");
  p.by_taps = divide_by(p.taps);
  p.by_pitch = divide_by(pitch);
  p.by_channels = divide_by(p.channels);
  const auto pack = [&](auto zero) {
    using Bits = decltype(zero);
    const Bits* const from = static_cast<const Bits*>(weight);
    Bits* const packs = static_cast<Bits*>(to);
    const int32_t count = p.groups * p.channels * p.pitch;
    if (!is_forward) return launch(queue, "conv2d_pack_weights", grid_for(count, threads_per_block), pack_straight<Bits>, p, count, from, packs);
    const int64_t row_tiles = ceil_div<int64_t>(pitch, weight_tile), column_tiles = ceil_div<int64_t>(int64_t{p.channels} * p.taps, weight_tile);
    p.by_row_tiles = divide_by(row_tiles);
    p.by_column_tiles = divide_by(column_tiles);
    launch(queue, "conv2d_pack_weights", Grid{blocks_of(g.groups * row_tiles * column_tiles), dim3(threads_per_block), sizeof(TransposedTile<Bits>)}, pack_transposed<Bits>, p, from, packs);
  };
  if (size == 4) pack(uint32_t{});
  else pack(uint64_t{});
}

}  // namespace fovea::kernels::cuda
