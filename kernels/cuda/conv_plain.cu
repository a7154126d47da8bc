// Convolution in float32 and float64, forward and the gradient of its input; conv.cu says what is computed. Sums in the element type, by
// plain multiplications and additions, not by tensor cores.
// An implicit GEMM of channels by pixels: the sum runs over taps and, innermost, channels. All tensors lie [n,c,h,w]. Weights are copied
// first, so that the channels of the result are neighbours (conv_layout.cu), and come 16 bytes at a time; the image's pixels are gathered
// one by one from where their windows lie, or zeros from outside of the image, or 16 bytes at a time where a window is one pixel. All of it
// by cp.async into a ring of four stages (core/copy_ring.h).
// Small products are not worth a kernel that copies the weights. They read them as they lie, one by one, in an order in which neighbouring
// threads find neighbours: the sum runs over channels and, innermost, taps.
// With strides, the pixels of dx that see the same taps form a phase, which is a convolution of its own with unit stride over dy; all
// phases go in one launch.
// Where there are too few tiles for a GPU, the sum is cut into parts, which a second kernel adds up in order, with the bias.
// Overwrites. Deterministic; the order of sums depends on the geometry alone (conv_plan.h).
// Floor: 2 * geometry.macs() FLOPs; reading and writing every tensor once.
#include <fovea/kernels/cuda/conv_plain.h>

#include <vector>

namespace fovea::kernels::cuda {
namespace {

// Pixels of the result that see the same taps: all of them in the forward direction.
struct Phase {
  WindowAxis vertical, horizontal;
  FastDivide by_taps, by_taps_w, by_plane, by_width;     // a step into channel and tap; a tap into r, s; a column into image, i, j
  int32_t depth = 0, columns = 0, first_block = 0;       // columns: pixels of all images of the launch
  int32_t weight_r = 0, weight_s = 0, weight_first = 0;  // from r, s to a tap of the kernel
  int32_t out_first = 0;

  struct Pixel {
    int32_t image, i, j;
  };
  __device__ Pixel pixel(int32_t column) const {
    const int32_t image = static_cast<int32_t>(by_plane.quotient(static_cast<uint32_t>(column))),
                  within = column - image * static_cast<int32_t>(by_plane.divisor);
    const int32_t i = static_cast<int32_t>(by_width.quotient(static_cast<uint32_t>(within)));
    return {image, i, within - i * static_cast<int32_t>(by_width.divisor)};
  }
};

constexpr int most_phases = 16;  // of one launch: a kernel's parameters have 4 KB

// out[group, row, pixel] = bias[row] + sum over taps and channels of weight * source: both directions are of this form, with different
// steps through memory.
struct GatherProduct {
  int32_t rows = 0, row_pitch = 0, channels = 0;  // of a group: the result's channels, as many as a row of weights has, and the source's
  int32_t weight_row = 0, weight_channel = 0;     // of weights that are read as they lie: strides of the result's channel and the source's
  int32_t splits = 1;
  FastDivide by_channels;  // a step of the sum into tap and channel
  int32_t source_plane = 0;
  int64_t source_image = 0, source_group = 0, weight_group = 0;
  int64_t out_image = 0, out_group = 0, out_row = 0, out_split = 0;
  int32_t out_i = 0, out_j = 0;
  bool has_packs = false;  // may neighbouring pixels be written as packs?
  int phase_count = 0;
  Phase phases[most_phases];

