// Convolution on tensor cores, forward and the gradient of its input; conv.cu says what is computed. float16 and bfloat16, and float32 rounded to TF32 on the way
// into the multiplication. Sums in float32, with the bias in float32 as well, rounded once.
// An implicit GEMM of pixels by channels: the sum runs over taps and, innermost, channels of an image that lies [n,h,w,c] (conv_layout.cu copies what does not). Each
// thread copies 16 bytes of channels at a time with cp.async from where the window of its pixel lies, or zeros from outside of the image, into a ring of four
// stages; ldmatrix and mma.sync multiply them. With strides, the gradient of the input is computed in phases, as in conv_plain.cu, all in one launch.
// Results go through shared memory into y's own layout, [n,c,h,w] or [n,h,w,c], in accesses of 16 bytes where it is aligned to them.
// Overwrites. Deterministic; the order of sums depends on the geometry alone.
// Floor: 2 * geometry.macs() FLOPs; reading and writing every tensor once, and once more where it has to be copied.
#include <fovea/kernels/cuda/conv_functions.h>
#include <fovea/kernels/cuda/core/tensor_tile.h>

#include <vector>

#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/runtime.h>

namespace fovea::kernels::cuda {
namespace {

// Pixels of the result that see the same taps: all of them in the forward direction.
struct TensorPhase {
  int32_t pixels = 0, depth = 0, first_block = 0;       // pixels of all images of the launch; the length of a sum
  WindowAxis vertical, horizontal;
  FastDivide by_taps_w;                                 // a tap into r and s
  FastDivide by_plane, by_width;                        // a pixel into image, i, j
  int32_t weight_r = 0, weight_s = 0, weight_first = 0;
  int64_t out_first = 0;

  struct Pixel {
    int32_t image, i, j;
  };
  __device__ Pixel pixel(int32_t number) const {
    const int32_t image = static_cast<int32_t>(by_plane.quotient(static_cast<uint32_t>(number))), within = number - image * static_cast<int32_t>(by_plane.divisor);
    const int32_t i = static_cast<int32_t>(by_width.quotient(static_cast<uint32_t>(within)));
    return {image, i, within - i * static_cast<int32_t>(by_width.divisor)};
  }
};

constexpr int most_phases = 16;                         // of one launch: a kernel's parameters have 4 KB

struct TensorProduct {
  int32_t groups = 1, columns = 0;                      // columns: channels of the result, of one group
  bool is_pointwise = false;                            // pixel i of the result sees pixel i of the source alone
  bool is_planar = false, has_packs = false;            // the result lies [n,c,h,w]; neighbours in its memory may be written as packs
  FastDivide by_channels;                               // a step of the sum, in copies, into tap and channel
  int32_t source_pixel = 0, source_group = 0;
  int64_t source_image = 0;
  int32_t weight_row = 0;
  int64_t weight_group = 0;
  int64_t out_image = 0, out_i = 0, out_j = 0, out_channel = 0;
  int phase_count = 0;
  TensorPhase phases[most_phases];

  // Where step `copy` of the sum, `unit` channels of one tap, lies relative to a pixel's first tap, and in a row of weights.
  struct Step {
    int32_t source, weight, down, right;
  };
  __device__ Step step(const TensorPhase& phase, int32_t copy, int unit) const {
    if (copy * unit >= phase.depth) return {0, -1, far_outside, 0};
    if (is_pointwise) return {copy * unit, copy * unit, 0, 0};
    const int32_t tap = static_cast<int32_t>(by_channels.quotient(static_cast<uint32_t>(copy))), channel = (copy - tap * static_cast<int32_t>(by_channels.divisor)) * unit;
    const int32_t r = static_cast<int32_t>(phase.by_taps_w.quotient(static_cast<uint32_t>(tap))), s = tap - r * static_cast<int32_t>(phase.by_taps_w.divisor);
    const int32_t down = phase.vertical.delta * r, right = phase.horizontal.delta * s;
    return {(down * phase.horizontal.size + right) * source_pixel + channel, phase.weight_first + r * phase.weight_r + s * phase.weight_s + channel, down, right};
  }
  __device__ int64_t out_pixel(const TensorPhase& phase, int32_t number) const {
    const TensorPhase::Pixel p = phase.pixel(number);
    return p.image * out_image + phase.out_first + p.i * out_i + p.j * out_j;
  }
};

// A tile of pixels x channels, whose sums are shared out to warps_down x warps_right warps. A stage is 64 bytes deep.
template <class T, int rows_, int columns_, int warps_down, int warps_right>
struct TensorTile {
  using Element = T;
  static constexpr int rows = rows_, columns = columns_, threads = warps_down * warps_right * warp_size;
  static constexpr int chunks = 4, depth = chunks * chunk<T>;
  static constexpr int tall = rows / warps_down / 16, wide = columns / warps_right / 8;       // mma's tiles of a warp
  static_assert(wide % 2 == 0, "ldmatrix reads two tiles of b at once");

