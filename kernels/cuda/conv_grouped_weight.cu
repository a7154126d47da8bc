// The gradient of the weight of a convolution in small groups, on tensor cores; conv.cu says what is computed. float16 and bfloat16, groups
// of 4, 8, 16 or 32 channels of x and as many of y. Sums in float32.
// A block sums over every so many-th tile of neighbouring pixels of y, for 32 channels and up to ten taps. It copies the tile of dy, and
// the patch of x that the tile's windows see, once, by cp.async into one of two stages, and takes all taps out of shared memory. Each of
// four warps multiplies eight channels of x, of two taps at once, by the channels of dy that are in their groups: all pixels of the tile,
// so that no sum is shared out. Groups that lie beside each other in one multiplication have sums of their own, so that a NaN stays in its
// group.
// Both operands lie [n,h,w,c] (conv_layout.cu copies what does not).
// The blocks' sums are parts, which a second kernel adds up in order (conv_tensor_weight.cu). Which tiles a part has depends on the
// geometry alone, and a slice of images goes on with the sums of the slice before it: neither slices nor how tensors lie change a bit.
// Overwrites. Deterministic.
// Floor: memory, reading x and dy once; patches overlap by what windows reach beyond their tile, 1.4 times x for 3 x 3.
#include <fovea/kernels/cuda/conv_functions.h>

#include <fovea/kernels/cuda/core/copy_ring.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int block_channels = 32, threads_per_block = block_channels / 8 * warp_size;  // a warp for each chunk of 8 channels of x
constexpr int block_taps = 10;
constexpr int copy_bytes = 16, pixel_copies = block_channels * 2 / copy_bytes;
constexpr int pixel_pitch = block_channels * 2 + 16;  // spreads neighbouring pixels over the banks
constexpr int step_pixels = 16;                       // that one mma sums over
constexpr int ring_stages = 2;

struct GroupedWeightProduct {
  int32_t channels = 0, group_channels = 0, chunks = 1;  // chunks: of block_channels
  WindowAxis vertical, horizontal;
  int32_t rows = 0, columns = 0;  // of y's pixels
  int32_t tile_h = 1, tile_w = 1, tiles_down = 1, tiles_across = 1, patch_h = 1, patch_w = 1;
  int32_t splits = 1, tiles = 0, first_part = 0;  // of this launch: its tiles, and the part that its first tile belongs to
  bool adds = false;                              // to what an earlier slice of images left in the parts
  int32_t part_row = 0, x_image = 0, dy_image = 0;
  int64_t part_split = 0;
  FastDivide by_across, by_down, by_patch_w, by_tile_w;

  __host__ __device__ int32_t steps() const { return ceil_div(tile_h * tile_w, step_pixels); }
  __host__ __device__ int32_t patch_bytes() const { return patch_h * patch_w * pixel_pitch; }
  __host__ __device__ int32_t stage_bytes() const {
    return patch_bytes() + steps() * step_pixels * (pixel_pitch + static_cast<int32_t>(sizeof(int32_t)));
  }
  size_t shared_bytes() const { return copy_bytes + static_cast<size_t>(ring_stages * stage_bytes()); }
};

// A stage of the ring, in shared memory.
struct Stage {
  unsigned char *patch, *dy;
  int32_t* windows;  // where the window of each pixel of the tile begins in the patch; -1 where there is no pixel
  __device__ Stage(const GroupedWeightProduct& p, unsigned char* memory)
      : patch(memory), dy(memory + p.patch_bytes()), windows(reinterpret_cast<int32_t*>(dy + p.steps() * step_pixels * pixel_pitch)) {}
};