  __device__ int64_t out_offset(const Phase& phase, int32_t column) const {
    const Phase::Pixel p = phase.pixel(column);
    return p.image * out_image + phase.out_first + static_cast<int64_t>(p.i) * out_i + static_cast<int64_t>(p.j) * out_j;
  }
};

// How the image is read: `packs` where a window is one pixel and pixels lie in whole packs; `channels` where a stage is all of one tap;
// else step by step. `loose` goes by steps too, with weights as they lie, in the order of channel, r, s.
enum class Gather { steps, channels, packs, loose };

constexpr bool goes_by_steps(Gather gather) { return gather == Gather::steps || gather == Gather::loose; }

// Where a step of the sum lies relative to a pixel's first tap, and which row of the weights (`loose`: which element) belongs to it;
// aligned, so that one access reads it.
struct alignas(16) Tap {
  int32_t source, weight, down, right;
};

template <class Tile>
struct GatherShared {
  using T = typename Tile::Element;
  static constexpr int pitch = Tile::rows + Tile::pack;  // so that neighbouring steps begin in different banks
  alignas(16) T a[stages][Tile::depth][pitch];
  alignas(16) T b[stages][Tile::depth][Tile::columns];
  Tap taps[2 * stages][Tile::depth];
};

// A thread's part of the copies of each stage: packs of weights, and for the pixels that it owns some of the steps.
template <class Tile, Gather gather>
struct GatherLoader {
  using T = typename Tile::Element;
  using Shared = GatherShared<Tile>;
  static constexpr int depth = Tile::depth, threads = Tile::threads;
  static constexpr int width = gather == Gather::packs ? Tile::pack : 1,
                       across = Tile::columns / width;  // pixels of a copy; copies beside each other
  static constexpr int own_count = across > threads ? across / threads : 1, beside = threads > across ? threads / across : 1,
                       step_count = depth / beside;
  static constexpr int a_across = Tile::rows / Tile::pack, a_copies = a_across * depth;
  static_assert(depth % beside == 0 && across % (threads / beside) == 0, "threads share out whole steps");

  const GatherProduct& p;
  const Phase& phase;
  const T *source, *weight;
  int32_t first_row;
  const T* windows[own_count];
  int32_t down[own_count], right[own_count];  // of the first tap
  int32_t channel = 0, r = 0, s = 0;          // of the next stage's first step, unless it goes by steps

  __device__ static int own_column(int own) { return static_cast<int>(threadIdx.x) % across + own * threads; }
  __device__ static int step(int i) { return static_cast<int>(threadIdx.x) / across + i * beside; }

  __device__ GatherLoader(const GatherProduct& p, const Phase& phase, const T* source, const T* weight, int32_t first_row,
                          int32_t first_column, int32_t first_step)
      : p(p), phase(phase), source(source), weight(weight), first_row(first_row) {
#pragma unroll
    for (int own = 0; own < own_count; ++own) {
      const int32_t column = first_column + own_column(own) * width;
      windows[own] = source;
      down[own] = far_outside;
      right[own] = 0;
      if (column >= phase.columns) continue;
      const Phase::Pixel pixel = phase.pixel(column);
      down[own] = phase.vertical.step * pixel.i + phase.vertical.base;
      right[own] = phase.horizontal.step * pixel.j + phase.horizontal.base;
      windows[own] += pixel.image * p.source_image + static_cast<int64_t>(down[own]) * phase.horizontal.size + right[own];
    }
    const int32_t tap = static_cast<int32_t>(p.by_channels.quotient(static_cast<uint32_t>(first_step)));
    channel = first_step - tap * p.channels;
    r = static_cast<int32_t>(phase.by_taps_w.quotient(static_cast<uint32_t>(tap)));
    s = tap - r * static_cast<int32_t>(phase.by_taps_w.divisor);
  }

  __device__ Tap tap(int32_t channel, int32_t r, int32_t s) const {
    const int32_t tap_down = phase.vertical.delta * r, tap_right = phase.horizontal.delta * s;
    return {channel * p.source_plane + tap_down * phase.horizontal.size + tap_right,
            (phase.weight_first + r * phase.weight_r + s * phase.weight_s) * p.channels + channel, tap_down, tap_right};
  }
  __device__ Tap tap_of_step(int32_t k) const {
    if (k >= phase.depth) return {0, -1, far_outside, 0};
    if constexpr (gather == Gather::loose) return loose_tap(k);
    const int32_t number = static_cast<int32_t>(p.by_channels.quotient(static_cast<uint32_t>(k)));
    const int32_t tap_r = static_cast<int32_t>(phase.by_taps_w.quotient(static_cast<uint32_t>(number)));
    return tap(k - number * p.channels, tap_r, number - tap_r * static_cast<int32_t>(phase.by_taps_w.divisor));
  }
  __device__ Tap loose_tap(int32_t k) const {
    const int32_t of_channel = static_cast<int32_t>(phase.by_taps.quotient(static_cast<uint32_t>(k))),
                  number = k - of_channel * static_cast<int32_t>(phase.by_taps.divisor);
    const int32_t tap_r = static_cast<int32_t>(phase.by_taps_w.quotient(static_cast<uint32_t>(number)));
    const int32_t tap_s = number - tap_r * static_cast<int32_t>(phase.by_taps_w.divisor);
    Tap result = tap(of_channel, tap_r, tap_s);
    result.weight = of_channel * p.weight_channel + phase.weight_first + tap_r * phase.weight_r + tap_s * phase.weight_s;
    return result;
  }
  __device__ bool is_inside(int own, const Tap& tap) const {
    return static_cast<uint32_t>(down[own] + tap.down) < static_cast<uint32_t>(phase.vertical.size) &&
           static_cast<uint32_t>(right[own] + tap.right) < static_cast<uint32_t>(phase.horizontal.size);
  }