  struct Ring {
    alignas(16) unsigned char a[stages][rows * chunks * copy_bytes];
    alignas(16) unsigned char b[stages][columns * chunks * copy_bytes];
  };
  static constexpr int staged_padding = chunk<T>;
  struct Staged {                                       // the tile of results, rows by columns or, where y is planar, columns by rows
    alignas(16) T values[(rows + staged_padding) * (columns + staged_padding)];
  };
  static constexpr size_t shared_bytes = sizeof(Ring) > sizeof(Staged) ? sizeof(Ring) : sizeof(Staged);

  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / warp_size / warps_right * (tall * 16); }           // of the warp
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) / warp_size % warps_right * (wide * 8); }

  __device__ static void multiply(const Ring& ring, int stage, float (&sums)[tall][wide][4]) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
    for (int k = 0; k < chunks; k += 2) {
      uint32_t a[tall][4], b[wide][2];
#pragma unroll
      for (int i = 0; i < tall; ++i) load_matrix_x4(a[i], ring.a[stage] + place_of_chunk<chunks>(first_row() + 16 * i + lane % 16, k + lane / 16));
#pragma unroll
      for (int j = 0; j < wide; j += 2) {
        uint32_t both[4];
        load_matrix_x4(both, ring.b[stage] + place_of_chunk<chunks>(first_column() + 8 * j + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
        b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
      }
      multiply_fragments<T>(sums, a, b);
    }
  }
};

// What a thread copies of each stage: one column of chunks, of several pixels' windows for `a` and of several channels' weights for `b`.
template <class Tile, int bytes>
struct WindowLoader {
  using T = typename Tile::Element;
  static constexpr int unit = bytes / static_cast<int>(sizeof(T)), units = copy_bytes / bytes;       // elements of a copy; copies of a chunk
  static constexpr int lines = Tile::threads / Tile::chunks;
  static constexpr int a_count = ceil_div(Tile::rows, lines), b_count = ceil_div(Tile::columns, lines);
  static_assert(Tile::rows % lines == 0, "every thread copies as many pixels");

  const TensorProduct& p;
  const TensorPhase& phase;
  const T *source, *weight;
  int32_t first_column;
  const T* windows[a_count];
  int32_t down[a_count], right[a_count];

  __device__ static int column() { return static_cast<int>(threadIdx.x) % Tile::chunks; }
  __device__ static int line(int i) { return static_cast<int>(threadIdx.x) / Tile::chunks + i * lines; }

  __device__ WindowLoader(const TensorProduct& p, const TensorPhase& phase, const T* source, const T* weight, int32_t first_pixel, int32_t first_column)
      : p(p), phase(phase), source(source), weight(weight), first_column(first_column) {
#pragma unroll
    for (int i = 0; i < a_count; ++i) {
      const int32_t number = first_pixel + line(i);
      windows[i] = source;
      down[i] = far_outside;
      right[i] = 0;
      if (number >= phase.pixels) continue;
      if (p.is_pointwise) {
        windows[i] += static_cast<int64_t>(number) * p.source_pixel;
        down[i] = 0;
        continue;
      }
      const TensorPhase::Pixel pixel = phase.pixel(number);
      down[i] = phase.vertical.step * pixel.i + phase.vertical.base;
      right[i] = phase.horizontal.step * pixel.j + phase.horizontal.base;
      windows[i] += pixel.image * p.source_image + (static_cast<int64_t>(down[i]) * phase.horizontal.size + right[i]) * p.source_pixel;
    }
  }

