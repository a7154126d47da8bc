// Convolution in small groups on tensor cores, forward and (with strides that make up to four phases) the gradient of its input; conv.cu says what is
// computed. float16 and bfloat16, groups of 4, 8, 16 or 32 channels on either side. Sums in float32, with the bias in float32 as well,
// rounded once. The gradient of the weight: conv_grouped_weight.cu.
// A block makes 128 neighbouring pixels of 32 channels' worth of groups. It copies the patch of the image that their windows see once, by
// cp.async, and takes all taps out of shared memory: as many groups lie beside each other as fill 64 bytes of a pixel, yet each is
// multiplied for itself, so that a NaN stays in its group.
// With strides, the pixels of dx that see the same taps are a phase; a block makes all phases of its pixels, one after the other, out of
// one patch of dy.
// Sources lie [n,h,w,c] (conv_layout.cu copies what does not); results go through shared memory into their own layout.
// Overwrites. Deterministic; the order of sums depends on the geometry alone.
// Floor: memory, reading and writing every tensor once; patches overlap by what windows reach beyond their tile, 1.4 times the image for 3
// x 3.
#include <fovea/kernels/cuda/conv_functions.h>

#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/ptx.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads_per_block = 128;
constexpr int tile_pixels = 128;  // two of mma's tiles of 16 for each warp
constexpr int block_channels = 32, pixel_bytes = block_channels * 2;
constexpr int pixel_pitch = pixel_bytes + 16;  // spreads neighbouring pixels over the banks
constexpr int copy_bytes = 16;

// Note [Units of four channels]
// The sum of one group runs over taps and, in each, over quadruples of channels: its units. An mma sums 16 products at once, of four units;
// which four of its 16 places are whose is up to us, as long as both operands agree. The thread that holds places 2t, 2t+1, 2t+8 and 2t+9
// of a pixel takes unit t: 8 bytes, one access to the patch. The weights are packed to match (pack_fragments). Units that are missing in
// the last step are zero in both operands.

// Pixels of the result that see the same taps (Note [Phases along one axis]); in the forward direction all of them.
struct GroupedPhase {
  WindowAxis vertical, horizontal;
  int32_t first_r = 0, step_r = 1, first_s = 0, step_s = 1;  // from a window's taps to the kernel's
  int32_t rows = 0, columns = 0;                             // of pixels
  int32_t units = 0, first_step = 0;                         // its steps come after those of the phases before it
  int64_t out_first = 0;                                     // element of an image
};

constexpr int most_phases = 4;  // strides of 2 x 2, or of 3 or 4 in one direction

struct GroupedProduct {
  int32_t groups = 1, c = 0, k = 0;         // channels of a group: the source's and the result's
  int32_t groups_together = 1, chunks = 1;  // groups of a block, and blocks that have all groups
  int32_t steps = 0;                        // of all phases
  int32_t step_h = 1, step_w = 1, size_h = 0, size_w = 0;  // of the source: what neighbouring pixels of the result lie apart; its pixels
  int32_t top = 0, left = 0;                               // of the patch that the image's first tile sees
  int32_t tile_h = 8, tile_w = 16, tiles_down = 1, tiles_across = 1, patch_h = 0, patch_w = 0;
  int64_t source_image = 0, out_image = 0, out_row = 0, out_column = 0, out_channel = 0;
  bool is_planar = false, has_packs = false;  // the result lies [n,c,h,w]; its channels may be written as packs
  FastDivide by_chunks, by_across, by_down, by_patch_w;
  int phase_count = 0;
  GroupedPhase phases[most_phases];

  int32_t staged_pitch() const { return groups_together * k + 8; }  // elements
  int64_t patch_bytes() const { return int64_t{patch_h} * patch_w * pixel_pitch; }
};

// The parts of a block's shared memory, in order.
struct Places {
  unsigned char* patch;
  unsigned char* weights;  // [group][step][tile of 8 channels][lane], 8 bytes each
  unsigned char* staged;   // the results, [pixel][channel]
  int32_t* offsets;        // of units within the patch; -1 where there is none
};

