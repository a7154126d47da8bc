// One step of a recurrent layer, both directions at once, as one kernel: a product whose sums stay on chip, and around it the arithmetic of
// the cell. Forward (rnn_forward.cu) the product is h W_hh^T, backward (rnn_backward.cu) dgates W_hh; rnn.cu says what is computed and
// calls both.
//
// A block has a tile of samples by hidden units, forward with all gates of its units. Both operands pass through a ring of stages in shared
// memory, 128 bytes of each row at a time, by cp.async. Tensor cores (mma.sync) multiply the half types, and float32 rounded to TF32; FFMA
// or DFMA the rest. Small tiles share the sum out among their warps. Then the sums go to shared memory, and each thread finishes cells of
// its own: it adds up the warps' shares in order, and computes the cell. What the first of its cells needs besides is read before the
// product begins, so that the reads do not come after it. Sums in float32 for the half types, else in the element type; their order depends
// on the geometry alone.
#pragma once

#include <cmath>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/tensor_tile.h>
#include <fovea/kernels/cuda/rnn_plan.h>

namespace fovea::kernels::cuda {

// The hidden size and what goes with it, for kernels; pointers below come in pairs, one for each direction.
struct RnnSizes {
  int64_t time, batch, hidden, directions;
  __device__ int64_t step(int direction, int64_t i) const { return direction == 0 ? i : time - 1 - i; }  // of the i-th in the forward order
};

// Rows of memory of our own, and of weights, are whole copies long, the last one filled up with zeros.
template <class T>
constexpr int64_t whole_chunks(int64_t elements) { return ceil_div<int64_t>(elements, chunk<T>) * chunk<T>; }

// a [batch, depth] times b [gates hidden, depth] transposed; depth 0: nothing to add.
template <class T>
struct RnnProduct {
  const T* a;
  const T* b;
  int64_t a_pitch, b_pitch, depth;
};

// --- tiles ---

constexpr int step_chunks = 8;                          // of a row in a stage

// As many stages as fit into 96 KB, so that two blocks have room in an SM, but no more than keep it busy.
constexpr int stages_for(int rows) {
  const int count = 96 * 1024 / (rows * step_chunks * copy_bytes);
  return count > 8 ? 8 : count < 3 ? 3 : count;
}

// What tiles have in common. Columns come in groups of `wide` times eight, of which each has a warp or a part of one: for each of eight
// units, `wide` sums.
template <class T, int rows_, int wide, int groups, int splits_, int threads_>
struct StepTile {
  using Element = T;
  using Sum = Accumulate<T>;
  static constexpr int rows = rows_, columns = 8 * wide * groups, splits = splits_, threads = threads_;
  static constexpr int step_depth = step_chunks * chunk<T>, stage_count = stages_for(rows + columns);
  struct Ring {
    alignas(16) unsigned char a[stage_count][rows * step_chunks * copy_bytes];
    alignas(16) unsigned char b[stage_count][columns * step_chunks * copy_bytes];
  };
  struct Sums {                                         // takes the ring's place
    Sum values[splits][rows][columns + 1];
  };
  static constexpr size_t shared_bytes = sizeof(Ring) > sizeof(Sums) ? sizeof(Ring) : sizeof(Sums);
};

// Tensor cores: warps share out the rows to `down`, the groups of columns to `right`, and every stage's depth to `splits`; a warp has
// `tall` times 16 rows.
template <class T, int wide, int tall, int down, int right, int splits>
struct TensorStepTile : StepTile<T, 16 * tall * down, wide, right, splits, 32 * down * right * splits> {
  using Base = StepTile<T, 16 * tall * down, wide, right, splits, 32 * down * right * splits>;
  float sums[tall][wide][4] = {};

  __device__ static int warp() { return static_cast<int>(threadIdx.x) / warp_size; }
  __device__ static int split() { return warp() / (down * right); }
  __device__ static int first_row() { return warp() / right % down * (16 * tall); }
  __device__ static int first_column() { return warp() % right * (8 * wide); }

