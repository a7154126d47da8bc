// Convolution (cross-correlation), x [n,c,h,w], weight [k,c/groups,r,s], y [n,k,p,q], contiguous:
//   forward   y[n,k,p,q]  = bias[k] + sum_{c,r,s} weight[k,c,r,s] x[n,c,p*stride - pad + r*dilation, q*stride - pad + s*dilation]
//   data      dx[n,c,h,w] = sum over k and the (r,s) that reach (h,w) of weight[k,c,r,s] dy[n,k,p,q]
//   weight    dweight[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] x[n,c,...],   dbias[k] = sum_{n,p,q} dy[n,k,p,q]
// Each is a matrix product whose one operand is gathered from the image on the way into shared memory (implicit GEMM): there is no patch matrix in memory. A block
// computes a tile, each thread a part of it in registers; while one slice of the sum is multiplied, the next one is on its way from memory to registers.
// With strides, the pixels of dx that see the same (r,s) form a phase; each phase is a convolution of its own with unit stride over dy.
// The sum over pixels of the weight's gradient is cut into parts, whose results a second kernel adds up in order.
// Overwrites. float32 and float64, sums in the element type (dbias, of every type: float64). Deterministic; the order of sums depends on the geometry alone
// (conv_plan.h; that of dbias also on dy's layout).
// Depthwise convolutions have kernels of their own (conv_depthwise.cu), and so have the half types and, where it is allowed, TF32 (conv_tensor.cu and
// conv_tensor_weight.cu). Here and for depthwise convolutions, tensors that lie channels-last are copied to [n,c,h,w] first, and results back.
// Floor: 2 * geometry.macs() FLOPs each; reading and writing every tensor once.
#include <fovea/kernels/cuda/conv_functions.h>

#include <memory>

#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/warp.h>
#include <fovea/kernels/cuda/runtime.h>

namespace fovea::kernels::cuda {
namespace {

// Where tap (channel, r, s) of a sum lies relative to the first tap.
struct Tap {
  int32_t source, weight;                    // offsets in elements
  int32_t down, right;                       // in pixels
};

// --- tiles ---

// A tile of rows x columns sums, `depth` steps of the sum at a time, made by threads that hold tall x wide sums each.
template <class T, int rows_, int columns_, int depth_, int tall_, int wide_>
struct Tile {
  using Element = T;
  static constexpr int rows = rows_, columns = columns_, depth = depth_, tall = tall_, wide = wide_;
  static constexpr int pack = full_pack<T>;                                   // neighbouring sums of a thread come in packs, which lie apart
  static constexpr int thread_columns = columns / wide, threads = rows / tall * thread_columns;
  static constexpr int row_packs = tall / pack, column_packs = wide / pack;
  static constexpr int padding = pack;                                        // spreads a column over the banks of shared memory

  // The operands' slices, twice: one is read while the other is written.
  struct Slices {
    alignas(16) T a[2][depth][rows + padding];
    alignas(16) T b[2][depth][columns + padding];
  };

  // Rows and columns, within the tile, of a thread's sum.
  __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / thread_columns * pack + i / pack * (rows / row_packs) + i % pack; }
  __device__ static int column(int j) { return static_cast<int>(threadIdx.x) % thread_columns * pack + j / pack * (columns / column_packs) + j % pack; }

  __device__ static void multiply(const Slices& slices, int which, T (&sums)[tall][wide]) {
#pragma unroll
    for (int k = 0; k < depth; ++k) {
      T a[tall], b[wide];
#pragma unroll
      for (int i = 0; i < tall; i += pack) {
        const auto part = load_pack(&slices.a[which][k][row(i)], 0);
#pragma unroll
        for (int v = 0; v < pack; ++v) a[i + v] = part[v];
      }
#pragma unroll
      for (int j = 0; j < wide; j += pack) {
        const auto part = load_pack(&slices.b[which][k][column(j)], 0);
#pragma unroll
        for (int v = 0; v < pack; ++v) b[j + v] = part[v];
      }
#pragma unroll
      for (int i = 0; i < tall; ++i)
#pragma unroll
        for (int j = 0; j < wide; ++j) sums[i][j] += a[i] * b[j];
    }
  }
};

// --- forward, and the gradient of the input ---

// out[group, row, pixel] = bias[row] + sum over (channel, r, s) of weight * source: both directions are of this form, with different steps through memory.
struct GatherProduct {
  int32_t rows = 0, depth = 0, columns = 0;            // columns: pixels of all images of the launch
  WindowAxis vertical, horizontal;
  FastDivide taps, taps_w;                             // a step of the sum into channel, r, s
  FastDivide plane, width;                             // a column into image, i, j
  int32_t source_plane = 0;
  int64_t source_image = 0, source_group = 0;
  int32_t weight_row = 0, weight_channel = 0, weight_r = 0, weight_s = 0, weight_first = 0;
  int64_t weight_group = 0;
  int64_t out_image = 0, out_group = 0, out_row = 0;
  int32_t out_i = 0, out_j = 0, out_first = 0;
  bool has_packs = false;                              // may neighbouring pixels be written as packs?