// The number of the phase that a step belongs to.
__device__ int phase_of(const GroupedProduct& p, int32_t step) {
  int number = 0;
  while (number + 1 < p.phase_count && step >= p.phases[number + 1].first_step) ++number;
  return number;
}

struct BlockTile {
  int32_t image, first_row, first_column, first_group;
};

__device__ BlockTile tile_of(const GroupedProduct& p) {
  const int32_t tile = static_cast<int32_t>(p.by_chunks.quotient(blockIdx.x)),
                line = static_cast<int32_t>(p.by_across.quotient(static_cast<uint32_t>(tile)));
  const int32_t image = static_cast<int32_t>(p.by_down.quotient(static_cast<uint32_t>(line)));
  return {image, (line - image * p.tiles_down) * p.tile_h, (tile - line * p.tiles_across) * p.tile_w,
          (static_cast<int32_t>(blockIdx.x) - tile * p.chunks) * p.groups_together};
}

template <class T>
__device__ void copy_patch(const GroupedProduct& p, const BlockTile& tile, const T* source, unsigned char* patch) {
  constexpr int chunks = pixel_bytes / copy_bytes, width = copy_bytes / static_cast<int>(sizeof(T));
  const int32_t all_channels = p.groups * p.c, top = p.step_h * tile.first_row + p.top, left = p.step_w * tile.first_column + p.left;
  const T* const image = source + tile.image * p.source_image;
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < p.patch_h * p.patch_w * chunks; item += threads_per_block) {
    const int32_t pixel = item / chunks, channel = tile.first_group * p.c + item % chunks * width;
    const int32_t i = static_cast<int32_t>(p.by_patch_w.quotient(static_cast<uint32_t>(pixel))), j = pixel - i * p.patch_w;
    const bool is_there = channel < all_channels && static_cast<uint32_t>(top + i) < static_cast<uint32_t>(p.size_h) &&
                          static_cast<uint32_t>(left + j) < static_cast<uint32_t>(p.size_w);
    const T* const from = is_there ? image + (static_cast<int64_t>(top + i) * p.size_w + left + j) * all_channels + channel : source;
    copy_async<copy_bytes>(patch + pixel * pixel_pitch + item % chunks * copy_bytes, from, is_there);
  }
}

// The weights of the block's groups, as they lie.
__device__ void copy_weights(const GroupedProduct& p, const BlockTile& tile, int bytes_of_group, const unsigned char* weights,
                             unsigned char* to) {
  const int32_t groups = min(p.groups_together, p.groups - tile.first_group);
  const unsigned char* const from = weights + static_cast<int64_t>(tile.first_group) * bytes_of_group;
  for (int32_t at = static_cast<int32_t>(threadIdx.x) * copy_bytes; at < groups * bytes_of_group; at += threads_per_block * copy_bytes)
    copy_async<copy_bytes>(to + at, from + at, true);
}

__device__ void find_offsets(const GroupedProduct& p, int32_t* offsets) {
  const int32_t quads = p.c / 4;
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < 4 * p.steps; item += threads_per_block) {
    const GroupedPhase& phase = p.phases[phase_of(p, item / 4)];
    const WindowAxis &down = phase.vertical, &right = phase.horizontal;
    const int32_t unit = item - 4 * phase.first_step, tap = unit / quads, r = tap / right.taps, s = tap - r * right.taps;
    const int32_t pixel = (down.base + down.delta * r - p.top) * p.patch_w + right.base + right.delta * s - p.left;
    offsets[item] = unit < phase.units ? pixel * pixel_pitch + (unit - tap * quads) * 8 : -1;
  }
}