  // Calls f(step, row pack) for the thread's copies of weights. Rows that are not there are read from the first: nobody looks at their
  // sums.
  template <class F>
  __device__ void for_each_a(F&& f) const {
#pragma unroll
    for (int i = 0; i < ceil_div(a_copies, threads); ++i) {
      const int copy = static_cast<int>(threadIdx.x) + i * threads;
      if (a_copies % threads == 0 || copy < a_copies) f(copy / a_across, copy % a_across * Tile::pack);
    }
  }
  __device__ const T* weight_of(int32_t row) const { return weight + (first_row + row < p.row_pitch ? first_row + row : 0); }

  // The taps of stages 0 to 3, before the first copy; a barrier must follow.
  __device__ void start(Shared& shared_memory, int32_t first_step) const {
    if constexpr (goes_by_steps(gather))
      for (int i = static_cast<int>(threadIdx.x); i < stages * depth; i += threads)
        shared_memory.taps[i / depth][i % depth] = tap_of_step(first_step + i);
  }

  // Stage by stage, in order. A stage's taps were written four stages before, so that a barrier lies between.
  __device__ void copy(Shared& shared_memory, int stage, int t, int32_t first_step) {
    if constexpr (goes_by_steps(gather)) copy_steps(shared_memory, stage, t, first_step);
    else copy_tap(shared_memory, stage);
  }

 private:
  __device__ void copy_steps(Shared& shared_memory, int stage, int t, int32_t first_step) const {
    const Tap* const taps = shared_memory.taps[t % (2 * stages)];
    if (static_cast<int>(threadIdx.x) < depth)
      shared_memory.taps[(t + stages) % (2 * stages)][threadIdx.x] =
          tap_of_step(first_step + (t + stages) * depth + static_cast<int>(threadIdx.x));
#pragma unroll
    for (int i = 0; i < step_count; ++i) {
      const Tap tap = taps[step(i)];
#pragma unroll
      for (int own = 0; own < own_count; ++own) {
        const bool is_there = is_inside(own, tap);
        copy_async<sizeof(T)>(&shared_memory.b[stage][step(i)][own_column(own)], is_there ? windows[own] + tap.source : source, is_there);
      }
    }
    if constexpr (gather == Gather::loose) return copy_loose_weights(shared_memory, stage, taps);
    for_each_a([&](int step, int row) {
      const int32_t from = taps[step].weight;
      copy_async<16>(&shared_memory.a[stage][step][row], weight_of(row) + max(from, 0) * p.row_pitch, from >= 0);
    });
  }

  // Neighbouring threads take the steps of one row, which lie beside each other unless some of the taps are another phase's.
  __device__ void copy_loose_weights(Shared& shared_memory, int stage, const Tap* taps) const {
    constexpr int beside = threads / depth;
    static_assert(threads % depth == 0 && Tile::rows % beside == 0, "threads share out whole steps");
    const int step = static_cast<int>(threadIdx.x) % depth, first = static_cast<int>(threadIdx.x) / depth;
    const int32_t from = taps[step].weight;
    const T* const of_step = weight + max(from, 0);
#pragma unroll
    for (int row = first; row < Tile::rows; row += beside)
      copy_async<sizeof(T)>(&shared_memory.a[stage][step][row],
                            of_step + static_cast<int64_t>(first_row + row < p.rows ? first_row + row : 0) * p.weight_row, from >= 0);
  }

