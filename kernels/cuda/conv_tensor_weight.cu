// The gradient of a convolution's weight on tensor cores; conv.cu says what is computed. float16 and bfloat16, and float32 rounded to TF32. Sums in float32.
// A product of y's channels by (r, s, x's channel), summed over the pixels of all images. Both operands lie [n,h,w,c] (conv_layout.cu copies what does not): a
// stage of the ring holds 64 bytes' worth of pixels, each with its channels of dy and, for each tap, the channels of x where its window lies. So the sum runs across
// the rows of shared memory: ldmatrix transposes the half types on the way to registers, and float32 is read element by element.
// The sum over pixels is cut into parts, which blocks compute beside each other in float32; a second kernel adds them up in order, and writes them as dweight lies.
// Overwrites. Deterministic; the order of sums depends on the geometry alone.
// Floor: 2 * geometry.macs() FLOPs; reading x and dy once, and once more where they have to be copied.
#include <fovea/kernels/cuda/conv_functions.h>
#include <fovea/kernels/cuda/core/tensor_tile.h>

#include <fovea/kernels/cuda/core/pack.h>

namespace fovea::kernels::cuda {
namespace {

struct TensorWeightProduct {
  int32_t rows = 0, padded_rows = 0, columns = 0;       // of a group: y's channels, as memory has them, and (r, s, x's channel), padded to whole chunks
  int32_t depth = 0;                                    // taps * x's padded channels
  int32_t pixels = 0, pixels_per_split = 0;
  bool is_pointwise = false;                            // pixel i of y sees pixel i of x alone
  bool adds = false;                                    // to what an earlier slice of images left in the parts
  WindowAxis vertical, horizontal;
  FastDivide by_channels, by_taps_w;                    // a column, in copies, into tap and channel; a tap into r and s
  FastDivide by_plane, by_width;
  int32_t x_pixel = 0, x_group = 0, dy_pixel = 0, dy_group = 0;
  int64_t x_image = 0, part_group = 0, part_split = 0;

  struct Step {
    int32_t source, down, right;
  };
  __device__ Step step(int32_t copy, int unit) const {
    if (copy * unit >= depth) return {0, far_outside, 0};
    const int32_t tap = static_cast<int32_t>(by_channels.quotient(static_cast<uint32_t>(copy))), channel = (copy - tap * static_cast<int32_t>(by_channels.divisor)) * unit;
    const int32_t r = static_cast<int32_t>(by_taps_w.quotient(static_cast<uint32_t>(tap))), s = tap - r * static_cast<int32_t>(by_taps_w.divisor);
    const int32_t down = vertical.delta * r, right = horizontal.delta * s;
    return {(down * horizontal.size + right) * x_pixel + channel, down, right};
  }
};

// A tile of rows x columns sums, shared out to warps_down x warps_right warps.
template <class T, int rows_, int columns_, int warps_down, int warps_right>
struct TensorWeightTile {
  using Element = T;
  static constexpr int rows = rows_, columns = columns_, threads = warps_down * warps_right * warp_size;
  static constexpr int depth = 2 * instruction_depth<T>;                      // pixels of a stage
  static constexpr int a_chunks = rows / chunk<T>, b_chunks = columns / chunk<T>;
  static constexpr int tall = rows / warps_down / 16, wide = columns / warps_right / 8;
  static_assert(wide % 2 == 0, "ldmatrix reads two tiles of b at once");

  struct Ring {
    alignas(16) unsigned char a[stages][depth * a_chunks * copy_bytes];
    alignas(16) unsigned char b[stages][depth * b_chunks * copy_bytes];
  };

