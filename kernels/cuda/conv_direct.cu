// Convolution of float32 in small groups without tensor cores, forward and (with strides up to two) the gradient of its input; conv.cu says
// what is computed. Groups of up to 16 channels on either side. Everything lies [n,c,h,w]. Sums in float32. The gradient of the weight:
// conv_direct_weight.cu.
// A block makes a tile of 16 x 16 pixels of all of one group's channels. It copies the patch of the group's image that their windows see
// once, by cp.async, and takes all taps out of shared memory; a thread makes four pixels of a row, of all channels, so that a value that
// was read serves all of them, and a weight all pixels.
// With strides, the pixels of dx that see the same taps are a phase. A block makes 16 x 16 pixels of each phase out of one patch of dy, and
// a thread the phases of a row beside each other, so that it writes neighbours.
// Overwrites. Deterministic; the order of sums (channels, then taps) does not even depend on the geometry.
// Floor: 2 * geometry.macs() FLOPs, or memory: reading and writing every tensor once; patches overlap by what windows reach beyond their
// tile, 1.3 times the image for 3 x 3.
#include <fovea/kernels/cuda/conv_functions.h>
#include <fovea/kernels/cuda/conv_patch.h>

#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/ptx.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int tile = 16, strip = 4, threads_per_block = tile * tile / strip;

struct DirectProduct {
  int32_t groups = 1, c = 0, k = 0;  // channels of a group: the source's and the result's
  WindowAxis vertical, horizontal;
  int32_t tiles_down = 1, tiles_across = 1, patch_h = 0, patch_w = 0, pitch = 0, rows = 0, columns = 0;  // pitch: elements of a patch's row
  bool is_mirrored = false, has_packs = false;                     // the taps are taken backwards; pixels may be written as packs
  int64_t weight_source = 0, weight_result = 0, weight_group = 0;  // strides of the source's channel, the result's, and the group
  FastDivide by_groups, by_across, by_down, by_patch_h;
};

struct Tile {
  int32_t image, first_row, first_column, group;
};

__device__ Tile tile_of(const DirectProduct& p) {
  const int32_t place = static_cast<int32_t>(p.by_groups.quotient(blockIdx.x)),
                line = static_cast<int32_t>(p.by_across.quotient(static_cast<uint32_t>(place)));
  const int32_t image = static_cast<int32_t>(p.by_down.quotient(static_cast<uint32_t>(line)));
  return {image, (line - image * p.tiles_down) * tile, (place - line * p.tiles_across) * tile,
          static_cast<int32_t>(blockIdx.x) - place * p.groups};
}

__device__ void copy_patch(const DirectProduct& p, const Tile& at, const float* source, float* patch) {
  const int64_t plane = static_cast<int64_t>(p.vertical.size) * p.horizontal.size;
  const float* const first = source + (static_cast<int64_t>(at.image) * p.groups + at.group) * p.c * plane;
  copy_planes(p, p.c, at.first_row, at.first_column, first, source, patch, threads_per_block / warp_size);
}

// to[source channel, tap, result channel]; zeros where there are fewer than k channels.
template <int k>
__device__ void copy_weights(const DirectProduct& p, int32_t group, const float* weight, float* to) {
  const int32_t taps = p.vertical.taps * p.horizontal.taps;
  weight += group * p.weight_group;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.c * taps * k; i += threads_per_block) {
    const int32_t result = i % k, line = i / k, channel = line / taps, tap = line - channel * taps;
    const bool is_there = result < p.k;
    const float* const from =
        is_there ? weight + channel * p.weight_source + result * p.weight_result + (p.is_mirrored ? taps - 1 - tap : tap) : weight;
    copy_async<sizeof(float)>(to + i, from, is_there);
  }
}

template <int k>
__device__ void add_products(float (&sums)[k][strip], const float* weights, const float* values) {
#pragma unroll
  for (int first = 0; first < k; first += 4) {
    const Pack<float, 4> w = load_pack(weights + first, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int v = 0; v < strip; ++v) sums[first + i][v] += w[i] * values[v];
  }
}

// One row of the kernel. Three taps of unit steps: the strip's pixels lie beside each other, and two packs have all that their windows see.
template <int k, bool is_three>
__device__ void add_row(const DirectProduct& p, float (&sums)[k][strip], const float* weights, const float* row, int thread_column) {
  if constexpr (is_three) {
    float values[strip + 4];
#pragma unroll
    for (int first = 0; first < strip + 4; first += 4) {
      const Pack<float, 4> part = load_pack(row + thread_column * strip + first, 0);
#pragma unroll
      for (int v = 0; v < 4; ++v) values[first + v] = part[v];
    }
#pragma unroll
    for (int s = 0; s < 3; ++s) add_products<k>(sums, weights + s * k, values + s);
  } else {
    for (int32_t s = 0; s < p.horizontal.taps; ++s) {
      float values[strip];
#pragma unroll
      for (int v = 0; v < strip; ++v) values[v] = row[p.horizontal.step * (thread_column + v * (tile / strip)) + s * p.horizontal.delta];
      add_products<k>(sums, weights + s * k, values);
    }
  }
}