  __device__ Tap tap(int32_t k) const {
    if (k >= depth) return {0, 0, far_outside, 0};
    const int32_t channel = static_cast<int32_t>(taps.quotient(k)), within = k - channel * static_cast<int32_t>(taps.divisor);
    const int32_t r = static_cast<int32_t>(taps_w.quotient(within)), s = within - r * static_cast<int32_t>(taps_w.divisor);
    const int32_t down = vertical.delta * r, right = horizontal.delta * s;
    return {channel * source_plane + down * horizontal.size + right, weight_first + channel * weight_channel + r * weight_r + s * weight_s, down, right};
  }

  struct Pixel {
    int32_t image, i, j;
  };
  __device__ Pixel pixel(int32_t column) const {
    const int32_t image = static_cast<int32_t>(plane.quotient(column)), within = column - image * static_cast<int32_t>(plane.divisor);
    const int32_t i = static_cast<int32_t>(width.quotient(within));
    return {image, i, within - i * static_cast<int32_t>(width.divisor)};
  }
  __device__ int64_t out_offset(int32_t column) const {
    const Pixel p = pixel(column);
    return p.image * out_image + out_first + static_cast<int64_t>(p.i) * out_i + static_cast<int64_t>(p.j) * out_j;
  }
};

// What a thread fetches of one slice: `a` from the weights, neighbouring threads at neighbouring steps of the sum; `b` from the image, at neighbouring pixels.
template <class Tile>
struct GatherLoader {
  using T = typename Tile::Element;
  static constexpr int a_count = Tile::rows * Tile::depth / Tile::threads, b_count = Tile::columns * Tile::depth / Tile::threads;
  static constexpr int own_columns = Tile::columns > Tile::threads ? Tile::columns / Tile::threads : 1;
  static constexpr int steps_beside = Tile::threads > Tile::columns ? Tile::threads / Tile::columns : 1;      // steps of the sum fetched at once

  const GatherProduct& p;
  const T *source, *weight;
  int first_row;
  int32_t down[own_columns], right[own_columns];                              // of the first tap
  int64_t offset[own_columns];
  T a[a_count], b[b_count];

  __device__ GatherLoader(const GatherProduct& p, const T* source, const T* weight, int first_row, int32_t first_column)
      : p(p), source(source), weight(weight), first_row(first_row) {
#pragma unroll
    for (int own = 0; own < own_columns; ++own) {
      const int32_t column = first_column + own_column(own);
      down[own] = far_outside;
      right[own] = 0;
      offset[own] = 0;
      if (column >= p.columns) continue;
      const GatherProduct::Pixel pixel = p.pixel(column);
      down[own] = p.vertical.step * pixel.i + p.vertical.base;
      right[own] = p.horizontal.step * pixel.j + p.horizontal.base;
      offset[own] = pixel.image * p.source_image + static_cast<int64_t>(down[own]) * p.horizontal.size + right[own];
    }
  }

  __device__ static int own_column(int own) { return static_cast<int>(threadIdx.x) % Tile::columns + own * Tile::threads; }
  __device__ static int b_step(int i) { return static_cast<int>(threadIdx.x) / Tile::columns + i / own_columns * steps_beside; }
  __device__ static int a_step() { return static_cast<int>(threadIdx.x) % Tile::depth; }
  __device__ static int a_row(int i) { return static_cast<int>(threadIdx.x) / Tile::depth + i * (Tile::threads / Tile::depth); }