  // See Note [Chunks that change places]. ldmatrix reads a chunk of eight neighbouring pixels; a float32 fragment lies in two chunks of four pixels.
  template <int chunks>
  __device__ static int place(int pixel, int column) { return place_of_chunk<chunks>(pixel, column, is_half<T> ? pixel : 2 * pixel); }

  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / warp_size / warps_right * (tall * 16); }           // of the warp
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) / warp_size % warps_right * (wide * 8); }

  template <int chunks>
  __device__ static uint32_t element(const unsigned char* stage, int pixel, int column) {        // of float32
    return *reinterpret_cast<const uint32_t*>(stage + place<chunks>(pixel, column / chunk<T>) + column % chunk<T> * static_cast<int>(sizeof(T)));
  }
  __device__ static void load_a(const unsigned char* stage, int pixel, int row, uint32_t (&a)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    if constexpr (is_half<T>) {
      load_matrix_x4_transposed(a, stage + place<a_chunks>(pixel + lane / 16 * 8 + lane % 8, row / chunk<T> + lane / 8 % 2));
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v) a[v] = element<a_chunks>(stage, pixel + lane % 4 + v / 2 * 4, row + lane / 4 + v % 2 * 8);
    }
  }
  __device__ static void load_b(const unsigned char* stage, int pixel, int column, uint32_t (&first)[2], uint32_t (&second)[2]) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    if constexpr (is_half<T>) {
      uint32_t both[4];
      load_matrix_x4_transposed(both, stage + place<b_chunks>(pixel + lane / 8 % 2 * 8 + lane % 8, column / chunk<T> + lane / 16));
      first[0] = both[0], first[1] = both[1], second[0] = both[2], second[1] = both[3];
    } else {
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        first[v] = element<b_chunks>(stage, pixel + lane % 4 + v * 4, column + lane / 4);
        second[v] = element<b_chunks>(stage, pixel + lane % 4 + v * 4, column + 8 + lane / 4);
      }
    }
  }

  __device__ static void multiply(const Ring& ring, int stage, float (&sums)[tall][wide][4]) {
#pragma unroll(is_half<T> ? 2 : 1)                     // the addresses of float32's elements, twice, are more than the registers hold
    for (int pixel = 0; pixel < depth; pixel += instruction_depth<T>) {
      uint32_t a[tall][4], b[wide][2];
#pragma unroll
      for (int i = 0; i < tall; ++i) load_a(ring.a[stage], pixel, first_row() + 16 * i, a[i]);
#pragma unroll
      for (int j = 0; j < wide; j += 2) load_b(ring.b[stage], pixel, first_column() + 8 * j, b[j], b[j + 1]);
      multiply_fragments<T>(sums, a, b);
    }
  }
};

// What a thread copies of each stage: one chunk of y's channels, and one of columns, of several pixels each.
template <class Tile, int bytes>
struct PixelLoader {
  using T = typename Tile::Element;
  static constexpr int unit = bytes / static_cast<int>(sizeof(T)), units = copy_bytes / bytes;
  static constexpr int a_lines = Tile::threads / Tile::a_chunks, b_lines = Tile::threads / Tile::b_chunks;       // pixels beside each other
  static_assert(Tile::threads % Tile::a_chunks == 0 && Tile::threads % Tile::b_chunks == 0, "threads share out whole pixels");

  const TensorWeightProduct& p;
  const T *x, *dy;
  bool has_row;
  TensorWeightProduct::Step steps[units];

  __device__ static int a_column() { return static_cast<int>(threadIdx.x) % Tile::a_chunks; }
  __device__ static int b_column() { return static_cast<int>(threadIdx.x) % Tile::b_chunks; }

  __device__ PixelLoader(const TensorWeightProduct& p, const T* x, const T* dy, int32_t first_row, int32_t first_column) : p(p), x(x), dy(dy) {
    const int32_t row = first_row + a_column() * chunk<T>;
    has_row = row < p.padded_rows;
    if (has_row) this->dy += row;
#pragma unroll
    for (int u = 0; u < units; ++u) steps[u] = p.step((first_column / chunk<T> + b_column()) * units + u, unit);
  }

