// The register tiles and the loops around them. What is computed, and the blocking: gemm.h.
// Accumulates in the element type, with fused multiply-adds where the processor has them. Deterministic. Floor: 2 m n k FLOPs.
#include <fovea/kernels/cpu/gemm.h>

#include <algorithm>

#include <hwy/cache_control.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cpp"
#include <fovea/kernels/cpu/simd.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

template <class T> using Tag = hn::ScalableTag<T>;
template <class T> constexpr int64_t lanes_of = hn::MaxLanes(Tag<T>());

// 24 accumulators, 3 vectors of the right panel and a broadcast fit into AVX-512's 32 registers; 12 + 3 + 1 fill the 16 that the others have.
constexpr int tile_vectors = 3;
constexpr int tile_rows = HWY_TARGET == HWY_AVX3 ? 8 : 4;
constexpr int64_t rows_per_block = 960;              // 960 x 208 floats are 780 KB of a 2 MB L2
constexpr int64_t columns_per_task = 1008;           // a multiple of every panel width

constexpr int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Vectors of the next panel when `columns` are left: threes, but 4 = 2 + 2, since a panel of one vector has too few independent sums.
template <class T>
int64_t panel_vectors(int64_t columns) {
  const int64_t vectors = (columns + lanes_of<T> - 1) / lanes_of<T>;
  return vectors == 4 ? 2 : std::min<int64_t>(vectors, tile_vectors);
}

template <class T>
struct TileOutput {
  T alpha;
  bool accumulate;
  const T* row_bias;
  const T* column_bias;
  T* c;
  int64_t pitch;
};

template <class T, int rows, int vectors>
void tile(int64_t depth, GemmBlock<T> a, GemmBlock<T> b, const TileOutput<T>& out) {
  const Tag<T> d;
  using V = hn::Vec<Tag<T>>;
  constexpr int64_t lanes = lanes_of<T>;
  V sum[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) sum[i][v] = hn::Zero(d);

  const T* left[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) left[i] = a.data + i * a.pitch;
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < vectors; ++v) hwy::Prefetch(out.c + i * out.pitch + v * lanes);
  const T* right = b.data;
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    V panel[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) panel[v] = hn::LoadU(d, right + v * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const V element = hn::Set(d, left[i][k]);
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) sum[i][v] = hn::MulAdd(element, panel[v], sum[i][v]);
    }
    right += b.pitch;
  }

  // Read once: the compiler can't know that the stores leave `out` alone.
  const V alpha = hn::Set(d, out.alpha);
  const T *const row_biases = out.row_bias, *const column_bias = out.column_bias;
  const bool accumulate = out.accumulate;
  const int64_t pitch = out.pitch;
  T* const first = out.c;
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    T* c = first + i * pitch;
    const V row_bias = hn::Set(d, row_biases ? row_biases[i] : T(0));
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) {
      V y = hn::MulAdd(sum[i][v], alpha, row_bias);
      if (column_bias) y = hn::Add(y, hn::LoadU(d, column_bias + v * lanes));
      if (accumulate) y = hn::Add(y, hn::LoadU(d, c + v * lanes));
      hn::StoreU(y, d, c + v * lanes);
    }
  }
}

template <class T> using TileFunction = void (*)(int64_t, GemmBlock<T>, GemmBlock<T>, const TileOutput<T>&);

template <class T>
TileFunction<T> tile_for(int64_t rows, int64_t vectors) {
  static constexpr TileFunction<T> tiles[8][3] = {
      {tile<T, 1, 1>, tile<T, 1, 2>, tile<T, 1, 3>}, {tile<T, 2, 1>, tile<T, 2, 2>, tile<T, 2, 3>},
      {tile<T, 3, 1>, tile<T, 3, 2>, tile<T, 3, 3>}, {tile<T, 4, 1>, tile<T, 4, 2>, tile<T, 4, 3>},
#if HWY_TARGET == HWY_AVX3
      {tile<T, 5, 1>, tile<T, 5, 2>, tile<T, 5, 3>}, {tile<T, 6, 1>, tile<T, 6, 2>, tile<T, 6, 3>},
      {tile<T, 7, 1>, tile<T, 7, 2>, tile<T, 7, 3>}, {tile<T, 8, 1>, tile<T, 8, 2>, tile<T, 8, 3>},
#endif
  };
  return tiles[rows - 1][vectors - 1];
}