  __device__ void copy(typename Tile::Ring& ring, int stage, int32_t t) const {
#pragma unroll
    for (int u = 0; u < units; ++u) {
      const TensorProduct::Step step = p.step(phase, (t * Tile::chunks + column()) * units + u, unit);
#pragma unroll
      for (int i = 0; i < a_count; ++i) {
        const bool is_inside = static_cast<uint32_t>(down[i] + step.down) < static_cast<uint32_t>(phase.vertical.size) &&
                               static_cast<uint32_t>(right[i] + step.right) < static_cast<uint32_t>(phase.horizontal.size);
        copy_async<bytes>(ring.a[stage] + place_of_chunk<Tile::chunks>(line(i), column()) + u * bytes, is_inside ? windows[i] + step.source : source, is_inside);
      }
#pragma unroll
      for (int i = 0; i < b_count; ++i) {
        if (line(i) >= Tile::columns) continue;
        const int32_t row = first_column + line(i);
        const bool is_there = step.weight >= 0 && row < p.columns;
        copy_async<bytes>(ring.b[stage] + place_of_chunk<Tile::chunks>(line(i), column()) + u * bytes, is_there ? weight + row * p.weight_row + step.weight : weight, is_there);
      }
    }
  }
};

// From the warps' sums into shared memory, with the bias, as y's layout has them: neighbouring pixels (planar) or neighbouring channels beside each other.
template <class Tile, class T = typename Tile::Element>
__device__ void stage_results(const TensorProduct& p, const float (&sums)[Tile::tall][Tile::wide][4], int32_t first_column, const T* bias, typename Tile::Staged& staged) {
  const int row_pitch = p.is_planar ? 1 : Tile::columns + Tile::staged_padding, column_pitch = p.is_planar ? Tile::rows + Tile::staged_padding : 1;
#pragma unroll
  for (int j = 0; j < Tile::wide; ++j)
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const int column = Tile::first_column() + 8 * j + sum_column() + v;
      const float start = bias && first_column + column < p.columns ? static_cast<float>(widen(bias[first_column + column])) : 0.0f;
#pragma unroll
      for (int i = 0; i < Tile::tall; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = Tile::first_row() + 16 * i + 8 * half + sum_row();
          staged.values[row * row_pitch + column * column_pitch] = narrow<T>(sums[i][j][2 * half + v] + start);
        }
    }
}

// From there to memory, neighbouring threads to neighbouring places: `fast` runs through what lies beside each other in y.
template <class Tile, class T = typename Tile::Element>
__device__ void write_results(const TensorProduct& p, const TensorPhase& phase, const typename Tile::Staged& staged, int32_t first_pixel, int32_t first_column, T* out) {
  const int fast_tile = p.is_planar ? Tile::rows : Tile::columns, slow_tile = p.is_planar ? Tile::columns : Tile::rows, pitch = fast_tile + Tile::staged_padding;
  const int fast_count = p.is_planar ? phase.pixels - first_pixel : p.columns - first_column, slow_count = p.is_planar ? p.columns - first_column : phase.pixels - first_pixel;
  const auto place = [&](int fast, int slow) {
    const int32_t pixel = first_pixel + (p.is_planar ? fast : slow), column = first_column + (p.is_planar ? slow : fast);
    return out + p.out_pixel(phase, pixel) + column * p.out_channel;
  };
  const int width = p.has_packs ? chunk<T> : 1, across = fast_tile / width;
  for (int item = static_cast<int>(threadIdx.x); item < across * slow_tile; item += Tile::threads) {
    const int slow = item / across, fast = (item - slow * across) * width;
    if (slow >= slow_count || fast >= fast_count) continue;
    const T* const from = staged.values + slow * pitch + fast;
    if (p.has_packs) store_pack(place(fast, slow), 0, load_pack(from, 0));
    else *place(fast, slow) = *from;
  }
}