  __device__ void copy(typename Tile::Ring& ring, int stage, int32_t first_pixel, int32_t end) const {
#pragma unroll
    for (int i = 0; i < ceil_div(Tile::depth, a_lines); ++i) {
      const int line = static_cast<int>(threadIdx.x) / Tile::a_chunks + i * a_lines;
      if (line >= Tile::depth) continue;
      const int32_t pixel = first_pixel + line;
      const bool is_there = has_row && pixel < end;
      copy_async<copy_bytes>(ring.a[stage] + Tile::template place<Tile::a_chunks>(line, a_column()), is_there ? dy + static_cast<int64_t>(pixel) * p.dy_pixel : dy, is_there);
    }
#pragma unroll
    for (int i = 0; i < ceil_div(Tile::depth, b_lines); ++i) {
      const int line = static_cast<int>(threadIdx.x) / Tile::b_chunks + i * b_lines;
      if (line >= Tile::depth) continue;
      copy_window(ring.b[stage] + Tile::template place<Tile::b_chunks>(line, b_column()), first_pixel + line, end);
    }
  }

 private:
  __device__ void copy_window(unsigned char* to, int32_t number, int32_t end) const {
    const bool is_pixel = number < end;
    if (p.is_pointwise) {                               // its windows are never few_channels: one copy
      const bool is_inside = is_pixel && steps[0].down == 0;
      copy_async<bytes>(to, is_inside ? x + static_cast<int64_t>(number) * p.x_pixel + steps[0].source : x, is_inside);
      return;
    }
    const int32_t image = is_pixel ? static_cast<int32_t>(p.by_plane.quotient(static_cast<uint32_t>(number))) : 0;
    const int32_t within = is_pixel ? number - image * static_cast<int32_t>(p.by_plane.divisor) : 0;
    const int32_t i = static_cast<int32_t>(p.by_width.quotient(static_cast<uint32_t>(within))), j = within - i * static_cast<int32_t>(p.by_width.divisor);
    const int32_t down = is_pixel ? p.vertical.step * i + p.vertical.base : far_outside, right = p.horizontal.step * j + p.horizontal.base;
    const T* const window = x + image * p.x_image + (static_cast<int64_t>(down) * p.horizontal.size + right) * p.x_pixel;
#pragma unroll
    for (int u = 0; u < units; ++u) {
      const bool is_inside = static_cast<uint32_t>(down + steps[u].down) < static_cast<uint32_t>(p.vertical.size) &&
                             static_cast<uint32_t>(right + steps[u].right) < static_cast<uint32_t>(p.horizontal.size);
      copy_async<bytes>(to + u * bytes, is_inside ? window + steps[u].source : x, is_inside);
    }
  }
};