// k: the result's channels of a group, or more.
template <int k, bool is_three>
__global__ void __launch_bounds__(threads_per_block, 8)
    direct_product(DirectProduct p, const float* source, const float* weight, const float* bias, float* out) {
  float* const weights = &shared<float>();
  float* const patch = weights + p.c * p.vertical.taps * p.horizontal.taps * k;
  const Tile at = tile_of(p);
  copy_patch(p, at, source, patch);
  copy_weights<k>(p, at.group, weight, weights);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();

  // Rows first: eight neighbouring ones are read at once.
  const int thread_row = static_cast<int>(threadIdx.x) % tile, thread_column = static_cast<int>(threadIdx.x) / tile;
  float sums[k][strip] = {};
  for (int32_t channel = 0; channel < p.c; ++channel)
    for (int32_t r = 0; r < p.vertical.taps; ++r) {
      const float* const row = patch + (channel * p.patch_h + p.vertical.step * thread_row + r * p.vertical.delta) * p.pitch;
      add_row<k, is_three>(p, sums, weights + (channel * p.vertical.taps + r) * p.horizontal.taps * k, row, thread_column);
    }

  const int32_t row = at.first_row + thread_row, first_column = at.first_column + thread_column * (is_three ? strip : 1);
  if (row >= p.rows) return;
  const int64_t plane = static_cast<int64_t>(p.rows) * p.columns;
  out += (static_cast<int64_t>(at.image) * p.groups + at.group) * p.k * plane + static_cast<int64_t>(row) * p.columns;
#pragma unroll
  for (int i = 0; i < k; ++i) {
    if (i >= p.k) continue;
    const float start = bias ? bias[at.group * p.k + i] : 0.0f;
    Pack<float, strip> values;
#pragma unroll
    for (int v = 0; v < strip; ++v) values[v] = sums[i][v] + start;
    if (is_three && p.has_packs) {
      if (first_column < p.columns) store_pack(out + i * plane + first_column, 0, values);
      continue;
    }
#pragma unroll
    for (int v = 0; v < strip; ++v) {
      const int32_t column = first_column + v * (is_three ? 1 : tile / strip);
      if (column < p.columns) out[i * plane + column] = values[v];
    }
  }
}

void run(Queue queue, const ConvPlan& plan, DirectProduct p, int64_t images, const float* source, const float* weight, const float* bias,
         float* out) {
  p.tiles_down = ceil_div(p.rows, tile);
  p.tiles_across = ceil_div(p.columns, tile);
  p.patch_h = (tile - 1) * p.vertical.step + (p.vertical.taps - 1) * p.vertical.delta + 1;
  p.patch_w = (tile - 1) * p.horizontal.step + (p.horizontal.taps - 1) * p.horizontal.delta + 1;
  // An odd number of packs, so that eight neighbouring rows begin in different banks. Two more elements are read than three taps need.
  p.pitch = (ceil_div(p.patch_w + 2, 4) | 1) * 4;
  p.has_packs = p.columns % strip == 0 && is_aligned(out);
  p.by_groups = divide_by(p.groups);
  p.by_across = divide_by(p.tiles_across);
  p.by_down = divide_by(p.tiles_down);
  p.by_patch_h = divide_by(p.patch_h);
  const bool is_three = p.horizontal.taps == 3 && p.horizontal.step == 1 && p.horizontal.delta == 1;
  const int k = p.k <= 4 ? 4 : p.k <= 8 ? 8 : 16;
  const size_t shared_bytes =
      sizeof(float) * static_cast<size_t>(p.c * p.vertical.taps * p.horizontal.taps * k + p.c * p.patch_h * p.pitch);
  const int64_t source_image = int64_t{p.groups} * p.c * p.vertical.size * p.horizontal.size,
                out_image = int64_t{p.groups} * p.k * p.rows * p.columns;
  for_each_run_of_planes(images, int64_t{p.tiles_down} * p.tiles_across * p.groups, [&](int64_t first, int64_t count) {
    const Grid grid{blocks_of(count * p.tiles_down * p.tiles_across * p.groups), dim3(threads_per_block), shared_bytes};
    const auto start = [&](auto kernel) {
      launch(queue, plan.name, grid, kernel, p, source + first * source_image, weight, bias, out + first * out_image);
    };
    if (k == 4) start(is_three ? direct_product<4, true> : direct_product<4, false>);
    else if (k == 8) start(is_three ? direct_product<8, true> : direct_product<8, false>);
    else start(is_three ? direct_product<16, true> : direct_product<16, false>);
  });
}