template <class Tile, int bytes, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::threads, blocks_beside(Tile::tall * Tile::wide))
    tensor_product(TensorProduct p, const T* source, const T* weight, const T* bias, T* out) {
  auto& ring = shared<typename Tile::Ring>();
  // Neighbouring blocks have the same pixels: first all channels of a group, then all groups, parts of whose channels lie in the same 32 bytes.
  int number = 0;
  while (number + 1 < p.phase_count && static_cast<int32_t>(blockIdx.x) >= p.phases[number + 1].first_block) ++number;
  const TensorPhase& phase = p.phases[number];
  const int column_tiles = ceil_div(p.columns, Tile::columns), beside = p.groups * column_tiles, tile = static_cast<int>(blockIdx.x) - phase.first_block;
  const int32_t row_tile = tile / beside, within = tile - row_tile * beside;
  const int32_t group = within / column_tiles, first_pixel = row_tile * Tile::rows, first_column = (within - group * column_tiles) * Tile::columns;
  const WindowLoader<Tile, bytes> loader(p, phase, source + static_cast<int64_t>(group) * p.source_group, weight + group * p.weight_group, first_pixel, first_column);

  float sums[Tile::tall][Tile::wide][4] = {};
  run_ring(ceil_div(phase.depth, Tile::depth), [&](int stage, int t) { loader.copy(ring, stage, t); }, [&](int stage) { Tile::multiply(ring, stage, sums); });
  __syncthreads();                                      // the results take the ring's place

  auto& staged = shared<typename Tile::Staged>();
  stage_results<Tile>(p, sums, first_column, bias ? bias + static_cast<int64_t>(group) * p.columns : nullptr, staged);
  __syncthreads();
  write_results<Tile>(p, phase, staged, first_pixel, first_column, out + static_cast<int64_t>(group) * p.columns * p.out_channel);
}

template <class T> using WideTile = TensorTile<T, 128, 128, 2, 2>;
template <class T> using MediumTile = TensorTile<T, 128, 64, 2, 2>;
template <class T> using SmallTile = TensorTile<T, 64, 64, 2, 2>;
template <class T> using NarrowTile = TensorTile<T, 128, 32, 4, 1>;
template <class T> using SlimTile = TensorTile<T, 128, 16, 4, 1>;

struct Operands {
  const void *source, *weight, *bias;
  void* out;
};

template <class Tile, int bytes>
void launch_tile(Queue queue, const ConvPlan& plan, TensorProduct& p, const Operands& o) {
  using T = typename Tile::Element;
  int64_t blocks = 0;
  for (int i = 0; i < p.phase_count; ++i) {
    p.phases[i].first_block = static_cast<int32_t>(blocks);
    blocks += ceil_div<int64_t>(p.phases[i].pixels, Tile::rows) * p.groups * ceil_div<int64_t>(p.columns, Tile::columns);
    check<ShapeError>(blocks < index_limit, "conv2d: ", blocks, " tiles are more than one launch can have; use smaller batches");
  }
  const Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(Tile::threads), Tile::shared_bytes};
  launch(queue, plan.name, grid, tensor_product<Tile, bytes>, p, static_cast<const T*>(o.source), static_cast<const T*>(o.weight), static_cast<const T*>(o.bias), static_cast<T*>(o.out));
}

template <class T, int bytes>
void launch_product(Queue queue, const ConvPlan& plan, TensorProduct& p, const Operands& o) {
  switch (plan.kernel) {
    case ConvKernel::tensor_wide: return launch_tile<WideTile<T>, bytes>(queue, plan, p, o);
    case ConvKernel::tensor_medium: return launch_tile<MediumTile<T>, bytes>(queue, plan, p, o);
    case ConvKernel::tensor_small: return launch_tile<SmallTile<T>, bytes>(queue, plan, p, o);
    case ConvKernel::tensor_narrow: return launch_tile<NarrowTile<T>, bytes>(queue, plan, p, o);
    default: return launch_tile<SlimTile<T>, bytes>(queue, plan, p, o);
  }
}