// blockIdx: x the group and the tile, y the part of the sum: neighbouring blocks have the same pixels.
template <class Tile, int bytes, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::threads, blocks_beside(Tile::tall * Tile::wide))
    tensor_weight_product(TensorWeightProduct p, const T* x, const T* dy, float* parts) {
  auto& ring = shared<typename Tile::Ring>();
  const int column_tiles = ceil_div(p.columns, Tile::columns), row_tiles = ceil_div(p.rows, Tile::rows), line = static_cast<int>(blockIdx.x) / column_tiles;
  const int32_t group = line / row_tiles, first_row = (line - group * row_tiles) * Tile::rows;
  const int32_t first_column = (static_cast<int32_t>(blockIdx.x) - line * column_tiles) * Tile::columns;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * p.pixels_per_split;
  const int32_t end = static_cast<int32_t>(begin + p.pixels_per_split < p.pixels ? begin + p.pixels_per_split : p.pixels);
  const int steps = begin < end ? static_cast<int>((end - begin + Tile::depth - 1) / Tile::depth) : 0;
  const PixelLoader<Tile, bytes> loader(p, x + static_cast<int64_t>(group) * p.x_group, dy + static_cast<int64_t>(group) * p.dy_group, first_row, first_column);
  float sums[Tile::tall][Tile::wide][4] = {};
  run_ring(steps, [&](int stage, int t) { loader.copy(ring, stage, static_cast<int32_t>(begin + static_cast<int64_t>(t) * Tile::depth), end); },
           [&](int stage) { Tile::multiply(ring, stage, sums); });

  parts += static_cast<int64_t>(blockIdx.y) * p.part_split + group * p.part_group;
#pragma unroll
  for (int i = 0; i < Tile::tall; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = first_row + Tile::first_row() + 16 * i + 8 * half + sum_row();
      if (row >= p.rows) continue;
#pragma unroll
      for (int j = 0; j < Tile::wide; ++j) {
        const int32_t column = first_column + Tile::first_column() + 8 * j + sum_column();
        if (column >= p.columns) continue;
        float* const to = parts + static_cast<int64_t>(row) * p.columns + column;
        Pack<float, 2> values = p.adds ? load_pack<float, 2>(to, 0) : Pack<float, 2>{};
        values[0] += sums[i][j][2 * half];
        values[1] += sums[i][j][2 * half + 1];
        store_pack(to, 0, values);
      }
    }
}

// --- the parts, added up ---

struct AddedWeights {
  int32_t count = 0;                                    // weights, numbered [k, r, s, c/groups]
  int32_t splits = 0, padded = 0, columns = 0;          // x's padded channels, and the length of a row of sums
  int64_t part_split = 0;
  int64_t to_k = 0, to_c = 0, to_r = 0, to_s = 0;       // strides of dweight
  FastDivide by_c, by_taps, by_taps_w;
};

__device__ inline int32_t quotient(const FastDivide& by, int32_t n) { return static_cast<int32_t>(by.quotient(static_cast<uint32_t>(n))); }

constexpr int adding_threads = 256, most_adding_lines = 8;

// `lines` threads have a weight: each adds up every so many-th part, and the first of them adds up the threads' sums, in order.
template <class T, int lines>
__global__ void __launch_bounds__(adding_threads) add_tensor_parts(AddedWeights p, const float* parts, T* dweight) {
  constexpr int beside = adding_threads / lines;        // weights of a block
  auto& sums = shared<float[lines][beside]>();
  const int line = static_cast<int>(threadIdx.x) / beside, own = static_cast<int>(threadIdx.x) % beside;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * beside; first < p.count; first += static_cast<int64_t>(gridDim.x) * beside) {
    const bool is_weight = first + own < p.count;
    const int32_t i = is_weight ? static_cast<int32_t>(first) + own : 0;
    const int32_t row = quotient(p.by_c, i), c = i - row * static_cast<int32_t>(p.by_c.divisor);
    const int32_t k = quotient(p.by_taps, row), tap = row - k * static_cast<int32_t>(p.by_taps.divisor);
    const float* const from = parts + static_cast<int64_t>(k) * p.columns + tap * p.padded + c;
    float sum = 0;
#pragma unroll 4
    for (int32_t split = line; split < p.splits; split += lines) sum += from[split * p.part_split];
    if constexpr (lines > 1) {
      sums[line][own] = sum;
      __syncthreads();
      if (line == 0)
        for (int other = 1; other < lines; ++other) sum += sums[other][own];
      __syncthreads();
    }
    if (line > 0 || !is_weight) continue;
    const int32_t r = quotient(p.by_taps_w, tap), s = tap - r * static_cast<int32_t>(p.by_taps_w.divisor);
    dweight[k * p.to_k + c * p.to_c + r * p.to_r + s * p.to_s] = narrow<T>(sum);
  }
}