// To memory, neighbouring threads to neighbouring places.
template <class T>
__device__ void write_results(const GroupedProduct& p, const GroupedPhase& phase, const BlockTile& tile, int staged_pitch, const T* staged,
                              T* out) {
  const int32_t first_channel = tile.first_group * p.k, channels = min(p.groups_together * p.k, p.groups * p.k - first_channel);
  out += tile.image * p.out_image + phase.out_first + first_channel * p.out_channel;
  const auto place = [&](int32_t pixel) {  // -1 where there is none
    const int32_t i = pixel / p.tile_w, j = pixel - i * p.tile_w, row = tile.first_row + i, column = tile.first_column + j;
    return row < phase.rows && column < phase.columns ? row * p.out_row + column * p.out_column : int64_t{-1};
  };
  if (p.has_packs) {
    const int32_t across = channels / full_pack<T>;
    for (int32_t item = static_cast<int32_t>(threadIdx.x); item < tile_pixels * across; item += threads_per_block) {
      const int32_t pixel = item / across, channel = (item - pixel * across) * full_pack<T>;
      const int64_t to = place(pixel);
      if (to >= 0) store_pack(out + to + channel, 0, load_pack(staged + pixel * staged_pitch + channel, 0));
    }
    return;
  }
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < tile_pixels * channels; item += threads_per_block) {
    const int32_t channel = p.is_planar ? item / tile_pixels : item % channels, pixel = p.is_planar ? item % tile_pixels : item / channels;
    const int64_t to = place(pixel);
    if (to >= 0) out[to + channel * p.out_channel] = staged[pixel * staged_pitch + channel];
  }
}

// wide: tiles of 8 channels that a group's result has. As many blocks of an SM as patches of 3 x 3 leave room for, or sums do.
template <class T, int wide>
__global__ void __launch_bounds__(threads_per_block, wide == 4 ? 5 : 7)
    grouped_product(GroupedProduct p, int staged_pitch, int patch_bytes, const T* source, const unsigned char* weights, const T* bias,
                    T* out) {
  constexpr int fragment_bytes = 8, tall = tile_pixels / threads_per_block * warp_size / 16;
  unsigned char* const memory = &shared<unsigned char>();
  const int bytes_of_group = p.steps * wide * warp_size * fragment_bytes;
  const Places places{memory, memory + patch_bytes, memory + patch_bytes + p.groups_together * bytes_of_group,
                      reinterpret_cast<int32_t*>(memory + patch_bytes + p.groups_together * bytes_of_group +
                                                 tile_pixels * staged_pitch * static_cast<int>(sizeof(T)))};
  const BlockTile tile = tile_of(p);
  copy_patch(p, tile, source, places.patch);
  copy_weights(p, tile, bytes_of_group, weights, places.weights);
  commit_copies();
  find_offsets(p, places.offsets);
  wait_for_copies<0>();
  __syncthreads();

  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size, row = lane / 4,
            unit = lane % 4;
  int pixels[tall][2];  // of the thread's two rows of each of mma's tiles
  const unsigned char* windows[tall][2];
#pragma unroll
  for (int i = 0; i < tall; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = (warp * tall + i) * 16 + 8 * half + row, down = pixel / p.tile_w, right = pixel - down * p.tile_w;
      pixels[i][half] = pixel;
      windows[i][half] = places.patch + (p.step_h * down * p.patch_w + p.step_w * right) * pixel_pitch;
    }
  T* const staged = reinterpret_cast<T*>(places.staged);
  const int groups = min(p.groups_together, p.groups - tile.first_group);
  for (int number = 0; number < p.phase_count; ++number) {
    const GroupedPhase& phase = p.phases[number];
    const int32_t end = number + 1 < p.phase_count ? p.phases[number + 1].first_step : p.steps;
    if (number > 0) __syncthreads();  // the results of the phase before it have been read
    for (int group = 0; group < groups; ++group) {
      float sums[tall][wide][4] = {};
      const unsigned char* const of_group = places.weights + group * bytes_of_group;
#pragma unroll 3
      for (int step = phase.first_step; step < end; ++step) {
        const int offset = places.offsets[4 * step + unit];
        uint32_t b[wide][2];
#pragma unroll
        for (int j = 0; j < wide; ++j) {
          const Pack<uint32_t, 2> part =
              load_pack<uint32_t, 2>(reinterpret_cast<const uint32_t*>(of_group), (step * wide + j) * warp_size + lane);
          b[j][0] = part[0], b[j][1] = part[1];
        }
#pragma unroll
        for (int i = 0; i < tall; ++i) {
          Pack<uint32_t, 2> first{}, second{};
          if (offset >= 0) {
            first = load_pack<uint32_t, 2>(reinterpret_cast<const uint32_t*>(windows[i][0] + group * p.c * 2 + offset), 0);
            second = load_pack<uint32_t, 2>(reinterpret_cast<const uint32_t*>(windows[i][1] + group * p.c * 2 + offset), 0);
          }
          const uint32_t a[4] = {first[0], second[0], first[1], second[1]};
#pragma unroll
          for (int j = 0; j < wide; ++j) multiply(sums[i][j], a, b[j], T{});
        }
      }
#pragma unroll
      for (int j = 0; j < wide; ++j)
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const int channel = 8 * j + 2 * unit + v;
          if (channel >= p.k) continue;
          const float start = bias ? static_cast<float>(widen(bias[(tile.first_group + group) * p.k + channel])) : 0.0f;
#pragma unroll
          for (int i = 0; i < tall; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              staged[pixels[i][half] * staged_pitch + group * p.k + channel] = narrow<T>(sums[i][j][2 * half + v] + start);
        }
    }
    __syncthreads();
    write_results(p, phase, tile, staged_pitch, staged, out);
  }
}

