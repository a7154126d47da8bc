// The gradient of a convolution's weight in float32 and float64; conv.cu says what is computed. Sums in the element type, by plain
// multiplications and additions.
// A product of y's channels by (x's channel, r, s), summed over the pixels of all images. Both operands lie [n,c,h,w], so that pixels,
// which the sum runs over, are neighbours in memory, and in shared memory too: a thread reads packs of pixels and multiplies them one after
// the other. Copies are of 16 bytes where planes are whole packs: of dy always, of x where a window is one pixel; else element by element,
// or zeros from outside of the image. All by cp.async into a ring of four stages (core/copy_ring.h).
// The sum over pixels is cut into parts, which blocks compute beside each other; the caller adds them up in order.
// Overwrites. Deterministic; the order of sums depends on the geometry alone.
// Floor: 2 * geometry.macs() FLOPs; reading x and dy once.
#include <fovea/kernels/cuda/conv_plain.h>

namespace fovea::kernels::cuda {
namespace {

// out[group, k, (c,r,s)] = sum over pixels of dy[k, pixel] x[(c,r,s), pixel]
struct WeightProduct {
  int32_t rows = 0, columns = 0, pixels = 0, pixels_per_split = 0;
  WindowAxis vertical, horizontal;
  FastDivide taps, taps_w, plane, width;
  int32_t source_plane = 0, dy_plane = 0;
  int64_t source_image = 0, source_group = 0, dy_image = 0, dy_group = 0, out_group = 0, out_split = 0;

  // Where a column lies relative to a pixel's first tap; aligned, so that one access reads it.
  struct alignas(16) Tap {
    int32_t source, down, right;
  };
  __device__ Tap tap(int32_t column) const {
    if (column >= columns) return {0, far_outside, 0};
    const int32_t channel = static_cast<int32_t>(taps.quotient(static_cast<uint32_t>(column))),
                  within = column - channel * static_cast<int32_t>(taps.divisor);
    const int32_t r = static_cast<int32_t>(taps_w.quotient(static_cast<uint32_t>(within))),
                  s = within - r * static_cast<int32_t>(taps_w.divisor);
    const int32_t down = vertical.delta * r, right = horizontal.delta * s;
    return {channel * source_plane + down * horizontal.size + right, down, right};
  }
};

// How many pixels one copy has: one of each operand, a pack of dy, or a pack of both.
enum class Copies { single, dy_packs, packs };

template <class Tile>
struct WeightShared {
  using T = typename Tile::Element;
  // Of an SM: packs of pixels take more registers than the tile reckons with.
  static constexpr int blocks_beside = Tile::words == 64 ? 3 : Tile::blocks_beside;
  // Three packs: an odd number, so that neighbouring rows begin in different banks.
  static constexpr int pitch = Tile::depth + Tile::pack;
  alignas(16) T a[stages][Tile::rows][pitch];
  alignas(16) T b[stages][Tile::columns][pitch];
  typename WeightProduct::Tap taps[Tile::columns];
};

// A thread's part of the copies of each stage: one pixel, or pack of them, of several rows and columns.
template <class Tile, Copies copies>
struct PixelLoader {
  using T = typename Tile::Element;
  using Shared = WeightShared<Tile>;
  static constexpr int a_width = copies == Copies::single ? 1 : Tile::pack, b_width = copies == Copies::packs ? Tile::pack : 1;
  static constexpr int a_across = Tile::depth / a_width, b_across = Tile::depth / b_width, a_lines = Tile::threads / a_across,
                       b_lines = Tile::threads / b_across;

  const WeightProduct& p;
  const T *x, *dy;
  int32_t first_row;

  struct Pixel {
    bool is_there;
    int32_t image, within;
  };
  __device__ Pixel pixel(int32_t number, int32_t end) const {
    if (number >= end) return {false, 0, 0};
    const int32_t image = static_cast<int32_t>(p.plane.quotient(static_cast<uint32_t>(number)));
    return {true, image, number - image * static_cast<int32_t>(p.plane.divisor)};
  }

