// The gradient of the weight of a convolution of float32 in small groups without tensor cores; conv.cu says what is computed. Kernels of
// 3 x 3, strides of one or two, groups of up to 16 channels on either side. Everything lies [n,c,h,w]. Sums in float32.
// A block sums over every so many-th tile of pixels of y, for up to 8 channels of x by 8 of y of one group. It copies the tile of dy, and
// the patch of x that the tile's windows see, once, by cp.async into one of two stages. A thread has the sums of two channels of x, four of
// y and all taps, over two strips of four pixels, one below the other: a row of x that was read serves both. The warps are shared out to
// the channels first, and to the tile's strips where there are more warps. At the end the threads' sums are added up by a tree over the
// lanes, and in order over warps.
// The blocks' sums are parts, [k,c/groups,r,s] each, which the caller adds up in order.
// Overwrites. Deterministic; the order of sums depends on the geometry alone.
// Floor: 2 * geometry.macs() FLOPs, or memory: reading x and dy once, once for each 8 channels of the other side where groups are larger.
#include <fovea/kernels/cuda/conv_functions.h>
#include <fovea/kernels/cuda/conv_patch.h>

#include <fovea/kernels/cuda/core/copy_ring.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int most_threads = 256;
constexpr int most_channels = 8;                    // of a block, on either side
constexpr int strip = 4, strip_rows = 2, taps = 3;  // a thread's pixels are strip_rows x strip; a kernel has taps x taps
constexpr int thread_x = 2, thread_y = 4;           // channels
constexpr int ring_stages = 2;

struct DirectWeightProduct {
  int32_t c = 0, k = 0, block_c = 0, block_k = 0, blocks_c = 1, blocks_k = 1;  // channels of a group and of a block; a group's blocks
  WindowAxis vertical, horizontal;
  int32_t rows = 0, columns = 0;  // of y's pixels
  int32_t tile_h = 0, tile_w = 0, tiles_down = 1, tiles_across = 1;
  int32_t patch_h = 0, patch_w = 0, pitch = 0;         // pitch: elements of a patch's row
  int32_t warps_c = 1, warps_k = 1, warps_beside = 1;  // for the channels, and for the strips
  int32_t tiles = 0, splits = 1;
  bool has_packs = false;  // dy may be read as packs
  int64_t x_image = 0, dy_image = 0, part_split = 0;
  FastDivide by_across, by_down, by_patch_h, by_tile_h, by_strips;

  __host__ __device__ int32_t threads() const { return warps_c * warps_k * warps_beside * warp_size; }
  __host__ __device__ int32_t patch_elements() const { return warps_c * thread_x * patch_h * pitch; }
  __host__ __device__ int32_t stage_elements() const { return patch_elements() + warps_k * thread_y * tile_h * tile_w; }
  size_t shared_bytes() const { return sizeof(float) * static_cast<size_t>(ring_stages * stage_elements()); }
};

struct Tile {
  int32_t image, first_row, first_column;
};

__device__ Tile tile_of(const DirectWeightProduct& p, int32_t number) {
  const int32_t line = static_cast<int32_t>(p.by_across.quotient(static_cast<uint32_t>(number))),
                image = static_cast<int32_t>(p.by_down.quotient(static_cast<uint32_t>(line)));
  return {image, (line - image * p.tiles_down) * p.tile_h, (number - line * p.tiles_across) * p.tile_w};
}

// x and dy: of the block's first channel. Channels that are not there are not copied: nobody looks at their sums.
__device__ void copy_tile(const DirectWeightProduct& p, const Tile& tile, int32_t channels_c, int32_t channels_k, const float* x,
                          const float* dy, float* stage) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size,
            warps = p.threads() / warp_size;
  copy_planes(p, channels_c, tile.first_row, tile.first_column, x + tile.image * p.x_image, x, stage, warps);
  const int64_t dy_plane = static_cast<int64_t>(p.rows) * p.columns;
  const float* const dy_first = dy + tile.image * p.dy_image;
  float* const to_dy = stage + p.patch_elements();
  const int32_t width = p.has_packs ? strip : 1;
  for (int32_t line = warp; line < channels_k * p.tile_h; line += warps) {
    const int32_t channel = static_cast<int32_t>(p.by_tile_h.quotient(static_cast<uint32_t>(line))),
                  row = tile.first_row + line - channel * p.tile_h;
    const float* const from = dy_first + channel * dy_plane + static_cast<int64_t>(row) * p.columns + tile.first_column;
    for (int32_t j = lane * width; j < p.tile_w; j += warp_size * width) {
      const bool is_there = row < p.rows && tile.first_column + j < p.columns;
      if (p.has_packs) copy_async<sizeof(float) * strip>(to_dy + line * p.tile_w + j, is_there ? from + j : dy, is_there);
      else copy_async<sizeof(float)>(to_dy + line * p.tile_w + j, is_there ? from + j : dy, is_there);
    }
  }
}