  __device__ void copy_tap(Shared& shared_memory, int stage) {
    const Tap first = tap(channel, r, s);
#pragma unroll
    for (int own = 0; own < own_count; ++own) {
      const bool is_there = is_inside(own, first);
      const T* const from = is_there ? windows[own] + first.source : source;
#pragma unroll
      for (int i = 0; i < step_count; ++i)
        copy_async<sizeof(T) * width>(&shared_memory.b[stage][step(i)][own_column(own) * width], from + step(i) * p.source_plane, is_there);
    }
    for_each_a([&](int step, int row) {
      copy_async<16>(&shared_memory.a[stage][step][row], weight_of(row) + (first.weight + step) * p.row_pitch, true);
    });
    channel += depth;
    if (channel < p.channels) return;
    channel = 0;
    if (++s < phase.horizontal.taps) return;
    s = 0;
    ++r;
  }
};

// Rows and columns, within the tile, of a thread's sum: neighbours come in packs, which lie apart, so that a warp reads neighbouring packs.
template <class Tile>
struct GatherSums {
  using T = typename Tile::Element;
  static constexpr int pack = Tile::pack;
  __device__ static int row(int i) {
    return Tile::first_row() + i / pack * (Tile::lanes_down * pack) + Tile::lane() / Tile::lanes_right * pack + i % pack;
  }
  __device__ static int column(int j) {
    return Tile::first_column() + j / pack * (Tile::lanes_right * pack) + Tile::lane() % Tile::lanes_right * pack + j % pack;
  }

  static_assert(Tile::tall % pack == 0 && Tile::wide % pack == 0, "operands are read in packs");

  template <int count, class Place>
  __device__ static void load(T (&to)[count], const T* from, const Place& place) {
#pragma unroll
    for (int i = 0; i < count; i += pack) {
      const auto part = load_pack(from + place(i), 0);
#pragma unroll
      for (int v = 0; v < pack; ++v) to[i + v] = part[v];
    }
  }
  __device__ static void load_step(T (&x)[Tile::tall], T (&y)[Tile::wide], const T* a, const T* b) {
    load(x, a, [](int i) { return row(i); });
    load(y, b, [](int j) { return column(j); });
  }