  __device__ void fetch(const Tap* taps) {
    const Tap own = taps[a_step()];
    const bool is_step = own.down != far_outside;
#pragma unroll
    for (int i = 0; i < a_count; ++i) {
      const int row = first_row + a_row(i);
      a[i] = is_step && row < p.rows ? weight[static_cast<int64_t>(row) * p.weight_row + own.weight] : T(0);
    }
#pragma unroll
    for (int i = 0; i < b_count; ++i) {
      const Tap tap = taps[b_step(i)];
      const int own_index = i % own_columns;
      const bool is_inside = static_cast<uint32_t>(down[own_index] + tap.down) < static_cast<uint32_t>(p.vertical.size) &&
                             static_cast<uint32_t>(right[own_index] + tap.right) < static_cast<uint32_t>(p.horizontal.size);
      b[i] = is_inside ? source[offset[own_index] + tap.source] : T(0);
    }
  }
  __device__ void store(typename Tile::Slices& slices, int which) const {
#pragma unroll
    for (int i = 0; i < a_count; ++i) slices.a[which][a_step()][a_row(i)] = a[i];
#pragma unroll
    for (int i = 0; i < b_count; ++i) slices.b[which][b_step(i)][own_column(i % own_columns)] = b[i];
  }
};

template <class Tile>
struct GatherShared {
  typename Tile::Slices slices;
  Tap taps[2][Tile::depth];
};

template <class Tile, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::threads, Tile::threads >= 256 ? 2 : 4)
    gather_product(GatherProduct p, int first_group, const T* source, const T* weight, const T* bias, T* out) {
  auto& shared_memory = shared<GatherShared<Tile>>();
  const int row_tiles = ceil_div(p.rows, Tile::rows), thread = static_cast<int>(threadIdx.x);
  const int first_row = static_cast<int>(blockIdx.x) % row_tiles * Tile::rows;
  const int32_t first_column = static_cast<int32_t>(blockIdx.x) / row_tiles * Tile::columns;
  const int64_t group = first_group + static_cast<int64_t>(blockIdx.y);
  GatherLoader<Tile> loader(p, source + group * p.source_group, weight + group * p.weight_group, first_row, first_column);

  // Note [One barrier for each slice]
  // Slice t is multiplied out of half t % 2 while slice t + 1 is fetched by the taps of half (t + 1) % 2. Before the barrier that ends the step, slice t + 1 goes to
  // the other half of `slices`, last read in step t - 1, and the taps of slice t + 2 to half t % 2, last read in step t - 1 as well.
  const int steps = ceil_div(p.depth, Tile::depth);
  for (int i = thread; i < 2 * Tile::depth; i += Tile::threads) shared_memory.taps[i / Tile::depth][i % Tile::depth] = p.tap(i);
  __syncthreads();
  if (steps > 0) {
    loader.fetch(shared_memory.taps[0]);
    loader.store(shared_memory.slices, 0);
  }
  __syncthreads();
  T sums[Tile::tall][Tile::wide] = {};
  for (int t = 0; t < steps; ++t) {
    const bool has_next = t + 1 < steps;
    if (has_next) loader.fetch(shared_memory.taps[(t + 1) % 2]);
    Tile::multiply(shared_memory.slices, t % 2, sums);
    if (has_next) loader.store(shared_memory.slices, (t + 1) % 2);
    if (thread < Tile::depth) shared_memory.taps[t % 2][thread] = p.tap((t + 2) * Tile::depth + thread);
    __syncthreads();
  }

  out += group * p.out_group;
#pragma unroll
  for (int j = 0; j < Tile::wide; j += Tile::pack) {
    const int32_t column = first_column + Tile::column(j);
    const bool is_packed = p.has_packs && column + Tile::pack <= p.columns;
    int64_t offsets[Tile::pack];
#pragma unroll
    for (int v = 0; v < Tile::pack; ++v) offsets[v] = column + v < p.columns && (v == 0 || !is_packed) ? p.out_offset(column + v) : -1;
#pragma unroll
    for (int i = 0; i < Tile::tall; ++i) {
      const int row = first_row + Tile::row(i);
      if (row >= p.rows) continue;
      const T start = bias ? bias[group * p.rows + row] : T(0);
      Pack<T, Tile::pack> values;
#pragma unroll
      for (int v = 0; v < Tile::pack; ++v) values[v] = sums[i][j + v] + start;
      T* const to = out + row * p.out_row;
      if (is_packed) {
        store_pack(to + offsets[0], 0, values);
        continue;
      }
#pragma unroll
      for (int v = 0; v < Tile::pack; ++v)
        if (offsets[v] >= 0) to[offsets[v]] = values[v];
    }
  }
}

template <class T> using WideTile = Tile<T, 128, 128, 8, 8, 8>;
template <class T> using MediumTile = std::conditional_t<std::is_same_v<T, double>, Tile<T, 64, 64, 8, 4, 4>, Tile<T, 64, 128, 8, 4, 8>>;
template <class T> using NarrowTile = Tile<T, 32, 128, 8, 4, 8>;
template <class T> using GroupedTile = Tile<T, 8, 128, 8, 4, 4>;

constexpr int64_t most_groups = 65535;                 // of one launch

template <class Tile>
void launch_gather(Queue queue, const char* name, const GatherProduct& p, int64_t groups, const void* source, const void* weight, const void* bias, void* out) {
  using T = typename Tile::Element;
  const int64_t blocks = ceil_div<int64_t>(p.rows, Tile::rows) * ceil_div<int64_t>(p.columns, Tile::columns);
  check<ShapeError>(blocks < index_limit, "conv2d: ", blocks, " tiles are more than one launch can have");
  for (int64_t group = 0; group < groups; group += most_groups) {
    const int64_t count = std::min(most_groups, groups - group);
    const Grid grid{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count)), dim3(Tile::threads), sizeof(GatherShared<Tile>)};
    launch(queue, name, grid, gather_product<Tile>, p, static_cast<int>(group), static_cast<const T*>(source), static_cast<const T*>(weight), static_cast<const T*>(bias), static_cast<T*>(out));
  }
}