template <int n>
__device__ void load_row(float (&to)[n], const float* from) {
#pragma unroll
  for (int first = 0; first < n; first += 4) {
    const Pack<float, 4> part = load_pack(from + first, 0);
#pragma unroll
    for (int v = 0; v < 4; ++v) to[first + v] = part[v];
  }
}

using ThreadSums = float[thread_x][taps][taps][thread_y];

// The thread's strips. Pixels that are not there are left out: their windows may see what is infinite.
template <int stride>
__device__ void add_strips(const DirectWeightProduct& p, const float* patch, const float* dy, int rows, int columns, ThreadSums& sums) {
  constexpr int seen_rows = (strip_rows - 1) * stride + taps, seen = ((strip - 1) * stride + taps + 3) / 4 * 4;
  float gradients[strip_rows][thread_y][strip];
#pragma unroll
  for (int i = 0; i < strip_rows; ++i)
#pragma unroll
    for (int k = 0; k < thread_y; ++k) load_row(gradients[i][k], dy + (k * p.tile_h + i) * p.tile_w);
#pragma unroll
  for (int c = 0; c < thread_x; ++c)
#pragma unroll
    for (int row = 0; row < seen_rows; ++row) {
      float values[seen];
      load_row(values, patch + (c * p.patch_h + row) * p.pitch);
#pragma unroll
      for (int i = 0; i < strip_rows; ++i) {
        const int r = row - i * stride;
        if (r < 0 || r >= taps || i >= rows) continue;
#pragma unroll
        for (int v = 0; v < strip; ++v) {
          if (v >= columns) continue;
#pragma unroll
          for (int s = 0; s < taps; ++s)
#pragma unroll
            for (int k = 0; k < thread_y; ++k) sums[c][r][s][k] += values[v * stride + s] * gradients[i][k][v];
        }
      }
    }
}

// blockIdx: x the group and its channels, y the part of the sum.
template <int stride>
__global__ void __launch_bounds__(most_threads, stride == 1 ? 2 : 1)
    direct_weight_product(DirectWeightProduct p, const float* x, const float* dy, float* parts) {
  float* const memory = &shared<float>();
  const int32_t of_group = static_cast<int32_t>(blockIdx.x) % (p.blocks_c * p.blocks_k),
                group = static_cast<int32_t>(blockIdx.x) / (p.blocks_c * p.blocks_k);
  const int32_t first_c = of_group % p.blocks_c * p.block_c, first_k = of_group / p.blocks_c * p.block_k;
  const int32_t channels_c = min(p.block_c, p.c - first_c), channels_k = min(p.block_k, p.k - first_k);
  x += (static_cast<int64_t>(group) * p.c + first_c) * p.vertical.size * p.horizontal.size;
  dy += (static_cast<int64_t>(group) * p.k + first_k) * p.rows * p.columns;

  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
  const int role = warp / p.warps_beside, own_c = role % p.warps_c * thread_x, own_k = role / p.warps_c * thread_y;
  const int item = warp % p.warps_beside * warp_size + lane, down = static_cast<int>(p.by_strips.quotient(static_cast<uint32_t>(item))),
            across = item - down * static_cast<int>(p.by_strips.divisor);
  const int row = down * strip_rows, column = across * strip;  // of the tile; beyond it where there are more threads than strips
  const int32_t first_tile = static_cast<int32_t>(blockIdx.y);
  const auto tile_number = [&](int t) { return first_tile + t * p.splits; };

  ThreadSums sums = {};
  int multiplied = 0;
  run_ring<ring_stages>(
      first_tile < p.tiles ? (p.tiles - first_tile + p.splits - 1) / p.splits : 0,
      [&](int stage, int t) {
        copy_tile(p, tile_of(p, tile_number(t)), channels_c, channels_k, x, dy, memory + stage * p.stage_elements());
      },
      [&](int stage) {
        const Tile tile = tile_of(p, tile_number(multiplied++));
        const float* const from = memory + stage * p.stage_elements();
        if (row >= p.tile_h) return;
        add_strips<stride>(p, from + (own_c * p.patch_h + row * stride) * p.pitch + column * stride,
                           from + p.patch_elements() + (own_k * p.tile_h + row) * p.tile_w + column, p.rows - tile.first_row - row,
                           p.columns - tile.first_column - column, sums);
      });

  __syncthreads();  // the stages have been read: the warps' sums go there
  constexpr int count = thread_x * taps * taps * thread_y;
#pragma unroll
  for (int c = 0; c < thread_x; ++c)
#pragma unroll
    for (int tap = 0; tap < taps * taps; ++tap)
#pragma unroll
      for (int k = 0; k < thread_y; ++k) {
        const float sum = warp_reduce(sums[c][tap / taps][tap % taps][k], Sum());
        if (lane == 0) memory[warp * count + (k * thread_x + c) * taps * taps + tap] = sum;
      }
  __syncthreads();
  parts += static_cast<int64_t>(blockIdx.y) * p.part_split + static_cast<int64_t>(group) * p.k * p.c * taps * taps;
  for (int i = static_cast<int>(threadIdx.x); i < channels_k * channels_c * taps * taps; i += p.threads()) {
    const int tap = i % (taps * taps), line = i / (taps * taps), k = line / channels_c, c = line - k * channels_c;
    const int first_warp = (k / thread_y * p.warps_c + c / thread_x) * p.warps_beside;
    float sum = 0;
    for (int beside = 0; beside < p.warps_beside; ++beside)
      sum += memory[(first_warp + beside) * count + (k % thread_y * thread_x + c % thread_x) * taps * taps + tap];
    parts[(static_cast<int64_t>(first_k + k) * p.c + first_c + c) * taps * taps + tap] = sum;
  }
}

}  // namespace