template <class T>
void add_parts(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* parts, const View& dweight) {
  AddedWeights p;
  p.count = static_cast<int32_t>(g.weights());
  p.splits = static_cast<int32_t>(plan.splits);
  p.padded = static_cast<int32_t>(plan.layout.x_channels);
  p.columns = static_cast<int32_t>(plan.layout.weight_row);
  p.part_split = g.k * plan.layout.weight_row;
  p.to_k = dweight.stride(0);
  p.to_c = dweight.stride(1);
  p.to_r = dweight.stride(2);
  p.to_s = dweight.stride(3);
  p.by_c = divide_by(g.group_c());
  p.by_taps = divide_by(g.r * g.s);
  p.by_taps_w = divide_by(g.s);
  const auto start = [&](auto kernel, int64_t lines) {
    const Grid grid = grid_for(p.count * lines, adding_threads, adding_threads * sizeof(float));
    launch(queue, "conv2d_add_tensor_parts", grid, kernel, p, parts, dweight.as<T>());
  };
  if (plan.splits >= 2 * most_adding_lines) start(add_tensor_parts<T, most_adding_lines>, most_adding_lines);  // many parts are of few weights
  else start(add_tensor_parts<T, 1>, 1);
}

// Calls f with a zero of the dtype: a half type or float32.
template <class F>
void dispatch_tensor(DType dtype, F&& f) {
  if (dtype == DType::float16) f(float16{});
  else if (dtype == DType::bfloat16) f(bfloat16{});
  else f(float{});
}

// --- launches ---

template <class T> using WideTile = TensorWeightTile<T, 128, 128, 2, 2>;
template <class T> using SmallTile = TensorWeightTile<T, 64, 64, 2, 2>;
template <class T> using SlimTile = TensorWeightTile<T, 16, 128, 1, 4>;

template <class Tile, int bytes>
void launch_tile(Queue queue, const ConvPlan& plan, TensorWeightProduct p, const void* x, const void* dy, float* parts) {
  using T = typename Tile::Element;
  p.pixels_per_split = static_cast<int32_t>(ceil_div<int64_t>(ceil_div<int64_t>(p.pixels, plan.splits), Tile::depth) * Tile::depth);
  const int64_t blocks = p.part_split / p.part_group * ceil_div<int64_t>(p.rows, Tile::rows) * ceil_div<int64_t>(p.columns, Tile::columns);
  check<ShapeError>(blocks < index_limit, "conv2d_backward_weight: ", blocks, " tiles are more than one launch can have");
  const Grid grid{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(plan.splits)), dim3(Tile::threads), sizeof(typename Tile::Ring)};
  launch(queue, plan.name, grid, tensor_weight_product<Tile, bytes>, p, static_cast<const T*>(x), static_cast<const T*>(dy), parts);
}

template <class T, int bytes>
void launch_product(Queue queue, const ConvPlan& plan, const TensorWeightProduct& p, const void* x, const void* dy, float* parts) {
  if (plan.kernel == ConvKernel::tensor_wide) return launch_tile<WideTile<T>, bytes>(queue, plan, p, x, dy, parts);
  if (plan.kernel == ConvKernel::tensor_small) return launch_tile<SmallTile<T>, bytes>(queue, plan, p, x, dy, parts);
  launch_tile<SlimTile<T>, bytes>(queue, plan, p, x, dy, parts);
}

template <class T>
void launch_product(Queue queue, const ConvPlan& plan, const TensorWeightProduct& p, const void* x, const void* dy, float* parts) {
  if constexpr (is_half<T>)
    if (plan.source == ConvSource::few_channels) return launch_product<T, 8>(queue, plan, p, x, dy, parts);
  launch_product<T, 16>(queue, plan, p, x, dy, parts);
}