// --- the gradient of the input with strides ---

// The taps of an axis that the pixels of a phase see; see Note [Phases along one axis]. Relative to the patch's first row or column, pixel
// i meets tap first_tap + t * tap_step at i + base - t * delta.
struct PhaseTaps {
  int32_t taps = 0, first_tap = 0, tap_step = 1, base = 0, delta = 0, count = 0;  // count: of pixels
};

constexpr int most_stride = 2;

struct DirectPhases {
  PhaseTaps down[most_stride], right[most_stride];
  int32_t stride_h = 1, out_h = 0, out_w = 0;
};

// all_k: the result's channels of a group, or more; stride_w: of them, phases beside each other.
template <int all_k, int stride_w>
__global__ void __launch_bounds__(threads_per_block, 8)
    direct_phases(DirectProduct p, DirectPhases q, const float* source, const float* weight, float* out) {
  constexpr int k = all_k < 8 ? all_k : 8, strip_step = tile / strip;  // channels at once; a thread's pixels lie so many rows apart
  const int32_t taps_w = p.horizontal.taps, taps = p.vertical.taps * taps_w;
  float* const weights = &shared<float>();
  float* const patch = weights + p.c * taps * all_k;
  const Tile at = tile_of(p);
  copy_patch(p, at, source, patch);
  copy_weights<all_k>(p, at.group, weight, weights);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();

  const int thread_row = static_cast<int>(threadIdx.x) / tile, thread_column = static_cast<int>(threadIdx.x) % tile;
  const int64_t plane = static_cast<int64_t>(q.out_h) * q.out_w;
  out += (static_cast<int64_t>(at.image) * p.groups + at.group) * p.k * plane;
  for (int phase = 0; phase < q.stride_h; ++phase)
    for (int first = 0; first < p.k; first += k) {
      const PhaseTaps down = phase == 0 ? q.down[0] : q.down[1];  // not by index: that would copy q to the stack
      float sums[stride_w][k][strip] = {};
      for (int32_t channel = 0; channel < p.c; ++channel)
        for (int32_t r = 0; r < down.taps; ++r) {
          const float* const rows = patch + (channel * p.patch_h + thread_row + down.base - r * down.delta) * p.pitch + thread_column;
          const float* const of_row = weights + (channel * taps + (down.first_tap + r * down.tap_step) * taps_w) * all_k + first;
#pragma unroll
          for (int j = 0; j < stride_w; ++j)
            for (int32_t s = 0; s < q.right[j].taps; ++s) {
              const PhaseTaps& right = q.right[j];
              float values[strip];
#pragma unroll
              for (int v = 0; v < strip; ++v) values[v] = rows[v * strip_step * p.pitch + right.base - s * right.delta];
              add_products<k>(sums[j], of_row + (right.first_tap + s * right.tap_step) * all_k, values);
            }
        }

      const int32_t column = at.first_column + thread_column;
#pragma unroll
      for (int i = 0; i < k; ++i) {
        if (first + i >= p.k) continue;
#pragma unroll
        for (int v = 0; v < strip; ++v) {
          const int32_t row = at.first_row + thread_row + v * strip_step;
          if (row >= down.count) continue;
          float* const to = out + (first + i) * plane + static_cast<int64_t>(row * q.stride_h + phase) * q.out_w + column * stride_w;
          if (stride_w == 2 && p.has_packs) {
            if (column < q.right[0].count) store_pack(to, 0, Pack<float, 2>{{sums[0][i][v], sums[stride_w - 1][i][v]}});
            continue;
          }
#pragma unroll
          for (int j = 0; j < stride_w; ++j)
            if (column < q.right[j].count) to[j] = sums[j][i][v];
        }
      }
    }
}

// The phases of an axis, and where its patches begin: `base` of the patch's axis.
void set_phases(PhaseTaps (&phases)[most_stride], int64_t size, int64_t stride, int64_t pad, int64_t dilation, int64_t taps,
                WindowAxis& axis, int32_t& patch_size) {
  int64_t first = 0, last = 0;
  bool is_first = true;
  for (int64_t i = 0; i < stride; ++i) {
    const PhaseAxis phase(i, size, stride, pad, dilation, taps);
    phases[i] = {static_cast<int32_t>(phase.taps), static_cast<int32_t>(phase.first_tap), static_cast<int32_t>(phase.tap_step),
                 static_cast<int32_t>(phase.base), static_cast<int32_t>(phase.delta),     static_cast<int32_t>(phase.count)};
    if (phase.taps == 0) continue;
    const int64_t lowest = phase.base - (phase.taps - 1) * phase.delta;
    first = is_first ? lowest : std::min(first, lowest);
    last = is_first ? phase.base : std::max(last, phase.base);
    is_first = false;
  }
  for (PhaseTaps& phase : phases) phase.base -= static_cast<int32_t>(first);
  axis.base = static_cast<int32_t>(first);
  patch_size = static_cast<int32_t>(tile + last - first);
}

