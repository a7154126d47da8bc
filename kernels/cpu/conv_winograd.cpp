// Winograd's F(2x2, 3x3) (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks"): a tile of 2x2 outputs from 4x4 inputs d and weights w is
//   y = A^T [ (G w G^T) * (B^T d B) ] A      with * element by element, so over channels and tiles it is 16 independent matrix products:
//   U_i [k,c] = G w G^T,   V_i [c,t] = B^T d B,   M_i = U_i V_i,   y = A^T M A
// The gradient of x is the same convolution of dy with the weights turned by 180 degrees (U_i with rows and columns of i mirrored, k and c exchanged).
// The gradient of w is the adjoint: S_i [k,c] = sum_t (A dy A^T)_i[k,t] V_i[c,t],   dw = G^T S G.
//
// Layout as conv.cpp's; overwrites. Sums in the element type in the order of gemm.h, in blocks of tiles that do not depend on the threads: deterministic.
// The rounding error is about twice the direct sum's. An infinity in x can become NaN in all four outputs of a tile that reads it, not only where the kernel does.
// B^T d B adds up to four inputs with either sign before they meet a weight: beyond about FLT_MAX / 8 these sums may overflow though y itself would be finite.
// Floor: 2 * 16/36 * geometry.macs() FLOPs; V and M stay in the cache of the thread that works on some panels of tiles.
#include <fovea/kernels/cpu/conv_functions.h>

#include <algorithm>

#include <fovea/kernels/cpu/arena.h>
#include <fovea/kernels/cpu/conv_patches.h>
#include <fovea/kernels/cpu/gemm.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/conv_winograd.cpp"
#include <fovea/kernels/cpu/simd.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

template <class T> using Tag = hn::ScalableTag<T>;
template <class T> using Vec = hn::Vec<Tag<T>>;
template <class T> constexpr int64_t lanes_of = hn::MaxLanes(Tag<T>());

constexpr int64_t positions = 16;                    // of the transformed 4x4 tile
constexpr int64_t panel_vectors = 3;                 // of tiles: the widest panel of gemm.cpp
constexpr int64_t large_matrix = 128 * 256;          // elements of one U_i

constexpr int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Rows and planes that lie a power of two apart would share few sets of the first-level cache; the sixteen planes are written side by side.
int64_t row_pitch(int64_t columns) { return round_up(columns, 16) + 16; }
int64_t plane_pitch(int64_t elements) { return round_up(elements, 1024) + 80; }

// The 2x2 tiles of an output, and the image they are read from, split into its even and odd rows and columns.
struct Tiles {
  int64_t n, channels, height, width;                // tiles of one image: height x width
  PlaneSplit split;

  int64_t count() const { return n * height * width; }
  int64_t phase_size() const { return split.out_h * split.out_w; }
};

// Tiles of the input x of a convolution: 4x4 elements, 2 apart.
Tiles input_tiles(const ConvGeometry& g) {
  Tiles t{g.n, g.c, (g.out_h() + 1) / 2, (g.out_w() + 1) / 2, {}};
  t.split = {g.n * g.c, g.h, g.w, 2, 2, 2, 2, g.pad_h, g.pad_w, t.height + 1, t.width + 1};
  return t;
}

// Tiles of the gradient dy of its output: 2x2 elements.
Tiles output_tiles(const ConvGeometry& g) {
  Tiles t{g.n, g.k, (g.out_h() + 1) / 2, (g.out_w() + 1) / 2, {}};
  t.split = {g.n * g.k, g.out_h(), g.out_w(), 2, 2, 2, 2, 0, 0, t.height, t.width};
  return t;
}

// The convolution of dy that gives dx.
ConvGeometry mirrored(const ConvGeometry& g) {
  ConvGeometry m = g;
  m.c = g.k;
  m.k = g.c;
  m.h = g.out_h();
  m.w = g.out_w();
  m.pad_h = 2 - g.pad_h;
  m.pad_w = 2 - g.pad_w;
  return m;
}

// At most one vector of tiles beside each other in one row of tiles.
struct Piece {
  int64_t image, y, x;
  int64_t column, length;
};