  // Rows that are not there are read from the last: nobody looks at their sums. Pixels that are not there count as zero in both operands.
  __device__ void copy(Shared& shared_memory, int stage, int32_t first_pixel, int32_t end) const {
    const int a_at = static_cast<int>(threadIdx.x) % a_across * a_width, b_at = static_cast<int>(threadIdx.x) % b_across * b_width;
    const Pixel a_pixel = pixel(first_pixel + a_at, end), b_pixel = copies == Copies::dy_packs ? pixel(first_pixel + b_at, end) : a_pixel;
    const T* const from_dy = dy + a_pixel.image * p.dy_image + a_pixel.within;
#pragma unroll
    for (int i = 0; i < ceil_div(Tile::rows, a_lines); ++i) {
      const int line = static_cast<int>(threadIdx.x) / a_across + i * a_lines;
      if (Tile::rows % a_lines != 0 && line >= Tile::rows) continue;
      copy_async<sizeof(T) * a_width>(&shared_memory.a[stage][line][a_at],
                                      from_dy + static_cast<int64_t>(min(first_row + line, p.rows - 1)) * p.dy_plane, a_pixel.is_there);
    }

    const int32_t i_of = static_cast<int32_t>(p.width.quotient(static_cast<uint32_t>(b_pixel.within))),
                  j_of = b_pixel.within - i_of * static_cast<int32_t>(p.width.divisor);
    const int32_t down = b_pixel.is_there ? p.vertical.step * i_of + p.vertical.base : far_outside,
                  right = p.horizontal.step * j_of + p.horizontal.base;
    const T* const from_x = x + b_pixel.image * p.source_image + static_cast<int64_t>(down) * p.horizontal.size + right;
#pragma unroll
    for (int i = 0; i < ceil_div(Tile::columns, b_lines); ++i) {
      const int line = static_cast<int>(threadIdx.x) / b_across + i * b_lines;
      if (Tile::columns % b_lines != 0 && line >= Tile::columns) continue;
      const WeightProduct::Tap tap = shared_memory.taps[line];
      const bool is_inside = static_cast<uint32_t>(down + tap.down) < static_cast<uint32_t>(p.vertical.size) &&
                             static_cast<uint32_t>(right + tap.right) < static_cast<uint32_t>(p.horizontal.size);
      copy_async<sizeof(T) * b_width>(&shared_memory.b[stage][line][b_at], is_inside ? from_x + tap.source : x, is_inside);
    }
  }
};

// A warp's threads read neighbouring rows and columns.
template <class Tile>
struct WeightSums {
  using T = typename Tile::Element;
  static constexpr int pack = Tile::pack, pitch = WeightShared<Tile>::pitch;
  __device__ static int row(int i) { return Tile::first_row() + i * Tile::lanes_down + Tile::lane() / Tile::lanes_right; }
  __device__ static int column(int j) { return Tile::first_column() + j * Tile::lanes_right + Tile::lane() % Tile::lanes_right; }

  __device__ static void multiply(const T (&a)[Tile::rows][pitch], const T (&b)[Tile::columns][pitch], T (&sums)[Tile::tall][Tile::wide]) {
#pragma unroll
    for (int k = 0; k < Tile::depth; k += pack) {
      Pack<T, pack> y[Tile::wide];
#pragma unroll
      for (int j = 0; j < Tile::wide; ++j) y[j] = load_pack(&b[column(j)][k], 0);
#pragma unroll
      for (int i = 0; i < Tile::tall; ++i) {
        const Pack<T, pack> x = load_pack(&a[row(i)][k], 0);
#pragma unroll
        for (int v = 0; v < pack; ++v)
#pragma unroll
          for (int j = 0; j < Tile::wide; ++j) sums[i][j] += x[v] * y[j][v];
      }
    }
  }
};

// blockIdx: x the tile, y the group, z the part of the sum.
template <class Tile, Copies copies, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::threads, WeightShared<Tile>::blocks_beside)
    weight_product(WeightProduct p, int first_group, const T* x, const T* dy, T* out) {
  auto& shared_memory = shared<WeightShared<Tile>>();
  const int row_tiles = ceil_div(p.rows, Tile::rows);
  const int first_row = static_cast<int>(blockIdx.x) % row_tiles * Tile::rows,
            first_column = static_cast<int>(blockIdx.x) / row_tiles * Tile::columns;
  const int64_t group = first_group + static_cast<int64_t>(blockIdx.y);
  const int64_t begin = static_cast<int64_t>(blockIdx.z) * p.pixels_per_split;
  const int32_t end = static_cast<int32_t>(begin + p.pixels_per_split < p.pixels ? begin + p.pixels_per_split : p.pixels);
  const int steps = begin < end ? static_cast<int>((end - begin + Tile::depth - 1) / Tile::depth) : 0;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::columns; i += Tile::threads) shared_memory.taps[i] = p.tap(first_column + i);
  __syncthreads();
  const PixelLoader<Tile, copies> loader{p, x + group * p.source_group, dy + group * p.dy_group, first_row};
  T sums[Tile::tall][Tile::wide] = {};
  run_ring(
      steps,
      [&](int stage, int t) {
        loader.copy(shared_memory, stage, static_cast<int32_t>(begin + static_cast<int64_t>(t) * Tile::depth), end);
      },
      [&](int stage) { WeightSums<Tile>::multiply(shared_memory.a[stage], shared_memory.b[stage], sums); });