  __device__ void multiply(const typename Base::Ring& ring, int stage) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
    for (int step = 0; step < step_chunks / 2 / splits; ++step) {
      const int k = 2 * (step * splits + split());
      uint32_t a[tall][4], b[wide][2];
#pragma unroll
      for (int i = 0; i < tall; ++i)
        load_matrix_x4(a[i], ring.a[stage] + place_of_chunk<step_chunks>(first_row() + 16 * i + lane % 16, k + lane / 16));
#pragma unroll
      for (int j = 0; j + 1 < wide; j += 2) {
        uint32_t both[4];
        load_matrix_x4(both,
                       ring.b[stage] + place_of_chunk<step_chunks>(first_column() + 8 * j + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
        b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
      }
      if constexpr (wide % 2 == 1)
        load_matrix_x2(b[wide - 1],
                       ring.b[stage] + place_of_chunk<step_chunks>(first_column() + 8 * (wide - 1) + lane % 8, k + lane / 8 % 2));
      multiply_fragments<T>(sums, a, b);
    }
  }

  __device__ void store(typename Base::Sums& to) const {
#pragma unroll
    for (int i = 0; i < tall; ++i)
#pragma unroll
      for (int j = 0; j < wide; ++j)
#pragma unroll
        for (int v = 0; v < 4; ++v)
          to.values[split()][first_row() + 16 * i + sum_row() + v / 2 * 8][first_column() + 8 * j + sum_column() + v % 2] = sums[i][j][v];
  }
};

// Plain arithmetic: a thread has `tall` rows and, of one unit, `wide` columns; `down` threads share out the rows, eight each a group's
// units, and `splits` the depth.
template <class T, int wide, int tall, int down, int groups, int splits>
struct PlainStepTile : StepTile<T, tall * down, wide, groups, splits, 8 * groups * down * splits> {
  using Base = StepTile<T, tall * down, wide, groups, splits, 8 * groups * down * splits>;
  T sums[tall][wide] = {};

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % (8 * groups); }
  __device__ static int split() { return static_cast<int>(threadIdx.x) / (8 * groups * down); }
  __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / (8 * groups) % down + i * down; }
  __device__ static int column(int j) { return (lane() / 8 * wide + j) * 8 + lane() % 8; }

  __device__ void multiply(const typename Base::Ring& ring, int stage) {
    using Chunk = Pack<T, chunk<T>>;
#pragma unroll
    for (int step = 0; step < step_chunks / splits; ++step) {
      const int k = step * splits + split();
      Chunk b[wide];
#pragma unroll
      for (int j = 0; j < wide; ++j) b[j] = *as_packs<const Chunk>(ring.b[stage] + place_of_chunk<step_chunks>(column(j), k));
#pragma unroll
      for (int i = 0; i < tall; ++i) {
        const Chunk a = *as_packs<const Chunk>(ring.a[stage] + place_of_chunk<step_chunks>(row(i), k));
#pragma unroll
        for (int e = 0; e < chunk<T>; ++e)
#pragma unroll
          for (int j = 0; j < wide; ++j) sums[i][j] += a[e] * b[j][e];
      }
    }
  }

  __device__ void store(typename Base::Sums& to) const {
#pragma unroll
    for (int i = 0; i < tall; ++i)
#pragma unroll
      for (int j = 0; j < wide; ++j) to.values[split()][row(i)][column(j)] = sums[i][j];
  }
};

// --- the kernel ---

// Starts a thread's copies of a stage: one chunk of every so many rows of both operands. `row_of` says which row of b stands for a column
// of the tile; -1: none.
template <class Tile>
struct StepLoader {
  using T = typename Tile::Element;
  static constexpr int lines = Tile::threads / step_chunks;
  static constexpr int a_count = ceil_div(Tile::rows, lines), b_count = ceil_div(Tile::columns, lines);
  const T *a[a_count], *b[b_count];                     // null: no such row
  const T* somewhere;                                   // an address to give for what is not there
  int64_t chunks;

  __device__ static int place() { return static_cast<int>(threadIdx.x) % step_chunks; }
  __device__ static int line(int i) { return static_cast<int>(threadIdx.x) / step_chunks + i * lines; }

  template <class RowOf>
  __device__ StepLoader(const RnnProduct<T>& p, int64_t first_row, int64_t rows, const RowOf& row_of)
      : somewhere(p.b), chunks(ceil_div<int64_t>(p.depth, chunk<T>)) {
#pragma unroll
    for (int i = 0; i < a_count; ++i)
      a[i] = p.depth > 0 && line(i) < Tile::rows && first_row + line(i) < rows ? p.a + (first_row + line(i)) * p.a_pitch : nullptr;
#pragma unroll
    for (int i = 0; i < b_count; ++i) {
      const int64_t row = p.depth > 0 && line(i) < Tile::columns ? row_of(line(i)) : -1;
      b[i] = row >= 0 ? p.b + row * p.b_pitch : nullptr;
    }
  }

  __device__ void copy(typename Tile::Ring& ring, int stage, int t) const {
    const int64_t k = static_cast<int64_t>(t) * step_chunks + place();
    const auto copy_row = [&](unsigned char* to, int row, const T* from) {
      const bool is_there = from && k < chunks;
      copy_async<copy_bytes>(to + place_of_chunk<step_chunks>(row, place()), is_there ? from + k * chunk<T> : somewhere, is_there);
    };
#pragma unroll
    for (int i = 0; i < a_count; ++i)
      if (line(i) < Tile::rows) copy_row(ring.a[stage], line(i), a[i]);
#pragma unroll
    for (int i = 0; i < b_count; ++i)
      if (line(i) < Tile::columns) copy_row(ring.b[stage], line(i), b[i]);
  }
};