  // The operands of the next step are read while those of this one are multiplied.
  __device__ static void multiply(const T (&a)[Tile::depth][GatherShared<Tile>::pitch], const T (&b)[Tile::depth][Tile::columns],
                                  T (&sums)[Tile::tall][Tile::wide]) {
    T x[2][Tile::tall], y[2][Tile::wide];
    load_step(x[0], y[0], a[0], b[0]);
#pragma unroll
    for (int k = 0; k < Tile::depth; ++k) {
      if (k + 1 < Tile::depth) load_step(x[(k + 1) % 2], y[(k + 1) % 2], a[k + 1], b[k + 1]);
#pragma unroll
      for (int i = 0; i < Tile::tall; ++i)
#pragma unroll
        for (int j = 0; j < Tile::wide; ++j) sums[i][j] += x[k % 2][i] * y[k % 2][j];
    }
  }
};

// blockIdx: x the phase and its tile, channels fastest, so that neighbours read the same pixels; y the group; z the part of the sum.
template <class Tile, Gather gather, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks_beside)
    gather_product(GatherProduct p, int first_group, const T* source, const T* weight, const T* bias, T* out) {
  auto& shared_memory = shared<GatherShared<Tile>>();
  int number = 0;
  while (number + 1 < p.phase_count && static_cast<int32_t>(blockIdx.x) >= p.phases[number + 1].first_block) ++number;
  const Phase& phase = p.phases[number];
  const int32_t tile = static_cast<int32_t>(blockIdx.x) - phase.first_block, row_tiles = ceil_div(p.rows, Tile::rows);
  const int32_t first_row = tile % row_tiles * Tile::rows, first_column = tile / row_tiles * Tile::columns;
  const int64_t group = first_group + static_cast<int64_t>(blockIdx.y);
  const int32_t all_steps = ceil_div(phase.depth, Tile::depth), part_steps = ceil_div(all_steps, p.splits),
                begin = min(static_cast<int32_t>(blockIdx.z) * part_steps, all_steps);
  const int32_t steps = min(part_steps, all_steps - begin), first_step = begin * Tile::depth;

  GatherLoader<Tile, gather> loader(p, phase, source + group * p.source_group, weight + group * p.weight_group, first_row, first_column,
                                    first_step);
  loader.start(shared_memory, first_step);
  __syncthreads();
  T sums[Tile::tall][Tile::wide] = {};
  run_ring(
      steps, [&](int stage, int t) { loader.copy(shared_memory, stage, t, first_step); },
      [&](int stage) { GatherSums<Tile>::multiply(shared_memory.a[stage], shared_memory.b[stage], sums); });

  out += group * p.out_group + static_cast<int64_t>(blockIdx.z) * p.out_split;
#pragma unroll
  for (int j = 0; j < Tile::wide; j += Tile::pack) {
    const int32_t column = first_column + GatherSums<Tile>::column(j);
    const bool is_packed = p.has_packs && column + Tile::pack <= phase.columns;
    int64_t offsets[Tile::pack];
#pragma unroll
    for (int v = 0; v < Tile::pack; ++v)
      offsets[v] = column + v < phase.columns && (v == 0 || !is_packed) ? p.out_offset(phase, column + v) : -1;
#pragma unroll
    for (int i = 0; i < Tile::tall; ++i) {
      const int32_t row = first_row + GatherSums<Tile>::row(i);
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

// out[i] = bias + sum over parts of parts[part, i], in order.
template <class T>
__global__ void __launch_bounds__(256)
    add_pixel_parts(int32_t n, int32_t splits, FastDivide by_plane, FastDivide by_channels, const T* parts, const T* bias, T* out) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) {
    T sum = 0;
    for (int32_t part = 0; part < splits; ++part) sum += parts[static_cast<int64_t>(part) * n + i];
    const int32_t plane = static_cast<int32_t>(by_plane.quotient(static_cast<uint32_t>(i))),
                  image = static_cast<int32_t>(by_channels.quotient(static_cast<uint32_t>(plane)));
    out[i] = bias ? sum + bias[plane - image * static_cast<int32_t>(by_channels.divisor)] : sum;
  }
}

template <class T>
using WideTile = PlainTile<T, 2, 2, 16, 8>;
template <class T>
using BroadTile = PlainTile<T, 1, 4, 16, 8>;
template <class T>
using MediumTile = std::conditional_t<std::is_same_v<T, double>, PlainTile<T, 2, 2, 8, 4>, PlainTile<T, 2, 2, 8, 8>>;
template <class T>
using NarrowTile = PlainTile<T, 2, 2, 4, 8>;
template <class T>
using FewTile = PlainTile<T, 1, 2, 8, 4, 1>;

constexpr int64_t most_groups = 65535;  // of one launch

template <class T>
struct Operands {
  const T *source, *weight, *bias;
  T* out;
};

// `phases` has as many of p.phases as are to be launched together.
template <class Tile, Gather gather, class T = typename Tile::Element>
void launch_gather(Queue queue, const ConvPlan& plan, GatherProduct& p, int64_t groups, const Operands<T>& o) {
  int64_t blocks = 0;
  for (int i = 0; i < p.phase_count; ++i) {
    p.phases[i].first_block = static_cast<int32_t>(blocks);
    blocks += ceil_div<int64_t>(p.rows, Tile::rows) * ceil_div<int64_t>(p.phases[i].columns, Tile::columns);
    check<ShapeError>(blocks < index_limit, "conv2d: ", blocks, " tiles are more than one launch can have");
  }
  for (int64_t group = 0; group < groups; group += most_groups) {
    const Grid grid{blocks_of(blocks, std::min(most_groups, groups - group), p.splits), dim3(Tile::threads), sizeof(GatherShared<Tile>)};
    launch(queue, plan.name, grid, gather_product<Tile, gather>, p, static_cast<int>(group), o.source, o.weight, o.bias, o.out);
  }
}

template <class Tile, class T = typename Tile::Element>
void launch_tile(Queue queue, const ConvPlan& plan, Gather gather, GatherProduct& p, int64_t groups, const Operands<T>& o) {
  if (gather == Gather::packs) return launch_gather<Tile, Gather::packs>(queue, plan, p, groups, o);
  if (gather == Gather::channels) return launch_gather<Tile, Gather::channels>(queue, plan, p, groups, o);
  if (gather == Gather::loose) return launch_gather<Tile, Gather::loose>(queue, plan, p, groups, o);
  launch_gather<Tile, Gather::steps>(queue, plan, p, groups, o);
}

template <class T>
void launch_product(Queue queue, const ConvPlan& plan, Gather gather, GatherProduct& p, int64_t groups, const Operands<T>& o) {
  if (plan.kernel == ConvKernel::grouped) return launch_tile<FewTile<T>>(queue, plan, gather, p, groups, o);
  if (plan.kernel == ConvKernel::medium) return launch_tile<MediumTile<T>>(queue, plan, gather, p, groups, o);
  if constexpr (std::is_same_v<T, float>) {
    if (plan.kernel == ConvKernel::narrow) return launch_tile<NarrowTile<T>>(queue, plan, gather, p, groups, o);
    if (plan.kernel == ConvKernel::broad) return launch_tile<BroadTile<T>>(queue, plan, gather, p, groups, o);
    launch_tile<WideTile<T>>(queue, plan, gather, p, groups, o);
  }
}

// All phases over all images, whose pixels are numbered with 31 bits in a launch. What differs among phases is set, all else but the source
// and the result's images. is_loose: the weights are as they lie.
template <class T>
void run(Queue queue, const ConvGeometry& g, const ConvPlan& plan, GatherProduct p, const std::vector<Phase>& phases, bool is_loose,
         const Operands<T>& o, T* parts) {
  constexpr int pack = full_pack<T>;
  p.splits = static_cast<int32_t>(plan.splits);
  p.by_channels = divide_by(p.channels);
  p.row_pitch = static_cast<int32_t>(ceil_div(p.rows, pack) * pack);
  p.weight_group = g.r * g.s * p.channels * (is_loose ? p.rows : p.row_pitch);
  p.out_split = g.n * p.out_image;
  Gather gather = p.channels % PlainTile<T, 1, 1, pack, pack>::depth == 0 ? Gather::channels : Gather::steps;
  if (gather == Gather::channels && is_pointwise(g) && p.source_plane % pack == 0 && is_aligned(o.source)) gather = Gather::packs;
  if (is_loose) gather = Gather::loose;
  const bool has_parts = plan.splits > 1, is_dense = phases.size() == 1;  // one phase has all pixels
  p.has_packs = is_dense && p.out_row % pack == 0 && is_aligned(has_parts ? parts : o.out);
  int64_t most_pixels = 1;
  for (const Phase& phase : phases) most_pixels = std::max<int64_t>(most_pixels, phase.by_plane.divisor);
  const int64_t at_once = std::min(g.n, std::max<int64_t>(1, (index_limit / 2) / most_pixels));
  for (int64_t n = 0; n < g.n; n += at_once)
    for (size_t first = 0; first < phases.size(); first += most_phases) {
      p.phase_count = static_cast<int>(std::min<size_t>(most_phases, phases.size() - first));
      for (int i = 0; i < p.phase_count; ++i) {
        p.phases[i] = phases[first + static_cast<size_t>(i)];
        p.phases[i].columns = static_cast<int32_t>(std::min(at_once, g.n - n) * p.phases[i].by_plane.divisor);
      }
      T* const to = (has_parts ? parts : o.out) + n * p.out_image;
      launch_product<T>(queue, plan, gather, p, g.groups, {o.source + n * p.source_image, o.weight, has_parts ? nullptr : o.bias, to});
    }
  if (!has_parts) return;
  const int64_t channels = p.rows * g.groups;
  launch(queue, "conv2d_add_pixel_parts", grid_for(p.out_split), add_pixel_parts<T>, static_cast<int32_t>(p.out_split), p.splits,
         divide_by(p.out_row), divide_by(channels), parts, o.bias, o.out);
}

// Do the weights lie as if they had been packed?
template <class T>
bool are_packed(const ConvGeometry& g, ConvPass pass, const T* weight) {
  return pass == ConvPass::backward_data && g.r * g.s == 1 && g.group_c() % full_pack<T> == 0 && is_aligned(weight);
}

// Packs the weights into the workspace unless they lie so already, or are read as they lie, and runs the product.
template <class T>
void pack_and_run(Queue queue, const ConvGeometry& g, const ConvPlan& plan, ConvPass pass, const GatherProduct& p,
                  const std::vector<Phase>& phases, Operands<T> o, Workspace scratch) {
  char* const memory = static_cast<char*>(scratch.data);
  const bool is_loose = plan.layout.weight_row == 0 && !are_packed(g, pass, o.weight);
  if (plan.layout.weight_row > 0 && !are_packed(g, pass, o.weight)) {
    pack_weights(queue, g, pass, sizeof(T), plan.layout.weight_row, o.weight, memory);
    o.weight = reinterpret_cast<const T*>(memory);
  }
  run(queue, g, plan, p, phases, is_loose, o, reinterpret_cast<T*>(memory + plan.layout.weight_bytes));
}

}  // namespace

template <class T>
void plain_forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* x, const T* weight, const T* bias, T* y,
                   Workspace scratch) {
  const int64_t pixels = g.out_h() * g.out_w();
  GatherProduct p;
  p.rows = static_cast<int32_t>(g.group_k());
  p.channels = static_cast<int32_t>(g.group_c());
  p.weight_row = static_cast<int32_t>(g.group_c() * g.r * g.s);
  p.weight_channel = static_cast<int32_t>(g.r * g.s);
  p.source_plane = static_cast<int32_t>(g.h * g.w);
  p.source_image = g.c * g.h * g.w;
  p.source_group = g.group_c() * g.h * g.w;
  p.out_image = g.k * pixels;
  p.out_group = g.group_k() * pixels;
  p.out_row = pixels;
  p.out_i = static_cast<int32_t>(g.out_w());
  p.out_j = 1;
  Phase phase;
  phase.vertical = vertical_of(g);
  phase.horizontal = horizontal_of(g);
  phase.depth = static_cast<int32_t>(g.r * g.s * g.group_c());
  phase.by_taps = divide_by(g.r * g.s);
  phase.by_taps_w = divide_by(g.s);
  phase.by_plane = divide_by(pixels);
  phase.by_width = divide_by(g.out_w());
  phase.weight_r = static_cast<int32_t>(g.s);
  phase.weight_s = 1;
  pack_and_run<T>(queue, g, plan, ConvPass::forward, p, {phase}, {x, weight, bias, y}, scratch);
}