  out += static_cast<int64_t>(blockIdx.z) * p.out_split + group * p.out_group;
#pragma unroll
  for (int i = 0; i < Tile::tall; ++i)
#pragma unroll
    for (int j = 0; j < Tile::wide; ++j) {
      const int row = first_row + WeightSums<Tile>::row(i), column = first_column + WeightSums<Tile>::column(j);
      if (row < p.rows && column < p.columns) out[static_cast<int64_t>(row) * p.columns + column] = sums[i][j];
    }
}

template <class T>
using WideTile = PlainTile<T, 2, 2, 16, 8>;
template <class T>
using BroadTile = PlainTile<T, 2, 2, 8, 8>;
template <class T>
using MediumTile = PlainTile<T, 2, 2, 8, 4>;
template <class T>
using FewTile = PlainTile<T, 1, 4, 4, 2>;

constexpr int64_t most_groups = 65535;  // of one launch

template <class Tile, Copies copies, class T = typename Tile::Element>
void launch_copies(Queue queue, const ConvPlan& plan, WeightProduct p, int64_t groups, const T* x, const T* dy, T* out) {
  const int64_t blocks = ceil_div<int64_t>(p.rows, Tile::rows) * ceil_div<int64_t>(p.columns, Tile::columns);
  p.pixels_per_split = static_cast<int32_t>(ceil_div(ceil_div<int64_t>(p.pixels, plan.splits), int64_t{Tile::depth}) * Tile::depth);
  for (int64_t group = 0; group < groups; group += most_groups) {
    const Grid grid{blocks_of(blocks, std::min(most_groups, groups - group), plan.splits), dim3(Tile::threads), sizeof(WeightShared<Tile>)};
    launch(queue, plan.name, grid, weight_product<Tile, copies>, p, static_cast<int>(group), x, dy, out);
  }
}

template <class Tile, class T = typename Tile::Element>
void launch_tile(Queue queue, const ConvPlan& plan, Copies copies, const WeightProduct& p, int64_t groups, const T* x, const T* dy,
                 T* out) {
  if (copies == Copies::packs) return launch_copies<Tile, Copies::packs>(queue, plan, p, groups, x, dy, out);
  if (copies == Copies::dy_packs) return launch_copies<Tile, Copies::dy_packs>(queue, plan, p, groups, x, dy, out);
  launch_copies<Tile, Copies::single>(queue, plan, p, groups, x, dy, out);
}

}  // namespace

template <class T>
void plain_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* x, const T* dy, T* out) {
  const int64_t plane = g.out_h() * g.out_w(), pixels = g.n * plane;
  check<ShapeError>(pixels < index_limit / 2, "conv2d_backward_weight: ", pixels,
                    " pixels are too many for the CUDA kernels, which take fewer than 2^30; use smaller batches");
  WeightProduct p;
  p.rows = static_cast<int32_t>(g.group_k());
  p.columns = static_cast<int32_t>(g.group_c() * g.r * g.s);
  p.pixels = static_cast<int32_t>(pixels);
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.taps = divide_by(g.r * g.s);
  p.taps_w = divide_by(g.s);
  p.plane = divide_by(plane);
  p.width = divide_by(g.out_w());
  p.source_plane = static_cast<int32_t>(g.h * g.w);
  p.source_image = g.c * g.h * g.w;
  p.source_group = g.group_c() * g.h * g.w;
  p.dy_plane = static_cast<int32_t>(plane);
  p.dy_image = g.k * plane;
  p.dy_group = g.group_k() * plane;
  p.out_group = static_cast<int64_t>(p.rows) * p.columns;
  p.out_split = g.weights();
  const bool has_dy_packs = plane % full_pack<T> == 0 && is_aligned(dy);
  const Copies copies = !has_dy_packs ? Copies::single : is_pointwise(g) && is_aligned(x) ? Copies::packs : Copies::dy_packs;
  if (plan.kernel == ConvKernel::grouped) return launch_tile<FewTile<T>>(queue, plan, copies, p, g.groups, x, dy, out);
  if (plan.kernel == ConvKernel::medium) return launch_tile<MediumTile<T>>(queue, plan, copies, p, g.groups, x, dy, out);
  if constexpr (std::is_same_v<T, float>) {
    if (plan.kernel == ConvKernel::broad) return launch_tile<BroadTile<T>>(queue, plan, copies, p, g.groups, x, dy, out);
    launch_tile<WideTile<T>>(queue, plan, copies, p, g.groups, x, dy, out);
  }
}

template void plain_backward_weight(Queue, const ConvGeometry&, const ConvPlan&, const float*, const float*, float*);
template void plain_backward_weight(Queue, const ConvGeometry&, const ConvPlan&, const double*, const double*, double*);

}  // namespace fovea::kernels::cuda