template <class T>
void launch_product(Queue queue, const ConvPlan& plan, TensorProduct& p, const Operands& o) {
  if constexpr (is_half<T>)
    if (plan.source == ConvSource::few_channels) return launch_product<T, 8>(queue, plan, p, o);
  launch_product<T, 16>(queue, plan, p, o);
}

void launch_product(Queue queue, DType dtype, const ConvPlan& plan, TensorProduct& p, const Operands& o) {
  if (dtype == DType::float16) return launch_product<float16>(queue, plan, p, o);
  if (dtype == DType::bfloat16) return launch_product<bfloat16>(queue, plan, p, o);
  launch_product<float>(queue, plan, p, o);
}

// --- one pass over images ---

// How the images of one pass lie, and the loop over them in slices of as many as are copied, or can be numbered, at once.
struct Pass {
  Queue queue;
  DType dtype;
  const ConvPlan& plan;
  int64_t groups;
  Images<const void*> source;
  Images<void*> out;
  int64_t source_pixels, source_c, source_channels;     // of an image; of a group, and padded
  char* copies;                                         // the workspace, and where the weights lie in it
  const void *weight, *bias;

  int64_t size() const { return size_of(dtype); }
  const char* source_at(int64_t image) const { return static_cast<const char*>(source.data) + image * source.image * size(); }
  bool copies_source() const { return needs_copy(source, source.data, size(), groups, source_c, source_channels); }

  void fill(TensorProduct& p) const {
    const int unit = static_cast<int>(plan.source == ConvSource::few_channels ? 8 / size() : copy_bytes / size());
    p.is_pointwise = plan.source == ConvSource::pointwise;
    p.by_channels = divide_by(source_channels / unit);
    p.groups = static_cast<int32_t>(groups);
    p.source_pixel = static_cast<int32_t>(groups * source_channels);
    p.source_group = static_cast<int32_t>(source_channels);
    p.source_image = source_pixels * p.source_pixel;
    p.weight_row = static_cast<int32_t>(plan.layout.weight_row);
    p.weight_group = p.columns * plan.layout.weight_row;
    p.out_image = out.image;
    p.out_channel = out.channel;
    p.is_planar = out.is_planar();
  }

  void run(TensorProduct p, const std::vector<TensorPhase>& phases, int64_t images) const {
    const bool is_copied = copies_source();
    int64_t most_pixels = 1;
    for (const TensorPhase& phase : phases) most_pixels = std::max<int64_t>(most_pixels, phase.by_plane.divisor);
    const int64_t step = std::min({is_copied ? plan.layout.images_per_slice : images, images, std::max<int64_t>(1, (index_limit / 2) / most_pixels)});
    for (int64_t n = 0; n < images; n += step) {
      const int64_t count = std::min(step, images - n);
      Images<const void*> slice = source;
      slice.data = source_at(n);
      if (is_copied) copy_channels(queue, size(), slice, count, source_pixels, groups, source_c, source_channels, copies);
      for (size_t first = 0; first < phases.size(); first += most_phases) {
        p.phase_count = static_cast<int>(std::min<size_t>(most_phases, phases.size() - first));
        for (int i = 0; i < p.phase_count; ++i) {
          p.phases[i] = phases[first + static_cast<size_t>(i)];
          p.phases[i].pixels = static_cast<int32_t>(count * p.phases[i].by_plane.divisor);
        }
        launch_product(queue, dtype, plan, p, {is_copied ? copies : slice.data, weight, bias, static_cast<char*>(out.data) + n * out.image * size()});
      }
    }
  }
};

// May neighbours in memory be written as packs? `is_dense`: the result's pixels are neighbours.
bool has_packs(const Images<void*>& out, int64_t plane, int64_t columns, int64_t size, bool is_dense) {
  const int64_t pack = copy_bytes / size;
  if (!is_aligned(out.data)) return false;
  if (out.is_planar()) return is_dense && plane % pack == 0;
  return columns % pack == 0 && out.pixel % pack == 0;
}

}  // namespace