template <class T>
__device__ void copy_tile(const GroupedWeightProduct& p, const Stage& stage, int32_t tile, int32_t first_channel, const T* x, const T* dy) {
  constexpr int width = copy_bytes / static_cast<int>(sizeof(T));
  const int32_t line = static_cast<int32_t>(p.by_across.quotient(static_cast<uint32_t>(tile))),
                image = static_cast<int32_t>(p.by_down.quotient(static_cast<uint32_t>(line)));
  const int32_t first_row = (line - image * p.tiles_down) * p.tile_h, first_column = (tile - line * p.tiles_across) * p.tile_w;
  const int32_t top = p.vertical.step * first_row + p.vertical.base, left = p.horizontal.step * first_column + p.horizontal.base;
  const int within = static_cast<int>(threadIdx.x) % pixel_copies, first_pixel = static_cast<int>(threadIdx.x) / pixel_copies;
  constexpr int pixels_beside = threads_per_block / pixel_copies;
  const int32_t channel = first_channel + within * width;
  const bool is_channel = channel < p.channels;

  const T* const from_x = x + static_cast<int64_t>(image) * p.x_image + channel;
  for (int32_t pixel = first_pixel; pixel < p.patch_h * p.patch_w; pixel += pixels_beside) {
    const int32_t i = static_cast<int32_t>(p.by_patch_w.quotient(static_cast<uint32_t>(pixel))), j = pixel - i * p.patch_w;
    const bool is_there = is_channel && static_cast<uint32_t>(top + i) < static_cast<uint32_t>(p.vertical.size) &&
                          static_cast<uint32_t>(left + j) < static_cast<uint32_t>(p.horizontal.size);
    copy_async<copy_bytes>(stage.patch + pixel * pixel_pitch + within * copy_bytes,
                           is_there ? from_x + ((top + i) * p.horizontal.size + left + j) * p.channels : x, is_there);
  }

  const T* const from_dy = dy + static_cast<int64_t>(image) * p.dy_image + channel;
  for (int32_t pixel = first_pixel; pixel < p.steps() * step_pixels; pixel += pixels_beside) {
    const int32_t i = static_cast<int32_t>(p.by_tile_w.quotient(static_cast<uint32_t>(pixel))), j = pixel - i * p.tile_w;
    const bool is_pixel = i < p.tile_h && first_row + i < p.rows && first_column + j < p.columns;
    copy_async<copy_bytes>(stage.dy + pixel * pixel_pitch + within * copy_bytes,
                           is_pixel && is_channel ? from_dy + ((first_row + i) * p.columns + first_column + j) * p.channels : dy,
                           is_pixel && is_channel);
    if (within == 0) stage.windows[pixel] = is_pixel ? (p.vertical.step * i * p.patch_w + p.horizontal.step * j) * pixel_pitch : -1;
  }
}

// A warp's sums. Each tile of mma's has eight channels of x with two taps, one below the other, by eight channels of y.
// pairs: of taps; wide: chunks of eight channels of y that share groups with the warp's eight of x.
template <class T, int pairs, int wide>
struct GroupedWeightSums {
  float sums[pairs][wide][4] = {};
  int tap_offsets[pairs];           // within the patch, of the tap whose rows this lane brings to ldmatrix
  int first_tap, first_x, first_y;  // the last two within the block's channels

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_size; }

  __device__ GroupedWeightSums(const GroupedWeightProduct& p, int first_tap) : first_tap(first_tap) {
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    first_x = 8 * warp;
    first_y = warp / wide * wide * 8;
#pragma unroll
    for (int pair = 0; pair < pairs; ++pair) {
      const int tap = first_tap + 2 * pair + lane() / 8 % 2, taps_w = p.horizontal.taps, r = tap / taps_w, s = tap - r * taps_w;
      const bool is_tap = tap < p.vertical.taps * taps_w;  // nobody looks at the sums of others
      tap_offsets[pair] = is_tap ? (p.vertical.delta * r * p.patch_w + p.horizontal.delta * s) * pixel_pitch : 0;
    }
  }

  // Where there is no pixel, zeros are read: not what lies there in the patch, which may be infinite.
  __device__ void multiply(const GroupedWeightProduct& p, const Stage& stage, const unsigned char* zeros) {
    const unsigned char* const patch = stage.patch + first_x * 2;
    const unsigned char* const dy =
        stage.dy + (lane() / 8 % 2 * 8 + lane() % 8) * pixel_pitch + (first_y + (wide > 1 ? lane() / 16 * 8 : 0)) * 2;
    const int32_t* const windows = stage.windows + lane() / 16 * 8 + lane() % 8;
    for (int step = 0; step < p.steps(); ++step) {
      const int32_t window = windows[step * step_pixels];
      uint32_t b[wide][2];
      load_b(b, dy + step * step_pixels * pixel_pitch);
#pragma unroll
      for (int pair = 0; pair < pairs; ++pair) {
        uint32_t a[4];
        load_matrix_x4_transposed(a, window >= 0 ? patch + window + tap_offsets[pair] : zeros);
#pragma unroll
        for (int v = 0; v < wide; ++v) cuda::multiply(sums[pair][v], a, b[v], T{});
      }
    }
  }

  // Calls f(sum, its place within a part) for those of the thread's sums that are of one group and of a tap.
  template <class F>
  __device__ void for_each(const GroupedWeightProduct& p, int32_t first_channel, const F& f) {
    const int32_t x_channel = first_channel + first_x + lane() / 4, group = x_channel / p.group_channels;
    if (x_channel >= p.channels) return;
#pragma unroll
    for (int pair = 0; pair < pairs; ++pair)
#pragma unroll
      for (int v = 0; v < wide; ++v)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int32_t y_channel = first_channel + first_y + 8 * v + lane() % 4 * 2 + i % 2, tap = first_tap + 2 * pair + i / 2;
          if (tap < p.vertical.taps * p.horizontal.taps && y_channel / p.group_channels == group)
            f(sums[pair][v][i], y_channel * p.part_row + tap * p.group_channels + x_channel - group * p.group_channels);
        }
  }

 private:
  __device__ static void load_b(uint32_t (&b)[wide][2], const unsigned char* row) {
    if constexpr (wide == 1) {
      load_matrix_x2_transposed(b[0], row);
    } else {
#pragma unroll
      for (int v = 0; v < wide; v += 2) {
        uint32_t both[4];
        load_matrix_x4_transposed(both, row + v * copy_bytes);
        b[v][0] = both[0], b[v][1] = both[1], b[v + 1][0] = both[2], b[v + 1][1] = both[3];
      }
    }
  }
};