// --- the weights ---

struct FragmentPack {
  int32_t count = 0, wide = 1;                               // threads: [group][step][tile][lane], and tiles
  int64_t to_source = 0, to_result = 0, to_r = 0, to_s = 0;  // strides of the source's channel, the result's, and the taps
  int64_t group_source = 0,
          group_result = 0;  // of a group's first channels: one of them is 0, as [k,c/groups,r,s] counts c from the group's first
};

// See Note [Units of four channels].
__global__ void __launch_bounds__(256) pack_fragments(GroupedProduct p, FragmentPack w, const uint16_t* weight, uint16_t* to) {
  for (int64_t number = global_thread(); number < w.count; number += global_threads()) {
    const int32_t lane = static_cast<int32_t>(number) % warp_size, line = static_cast<int32_t>(number) / warp_size, tile = line % w.wide,
                  step = line / w.wide % p.steps, group = line / w.wide / p.steps;
    const GroupedPhase& phase = p.phases[phase_of(p, step)];
    const int32_t quads = p.c / 4, unit = 4 * (step - phase.first_step) + lane % 4, result = 8 * tile + lane / 4, tap = unit / quads,
                  channel = (unit - tap * quads) * 4;
    Pack<uint16_t, 4> values{};
    if (unit < phase.units && result < p.k) {
      const int32_t i = tap / phase.horizontal.taps, r = phase.first_r + i * phase.step_r,
                    s = phase.first_s + (tap - i * phase.horizontal.taps) * phase.step_s;
      const uint16_t* const from = weight + group * (w.group_source + w.group_result) + result * w.to_result + r * w.to_r + s * w.to_s;
#pragma unroll
      for (int v = 0; v < 4; ++v) values[v] = from[(channel + v) * w.to_source];
    }
    store_pack(to, number, values);
  }
}

// --- the host's side ---

int64_t ceil_of_eight(int64_t channels) { return ceil_div<int64_t>(channels, 8); }

// The first and the last place that taps of an axis reach from pixel 0, on from what `reach` has already.
struct Reach {
  bool is_empty = true;
  int32_t first = 0, last = 0;
  void add(const WindowAxis& axis) {
    if (axis.taps == 0) return;
    const int32_t one = axis.base, other = axis.base + axis.delta * (axis.taps - 1);
    first = std::min(is_empty ? one : first, std::min(one, other));
    last = std::max(is_empty ? one : last, std::max(one, other));
    is_empty = false;
  }
};