TensorWeightProduct product_of(const ConvGeometry& g, const ConvPlan& plan, int64_t size) {
  const ConvLayout& layout = plan.layout;
  TensorWeightProduct p;
  p.rows = static_cast<int32_t>(g.group_k());
  p.padded_rows = static_cast<int32_t>(layout.y_channels);
  p.columns = static_cast<int32_t>(layout.weight_row);
  p.depth = static_cast<int32_t>(g.r * g.s * layout.x_channels);
  p.is_pointwise = plan.source == ConvSource::pointwise;
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.by_channels = divide_by(layout.x_channels / ((plan.source == ConvSource::few_channels ? 8 : copy_bytes) / size));
  p.by_taps_w = divide_by(g.s);
  p.by_plane = divide_by(g.out_h() * g.out_w());
  p.by_width = divide_by(g.out_w());
  p.x_pixel = static_cast<int32_t>(g.groups * layout.x_channels);
  p.x_group = static_cast<int32_t>(layout.x_channels);
  p.x_image = g.h * g.w * p.x_pixel;
  p.dy_pixel = static_cast<int32_t>(g.groups * layout.y_channels);
  p.dy_group = static_cast<int32_t>(layout.y_channels);
  p.part_group = static_cast<int64_t>(p.rows) * p.columns;
  p.part_split = g.groups * p.part_group;
  return p;
}

template <class T>
void backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& dy, const View& dweight, char* memory) {
  constexpr const char* op = "conv2d_backward_weight";
  constexpr int64_t size = sizeof(T);
  const ConvLayout& layout = plan.layout;
  const auto from_x = images_of(x, op, "x"), from_dy = images_of(dy, op, "dy");
  const int64_t x_pixels = g.h * g.w, y_pixels = g.out_h() * g.out_w();
  const bool copies_x = needs_copy(from_x, from_x.data, size, g.groups, g.group_c(), layout.x_channels);
  const bool copies_dy = needs_copy(from_dy, from_dy.data, size, g.groups, g.group_k(), layout.y_channels);
  void *const x_copy = memory, *const dy_copy = memory + layout.x_bytes;
  float* const parts = reinterpret_cast<float*>(memory + layout.x_bytes + layout.y_bytes);
  check<ShapeError>(layout.images_per_slice * y_pixels < index_limit, op, ": ", y_pixels, " pixels are too many for the CUDA kernels, which take fewer than 2^31");
  TensorWeightProduct p = product_of(g, plan, size);
  // Slices even where nothing is copied, so that the order of the sum does not depend on how x and dy lie. A batch of no images is one slice of none: parts of zero.
  for (int64_t n = 0; n == 0 || n < g.n; n += layout.images_per_slice) {
    const int64_t count = std::min(layout.images_per_slice, g.n - n);
    auto x_slice = from_x, dy_slice = from_dy;
    x_slice.data = static_cast<const T*>(from_x.data) + n * from_x.image;
    dy_slice.data = static_cast<const T*>(from_dy.data) + n * from_dy.image;
    if (copies_x && count > 0) copy_channels(queue, size, x_slice, count, x_pixels, g.groups, g.group_c(), layout.x_channels, x_copy);
    if (copies_dy && count > 0) copy_channels(queue, size, dy_slice, count, y_pixels, g.groups, g.group_k(), layout.y_channels, dy_copy);
    p.pixels = static_cast<int32_t>(count * y_pixels);
    p.adds = n > 0;
    launch_product<T>(queue, plan, p, copies_x ? x_copy : x_slice.data, copies_dy ? dy_copy : dy_slice.data, parts);
  }
  add_weight_parts(queue, g, plan, parts, dweight);
}

}  // namespace

void add_weight_parts(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* parts, const View& dweight) {
  dispatch_tensor(dweight.dtype, [&](auto zero) { add_parts<decltype(zero)>(queue, g, plan, parts, dweight); });
}

void tensor_backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& dy, const View& dweight, Workspace scratch) {
  char* const memory = static_cast<char*>(scratch.data);
  dispatch_tensor(dweight.dtype, [&](auto zero) { backward_weight<decltype(zero)>(queue, g, plan, x, dy, dweight, memory); });
}

}  // namespace fovea::kernels::cuda