template <class T>
void run_gather(Queue queue, const ConvPlan& plan, const GatherProduct& p, int64_t groups, const void* source, const void* weight, const void* bias, void* out) {
  if (plan.kernel == ConvKernel::grouped) return launch_gather<GroupedTile<T>>(queue, plan.name, p, groups, source, weight, bias, out);
  if (plan.kernel == ConvKernel::medium) return launch_gather<MediumTile<T>>(queue, plan.name, p, groups, source, weight, bias, out);
  if constexpr (std::is_same_v<T, float>) {
    if (plan.kernel == ConvKernel::narrow) return launch_gather<NarrowTile<T>>(queue, plan.name, p, groups, source, weight, bias, out);
    return launch_gather<WideTile<T>>(queue, plan.name, p, groups, source, weight, bias, out);
  }
}

// The kernels' 31-bit numbers have to hold an image and the weights, and positions far outside of an image.
void check_sizes(const char* op, const ConvGeometry& g) {
  const int64_t image = std::max(g.c * g.h * g.w, g.k * g.out_h() * g.out_w());
  check<ShapeError>(image < index_limit, op, ": an image of ", image, " elements is too large for the CUDA kernels, which take fewer than 2^31");
  check<ShapeError>(g.weights() < index_limit, op, ": ", g.weights(), " weights are too many for the CUDA kernels, which take fewer than 2^31");
  const int64_t reach = std::max({g.r * g.dilation_h, g.s * g.dilation_w, g.h + 2 * g.pad_h, g.w + 2 * g.pad_w, g.stride_h, g.stride_w});
  check<ShapeError>(reach < (1 << 29), op, ": kernel, dilation, stride and padding reach over ", reach, " pixels; the CUDA kernels take fewer than 2^29");
}

// So many images at once that their pixels can be numbered.
int64_t images_at_once(int64_t images, int64_t pixels) { return std::min(images, std::max<int64_t>(1, (index_limit / 2) / std::max<int64_t>(pixels, 1))); }

template <class T>
void forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* x, const T* weight, const T* bias, T* y) {
  const int64_t pixels = g.out_h() * g.out_w();
  GatherProduct p;
  p.rows = static_cast<int32_t>(g.group_k());
  p.depth = static_cast<int32_t>(g.group_c() * g.r * g.s);
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.taps = divide_by(g.r * g.s);
  p.taps_w = divide_by(g.s);
  p.plane = divide_by(pixels);
  p.width = divide_by(g.out_w());
  p.source_plane = static_cast<int32_t>(g.h * g.w);
  p.source_image = g.c * g.h * g.w;
  p.source_group = g.group_c() * g.h * g.w;
  p.weight_row = p.depth;
  p.weight_channel = static_cast<int32_t>(g.r * g.s);
  p.weight_r = static_cast<int32_t>(g.s);
  p.weight_s = 1;
  p.weight_group = g.group_k() * p.weight_row;
  p.out_image = g.k * pixels;
  p.out_group = g.group_k() * pixels;
  p.out_row = pixels;
  p.out_i = static_cast<int32_t>(g.out_w());
  p.out_j = 1;
  p.has_packs = pixels % full_pack<T> == 0 && is_aligned(y);
  const int64_t step = images_at_once(g.n, pixels);
  for (int64_t n = 0; n < g.n; n += step) {
    p.columns = static_cast<int32_t>(std::min(step, g.n - n) * pixels);
    run_gather<T>(queue, plan, p, g.groups, x + n * p.source_image, weight, bias, y + n * p.out_image);
  }
}

template <class T>
void backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* dy, const T* weight, T* dx) {
  GatherProduct p;
  p.rows = static_cast<int32_t>(g.group_c());
  p.source_plane = static_cast<int32_t>(g.out_h() * g.out_w());
  p.source_image = g.k * p.source_plane;
  p.source_group = g.group_k() * p.source_plane;
  p.weight_row = static_cast<int32_t>(g.r * g.s);
  p.weight_channel = static_cast<int32_t>(g.group_c() * g.r * g.s);
  p.weight_group = g.group_k() * p.weight_channel;
  p.out_image = g.c * g.h * g.w;
  p.out_group = g.group_c() * g.h * g.w;
  p.out_row = g.h * g.w;
  p.out_i = static_cast<int32_t>(g.stride_h * g.w);
  p.out_j = static_cast<int32_t>(g.stride_w);
  p.has_packs = g.stride_h == 1 && g.stride_w == 1 && p.out_row % full_pack<T> == 0 && is_aligned(dx);
  for (int64_t i = 0; i < std::min(g.stride_h, g.h); ++i)
    for (int64_t j = 0; j < std::min(g.stride_w, g.w); ++j) {
      const PhaseAxis down(i, g.h, g.stride_h, g.pad_h, g.dilation_h, g.r), right(j, g.w, g.stride_w, g.pad_w, g.dilation_w, g.s);
      p.vertical = down.window(g.out_h());
      p.horizontal = right.window(g.out_w());
      p.depth = static_cast<int32_t>(g.group_k() * down.taps * right.taps);
      p.taps = divide_by(down.taps * right.taps);
      p.taps_w = divide_by(right.taps);
      p.plane = divide_by(down.count * right.count);
      p.width = divide_by(right.count);
      p.weight_r = static_cast<int32_t>(down.tap_step * g.s);
      p.weight_s = static_cast<int32_t>(right.tap_step);
      p.weight_first = static_cast<int32_t>(down.first_tap * g.s + right.first_tap);
      p.out_first = static_cast<int32_t>(i * g.w + j);
      const int64_t step = images_at_once(g.n, down.count * right.count);
      for (int64_t n = 0; n < g.n; n += step) {
        p.columns = static_cast<int32_t>(std::min(step, g.n - n) * down.count * right.count);
        run_gather<T>(queue, plan, p, g.groups, dy + n * p.source_image, weight, nullptr, dx + n * p.out_image);
      }
    }
}