// Cuts tiles [first, first + count) into pieces and calls f with each.
template <class F>
void for_pieces(const Tiles& t, int64_t first, int64_t count, int64_t lanes, const F& f) {
  int64_t x = first % t.width, y = first / t.width % t.height, image = first / t.width / t.height;
  for (int64_t column = 0; column < count;) {
    const int64_t run = std::min(count - column, t.width - x);
    for (int64_t e = 0; e < run; e += lanes) f(Piece{image, y, x + e, column + e, std::min(lanes, run - e)});
    column += run;
    x = 0;
    if (++y == t.height) {
      y = 0;
      ++image;
    }
  }
}

// --- transforms; each works on whole vectors of tiles (or channels) ---

// B^T d, of four vectors in place.
template <class T>
void input_transform(Vec<T>& a, Vec<T>& b, Vec<T>& c, Vec<T>& d) {
  const Vec<T> second = b;
  a = hn::Sub(a, c);
  b = hn::Add(second, c);
  c = hn::Sub(c, second);
  d = hn::Sub(second, d);
}

// Note [Whole vectors are written]
// A piece shorter than a vector writes garbage behind its end: the next piece, or the next channel, writes over it, and behind the last one there is room.
// `source` is the split image; what is read behind its end is the slack of its buffer.
template <class T>
void transform_input(const Tiles& t, const T* source, const Piece& p, int64_t channel, T* to, int64_t plane) {
  const Tag<T> d;
  const int64_t phase = t.phase_size(), pitch = t.split.out_w;
  const T* from = source + (p.image * t.channels + channel) * t.split.plane_size() + p.y * pitch + p.x;
  Vec<T> tile[4][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const T *even = from + i % 2 * 2 * phase + i / 2 * pitch, *odd = even + phase;
    tile[i][0] = hn::LoadU(d, even);
    tile[i][1] = hn::LoadU(d, odd);
    tile[i][2] = hn::LoadU(d, even + 1);
    tile[i][3] = hn::LoadU(d, odd + 1);
    input_transform<T>(tile[i][0], tile[i][1], tile[i][2], tile[i][3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    input_transform<T>(tile[0][j], tile[1][j], tile[2][j], tile[3][j]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) hn::StoreU(tile[i][j], d, to + (i * 4 + j) * plane + p.column);
  }
}

// A dy A^T.
template <class T>
void transform_gradient(const Tiles& t, const T* source, const Piece& p, int64_t channel, T* to, int64_t plane) {
  const Tag<T> d;
  const int64_t phase = t.phase_size();
  const T* from = source + (p.image * t.channels + channel) * t.split.plane_size() + p.y * t.split.out_w + p.x;
  Vec<T> rows[2][4];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Vec<T> even = hn::LoadU(d, from + 2 * i * phase), odd = hn::LoadU(d, from + (2 * i + 1) * phase);
    rows[i][0] = even;
    rows[i][1] = hn::Add(even, odd);
    rows[i][2] = hn::Sub(even, odd);
    rows[i][3] = hn::Neg(odd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    T* out = to + j * plane + p.column;
    hn::StoreU(rows[0][j], d, out);
    hn::StoreU(hn::Add(rows[0][j], rows[1][j]), d, out + 4 * plane);
    hn::StoreU(hn::Sub(rows[0][j], rows[1][j]), d, out + 8 * plane);
    hn::StoreU(hn::Neg(rows[1][j]), d, out + 12 * plane);
  }
}

// One row of two outputs a tile, side by side in memory; `columns` of them exist.
template <class T>
void store_pairs(const Vec<T>& even, const Vec<T>& odd, int64_t columns, T* to) {
  const Tag<T> d;
  if (columns >= 2 * lanes_of<T>) {
    hn::StoreInterleaved2(even, odd, d, to);
    return;
  }
  alignas(64) T buffer[2 * lanes_of<T>];
  hn::StoreInterleaved2(even, odd, d, buffer);
  std::copy_n(buffer, columns, to);
}

// y = A^T m A + bias for one piece of one output channel; `from` is M_0's row of that channel.
template <class T>
void transform_output(const ConvGeometry& g, const Piece& p, const T* from, int64_t plane, T bias, T* image) {
  const Tag<T> d;
  Vec<T> top[4], bottom[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const T* m = from + j * plane + p.column;
    const Vec<T> m1 = hn::LoadU(d, m + 4 * plane), m2 = hn::LoadU(d, m + 8 * plane);
    top[j] = hn::Add(hn::LoadU(d, m), hn::Add(m1, m2));
    bottom[j] = hn::Sub(hn::Sub(m1, m2), hn::LoadU(d, m + 12 * plane));
  }
  const Vec<T> b = hn::Set(d, bias);
  const int64_t width = g.out_w(), columns = std::min(2 * p.length, width - 2 * p.x);
  T* to = image + 2 * p.y * width + 2 * p.x;
  store_pairs<T>(hn::Add(hn::Add(hn::Add(top[0], top[1]), top[2]), b), hn::Add(hn::Sub(hn::Sub(top[1], top[2]), top[3]), b), columns, to);
  if (2 * p.y + 1 < g.out_h())
    store_pairs<T>(hn::Add(hn::Add(hn::Add(bottom[0], bottom[1]), bottom[2]), b), hn::Add(hn::Sub(hn::Sub(bottom[1], bottom[2]), bottom[3]), b), columns, to + width);
}

// Vector r * 3 + s of `taps` gets element (r, s) of as many 3x3 kernels as a vector has lanes, from `count` kernels one after the other. Two rounds of taking every third.
template <class T>
void load_kernels(const T* kernels, int64_t count, T* taps) {
  const Tag<T> d;
  constexpr int64_t lanes = lanes_of<T>;
  if (count < lanes) return gemm<T>().transpose(kernels, 9, count, 9, taps, lanes);
  alignas(64) T thirds[3][3 * lanes];                // of column s: (kernel, r) in order
  for (int64_t part = 0; part < 3; ++part) {
    Vec<T> s0, s1, s2;
    hn::LoadInterleaved3(d, kernels + part * 3 * lanes, s0, s1, s2);
    hn::Store(s0, d, thirds[0] + part * lanes);
    hn::Store(s1, d, thirds[1] + part * lanes);
    hn::Store(s2, d, thirds[2] + part * lanes);
  }
  for (int64_t s = 0; s < 3; ++s) {
    Vec<T> r0, r1, r2;
    hn::LoadInterleaved3(d, thirds[s], r0, r1, r2);
    hn::Store(r0, d, taps + s * lanes);
    hn::Store(r1, d, taps + (3 + s) * lanes);
    hn::Store(r2, d, taps + (6 + s) * lanes);
  }
}

// The same backwards.
template <class T>
void store_kernels(const T* taps, int64_t count, T* kernels) {
  const Tag<T> d;
  constexpr int64_t lanes = lanes_of<T>;
  if (count < lanes) return gemm<T>().transpose(taps, lanes, 9, count, kernels, 9);
  alignas(64) T thirds[3][3 * lanes];
  for (int64_t s = 0; s < 3; ++s)
    hn::StoreInterleaved3(hn::Load(d, taps + s * lanes), hn::Load(d, taps + (3 + s) * lanes), hn::Load(d, taps + (6 + s) * lanes), d, thirds[s]);
  for (int64_t part = 0; part < 3; ++part)
    hn::StoreInterleaved3(hn::Load(d, thirds[0] + part * lanes), hn::Load(d, thirds[1] + part * lanes), hn::Load(d, thirds[2] + part * lanes), d,
                          kernels + part * 3 * lanes);
}

// G w of three vectors, doubled but for the outer two: the halves are multiplied in once, at the end.
template <class T>
void weight_transform(const Vec<T>& w0, const Vec<T>& w1, const Vec<T>& w2, Vec<T>* out) {
  const Vec<T> outer = hn::Add(w0, w2);
  out[0] = w0;
  out[1] = hn::Add(outer, w1);
  out[2] = hn::Sub(outer, w1);
  out[3] = w2;
}

// U_i [rows, columns] of weights [rows, columns, 3, 3]; mirrored for weights turned by 180 degrees.
template <class T>
void transform_weights(const T* weight, int64_t rows, int64_t columns, bool is_mirrored, T* to, int64_t pitch, int64_t plane) {
  const Tag<T> d;
  constexpr int64_t lanes = lanes_of<T>;
  const Vec<T> half = hn::Set(d, T(0.5)), quarter = hn::Set(d, T(0.25));
  parallel_for(rows, 1 + 4096 / std::max<int64_t>(columns, 1), [&](int64_t begin, int64_t end) HWY_ATTR {
    alignas(64) T taps[9 * lanes] = {};
    for (int64_t row = begin; row < end; ++row)
      for (int64_t column = 0; column < columns; column += lanes) {
        load_kernels(weight + (row * columns + column) * 9, std::min(lanes, columns - column), taps);
        Vec<T> half_done[3][4], u[4][4];
        for (int s = 0; s < 3; ++s)
          weight_transform<T>(hn::Load(d, taps + s * 3 * lanes), hn::Load(d, taps + (s * 3 + 1) * lanes), hn::Load(d, taps + (s * 3 + 2) * lanes), half_done[s]);
        for (int j = 0; j < 4; ++j) {
          Vec<T> out[4];
          weight_transform<T>(half_done[0][j], half_done[1][j], half_done[2][j], out);
          for (int i = 0; i < 4; ++i) u[i][j] = out[i];
        }
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 4; ++j) {
            const bool is_inner_i = i == 1 || i == 2, is_inner_j = j == 1 || j == 2;
            if (is_inner_i && is_inner_j) u[i][j] = hn::Mul(u[i][j], quarter);
            else if (is_inner_i || is_inner_j) u[i][j] = hn::Mul(u[i][j], half);
            const int to_i = is_mirrored && !is_inner_i ? 3 - i : i, to_j = is_mirrored && !is_inner_j ? 3 - j : j;
            hn::StoreU(u[i][j], d, to + (to_i * 4 + to_j) * plane + row * pitch + column);
          }
      }
  });
}

// G^T s of four vectors.
template <class T>
void weight_adjoint(const Vec<T>& s0, const Vec<T>& s1, const Vec<T>& s2, const Vec<T>& s3, Vec<T>* out) {
  const Vec<T> half = hn::Set(Tag<T>(), T(0.5)), even = hn::Mul(hn::Add(s1, s2), half);
  out[0] = hn::Add(s0, even);
  out[1] = hn::Mul(hn::Sub(s1, s2), half);
  out[2] = hn::Add(s3, even);
}

// dweight [rows, columns, 3, 3] = G^T S G.
template <class T>
void transform_sums(const T* sums, int64_t rows, int64_t columns, int64_t pitch, int64_t plane, T* dweight) {
  const Tag<T> d;
  constexpr int64_t lanes = lanes_of<T>;
  parallel_for(rows, 1 + 4096 / std::max<int64_t>(columns, 1), [&](int64_t begin, int64_t end) HWY_ATTR {
    alignas(64) T taps[9 * lanes];
    for (int64_t row = begin; row < end; ++row)
      for (int64_t column = 0; column < columns; column += lanes) {
        const T* s = sums + row * pitch + column;
        Vec<T> half_done[4][3];
        for (int i = 0; i < 4; ++i)
          weight_adjoint<T>(hn::LoadU(d, s + i * 4 * plane), hn::LoadU(d, s + (i * 4 + 1) * plane), hn::LoadU(d, s + (i * 4 + 2) * plane),
                            hn::LoadU(d, s + (i * 4 + 3) * plane), half_done[i]);
        for (int j = 0; j < 3; ++j) {
          Vec<T> out[3];
          weight_adjoint<T>(half_done[0][j], half_done[1][j], half_done[2][j], half_done[3][j], out);
          for (int i = 0; i < 3; ++i) hn::Store(out[i], d, taps + (i * 3 + j) * lanes);
        }
        store_kernels(taps, std::min(lanes, columns - column), dweight + (row * columns + column) * 9);
      }
  });
}

// --- forward, and the gradient of x ---

template <class T>
const T* split_image(const Tiles& t, const T* image, Arena& arena) {
  T* copy = arena.take<T>(t.split.planes * t.split.plane_size() + gemm_slack);
  if (copy) patch_functions<T>().split(t.split, image, copy);
  return copy;
}

// U, which all threads read, and for each thread V and M of some panels of tiles: more than one where U is large, so that each U_i is fetched once for all of them.
template <class T>
struct ForwardScratch {
  int64_t u_pitch, u_plane, v_plane, m_plane, panels;
  T* u;
  int64_t panel_size, worker_size;                   // of V and M together

  ForwardScratch(const ConvGeometry& g, Arena& arena) {
    const int64_t tiles = panel_vectors * lanes_of<T>;
    u_pitch = row_pitch(g.c);
    u_plane = plane_pitch(g.k * u_pitch);
    v_plane = plane_pitch(g.c * tiles);
    m_plane = plane_pitch(g.k * tiles);
    u = arena.take<T>(positions * u_plane);
    panels = g.k * g.c >= large_matrix ? 4 : 1;
    panel_size = round_up(positions * (v_plane + m_plane), 64);
    worker_size = panels * panel_size;
  }
};

// How many workers the rest of a workspace has room for; the number of threads may have grown since it was made.
int64_t workers_within(Workspace rest, int64_t bytes_each) { return std::clamp<int64_t>(rest.bytes / std::max<int64_t>(bytes_each, 1), 1, num_threads()); }

// Tiles of a panel: as many as the widest holds, or fewer so that every worker has the same number of panels.
template <class T>
int64_t tiles_of_panel(int64_t tiles, int64_t workers) {
  const int64_t widest = panel_vectors * lanes_of<T>;
  int64_t panels = (tiles + widest - 1) / widest;
  if (panels < 8 * workers) panels = round_up(panels, workers);
  return std::min(widest, round_up((tiles + panels - 1) / panels, lanes_of<T>));
}

// One panel of tiles on its way through the three steps.
template <class T>
struct Panel {
  const ConvGeometry& g;
  const Tiles& tiles;
  const ForwardScratch<T>& scratch;
  int64_t first, count;
  T* v;

  int64_t pitch() const { return round_up(count, lanes_of<T>); }
  T* m() const { return v + positions * scratch.v_plane; }

  void read(const T* source) const {
    for (int64_t c = 0; c < g.c; ++c)
      for_pieces(tiles, first, count, lanes_of<T>, [&](const Piece& p) HWY_ATTR { transform_input(tiles, source, p, c, v + c * pitch(), scratch.v_plane); });
  }
  void multiply(int64_t i) const {
    gemm<T>().run_packed(g.k, pitch(), g.c, scratch.u + i * scratch.u_plane, scratch.u_pitch, v + i * scratch.v_plane, nullptr, false, m() + i * scratch.m_plane, pitch());
  }
  void write(const T* bias, T* y) const {
    const int64_t pixels = g.out_h() * g.out_w();
    for (int64_t k = 0; k < g.k; ++k)
      for_pieces(tiles, first, count, lanes_of<T>, [&](const Piece& p) HWY_ATTR {
        transform_output(g, p, m() + k * pitch(), scratch.m_plane, bias ? bias[k] : T(0), y + (p.image * g.k + k) * pixels);
      });
  }
};

// y of a convolution with U already in scratch.
template <class T>
void run_panels(const ConvGeometry& g, const Tiles& tiles, const T* source, const ForwardScratch<T>& scratch, const T* bias, T* y, Workspace rest) {
  const int64_t workers = workers_within(rest, scratch.worker_size * static_cast<int64_t>(sizeof(T)));
  const int64_t width = tiles_of_panel<T>(tiles.count(), workers), count = (tiles.count() + width - 1) / width;
  const int64_t per_task = std::min(scratch.panels, std::max<int64_t>(1, count / workers));
  parallel_workers(workers, (count + per_task - 1) / per_task, [&](int64_t worker, int64_t task) {
    T* memory = static_cast<T*>(rest.data) + worker * scratch.worker_size;
    const int64_t panels = std::min(per_task, count - task * per_task);
    const auto panel = [&](int64_t p) {
      const int64_t first = (task * per_task + p) * width;
      return Panel<T>{g, tiles, scratch, first, std::min(width, tiles.count() - first), memory + p * scratch.panel_size};
    };
    for (int64_t p = 0; p < panels; ++p) panel(p).read(source);
    for (int64_t i = 0; i < positions; ++i)
      for (int64_t p = 0; p < panels; ++p) panel(p).multiply(i);
    for (int64_t p = 0; p < panels; ++p) panel(p).write(bias, y);
  });
}

template <class T>
void forward(const ConvGeometry& g, const T* x, const T* weight, const T* bias, T* y, Workspace workspace) {
  Arena arena(workspace.data);
  const Tiles tiles = input_tiles(g);
  const T* source = split_image(tiles, x, arena);
  const ForwardScratch<T> scratch(g, arena);
  transform_weights(weight, g.k, g.c, false, scratch.u, scratch.u_pitch, scratch.u_plane);
  run_panels(g, tiles, source, scratch, bias, y, arena.rest(workspace));
}

// to[c][k] = weight[k][c], kernels of nine; sixteen channels at a time, which lie together in weight.
template <class T>
void exchange_channels(const ConvGeometry& g, const T* weight, T* to) {
  parallel_for(g.c, 16, [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < g.k; ++k)
      for (int64_t c = begin; c < end; ++c) std::copy_n(weight + (k * g.c + c) * 9, 9, to + (c * g.k + k) * 9);
  });
}