// blockIdx: x the channels and, slower, the taps; y the part of the sum.
template <class T, int pairs, int wide>
__global__ void __launch_bounds__(threads_per_block, wide == 4 ? 3 : 4)
    grouped_weight_product(GroupedWeightProduct p, const T* x, const T* dy, float* parts) {
  unsigned char* const zeros = &shared<unsigned char>();
  if (threadIdx.x < copy_bytes / sizeof(uint32_t)) reinterpret_cast<uint32_t*>(zeros)[threadIdx.x] = 0;
  const int32_t chunk = static_cast<int32_t>(blockIdx.x) % p.chunks, first_channel = chunk * block_channels;
  const int32_t part = static_cast<int32_t>(blockIdx.y),
                first_tile = part >= p.first_part ? part - p.first_part : part - p.first_part + p.splits;
  const auto stage_of = [&](int stage) { return Stage(p, zeros + copy_bytes + stage * p.stage_bytes()); };
  GroupedWeightSums<T, pairs, wide> product(p, static_cast<int>(blockIdx.x) / p.chunks * block_taps);
  parts += static_cast<int64_t>(part) * p.part_split;
  if (p.adds) product.for_each(p, first_channel, [&](float& sum, int32_t place) { sum = parts[place]; });
  run_ring<ring_stages>(
      first_tile < p.tiles ? (p.tiles - first_tile + p.splits - 1) / p.splits : 0,
      [&](int stage, int t) { copy_tile(p, stage_of(stage), first_tile + t * p.splits, first_channel, x, dy); },
      [&](int stage) { product.multiply(p, stage_of(stage), zeros); });
  product.for_each(p, first_channel, [&](float& sum, int32_t place) { parts[place] = sum; });
}

template <class T>
void launch_product(Queue queue, const ConvPlan& plan, const GroupedWeightProduct& p, const void* x, const void* dy, float* parts) {
  const int32_t taps = p.vertical.taps * p.horizontal.taps;
  const Grid grid{blocks_of(int64_t{p.chunks} * ceil_div(taps, block_taps), p.splits), dim3(threads_per_block), p.shared_bytes()};
  const auto start = [&](auto kernel) {
    launch(queue, plan.name, grid, kernel, p, static_cast<const T*>(x), static_cast<const T*>(dy), parts);
  };
  if (taps <= 2) {
    if (p.group_channels <= 8) start(grouped_weight_product<T, 1, 1>);
    else if (p.group_channels == 16) start(grouped_weight_product<T, 1, 2>);
    else start(grouped_weight_product<T, 1, 4>);
    return;
  }
  if (p.group_channels <= 8) start(grouped_weight_product<T, block_taps / 2, 1>);
  else if (p.group_channels == 16) start(grouped_weight_product<T, block_taps / 2, 2>);
  else start(grouped_weight_product<T, block_taps / 2, 4>);
}