// The sum over the warps that shared it, in order.
template <class Sums, class T>
__device__ void add_splits(const Sums& from, int row, int column, T& sum) {
  constexpr int splits = static_cast<int>(sizeof(from.values) / sizeof(from.values[0]));
  sum = from.values[0][row][column];
#pragma unroll
  for (int split = 1; split < splits; ++split) sum += from.values[split][row][column];
}

// Cell: one sample's unit in this step. It says of Cell::Step what is multiplied, reads its part (load), and ends the step with its sums of
// the product (finish).
template <class Tile, class Cell>
__global__ void __launch_bounds__(Tile::threads, 1) rnn_step(typename Cell::Step s) {
  using T = typename Tile::Element;
  constexpr int units = Tile::columns / Cell::sums, lines = Tile::threads / units, cells = ceil_div(Tile::rows, lines),
                at_once = cells > 1 ? 2 : 1;
  const int thread = static_cast<int>(threadIdx.x), d = static_cast<int>(blockIdx.z), unit = thread % units;
  const int64_t hidden = s.sizes.hidden, batch = s.sizes.batch, first_unit = static_cast<int64_t>(blockIdx.x) * units,
                u = first_unit + unit;
  const int64_t first_sample = static_cast<int64_t>(blockIdx.y) * Tile::rows;
  const auto row_of_cell = [&](int i) { return thread / units + i * lines; };
  const auto has_cell = [&](int i) {
    return i < cells && u < hidden && row_of_cell(i) < Tile::rows && first_sample + row_of_cell(i) < batch;
  };

  Cell cell[at_once];
#pragma unroll
  for (int i = 0; i < at_once; ++i)
    if (has_cell(i)) cell[i].load(s, d, first_sample + row_of_cell(i), u);

  Tile tile;
  const RnnProduct<T> product = s.product(d);
  const StepLoader<Tile> loader(product, first_sample, batch, [&](int column) {
    const int64_t of_column = first_unit + column / (8 * Cell::sums) * 8 + column % 8;
    return of_column < hidden ? column / 8 % Cell::sums * hidden + of_column : -1;
  });
  typename Tile::Ring& ring = shared<typename Tile::Ring>();
  run_ring<Tile::stage_count>(
      static_cast<int>(ceil_div<int64_t>(product.depth, Tile::step_depth)), [&](int stage, int t) { loader.copy(ring, stage, t); },
      [&](int stage) { tile.multiply(ring, stage); });
  __syncthreads();                                      // the sums take the ring's place
  typename Tile::Sums& sums = shared<typename Tile::Sums>();
  tile.store(sums);
  __syncthreads();

#pragma unroll
  for (int first = 0; first < cells; first += at_once) {
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (first > 0 && has_cell(first + i)) cell[i].load(s, d, first_sample + row_of_cell(first + i), u);
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      if (!has_cell(first + i)) continue;
      typename Tile::Sum of_cell[Cell::sums];
#pragma unroll
      for (int j = 0; j < Cell::sums; ++j) add_splits(sums, row_of_cell(first + i), (unit / 8 * Cell::sums + j) * 8 + unit % 8, of_cell[j]);
      cell[i].finish(s, d, first_sample + row_of_cell(first + i), u, of_cell);
    }
  }
}

template <class Tile, class Cell>
void launch_step_tile(Queue queue, const RnnPlan& plan, const typename Cell::Step& s) {
  check(plan.tile_samples == Tile::rows && plan.tile_units == Tile::columns / Cell::sums, plan.name,
        ": the plan has another tile than the kernel");
  const Grid grid{blocks_of(ceil_div<int64_t>(s.sizes.hidden, plan.tile_units), ceil_div<int64_t>(s.sizes.batch, plan.tile_samples),
                            s.sizes.directions),
                  dim3(Tile::threads), Tile::shared_bytes};
  launch(queue, plan.name, grid, rnn_step<Tile, Cell>, s);
}