template <class T>
void backward_data(const ConvGeometry& g, const T* dy, const T* weight, T* dx, Workspace workspace) {
  Arena arena(workspace.data);
  const ConvGeometry m = mirrored(g);
  const Tiles tiles = input_tiles(m);
  T* exchanged = arena.take<T>(g.k * g.c * 9);
  const T* source = split_image(tiles, dy, arena);
  const ForwardScratch<T> scratch(m, arena);
  exchange_channels(g, weight, exchanged);
  transform_weights(exchanged, g.c, g.k, true, scratch.u, scratch.u_pitch, scratch.u_plane);
  run_panels<T>(m, tiles, source, scratch, nullptr, dx, arena.rest(workspace));
}

template <class T>
int64_t forward_workspace(const ConvGeometry& g, bool exchanges) {
  Arena arena(nullptr);
  if (exchanges) arena.take<T>(g.k * g.c * 9);
  split_image<T>(input_tiles(g), nullptr, arena);
  const ForwardScratch<T> scratch(g, arena);
  return arena.used() + num_threads() * scratch.worker_size * static_cast<int64_t>(sizeof(T));
}

// --- the gradient of the weights ---

// Both transforms of one block of tiles, the sums, and one packed V_i for each thread.
template <class T>
struct WeightScratch {
  int64_t pitch, x_plane, dy_plane, sum_pitch, sum_plane;
  T *x, *dy, *sums;
  int64_t packed_size;