GroupedWeightProduct product_of(const ConvGeometry& g, const ConvPlan& plan) {
  GroupedWeightProduct p;
  p.channels = static_cast<int32_t>(g.c);
  p.group_channels = static_cast<int32_t>(g.group_c());
  p.chunks = ceil_div(p.channels, block_channels);
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.rows = static_cast<int32_t>(g.out_h());
  p.columns = static_cast<int32_t>(g.out_w());
  p.tile_h = static_cast<int32_t>(plan.tile_h);
  p.tile_w = static_cast<int32_t>(plan.tile_w);
  p.tiles_down = ceil_div(p.rows, p.tile_h);
  p.tiles_across = ceil_div(p.columns, p.tile_w);
  p.patch_h = (p.tile_h - 1) * p.vertical.step + (p.vertical.taps - 1) * p.vertical.delta + 1;
  p.patch_w = (p.tile_w - 1) * p.horizontal.step + (p.horizontal.taps - 1) * p.horizontal.delta + 1;
  p.splits = static_cast<int32_t>(plan.splits);
  p.part_row = static_cast<int32_t>(plan.layout.weight_row);
  p.part_split = g.k * plan.layout.weight_row;
  p.x_image = static_cast<int32_t>(g.c * g.h * g.w);
  p.dy_image = static_cast<int32_t>(g.k * g.out_h() * g.out_w());
  p.by_across = divide_by(p.tiles_across);
  p.by_down = divide_by(p.tiles_down);
  p.by_patch_w = divide_by(p.patch_w);
  p.by_tile_w = divide_by(p.tile_w);
  return p;
}

}  // namespace

void grouped_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& dy,
                             const View& dweight, Workspace scratch) {
  constexpr const char* op = "conv2d_backward_weight";
  constexpr int64_t size = 2;
  const ConvLayout& layout = plan.layout;
  const auto from_x = images_of(x, op, "x"), from_dy = images_of(dy, op, "dy");
  const auto is_copied = [&](const Images<const void*>& from) {
    return needs_copy(from, from.data, size, g.groups, g.group_c(), g.group_c()) || !is_aligned(from.data);
  };
  const bool copies_x = is_copied(from_x), copies_dy = is_copied(from_dy);
  char* const memory = static_cast<char*>(scratch.data);
  void *const x_copy = memory, *const dy_copy = memory + layout.x_bytes;
  float* const parts = reinterpret_cast<float*>(memory + layout.x_bytes + layout.y_bytes);
  GroupedWeightProduct p = product_of(g, plan);
  check<ShapeError>(p.part_split < index_limit, op, ": ", p.part_split,
                    " padded weights are too many for the CUDA kernels, which take fewer than 2^31");
  const int64_t image_tiles = int64_t{p.tiles_down} * p.tiles_across, at_once = std::max<int64_t>(1, (index_limit / 2) / image_tiles);
  const int64_t step = std::min(copies_x || copies_dy ? layout.images_per_slice : at_once, at_once);
  for (int64_t n = 0; n == 0 || n < g.n; n += step) {  // a batch of no images is one slice of none: parts of zero
    const int64_t count = std::min(step, g.n - n);
    auto x_slice = from_x, dy_slice = from_dy;
    x_slice.data = static_cast<const uint16_t*>(from_x.data) + n * from_x.image;
    dy_slice.data = static_cast<const uint16_t*>(from_dy.data) + n * from_dy.image;
    if (copies_x && count > 0) copy_channels(queue, size, x_slice, count, g.h * g.w, g.groups, g.group_c(), g.group_c(), x_copy);
    if (copies_dy && count > 0)
      copy_channels(queue, size, dy_slice, count, g.out_h() * g.out_w(), g.groups, g.group_k(), g.group_k(), dy_copy);
    p.tiles = static_cast<int32_t>(count * image_tiles);
    p.first_part = static_cast<int32_t>(n * image_tiles % p.splits);
    p.adds = n > 0;
    const void *const x_part = copies_x ? x_copy : x_slice.data, *const dy_part = copies_dy ? dy_copy : dy_slice.data;
    if (dweight.dtype == DType::float16) launch_product<float16>(queue, plan, p, x_part, dy_part, parts);
    else launch_product<bfloat16>(queue, plan, p, x_part, dy_part, parts);
  }
  add_weight_parts(queue, g, plan, parts, dweight);
}

}  // namespace fovea::kernels::cuda