void direct_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* x, const float* dy, float* sums) {
  DirectWeightProduct p;
  p.c = static_cast<int32_t>(g.group_c());
  p.k = static_cast<int32_t>(g.group_k());
  p.blocks_c = ceil_div(p.c, most_channels);
  p.blocks_k = ceil_div(p.k, most_channels);
  p.block_c = ceil_div(p.c, p.blocks_c);
  p.block_k = ceil_div(p.k, p.blocks_k);
  p.warps_c = ceil_div(p.block_c, thread_x);
  p.warps_k = ceil_div(p.block_k, thread_y);
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.rows = static_cast<int32_t>(g.out_h());
  p.columns = static_cast<int32_t>(g.out_w());
  p.tile_h = static_cast<int32_t>(plan.tile_h);
  p.tile_w = static_cast<int32_t>(plan.tile_w);
  p.warps_beside = ceil_div(p.tile_h / strip_rows * (p.tile_w / strip), warp_size);
  p.tiles_down = ceil_div(p.rows, p.tile_h);
  p.tiles_across = ceil_div(p.columns, p.tile_w);
  const int64_t tiles = g.n * p.tiles_down * p.tiles_across;
  check<ShapeError>(tiles < index_limit / 2, "conv2d_backward_weight: ", tiles,
                    " tiles of pixels are too many for the CUDA kernels, which take fewer than 2^30; use smaller batches");
  p.tiles = static_cast<int32_t>(tiles);
  p.splits = static_cast<int32_t>(plan.splits);
  p.patch_h = (p.tile_h - 1) * p.vertical.step + taps;
  p.patch_w = (p.tile_w - 1) * p.horizontal.step + taps;
  p.pitch = (ceil_div(p.patch_w, 4) | 1) * 4;  // an odd number of packs, so that neighbouring rows begin in different banks
  p.has_packs = p.columns % strip == 0 && is_aligned(dy);
  p.x_image = g.c * g.h * g.w;
  p.dy_image = g.k * g.out_h() * g.out_w();
  p.part_split = g.weights();
  p.by_across = divide_by(p.tiles_across);
  p.by_down = divide_by(p.tiles_down);
  p.by_patch_h = divide_by(p.patch_h);
  p.by_tile_h = divide_by(p.tile_h);
  p.by_strips = divide_by(p.tile_w / strip);
  const size_t of_sums = sizeof(float) * static_cast<size_t>(p.threads() / warp_size * thread_x * thread_y * taps * taps);
  const Grid grid{blocks_of(g.groups * p.blocks_c * p.blocks_k, p.splits), dim3(static_cast<unsigned>(p.threads())),
                  std::max(p.shared_bytes(), of_sums)};
  launch(queue, plan.name, grid, g.stride_h == 1 ? direct_weight_product<1> : direct_weight_product<2>, p, x, dy, sums);
}

}  // namespace fovea::kernels::cuda