// Steps of the phases, and a patch and a tile of it that serve all of them. All axes have the steps and the size of the first.
void choose_tiles(GroupedProduct& p) {
  Reach down, right;
  int32_t rows = 0, columns = 0;
  p.steps = 0;
  for (int i = 0; i < p.phase_count; ++i) {
    GroupedPhase& phase = p.phases[i];
    phase.units = phase.vertical.taps * phase.horizontal.taps * p.c / 4;
    phase.first_step = p.steps;
    p.steps += ceil_div(phase.units, 4);
    if (phase.units > 0) down.add(phase.vertical), right.add(phase.horizontal);
    rows = std::max(rows, phase.rows);
    columns = std::max(columns, phase.columns);
  }
  const WindowAxis &vertical = p.phases[0].vertical, &horizontal = p.phases[0].horizontal;
  p.step_h = vertical.step;
  p.step_w = horizontal.step;
  p.size_h = vertical.size;
  p.size_w = horizontal.size;
  p.top = down.first;
  p.left = right.first;
  p.tile_w = columns <= 8 ? 8 : 16;
  p.tile_h = tile_pixels / p.tile_w;
  p.tiles_down = ceil_div(rows, p.tile_h);
  p.tiles_across = ceil_div(columns, p.tile_w);
  p.patch_h = (p.tile_h - 1) * p.step_h + down.last - down.first + 1;
  p.patch_w = (p.tile_w - 1) * p.step_w + right.last - right.first + 1;
}

// One direction: from channels c of a group to k.
template <class T>
void run(Queue queue, const ConvGeometry& g, const ConvPlan& plan, ConvPass pass, GroupedProduct p, const Images<const void*>& from,
         const Images<void*>& to, const ConstView& weight, const T* bias, char* memory) {
  const bool is_forward = pass == ConvPass::forward;
  const ConvLayout& layout = plan.layout;
  const int64_t pixels = int64_t{p.size_h} * p.size_w, wide = ceil_of_eight(p.k);
  p.groups = static_cast<int32_t>(g.groups);
  p.groups_together = std::min(block_channels / p.c, p.groups);
  p.chunks = ceil_div(p.groups, p.groups_together);
  p.source_image = pixels * p.groups * p.c;
  p.out_image = to.image;
  p.out_row *= to.pixel;
  p.out_column *= to.pixel;
  for (int i = 0; i < p.phase_count; ++i) p.phases[i].out_first *= to.pixel;
  p.out_channel = to.channel;
  p.is_planar = to.is_planar();
  p.has_packs = !p.is_planar && is_aligned(to.data) && p.groups * p.k % full_pack<T> == 0 && p.groups_together * p.k % full_pack<T> == 0;
  p.by_chunks = divide_by(p.chunks);
  p.by_across = divide_by(p.tiles_across);
  p.by_down = divide_by(p.tiles_down);
  p.by_patch_w = divide_by(p.patch_w);

  void* const fragments = memory + layout.x_bytes + layout.y_bytes;
  FragmentPack w;
  const int64_t threads = g.groups * p.steps * wide * warp_size;
  check<ShapeError>(threads < index_limit, is_forward ? "conv2d: " : "conv2d_backward_data: ", threads,
                    " pieces of four weights are too many for the CUDA kernels, which take fewer than 2^31");
  w.wide = static_cast<int32_t>(wide);
  w.count = static_cast<int32_t>(threads);
  w.to_source = weight.stride(is_forward ? 1 : 0);
  w.to_result = weight.stride(is_forward ? 0 : 1);
  w.to_r = weight.stride(2);
  w.to_s = weight.stride(3);
  w.group_source = is_forward ? 0 : p.c * weight.stride(0);
  w.group_result = is_forward ? p.k * weight.stride(0) : 0;
  launch(queue, "conv2d_pack_fragments", grid_for(w.count), pack_fragments, p, w, static_cast<const uint16_t*>(weight.data),
         static_cast<uint16_t*>(fragments));

  const bool is_copied = needs_copy(from, from.data, sizeof(T), g.groups, p.c, p.c) || !is_aligned(from.data);
  const size_t patch_bytes = static_cast<size_t>(p.patch_bytes()),
               weight_bytes = static_cast<size_t>(p.groups_together * p.steps * wide * warp_size * 8);
  const size_t shared_bytes = patch_bytes + weight_bytes + static_cast<size_t>(tile_pixels * p.staged_pitch()) * sizeof(T) +
                              static_cast<size_t>(4 * p.steps) * sizeof(int32_t);
  const int64_t image_blocks = int64_t{p.tiles_down} * p.tiles_across * p.chunks,
                at_once = std::max<int64_t>(1, (index_limit / 2) / image_blocks);
  const int64_t step = std::min({is_copied ? layout.images_per_slice : g.n, g.n, at_once});
  for (int64_t n = 0; n < g.n; n += step) {
    const int64_t count = std::min(step, g.n - n);
    Images<const void*> slice = from;
    slice.data = static_cast<const T*>(from.data) + n * from.image;
    if (is_copied) copy_channels(queue, sizeof(T), slice, count, pixels, g.groups, p.c, p.c, memory);
    const T* const source = is_copied ? reinterpret_cast<const T*>(memory) : static_cast<const T*>(slice.data);
    const Grid grid{blocks_of(count * image_blocks), dim3(threads_per_block), shared_bytes};
    const auto start = [&](auto kernel) {
      launch(queue, plan.name, grid, kernel, p, p.staged_pitch(), static_cast<int>(patch_bytes), source,
             static_cast<const unsigned char*>(fragments), bias, static_cast<T*>(to.data) + n * to.image);
    };
    if (wide == 1) start(grouped_product<T, 1>);
    else if (wide == 2) start(grouped_product<T, 2>);
    else start(grouped_product<T, 4>);
  }
}