// Adds a finished tile to c where its columns are not simply beside each other in memory, or do not fill the last vector.
template <class T>
void scatter_tile(const GemmColumns& map, int64_t j0, int64_t columns, int64_t rows, const T* tile, int64_t tile_pitch, const TileOutput<T>& out) {
  int64_t image = 0, y = 0, x = j0;
  if (map.width != INT64_MAX) {
    x = j0 % map.width;
    y = j0 / map.width;
    image = y / map.height;
    y %= map.height;
  }
  for (int64_t j = 0; j < columns;) {
    const int64_t run = std::min(columns - j, map.width - x);
    T* start = out.c + image * map.stride_image + y * map.stride_y + x * map.stride_x;
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = tile + i * tile_pitch + j;
      T* to = start + i * out.pitch;
      const T bias = out.row_bias ? out.row_bias[i] : T(0);
      for (int64_t e = 0; e < run; ++e) {
        T value = from[e] + bias;
        if (out.column_bias) value += out.column_bias[j + e];
        T& element = to[e * map.stride_x];
        element = out.accumulate ? element + value : value;
      }
    }
    j += run;
    x = 0;
    if (++y == map.height) {
      y = 0;
      ++image;
    }
  }
}

// Offset of column j when columns [j, j + columns) lie side by side and fill whole vectors; -1 otherwise.
template <class T>
int64_t direct_offset(const GemmColumns& map, int64_t j, int64_t columns) {
  if (map.stride_x != 1 || columns % lanes_of<T> != 0) return -1;
  if (map.width == INT64_MAX) return j;
  const int64_t x = j % map.width, y = j / map.width;
  if (x + columns > map.width) return -1;
  return y / map.height * map.stride_image + y % map.height * map.stride_y + x;
}

// All tiles of one block of rows with one panel.
template <class T>
void run_panel(const GemmColumns& map, int64_t j0, int64_t columns, int64_t rows, int64_t depth, GemmBlock<T> a, GemmBlock<T> b, TileOutput<T> out) {
  const int64_t vectors = panel_vectors<T>(columns), width = vectors * lanes_of<T>;
  const int64_t offset = direct_offset<T>(map, j0, columns);
  if (out.column_bias) out.column_bias += j0;
  const TileFunction<T> full = tile_for<T>(tile_rows, vectors);
  alignas(64) T buffer[tile_rows * tile_vectors * lanes_of<T>];
  for (int64_t i = 0; i < rows; i += tile_rows) {
    const int64_t tile_height = std::min<int64_t>(tile_rows, rows - i);
    const TileFunction<T> function = tile_height == tile_rows ? full : tile_for<T>(tile_height, vectors);
    const GemmBlock<T> left{a.data + i * a.pitch, a.pitch};
    TileOutput<T> here = out;
    here.c += i * out.pitch;
    if (here.row_bias) here.row_bias += i;
    if (offset >= 0) {
      here.c += offset;
      function(depth, left, b, here);
    } else {
      function(depth, left, b, {out.alpha, false, nullptr, nullptr, buffer, width});
      scatter_tile(map, j0, columns, tile_height, buffer, width, here);
    }
  }
}

// How a product is cut into tasks, and what each worker needs.
template <class T>
struct Plan {
  int64_t workers, rows, columns, row_tasks, column_tasks, tasks, left_size, right_size;

  explicit Plan(const GemmShape& s, int64_t threads) {
    const bool is_small = s.batch * s.m * s.n * s.k < 100000;        // not worth waking a thread
    workers = is_small ? 1 : threads;
    const int64_t unit = tile_vectors * lanes_of<T>;
    const int64_t wanted = workers == 1 ? 1 : 2 * workers;           // of equal size
    const int64_t per_product = std::max<int64_t>(1, wanted / std::max<int64_t>(s.batch, 1));
    // Cutting columns packs the left operand again, cutting rows the right one: the longer axis is cut first.
    column_tasks = (s.n + columns_per_task - 1) / columns_per_task;
    row_tasks = 1;
    if (s.n >= s.m) {
      column_tasks = std::max(column_tasks, std::min(per_product, s.n / unit));
    } else {
      row_tasks = std::min(per_product, s.m / (4 * tile_rows));
    }
    column_tasks = std::max<int64_t>(column_tasks, 1);
    row_tasks = std::max<int64_t>(row_tasks, 1);
    columns = std::max(lanes_of<T>, round_up((s.n + column_tasks - 1) / column_tasks, lanes_of<T>));
    rows = std::max<int64_t>(tile_rows, round_up((s.m + row_tasks - 1) / row_tasks, tile_rows));
    column_tasks = (s.n + columns - 1) / columns;
    row_tasks = (s.m + rows - 1) / rows;
    tasks = s.batch * column_tasks * row_tasks;
    workers = std::max<int64_t>(1, std::min(workers, tasks));
    left_size = std::min(std::min(rows, rows_per_block), s.m) * gemm_depth + gemm_slack;
    right_size = std::min(unit, round_up(s.n, lanes_of<T>)) * std::min(s.k, gemm_depth) + gemm_slack;
    left_size = round_up(left_size, 64);
    right_size = round_up(right_size, 64);
  }
  int64_t bytes() const { return workers * (left_size + right_size) * static_cast<int64_t>(sizeof(T)); }
};