// --- gradient of the weight ---

// out[group, k, (c,r,s)] = sum over pixels of dy[k, pixel] x[(c,r,s), pixel]
struct WeightProduct {
  int32_t rows = 0, columns = 0, pixels = 0, pixels_per_split = 0;
  WindowAxis vertical, horizontal;
  FastDivide taps, taps_w, plane, width;
  int32_t source_plane = 0, dy_plane = 0;
  int64_t source_image = 0, source_group = 0, dy_image = 0, dy_group = 0, out_group = 0, out_split = 0;

  __device__ Tap tap(int32_t column) const {
    if (column >= columns) return {0, 0, far_outside, 0};
    const int32_t channel = static_cast<int32_t>(taps.quotient(column)), within = column - channel * static_cast<int32_t>(taps.divisor);
    const int32_t r = static_cast<int32_t>(taps_w.quotient(within)), s = within - r * static_cast<int32_t>(taps_w.divisor);
    const int32_t down = vertical.delta * r, right = horizontal.delta * s;
    return {channel * source_plane + down * horizontal.size + right, 0, down, right};
  }
};

template <class Tile>
struct WeightShared {
  typename Tile::Slices slices;
  Tap taps[Tile::columns];
};

// Neighbouring threads fetch neighbouring pixels, of dy for `a` and of x for `b`.
template <class Tile>
struct WeightLoader {
  using T = typename Tile::Element;
  static constexpr int lines = Tile::threads / Tile::depth, a_count = Tile::rows / lines, b_count = Tile::columns / lines;

  const WeightProduct& p;
  const T *x, *dy;
  const Tap* taps;
  int first_row;
  T a[a_count], b[b_count];

  __device__ static int step() { return static_cast<int>(threadIdx.x) % Tile::depth; }
  __device__ static int line(int i) { return static_cast<int>(threadIdx.x) / Tile::depth + i * lines; }

  __device__ void fetch(int32_t first_pixel, int32_t end) {
    const int32_t number = first_pixel + step();
    const bool is_pixel = number < end;
    const int32_t image = is_pixel ? static_cast<int32_t>(p.plane.quotient(number)) : 0, within = is_pixel ? number - image * static_cast<int32_t>(p.plane.divisor) : 0;
    const int32_t i = static_cast<int32_t>(p.width.quotient(within)), j = within - i * static_cast<int32_t>(p.width.divisor);
    const int32_t down = is_pixel ? p.vertical.step * i + p.vertical.base : far_outside, right = p.horizontal.step * j + p.horizontal.base;
    const T* const from_dy = dy + image * p.dy_image + within;
    const T* const from_x = x + image * p.source_image + static_cast<int64_t>(down) * p.horizontal.size + right;
#pragma unroll
    for (int k = 0; k < a_count; ++k) {
      const int row = first_row + line(k);
      a[k] = is_pixel && row < p.rows ? from_dy[static_cast<int64_t>(row) * p.dy_plane] : T(0);
    }
#pragma unroll
    for (int k = 0; k < b_count; ++k) {
      const Tap tap = taps[line(k)];
      const bool is_inside = static_cast<uint32_t>(down + tap.down) < static_cast<uint32_t>(p.vertical.size) && static_cast<uint32_t>(right + tap.right) < static_cast<uint32_t>(p.horizontal.size);
      b[k] = is_inside ? from_x[tap.source] : T(0);
    }
  }
  __device__ void store(typename Tile::Slices& slices, int which) const {
#pragma unroll
    for (int k = 0; k < a_count; ++k) slices.a[which][step()][line(k)] = a[k];
#pragma unroll
    for (int k = 0; k < b_count; ++k) slices.b[which][step()][line(k)] = b[k];
  }
};