void tensor_forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y, Workspace scratch) {
  const ConvLayout& layout = plan.layout;
  char* const memory = static_cast<char*>(scratch.data);
  const int64_t pixels = g.out_h() * g.out_w();
  const bool copies_weight = needs_weight_copy(g, layout, weight);
  if (copies_weight) copy_weights(queue, g, layout, ConvPass::forward, weight, memory + layout.x_bytes);
  const Pass pass{queue, y.dtype, plan, g.groups, images_of(x, "conv2d", "x"), images_of(y, "conv2d", "y"), g.h * g.w, g.group_c(), layout.x_channels, memory, copies_weight ? memory + layout.x_bytes : weight.data, bias.data};
  TensorProduct p;
  p.columns = static_cast<int32_t>(g.group_k());
  pass.fill(p);
  p.out_i = g.out_w() * pass.out.pixel;
  p.out_j = pass.out.pixel;
  p.has_packs = has_packs(pass.out, pixels, g.group_k(), pass.size(), true);
  TensorPhase phase;
  phase.depth = static_cast<int32_t>(g.r * g.s * layout.x_channels);
  phase.vertical = vertical_of(g);
  phase.horizontal = horizontal_of(g);
  phase.by_taps_w = divide_by(g.s);
  phase.by_plane = divide_by(pixels);
  phase.by_width = divide_by(g.out_w());
  phase.weight_r = static_cast<int32_t>(g.s * layout.x_channels);
  phase.weight_s = static_cast<int32_t>(layout.x_channels);
  pass.run(p, {phase}, g.n);
}

void tensor_backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& dy, const ConstView& weight, const View& dx, Workspace scratch) {
  const ConvLayout& layout = plan.layout;
  char* const memory = static_cast<char*>(scratch.data);
  constexpr const char* op = "conv2d_backward_data";
  const Pass pass{queue, dx.dtype, plan, g.groups, images_of(dy, op, "dy"), images_of(dx, op, "dx"), g.out_h() * g.out_w(), g.group_k(), layout.y_channels, memory, memory + layout.y_bytes, nullptr};
  copy_weights(queue, g, layout, ConvPass::backward_data, weight, memory + layout.y_bytes);
  const bool is_dense = g.stride_h == 1 && g.stride_w == 1;
  TensorProduct p;
  p.columns = static_cast<int32_t>(g.group_c());
  pass.fill(p);
  p.out_i = g.stride_h * g.w * pass.out.pixel;
  p.out_j = g.stride_w * pass.out.pixel;
  p.has_packs = has_packs(pass.out, g.h * g.w, g.group_c(), pass.size(), is_dense);
  std::vector<TensorPhase> phases;
  for (int64_t i = 0; i < std::min(g.stride_h, g.h); ++i)
    for (int64_t j = 0; j < std::min(g.stride_w, g.w); ++j) {
      const PhaseAxis down(i, g.h, g.stride_h, g.pad_h, g.dilation_h, g.r), right(j, g.w, g.stride_w, g.pad_w, g.dilation_w, g.s);
      TensorPhase phase;
      phase.depth = static_cast<int32_t>(down.taps * right.taps * layout.y_channels);
      phase.vertical = down.window(g.out_h());
      phase.horizontal = right.window(g.out_w());
      phase.by_taps_w = divide_by(right.taps);
      phase.by_plane = divide_by(down.count * right.count);
      phase.by_width = divide_by(right.count);
      phase.weight_r = static_cast<int32_t>(down.tap_step * g.s * layout.y_channels);
      phase.weight_s = static_cast<int32_t>(right.tap_step * layout.y_channels);
      phase.weight_first = static_cast<int32_t>((down.first_tap * g.s + right.first_tap) * layout.y_channels);
      phase.out_first = (i * g.w + j) * pass.out.pixel;
      phases.push_back(phase);
    }
  pass.run(p, phases, g.n);
}

}  // namespace fovea::kernels::cuda