  WeightScratch(const ConvGeometry& g, int64_t tiles, Arena& arena) {
    const int64_t depth = std::min(tiles, gemm_depth);
    pitch = row_pitch(depth);
    x_plane = plane_pitch(g.c * pitch);
    dy_plane = plane_pitch(g.k * pitch);
    sum_pitch = row_pitch(g.c);
    sum_plane = plane_pitch(g.k * sum_pitch);
    x = arena.take<T>(positions * x_plane);
    dy = arena.take<T>(positions * dy_plane);
    sums = arena.take<T>(positions * sum_plane);
    packed_size = round_up(gemm<T>().packed_size(depth, g.c), 64);
  }
};

template <class T>
void backward_weight(const ConvGeometry& g, const T* x, const T* dy, T* dweight, Workspace workspace) {
  Arena arena(workspace.data);
  const Tiles x_tiles = input_tiles(g), dy_tiles = output_tiles(g);
  const T *x_source = split_image(x_tiles, x, arena), *dy_source = split_image(dy_tiles, dy, arena);
  const WeightScratch<T> scratch(g, x_tiles.count(), arena);
  const Workspace rest = arena.rest(workspace);
  const int64_t workers = workers_within(rest, scratch.packed_size * static_cast<int64_t>(sizeof(T)));
  for (int64_t first = 0; first < x_tiles.count(); first += gemm_depth) {
    const int64_t count = std::min(gemm_depth, x_tiles.count() - first);
    // A row has room for a vector more than its tiles (note above), so channels may be divided among threads.
    parallel_for(g.c + g.k, 8, [&](int64_t begin, int64_t end) HWY_ATTR {
      for (int64_t channel = begin; channel < end; ++channel)
        for_pieces(x_tiles, first, count, lanes_of<T>, [&](const Piece& p) HWY_ATTR {
          if (channel < g.c) transform_input(x_tiles, x_source, p, channel, scratch.x + channel * scratch.pitch, scratch.x_plane);
          else transform_gradient(dy_tiles, dy_source, p, channel - g.c, scratch.dy + (channel - g.c) * scratch.pitch, scratch.dy_plane);
        });
    });
    parallel_workers(workers, positions, [&](int64_t worker, int64_t i) {
      T* packed = static_cast<T*>(rest.data) + worker * scratch.packed_size;
      gemm<T>().pack(scratch.x + i * scratch.x_plane, 1, scratch.pitch, count, g.c, packed);
      gemm<T>().run_packed(g.k, g.c, count, scratch.dy + i * scratch.dy_plane, scratch.pitch, packed, nullptr, first > 0, scratch.sums + i * scratch.sum_plane,
                           scratch.sum_pitch);
    });
  }
  transform_sums(scratch.sums, g.k, g.c, scratch.sum_pitch, scratch.sum_plane, dweight);
}