template <class Tile, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::threads, 2)
    weight_product(WeightProduct p, int first_group, const T* x, const T* dy, T* out) {
  auto& shared_memory = shared<WeightShared<Tile>>();
  const int row_tiles = ceil_div(p.rows, Tile::rows);
  const int first_row = static_cast<int>(blockIdx.x) % row_tiles * Tile::rows, first_column = static_cast<int>(blockIdx.x) / row_tiles * Tile::columns;
  const int64_t group = first_group + static_cast<int64_t>(blockIdx.y);
  const int64_t begin = static_cast<int64_t>(blockIdx.z) * p.pixels_per_split;
  const int32_t end = static_cast<int32_t>(begin + p.pixels_per_split < p.pixels ? begin + p.pixels_per_split : p.pixels);
  const int steps = begin < end ? static_cast<int>((end - begin + Tile::depth - 1) / Tile::depth) : 0;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::columns; i += Tile::threads) shared_memory.taps[i] = p.tap(first_column + i);
  __syncthreads();
  WeightLoader<Tile> loader{p, x + group * p.source_group, dy + group * p.dy_group, shared_memory.taps, first_row, {}, {}};
  if (steps > 0) {
    loader.fetch(static_cast<int32_t>(begin), end);
    loader.store(shared_memory.slices, 0);
  }
  __syncthreads();
  T sums[Tile::tall][Tile::wide] = {};
  for (int t = 0; t < steps; ++t) {                    // See Note [One barrier for each slice]
    const bool has_next = t + 1 < steps;
    if (has_next) loader.fetch(static_cast<int32_t>(begin + static_cast<int64_t>(t + 1) * Tile::depth), end);
    Tile::multiply(shared_memory.slices, t % 2, sums);
    if (has_next) loader.store(shared_memory.slices, (t + 1) % 2);
    __syncthreads();
  }
  out += static_cast<int64_t>(blockIdx.z) * p.out_split + group * p.out_group;
#pragma unroll
  for (int i = 0; i < Tile::tall; ++i)
#pragma unroll
    for (int j = 0; j < Tile::wide; ++j) {
      const int row = first_row + Tile::row(i), column = first_column + Tile::column(j);
      if (row < p.rows && column < p.columns) out[static_cast<int64_t>(row) * p.columns + column] = sums[i][j];
    }
}

// y[i] = sum over parts of x[part, i], in order.
template <class Sum, class T>
__global__ void __launch_bounds__(256) add_parts(int64_t parts, int64_t n, const Sum* x, T* y) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) {
    Sum sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += x[part * n + i];
    y[i] = narrow<T>(static_cast<Accumulate<T>>(sum));
  }
}

template <class T> using WideWeightTile = Tile<T, 128, 128, 16, 8, 8>;
template <class T> using MediumWeightTile = Tile<T, 64, 64, 16, 4, 4>;
template <class T> using GroupedWeightTile = Tile<T, 16, 64, 16, 4, 4>;

template <class Tile>
void launch_weight(Queue queue, const char* name, const WeightProduct& p, int64_t groups, int64_t splits, const void* x, const void* dy, void* out) {
  using T = typename Tile::Element;
  const int64_t blocks = ceil_div<int64_t>(p.rows, Tile::rows) * ceil_div<int64_t>(p.columns, Tile::columns);
  for (int64_t group = 0; group < groups; group += most_groups) {
    const int64_t count = std::min(most_groups, groups - group);
    const Grid grid{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count), static_cast<unsigned>(splits)), dim3(Tile::threads), sizeof(WeightShared<Tile>)};
    launch(queue, name, grid, weight_product<Tile>, p, static_cast<int>(group), static_cast<const T*>(x), static_cast<const T*>(dy), static_cast<T*>(out));
  }
}

template <class T>
void tiled_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* x, const T* dy, T* out) {
  const int64_t plane = g.out_h() * g.out_w(), pixels = g.n * plane;
  check<ShapeError>(pixels < index_limit, "conv2d_backward_weight: ", pixels, " pixels are too many for the CUDA kernels, which take fewer than 2^31; use smaller batches");
  WeightProduct p;
  p.rows = static_cast<int32_t>(g.group_k());
  p.columns = static_cast<int32_t>(g.group_c() * g.r * g.s);
  p.pixels = static_cast<int32_t>(pixels);
  p.pixels_per_split = static_cast<int32_t>(ceil_div(ceil_div(pixels, plan.splits), int64_t{16}) * 16);
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
  if (plan.kernel == ConvKernel::grouped) return launch_weight<GroupedWeightTile<T>>(queue, plan.name, p, g.groups, plan.splits, x, dy, out);
  if (plan.kernel == ConvKernel::medium) return launch_weight<MediumWeightTile<T>>(queue, plan.name, p, g.groups, plan.splits, x, dy, out);
  if constexpr (std::is_same_v<T, float>) launch_weight<WideWeightTile<T>>(queue, plan.name, p, g.groups, plan.splits, x, dy, out);
}

