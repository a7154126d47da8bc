// copy: y = x for any strides and any pair of dtypes; fill: y = value; arange: y[i] = start + i * step (in float64, then converted).
// Layout: any strides. Overwrites y. Elements of one dtype are moved as bits, so NaN payloads stay; conversions as kernels/cpu/convert.cpp. Deterministic.
// Floor: one read of x, one write of y.
// Where x and y run along different axes (a transpose) the copy goes through tiles in shared memory, so that reads and writes both fill whole sectors.
#include <fovea/kernels/cuda/elementwise.h>

namespace fovea::kernels::cuda {
namespace {

struct Same {
  template <class C> __device__ C operator()(C value) const { return value; }
};

template <class From, class To>
void convert_elements(Queue queue, Loop<1>& loop) {
  constexpr int n = pack_of<From, From, To>(16);
  if (split_into_packs(loop, n))
    launch(queue, "convert", grid_for(ceil_div<int64_t>(loop.index.numel, n), map_threads), map_packs<From, From, To, n, 1, Same>, loop, Same());
  else
    launch(queue, "convert", grid_for(loop.index.numel, map_threads), map_mixed<Compute<From>, Compute<From>, 1, Same>, loop, Same());
}

// T is an unsigned integer of the elements' size.
template <class T>
void move_elements(Queue queue, Loop<1>& loop) {
  constexpr int n = pack_of<T, T, T>(16);
  if (split_into_packs(loop, n)) {
    launch(queue, "copy", grid_for(ceil_div<int64_t>(loop.index.numel, n), map_threads), map_packs<T, T, T, n, 1, Same>, loop, Same());
  } else {
    split_into_packs(loop, 1);
    launch(queue, "copy", grid_for(loop.index.numel, map_threads), map_packs<T, T, T, 1, 1, Same>, loop, Same());
  }
}

constexpr int tile_size = 32, tile_rows_at_once = 8, tile_threads = tile_size * tile_rows_at_once;
constexpr int64_t least_transposed = 8;        // shorter sides would leave most of a tile empty

template <class T>
struct Tile {
  T values[tile_size][tile_size + 1];          // one more, so that a column lies in different banks
};

// Matrices of rows x columns, `rest` of them: x is contiguous along the rows' axis, y along the columns'.
struct Transpose {
  int64_t rows, columns, x_column, y_row;
  FastDivide tiles_down, tiles_across;
  int64_t num_tiles;
  StridedIndex<2> rest;                        // of y and x
};

template <class T>
__global__ void __launch_bounds__(tile_threads) transpose_tiles(Transpose t, const T* x, T* y) {
  auto& tile = shared<Tile<T>>().values;
  const int lane = static_cast<int>(threadIdx.x), first = static_cast<int>(threadIdx.y);
  for (int64_t i = blockIdx.x; i < t.num_tiles; i += gridDim.x) {
    const uint32_t number = static_cast<uint32_t>(i), across = t.tiles_down.quotient(number), matrix = t.tiles_across.quotient(across);
    const int64_t row = static_cast<int64_t>(number - across * t.tiles_down.divisor) * tile_size;
    const int64_t column = static_cast<int64_t>(across - matrix * t.tiles_across.divisor) * tile_size;
    const auto at = t.rest.offsets(matrix);
    const int rows = static_cast<int>(std::min<int64_t>(t.rows - row, tile_size)), columns = static_cast<int>(std::min<int64_t>(t.columns - column, tile_size));
    const T* from = x + at.of[1] + (column + first) * t.x_column + row + lane;
    for (int k = first; k < columns; k += tile_rows_at_once, from += tile_rows_at_once * t.x_column)
      if (lane < rows) tile[k][lane] = *from;
    __syncthreads();
    T* to = y + at.of[0] + (row + first) * t.y_row + column + lane;
    for (int k = first; k < rows; k += tile_rows_at_once, to += tile_rows_at_once * t.y_row)
      if (lane < columns) *to = tile[lane][k];
    __syncthreads();
  }
}

// The axis, other than the innermost one, along which x lies contiguously while y does so along the innermost; -1 if the copy is no transpose.
int transposed_axis(const StridedIndex<2>& index) {
  if (index.rank < 2 || index.strides[0][0] != 1 || std::abs(index.strides[1][0]) <= 1 || index.sizes[0] < least_transposed) return -1;
  for (int axis = 1; axis < index.rank; ++axis)
    if (index.strides[1][axis] == 1 && index.sizes[axis] >= least_transposed) return axis;
  return -1;
}

Transpose transpose_of(const StridedIndex<2>& index, int axis) {
  Shape rest, y_strides, x_strides;
  for (int a = index.rank - 1; a > 0; --a) {
    if (a == axis) continue;
    rest.push_back(index.sizes[a]);
    y_strides.push_back(index.strides[0][a]);
    x_strides.push_back(index.strides[1][a]);
  }
  const int64_t rows = index.sizes[axis], columns = index.sizes[0];
  const int64_t down = ceil_div<int64_t>(rows, tile_size), across = ceil_div<int64_t>(columns, tile_size);
  return {rows, columns, index.strides[1][0], index.strides[0][axis], FastDivide(static_cast<uint32_t>(down)), FastDivide(static_cast<uint32_t>(across)),
          down * across * rest.numel(), StridedIndex<2>(rest, {&y_strides, &x_strides})};
}

template <class T>
void copy_bits(Queue queue, Loop<1>& loop) {
  const int axis = loop.index.is_wide ? -1 : transposed_axis(loop.index);
  if (axis < 0) return move_elements<T>(queue, loop);
  const Transpose t = transpose_of(loop.index, axis);
  const Grid grid{grid_for(t.num_tiles, 1).blocks, dim3(tile_size, tile_rows_at_once), sizeof(Tile<T>)};
  launch(queue, "transpose", grid, transpose_tiles<T>, t, loop.as<const T>(1), loop.as<T>(0));
}

void copy(Queue queue, const ConstView& x, const View& y) {
  if (y.numel() == 0) return;
  Loop<1> loop = loop_over<1>(y, {&x});
  if (x.dtype == y.dtype) {
    switch (size_of(x.dtype)) {
      case 1: return copy_bits<uint8_t>(queue, loop);
      case 2: return copy_bits<uint16_t>(queue, loop);
      case 4: return copy_bits<uint32_t>(queue, loop);
      default: return copy_bits<uint64_t>(queue, loop);
    }
  }
  dispatch(x.dtype, [&](auto from) {
    dispatch(y.dtype, [&](auto to) {
      if constexpr (!std::is_same_v<decltype(from), decltype(to)>) convert_elements<decltype(from), decltype(to)>(queue, loop);
    });
  });
}

template <class T, int n>
__global__ void __launch_bounds__(map_threads) fill_packs(Loop<0> loop, double value) {
  Pack<T, n> pack;
#pragma unroll
  for (int j = 0; j < n; ++j) pack[j] = convert<T>(value);
  const int64_t numel = loop.index.numel;
  for (int64_t first = global_thread() * n; first < numel; first += global_threads() * n)
    store_elements(loop, loop.index.offsets(first).of[0], numel - first < n ? static_cast<int>(numel - first) : n, pack);
}

void fill(Queue queue, double value, const View& y) {
  if (y.numel() == 0) return;
  Loop<0> loop = loop_over<0>(y, {});
  dispatch(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (split_into_packs(loop, full_pack<T>)) {
      launch(queue, "fill", grid_for(ceil_div<int64_t>(loop.index.numel, full_pack<T>), map_threads), fill_packs<T, full_pack<T>>, loop, value);
    } else {
      split_into_packs(loop, 1);
      launch(queue, "fill", grid_for(loop.index.numel, map_threads), fill_packs<T, 1>, loop, value);
    }
  });
}

template <class T>
__global__ void __launch_bounds__(map_threads) arange_elements(double start, double step, T* y, int64_t stride, int64_t n) {
  for (int64_t i = global_thread(); i < n; i += global_threads())
    y[i * stride] = convert<T>(start + multiply_rounded(static_cast<double>(i), step));
}

void arange(Queue queue, double start, double step, const View& y) {
  if (y.numel() == 0) return;
  dispatch(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(queue, "arange", grid_for(y.numel(), map_threads), arange_elements<T>, start, step, y.as<T>(), y.strides[0], y.numel());
  });
}

}  // namespace

void add_copy(KernelTable& t) {
  t.copy = copy;
  t.fill = fill;
  t.arange = arange;
}

}  // namespace fovea::kernels::cuda