// One task: rows [i_begin, i_end) and columns [j_begin, j_end) of one product, over all of k.
template <class T>
void run_task(const GemmShape& s, T alpha, bool accumulate, const GemmOperands<T>& operands, int64_t batch, int64_t i_begin, int64_t i_end, int64_t j_begin,
              int64_t j_end, T* left_buffer, T* right_buffer) {
  const GemmOutput<T> target = operands.output(batch);
  // A product over nothing still has to be written: one block of depth 0.
  const int64_t block = gemm_block(s.k);
  for (int64_t k0 = 0; k0 < std::max<int64_t>(s.k, 1); k0 += block) {
    const int64_t depth = std::min(block, s.k - k0);
    const bool is_first = k0 == 0;
    for (int64_t i0 = i_begin; i0 < i_end; i0 += rows_per_block) {
      const int64_t rows = std::min(rows_per_block, i_end - i0);
      const GemmBlock<T> a = operands.left(batch, i0, rows, k0, depth, left_buffer);
      TileOutput<T> out{alpha, accumulate || !is_first, nullptr, nullptr, target.c + i0 * s.row_stride, s.row_stride};
      if (is_first) {
        out.row_bias = target.row_bias ? target.row_bias + i0 : nullptr;
        out.column_bias = target.column_bias;
      }
      // One panel at a time is packed, always into the same place: it is written to and read from L1.
      for (int64_t j = j_begin, width; j < j_end; j += width) {
        width = panel_vectors<T>(j_end - j) * lanes_of<T>;
        const int64_t columns = std::min(width, j_end - j);
        run_panel(s.columns, j, columns, rows, depth, a, operands.right(batch, j, columns, width, k0, depth, right_buffer), out);
      }
    }
  }
}

template <class T>
int64_t workspace(const GemmShape& shape) {
  return std::max(Plan<T>(shape, num_threads()).bytes(), Plan<T>(shape, 1).bytes());
}

template <class T>
void run(const GemmShape& shape, T alpha, bool accumulate, const GemmOperands<T>& operands, Workspace scratch) {
  if (shape.batch == 0 || shape.m == 0 || shape.n == 0) return;
  // The number of threads may have changed since the workspace was made; there is always room for one.
  Plan<T> plan(shape, num_threads());
  if (plan.bytes() > scratch.bytes) plan = Plan<T>(shape, 1);
  T* memory = static_cast<T*>(scratch.data);
  const int64_t per_worker = plan.left_size + plan.right_size;
  parallel_workers(plan.workers, plan.tasks, [&](int64_t worker, int64_t task) HWY_ATTR {
    const int64_t column_task = task % plan.column_tasks, row_task = task / plan.column_tasks % plan.row_tasks;
    const int64_t batch = task / plan.column_tasks / plan.row_tasks;
    const int64_t i = row_task * plan.rows, j = column_task * plan.columns;
    T* left_buffer = memory + worker * per_worker;
    run_task(shape, alpha, accumulate, operands, batch, i, std::min(shape.m, i + plan.rows), j, std::min(shape.n, j + plan.columns), left_buffer,
             left_buffer + plan.left_size);
  });
}

// --- transposition, four by four (or two by two doubles) in 128-bit registers ---

#if HWY_TARGET == HWY_SCALAR
template <class T> constexpr int64_t transpose_unit = 1;

template <class T>
void transpose_unit_block(const T* from, int64_t, T* to, int64_t) { *to = *from; }
#else
template <class D, class V>
void store_transposed(D d, const V& r0, const V& r1, const V& r2, const V& r3, float* to, int64_t pitch) {
  const hn::Repartition<uint64_t, D> wide;
  const auto low01 = hn::BitCast(wide, hn::InterleaveLower(d, r0, r1)), low23 = hn::BitCast(wide, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(wide, hn::InterleaveUpper(d, r0, r1)), high23 = hn::BitCast(wide, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, low01, low23)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, low01, low23)), d, to + pitch);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, high01, high23)), d, to + 2 * pitch);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, high01, high23)), d, to + 3 * pitch);
}