template <class T>
int64_t weight_workspace(const ConvGeometry& g) {
  Arena arena(nullptr);
  split_image<T>(input_tiles(g), nullptr, arena);
  split_image<T>(output_tiles(g), nullptr, arena);
  const WeightScratch<T> scratch(g, input_tiles(g).count(), arena);
  return arena.used() + num_threads() * scratch.packed_size * static_cast<int64_t>(sizeof(T));
}

template <class T>
int64_t workspace(const ConvGeometry& g) {
  return std::max({forward_workspace<T>(g, false), forward_workspace<T>(mirrored(g), true), weight_workspace<T>(g)});
}

template <class T>
const ConvFunctions<T>* functions() {
  static constexpr ConvFunctions<T> table = {workspace<T>, forward<T>, backward_data<T>, backward_weight<T>};
  return &table;
}
const ConvFunctions<float>* float_functions() { return functions<float>(); }
const ConvFunctions<double>* double_functions() { return functions<double>(); }

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

// The transforms cost a fixed number of passes over x, y and the weights, which the saved multiplications must pay for.
bool winograd_pays(const ConvGeometry& g) {
  const bool fits = g.r == 3 && g.s == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1 && g.groups == 1 && g.pad_h <= 2 && g.pad_w <= 2;
  if (!fits) return false;
  const int64_t tiles_h = (g.out_h() + 1) / 2, tiles_w = (g.out_w() + 1) / 2;
  const bool has_channels = std::min(g.c, g.k) >= 16, has_tiles = g.n * tiles_h * tiles_w >= 16;
  const bool wastes_little = 4 * tiles_h * tiles_w * 2 <= 3 * g.out_h() * g.out_w();
  return has_channels && has_tiles && wastes_little;
}

template <>
const ConvFunctions<float>& winograd_functions<float>() {
  static const ConvFunctions<float>& table = *FOVEA_BEST(float_functions)();
  return table;
}

template <>
const ConvFunctions<double>& winograd_functions<double>() {
  static const ConvFunctions<double>& table = *FOVEA_BEST(double_functions)();
  return table;
}

}  // namespace fovea::kernels
#endif