// `wide`: columns of eight for each group; forward the gates, backward two groups of units.
template <class T, int wide, class Cell>
void launch_step(Queue queue, const RnnPlan& plan, const typename Cell::Step& s) {
  if constexpr (std::is_same_v<T, double>) return launch_step_tile<PlainStepTile<T, wide, 2, 8, 1, 4>, Cell>(queue, plan, s);
  if constexpr (!std::is_same_v<T, double>) {
    if (plan.uses_tensor_cores) switch (plan.kernel) {
        case RnnKernel::small: return launch_step_tile<TensorStepTile<T, wide, 1, 2, 1, 2>, Cell>(queue, plan, s);
        case RnnKernel::medium: return launch_step_tile<TensorStepTile<T, wide, 2, 2, 2, 1>, Cell>(queue, plan, s);
        case RnnKernel::wide: return launch_step_tile<TensorStepTile<T, wide, 2, 2, 4, 1>, Cell>(queue, plan, s);
        default: return launch_step_tile<TensorStepTile<T, wide, 1, 1, 1, 4>, Cell>(queue, plan, s);
      }
  }
  if constexpr (std::is_same_v<T, float>) switch (plan.kernel) {
      case RnnKernel::tiny: return launch_step_tile<PlainStepTile<T, wide, 2, 4, 1, 8>, Cell>(queue, plan, s);
      case RnnKernel::slim: return launch_step_tile<PlainStepTile<T, wide, 2, 8, 1, 4>, Cell>(queue, plan, s);
      case RnnKernel::small: return launch_step_tile<PlainStepTile<T, wide, 2, 16, 1, 2>, Cell>(queue, plan, s);
      case RnnKernel::medium: return launch_step_tile<PlainStepTile<T, wide, 4, 16, 2, 1>, Cell>(queue, plan, s);
      case RnnKernel::wide: return launch_step_tile<PlainStepTile<T, wide, 8, 8, 4, 1>, Cell>(queue, plan, s);
    }
}

// Calls f with the cell as a compile-time constant.
template <class F>
void with_cell(RnnCell cell, const F& f) {
  switch (cell) {
    case RnnCell::lstm: return f(std::integral_constant<RnnCell, RnnCell::lstm>());
    case RnnCell::gru: return f(std::integral_constant<RnnCell, RnnCell::gru>());
    case RnnCell::rnn_tanh: return f(std::integral_constant<RnnCell, RnnCell::rnn_tanh>());
    case RnnCell::rnn_relu: return f(std::integral_constant<RnnCell, RnnCell::rnn_relu>());
  }
}

template <RnnCell cell> constexpr int gates_of = cell == RnnCell::lstm ? 4 : cell == RnnCell::gru ? 3 : 1;

// --- what a step is given ---

// State, gates and gradients of cells are float32 beside half types.
template <class T>
struct ForwardStep {
  using A = Accumulate<T>;
  RnnSizes sizes{};
  const int64_t* lengths = nullptr;
  const T *w_hh[2] = {}, *b_ih[2] = {}, *b_hh[2] = {};  // w_hh [gates hidden, w_pitch]; biases may be null
  int64_t w_pitch = 0, h_pitch = 0;
  A *gates[2] = {}, *kept[2] = {};  // kept: c of every step (LSTM), or the recurrent share of n (GRU); null when no backward follows
  A* c[2] = {};
  T *y = nullptr, *h_n[2] = {}, *c_n[2] = {};
  const T* c0[2] = {};                                  // may be null: zeros
  int64_t i = 0;                                        // of the step
  const T* h[2] = {};                                   // [batch, h_pitch], of the step before; null: zeros
  T* h_next[2] = {};
  __device__ RnnProduct<T> product(int d) const { return {h[d], w_hh[d], h_pitch, w_pitch, h[d] ? sizes.hidden : 0}; }
};

template <class T>
struct BackwardStep {
  using A = Accumulate<T>;
  RnnSizes sizes{};
  const int64_t* lengths = nullptr;
  const T* w_hh[2] = {};                                // W_hh transposed, [hidden, w_pitch]
  int64_t w_pitch = 0, dgates_pitch = 0, rows = 0;      // rows: gates hidden
  const A *gates[2] = {}, *kept[2] = {};
  const T *h0[2] = {}, *c0[2] = {}, *y = nullptr, *dy = nullptr, *dh_n[2] = {}, *dc_n[2] = {};         // all but y may be null: zeros
  T *dh0[2] = {}, *dc0[2] = {};                         // may be null: not wanted
  T *dgates[2] = {}, *dgates_hidden[2] = {};            // the second: what meets h (the GRU's n differs), else the same memory
  A *dh[2] = {}, *dc[2] = {};
  int64_t i = 0;                                        // of the step, counted from the end; `time`: that of the initial state

  __device__ int64_t step(int d) const { return sizes.step(d, sizes.time - 1 - i); }
  __device__ RnnProduct<T> product(int d) const {
    const int64_t after = step(d) + (d == 0 ? 1 : -1);
    if (i == 0) return {nullptr, nullptr, 0, 0, 0};
    return {dgates_hidden[d] + after * sizes.batch * dgates_pitch, w_hh[d], dgates_pitch, w_pitch, rows};
  }
};

// One kernel, both directions: the step s.i.
template <class T> void launch_forward_step(Queue queue, const RnnPlan& plan, RnnCell cell, const ForwardStep<T>& s);
template <class T> void launch_backward_step(Queue queue, const RnnPlan& plan, RnnCell cell, const BackwardStep<T>& s);

}  // namespace fovea::kernels::cuda