template <class T> constexpr int64_t transpose_unit = 16 / sizeof(T);

inline void transpose_unit_block(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
  const hn::CappedTag<float, 4> d;
  store_transposed(d, hn::LoadU(d, from), hn::LoadU(d, from + from_pitch), hn::LoadU(d, from + 2 * from_pitch), hn::LoadU(d, from + 3 * from_pitch), to, to_pitch);
}

inline void transpose_unit_block(const double* from, int64_t from_pitch, double* to, int64_t to_pitch) {
  const hn::CappedTag<double, 2> d;
  const auto r0 = hn::LoadU(d, from), r1 = hn::LoadU(d, from + from_pitch);
  hn::StoreU(hn::InterleaveLower(d, r0, r1), d, to);
  hn::StoreU(hn::InterleaveUpper(d, r0, r1), d, to + to_pitch);
}
#endif

template <class T>
void transpose(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch) {
  constexpr int64_t unit = transpose_unit<T>, strip = 16;
  const int64_t whole_rows = rows / unit * unit, whole_columns = columns / unit * unit;
  // Strips of 16 columns: the rows of `to` that are being filled stay in L1.
  for (int64_t j0 = 0; j0 < whole_columns; j0 += strip)
    for (int64_t i = 0; i < whole_rows; i += unit)
      for (int64_t j = j0; j < std::min(j0 + strip, whole_columns); j += unit)
        transpose_unit_block(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i, to_pitch);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_pitch + i] = from[i * from_pitch + j];
}

// --- right operands packed once: block after block of k, panel after panel within it ---

template <class T>
int64_t packed_size(int64_t k, int64_t n) { return k * round_up(n, lanes_of<T>); }

template <class T>
void pack(const T* b, int64_t stride_k, int64_t stride_n, int64_t k, int64_t n, T* packed) {
  const int64_t block = gemm_block(k);
  for (int64_t k0 = 0; k0 < k; k0 += block) {
    const int64_t depth = std::min(block, k - k0);
    for (int64_t j = 0, width; j < n; j += width) {
      width = panel_vectors<T>(n - j) * lanes_of<T>;
      const int64_t columns = std::min(width, n - j);
      const T* from = b + k0 * stride_k + j * stride_n;
      if (stride_k == 1) {
        transpose(from, stride_n, columns, depth, packed, width);
      } else {
        for (int64_t row = 0; row < depth; ++row)
          for (int64_t e = 0; e < columns; ++e) packed[row * width + e] = from[row * stride_k + e * stride_n];
      }
      for (int64_t row = 0; row < depth; ++row) std::fill(packed + row * width + columns, packed + (row + 1) * width, T(0));
      packed += width * depth;
    }
  }
}

template <class T>
void run_packed(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_pitch, const T* packed, const T* bias, bool accumulate, T* c, int64_t c_pitch) {
  const int64_t block = gemm_block(k);
  for (int64_t k0 = 0; k0 < std::max<int64_t>(k, 1); k0 += block) {
    const int64_t depth = std::min(block, k - k0);
    const TileOutput<T> out{T(1), accumulate || k0 > 0, nullptr, k0 == 0 ? bias : nullptr, c, c_pitch};
    for (int64_t j = 0, width; j < n; j += width) {
      width = panel_vectors<T>(n - j) * lanes_of<T>;
      run_panel<T>({}, j, std::min(width, n - j), m, depth, {a + k0, a_pitch}, {packed, width}, out);
      packed += width * depth;
    }
  }
}

template <class T>
const Gemm<T>* functions() {
  static constexpr Gemm<T> table = {workspace<T>, run<T>, packed_size<T>, pack<T>, run_packed<T>, transpose<T>};
  return &table;
}
const Gemm<float>* float_functions() { return functions<float>(); }
const Gemm<double>* double_functions() { return functions<double>(); }

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

template <>
const Gemm<float>& gemm<float>() {
  static const Gemm<float>& table = *FOVEA_BEST(float_functions)();
  return table;
}

template <>
const Gemm<double>& gemm<double>() {
  static const Gemm<double>& table = *FOVEA_BEST(double_functions)();
  return table;
}

}  // namespace fovea::kernels
#endif