template <class T>
void backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& dy, T* dweight, Workspace scratch) {
  using Sum = Accumulate<T>;
  const bool has_parts = plan.splits > 1 || is_half<T>;
  if (plan.kernel == ConvKernel::depthwise) {
    depthwise_backward_weight(queue, g, x, dy, dtype_of<T>, plan.splits, has_parts ? scratch.data : dweight);
  } else if constexpr (!is_half<T>) {
    tiled_backward_weight(queue, g, plan, x.as<T>(), dy.as<T>(), has_parts ? static_cast<T*>(scratch.data) : dweight);
  }
  if (has_parts) launch(queue, "conv2d_add_parts", grid_for(g.weights()), add_parts<Sum, T>, plan.splits, g.weights(), static_cast<const Sum*>(scratch.data), dweight);
}

// --- gradient of the bias ---

// blockIdx: x the channel, y the part of the pixels. Neighbouring threads take neighbouring pixels, from one image to the next, and have
// several reads under way at once.
template <class T>
__global__ void __launch_bounds__(256) sum_channels(int64_t images, int64_t channels, int64_t plane, FastDivide by_plane, int64_t pixels_per_split,
                                                    const T* dy, double* parts) {
  auto& scratch = shared<double[warp_size]>();
  const int64_t channel = blockIdx.x, begin = blockIdx.y * pixels_per_split, image_step = channels * plane;
  const int64_t end = begin + pixels_per_split < images * plane ? begin + pixels_per_split : images * plane;
  double sum = 0;
  for (int64_t at = begin, count = 0; at < end; at += count) {               // pixels that can be numbered, from the first of an image on
    const int64_t image = at / plane, before = at - image * plane;
    count = min(end - at, index_limit - before);
    const T* const from = dy + image * image_step + channel * plane;
    const uint32_t last = static_cast<uint32_t>(before + count);
#pragma unroll 8
    for (uint32_t pixel = static_cast<uint32_t>(before) + threadIdx.x; pixel < last; pixel += 256) {
      const uint32_t next = by_plane.quotient(pixel);
      sum += widen(from[next * image_step + (pixel - next * by_plane.divisor)]);
    }
  }
  sum = block_reduce(sum, Sum(), 0.0, scratch);
  if (threadIdx.x == 0) parts[blockIdx.y * channels + channel] = sum;
}

constexpr int channel_lines = 8;                       // pixels that a block looks at beside each other

// Of dy [pixels, channels]. blockIdx: x a warp's width of channels, y the part of the pixels.
template <class T>
__global__ void __launch_bounds__(warp_size * channel_lines) sum_last_channels(int64_t pixels, int64_t channels, int64_t pixels_per_split, const T* dy, double* parts) {
  auto& sums = shared<double[channel_lines][warp_size]>();
  const int lane = static_cast<int>(threadIdx.x) % warp_size, line = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * warp_size + lane, begin = blockIdx.y * pixels_per_split;
  const int64_t end = begin + pixels_per_split < pixels ? begin + pixels_per_split : pixels;
  double sum = 0;
  if (channel < channels)
    for (int64_t pixel = begin + line; pixel < end; pixel += channel_lines) sum += widen(dy[pixel * channels + channel]);
  sums[line][lane] = sum;
  __syncthreads();
  if (line > 0 || channel >= channels) return;
  for (int other = 1; other < channel_lines; ++other) sum += sums[other][lane];
  parts[blockIdx.y * channels + channel] = sum;
}

template <class T>
void backward_bias(Queue queue, const ConvGeometry& g, const ConstView& dy, T* dbias, Workspace scratch) {
  const Images<const void*> images = images_of(dy, "conv2d_backward_weight", "dy");
  const int64_t plane = g.out_h() * g.out_w(), pixels = g.n * plane, splits = conv_bias_splits(g, images.is_planar());
  const int64_t per_split = std::max<int64_t>(ceil_div(pixels, splits), 1);
  double* const parts = static_cast<double*>(scratch.data);
  const auto grid = [&](int64_t blocks, int64_t values) {
    return Grid{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(splits)), dim3(256), static_cast<size_t>(values) * sizeof(double)};
  };
  if (images.is_planar()) launch(queue, "conv2d_sum_channels", grid(g.k, warp_size), sum_channels<T>, g.n, g.k, plane, divide_by(plane), per_split,
                                     dy.as<T>(), parts);
  else launch(queue, "conv2d_sum_last_channels", grid(ceil_div<int64_t>(g.k, warp_size), warp_size * channel_lines), sum_last_channels<T>, pixels, g.k, per_split, dy.as<T>(), parts);
  launch(queue, "conv2d_add_bias_parts", grid_for(g.k), add_parts<double, T>, splits, g.k, static_cast<const double*>(parts), dbias);
}

// --- entries ---

ConvMath math() { return {fovea::cuda::allow_tf32()}; }

// A view that lies [n,c,h,w], and the memory of its copy if it is one.
struct PlanarView {
  View view;
  std::unique_ptr<DeviceScratch> memory;
};