void run_phases(Queue queue, const ConvGeometry& g, const ConvPlan& plan, DirectProduct p, const float* dy, const float* weight,
                float* dx) {
  DirectPhases q;
  q.stride_h = static_cast<int32_t>(g.stride_h);
  q.out_h = static_cast<int32_t>(g.h);
  q.out_w = static_cast<int32_t>(g.w);
  p.vertical = {static_cast<int32_t>(g.r), 1, 0, 1, static_cast<int32_t>(g.out_h())};
  p.horizontal = {static_cast<int32_t>(g.s), 1, 0, 1, static_cast<int32_t>(g.out_w())};
  set_phases(q.down, g.h, g.stride_h, g.pad_h, g.dilation_h, g.r, p.vertical, p.patch_h);
  set_phases(q.right, g.w, g.stride_w, g.pad_w, g.dilation_w, g.s, p.horizontal, p.patch_w);
  p.tiles_down = ceil_div(q.down[0].count, tile);
  p.tiles_across = ceil_div(q.right[0].count, tile);
  p.pitch = p.patch_w | 1;
  p.has_packs = g.w % 2 == 0 && is_aligned(dx, 2 * sizeof(float));
  p.by_groups = divide_by(p.groups);
  p.by_across = divide_by(p.tiles_across);
  p.by_down = divide_by(p.tiles_down);
  p.by_patch_h = divide_by(p.patch_h);
  const int k = p.k <= 4 ? 4 : p.k <= 8 ? 8 : 16;
  const size_t shared_bytes =
      sizeof(float) * static_cast<size_t>(p.c * p.vertical.taps * p.horizontal.taps * k + p.c * p.patch_h * p.pitch);
  const int64_t dy_image = g.k * g.out_h() * g.out_w(), dx_image = g.c * g.h * g.w;
  for_each_run_of_planes(g.n, int64_t{p.tiles_down} * p.tiles_across * p.groups, [&](int64_t first, int64_t count) {
    const Grid grid{blocks_of(count * p.tiles_down * p.tiles_across * p.groups), dim3(threads_per_block), shared_bytes};
    const auto start = [&](auto kernel) {
      launch(queue, plan.name, grid, kernel, p, q, dy + first * dy_image, weight, dx + first * dx_image);
    };
    if (k == 4) start(g.stride_w == 1 ? direct_phases<4, 1> : direct_phases<4, 2>);
    else if (k == 8) start(g.stride_w == 1 ? direct_phases<8, 1> : direct_phases<8, 2>);
    else start(g.stride_w == 1 ? direct_phases<16, 1> : direct_phases<16, 2>);
  });
}

}  // namespace

void direct_forward(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* x, const float* weight, const float* bias,
                    float* y) {
  DirectProduct p;
  p.groups = static_cast<int32_t>(g.groups);
  p.c = static_cast<int32_t>(g.group_c());
  p.k = static_cast<int32_t>(g.group_k());
  p.vertical = vertical_of(g);
  p.horizontal = horizontal_of(g);
  p.rows = static_cast<int32_t>(g.out_h());
  p.columns = static_cast<int32_t>(g.out_w());
  p.weight_source = g.r * g.s;
  p.weight_result = g.group_c() * g.r * g.s;
  p.weight_group = g.group_k() * p.weight_result;
  run(queue, plan, p, g.n, x, weight, bias, y);
}

void direct_backward_data(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const float* dy, const float* weight, float* dx) {
  DirectProduct p;
  p.groups = static_cast<int32_t>(g.groups);
  p.c = static_cast<int32_t>(g.group_k());
  p.k = static_cast<int32_t>(g.group_c());
  p.weight_source = g.group_c() * g.r * g.s;
  p.weight_result = g.r * g.s;
  p.weight_group = g.group_k() * p.weight_source;
  if (g.stride_h > 1 || g.stride_w > 1) return run_phases(queue, g, plan, p, dy, weight, dx);
  p.vertical = mirrored_vertical_of(g);
  p.horizontal = mirrored_horizontal_of(g);
  p.rows = static_cast<int32_t>(g.h);
  p.columns = static_cast<int32_t>(g.w);
  p.is_mirrored = true;
  run(queue, plan, p, g.n, dy, weight, nullptr, dx);
}

}  // namespace fovea::kernels::cuda