template <class F>
void dispatch_half(DType dtype, F&& f) {
  if (dtype == DType::float16) f(float16{});
  else f(bfloat16{});
}

}  // namespace

void grouped_forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& weight,
                     const ConstView& bias, const View& y, Workspace scratch) {
  GroupedProduct p;
  p.c = static_cast<int32_t>(g.group_c());
  p.k = static_cast<int32_t>(g.group_k());
  p.phase_count = 1;
  GroupedPhase& all = p.phases[0];
  all.vertical = vertical_of(g);
  all.horizontal = horizontal_of(g);
  all.rows = static_cast<int32_t>(g.out_h());
  all.columns = static_cast<int32_t>(g.out_w());
  p.out_row = g.out_w();
  p.out_column = 1;
  choose_tiles(p);
  dispatch_half(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    run<T>(queue, g, plan, ConvPass::forward, p, images_of(x, "conv2d", "x"), images_of(y, "conv2d", "y"), weight, bias.as<T>(),
           static_cast<char*>(scratch.data));
  });
}

void grouped_backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& dy, const ConstView& weight,
                           const View& dx, Workspace scratch) {
  constexpr const char* op = "conv2d_backward_data";
  GroupedProduct p;
  p.c = static_cast<int32_t>(g.group_k());
  p.k = static_cast<int32_t>(g.group_c());
  for (int64_t i = 0; i < std::min(g.stride_h, g.h); ++i)
    for (int64_t j = 0; j < std::min(g.stride_w, g.w); ++j) {
      const PhaseAxis down(i, g.h, g.stride_h, g.pad_h, g.dilation_h, g.r), right(j, g.w, g.stride_w, g.pad_w, g.dilation_w, g.s);
      GroupedPhase& phase = p.phases[p.phase_count++];
      phase.vertical = down.window(g.out_h());
      phase.horizontal = right.window(g.out_w());
      phase.first_r = static_cast<int32_t>(down.first_tap);
      phase.step_r = static_cast<int32_t>(down.tap_step);
      phase.first_s = static_cast<int32_t>(right.first_tap);
      phase.step_s = static_cast<int32_t>(right.tap_step);
      phase.rows = static_cast<int32_t>(down.count);
      phase.columns = static_cast<int32_t>(right.count);
      phase.out_first = i * g.w + j;
    }
  p.out_row = g.stride_h * g.w;
  p.out_column = g.stride_w;
  choose_tiles(p);
  dispatch_half(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    run<T>(queue, g, plan, ConvPass::backward_data, p, images_of(dy, op, "dy"), images_of(dx, op, "dx"), weight,
           static_cast<const T*>(nullptr), static_cast<char*>(scratch.data));
  });
}

}  // namespace fovea::kernels::cuda