PlanarView room_for(Queue queue, const ConstView& v) {
  PlanarView result;
  result.memory = std::make_unique<DeviceScratch>(v.numel() * size_of(v.dtype), queue);
  result.view.data = result.memory->data();
  result.view.dtype = v.dtype;
  result.view.shape = v.shape;
  result.view.strides = contiguous_strides(v.shape);
  return result;
}

const KernelTable& own_table() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cuda: asking for the current device");
  return cuda_table(device);
}

// A copy only where the view does not lie so already. Its memory may go back as soon as the kernels that read it are on their way.
PlanarView planar(Queue queue, const ConstView& v) {
  if (v.is_contiguous()) {
    PlanarView same;
    same.view.data = const_cast<void*>(v.data);
    same.view.dtype = v.dtype;
    same.view.shape = v.shape;
    same.view.strides = v.strides;
    return same;
  }
  PlanarView copy = room_for(queue, v);
  own_table().copy(queue, v, copy.view);
  return copy;
}

// Calls f with a view that lies [n,c,h,w], and puts what f has written there where `out` lies.
template <class F>
void write_planar(Queue queue, const View& out, F&& f) {
  if (out.is_contiguous()) return f(out);
  const PlanarView result = room_for(queue, out);
  f(result.view);
  own_table().copy(queue, result.view, out);
}

int64_t conv2d_workspace(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, "conv2d", [&](auto) {
    int64_t bytes = 0;
    for (const ConvPass pass : {ConvPass::forward, ConvPass::backward_data, ConvPass::backward_weight}) bytes = std::max(bytes, conv_pass_bytes(g, dtype, pass, math()));
    return bytes;
  });
}

void conv2d_forward(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y, Workspace scratch) {
  if (y.numel() == 0) return;
  dispatch_floating(y.dtype, "conv2d", [&](auto zero) {
    using T = decltype(zero);
    check_sizes("conv2d", g);
    const ConvPlan plan = choose_conv_kernel(g, y.dtype, ConvPass::forward, math());
    if (plan.uses_tensor_cores()) return tensor_forward(queue, g, plan, x, weight, bias, y, scratch);
    const PlanarView from = planar(queue, x), weights = planar(queue, weight);
    write_planar(queue, y, [&](const View& to) {
      if (plan.kernel == ConvKernel::depthwise) return depthwise_forward(queue, g, from.view, weights.view, bias, to);
      if constexpr (!is_half<T>) forward<T>(queue, g, plan, from.view.template as<T>(), weights.view.template as<T>(), bias.as<T>(), to.as<T>());
    });
  });
}

void conv2d_backward_data(Queue queue, const ConvGeometry& g, const ConstView& dy, const ConstView& weight, const View& dx, Workspace scratch) {
  if (dx.numel() == 0) return;
  dispatch_floating(dx.dtype, "conv2d_backward_data", [&](auto zero) {
    using T = decltype(zero);
    check_sizes("conv2d_backward_data", g);
    const ConvPlan plan = choose_conv_kernel(g, dx.dtype, ConvPass::backward_data, math());
    if (plan.uses_tensor_cores()) return tensor_backward_data(queue, g, plan, dy, weight, dx, scratch);
    const PlanarView from = planar(queue, dy), weights = planar(queue, weight);
    write_planar(queue, dx, [&](const View& to) {
      if (plan.kernel == ConvKernel::depthwise) return depthwise_backward_data(queue, g, from.view, weights.view, to);
      if constexpr (!is_half<T>) backward_data<T>(queue, g, plan, from.view.template as<T>(), weights.view.template as<T>(), to.as<T>());
    });
  });
}

// dweight or dbias may be absent.
void conv2d_backward_weight(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& dy, const View& dweight, const View& dbias, Workspace scratch) {
  dispatch_floating(dy.dtype, "conv2d_backward_weight", [&](auto zero) {
    using T = decltype(zero);
    check_sizes("conv2d_backward_weight", g);
    if (dbias && g.k > 0) backward_bias(queue, g, dy, dbias.as<T>(), scratch);
    if (!dweight || dweight.numel() == 0) return;
    const ConvPlan plan = choose_conv_kernel(g, dy.dtype, ConvPass::backward_weight, math());
    if (plan.uses_tensor_cores()) return tensor_backward_weight(queue, g, plan, x, dy, dweight, scratch);
    const PlanarView from = planar(queue, x), gradient = planar(queue, dy);
    write_planar(queue, dweight, [&](const View& to) { backward_weight(queue, g, plan, from.view, gradient.view, to.as<T>(), scratch); });
  });
}

}  // namespace

void add_conv(KernelTable& t) {
  t.computes_half.add(Family::conv);
  t.conv2d_workspace = conv2d_workspace;
  t.conv2d_forward = conv2d_forward;
  t.conv2d_backward_data = conv2d_backward_data;
  t.conv2d_backward_weight = conv2d_backward_weight;
}

}  // namespace fovea::kernels::cuda