template <class T>
void plain_backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const T* dy, const T* weight, T* dx, Workspace scratch) {
  GatherProduct p;
  p.rows = static_cast<int32_t>(g.group_c());
  p.channels = static_cast<int32_t>(g.group_k());
  p.weight_row = static_cast<int32_t>(g.r * g.s);
  p.weight_channel = static_cast<int32_t>(g.group_c() * g.r * g.s);
  p.source_plane = static_cast<int32_t>(g.out_h() * g.out_w());
  p.source_image = g.k * p.source_plane;
  p.source_group = g.group_k() * p.source_plane;
  p.out_image = g.c * g.h * g.w;
  p.out_group = g.group_c() * g.h * g.w;
  p.out_row = g.h * g.w;
  p.out_i = static_cast<int32_t>(g.stride_h * g.w);
  p.out_j = static_cast<int32_t>(g.stride_w);
  std::vector<Phase> phases;
  for (int64_t i = 0; i < std::min(g.stride_h, g.h); ++i)
    for (int64_t j = 0; j < std::min(g.stride_w, g.w); ++j) {
      const PhaseAxis down(i, g.h, g.stride_h, g.pad_h, g.dilation_h, g.r), right(j, g.w, g.stride_w, g.pad_w, g.dilation_w, g.s);
      Phase phase;
      phase.vertical = down.window(g.out_h());
      phase.horizontal = right.window(g.out_w());
      phase.depth = static_cast<int32_t>(g.group_k() * down.taps * right.taps);
      phase.by_taps = divide_by(down.taps * right.taps);
      phase.by_taps_w = divide_by(right.taps);
      phase.by_plane = divide_by(down.count * right.count);
      phase.by_width = divide_by(right.count);
      phase.weight_r = static_cast<int32_t>(down.tap_step * g.s);
      phase.weight_s = static_cast<int32_t>(right.tap_step);
      phase.weight_first = static_cast<int32_t>(down.first_tap * g.s + right.first_tap);
      phase.out_first = static_cast<int32_t>(i * g.w + j);
      phases.push_back(phase);
    }
  pack_and_run<T>(queue, g, plan, ConvPass::backward_data, p, phases, {dy, weight, nullptr, dx}, scratch);
}

template void plain_forward(Queue, const ConvGeometry&, const ConvPlan&, const float*, const float*, const float*, float*, Workspace);
template void plain_forward(Queue, const ConvGeometry&, const ConvPlan&, const double*, const double*, const double*, double*, Workspace);
template void plain_backward_data(Queue, const ConvGeometry&, const ConvPlan&, const float*, const float*, float*, Workspace);
template void plain_backward_data(Queue, const ConvGeometry&, const ConvPlan&, const double*, const double*, double*, Workspace);

}  // namespace fovea::kernels::cuda
