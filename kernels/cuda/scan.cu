// cumsum: running sums along an axis, from either end.
// Layout: any strides, any dtypes. Overwrites y. Sums in float64 where x or y is floating, else in int64. Deterministic: the order of the additions depends on the
// shape alone. Floor: one read of x, one write of y (long lines read x twice).
//
// Note [Three kernels for long lines]
// Short lines, and lines that lie beside each other, take a thread each, which walks along. Other lines are cut into tiles: one kernel adds up each tile, one turns
// the sums of a line's tiles into what stands before each, one scans the tiles and adds that. A line of one tile needs the last alone.
#include <fovea/kernels/table.h>

#include <algorithm>
#include <cstdlib>

#include <fovea/kernels/cuda/convert.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/strided.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads = 256, warps = threads / warp_size;
constexpr int each = 8;                      // elements of a tile that a thread adds up
constexpr int tile = threads * each;

__device__ inline double plus(double a, double b) { return a + b; }
__device__ inline int64_t plus(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b)); }

// Lines along the axis: x and y at the start of each, and the steps from one element to the next, already turned round for a reversed sum.
struct Lines {
  StridedIndex<2> starts;
  int64_t length, tiles;
  int64_t x_step, y_step;
  const void* x;
  void* y;
  DType x_dtype, y_dtype;

  template <class A>
  __device__ A load(int64_t start, int64_t i) const { return load_as<A>(x_dtype, x, start + i * x_step); }
  template <class A>
  __device__ void store(int64_t start, int64_t i, A value) const { store_as<A>(y_dtype, y, start + i * y_step, value); }
};

template <class A>
__global__ __launch_bounds__(threads, 2) void walk_lines_kernel(Lines lines) {
  for (int64_t line = global_thread(); line < lines.starts.numel; line += global_threads()) {
    const auto start = lines.starts.offsets(line);
    A sum = 0;
    for (int64_t i = 0; i < lines.length; ++i) lines.store(start.of[1], i, sum = plus(sum, lines.template load<A>(start.of[0], i)));
  }
}

// A thread's own elements are neighbours: one is left out after each thread's, so that what all threads read at once lies in different banks.
__device__ inline int place(int element) { return element + element / each; }

template <class A>
struct TileMemory {
  A values[tile + threads];
  A warp_sums[warps];
};

// What a warp's lanes before this one hold, and with it their own.
template <class A>
__device__ A inclusive_scan(A value) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int distance = 1; distance < warp_size; distance *= 2) {
    const A before = __shfl_up_sync(all_lanes, value, distance);
    if (lane >= distance) value = plus(before, value);
  }
  return value;
}

// Reads a tile into shared memory, neighbours by neighbouring threads, and gives each thread the sum of its own `each` elements.
template <class A>
__device__ A read_tile(const Lines& lines, int64_t start, int64_t first, TileMemory<A>& memory) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int k = thread; k < tile; k += threads)
    memory.values[place(k)] = first + k < lines.length ? lines.template load<A>(start, first + k) : A(0);
  __syncthreads();
  A sum = 0;
  for (int k = 0; k < each; ++k) sum = plus(sum, memory.values[place(thread * each + k)]);
  return sum;
}

// The sum of each tile, [lines, tiles].
template <class A>
__global__ __launch_bounds__(threads, 2) void sum_tiles_kernel(Lines lines, A* sums) {
  auto& memory = shared<TileMemory<A>>();
  for (int64_t work = blockIdx.x; work < lines.starts.numel * lines.tiles; work += gridDim.x) {
    const int64_t line = work / lines.tiles, first = work % lines.tiles * tile;
    const A own = read_tile(lines, lines.starts.offsets(line).of[0], first, memory);
    const A sum = inclusive_scan(own);
    if (threadIdx.x % warp_size == warp_size - 1) memory.warp_sums[threadIdx.x / warp_size] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      A total = 0;
      for (int w = 0; w < warps; ++w) total = plus(total, memory.warp_sums[w]);
      sums[work] = total;
    }
    __syncthreads();
  }
}

// From the sums of a line's tiles to what stands before each; a warp a line.
template <class A>
__global__ __launch_bounds__(threads, 2) void carry_kernel(int64_t lines, int64_t tiles, A* sums) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t line = global_thread() / warp_size; line < lines; line += global_threads() / warp_size) {
    A before = 0;
    for (int64_t first = 0; first < tiles; first += warp_size) {
      const int64_t i = first + lane;
      const A own = i < tiles ? sums[line * tiles + i] : A(0);
      const A through = inclusive_scan(own);
      A exclusive = __shfl_up_sync(all_lanes, through, 1);
      if (lane == 0) exclusive = 0;
      if (i < tiles) sums[line * tiles + i] = plus(before, exclusive);
      before = plus(before, __shfl_sync(all_lanes, through, warp_size - 1));
    }
  }
}

// before: what stands before each tile; null: nothing.
template <class A>
__global__ __launch_bounds__(threads, 2) void scan_tiles_kernel(Lines lines, const A* before) {
  auto& memory = shared<TileMemory<A>>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size;
  for (int64_t work = blockIdx.x; work < lines.starts.numel * lines.tiles; work += gridDim.x) {
    const int64_t line = work / lines.tiles, first = work % lines.tiles * tile;
    const auto start = lines.starts.offsets(line);
    const A own = read_tile(lines, start.of[0], first, memory);
    const A through = inclusive_scan(own);
    if (thread % warp_size == warp_size - 1) memory.warp_sums[warp] = through;
    A sum = __shfl_up_sync(all_lanes, through, 1);
    if (thread % warp_size == 0) sum = 0;
    __syncthreads();
    A carried = before ? before[work] : A(0);
    for (int w = 0; w < warp; ++w) carried = plus(carried, memory.warp_sums[w]);
    sum = plus(carried, sum);
    for (int k = 0; k < each; ++k) memory.values[place(thread * each + k)] = sum = plus(sum, memory.values[place(thread * each + k)]);
    __syncthreads();
    for (int k = thread; k < tile; k += threads)
      if (first + k < lines.length) lines.store(start.of[1], first + k, memory.values[place(k)]);
    __syncthreads();
  }
}

// The axes beside `axis`, in the order of x's memory.
StridedIndex<2> starts_of(int axis, const ConstView& x, const View& y) {
  Shape shape;
  Strides x_strides, y_strides;
  for (int i = 0; i < x.rank(); ++i) {
    if (i == axis || x.shape[i] == 1) continue;
    int at = 0;
    while (at < shape.rank() && std::abs(x_strides[at]) >= std::abs(x.strides[i])) ++at;
    shape.insert(at, x.shape[i]);
    x_strides.insert(at, x.strides[i]);
    y_strides.insert(at, y.strides[i]);
  }
  const Strides* const strides[] = {&x_strides, &y_strides};
  return {shape, strides};
}

template <class A>
void run(Queue queue, const Lines& lines) {
  const int64_t count = lines.starts.numel;
  const bool is_beside = lines.starts.rank > 0 && std::abs(lines.starts.strides[0][0]) < std::abs(lines.x_step);       // neighbouring lines are nearer than neighbours along one
  if (lines.length <= 4 || (count >= 1024 && (lines.length <= 64 || is_beside))) return launch(queue, "cumsum_walk", grid_for(count, threads), walk_lines_kernel<A>, lines);
  const Grid grid{dim3(static_cast<unsigned>(std::min<int64_t>(count * lines.tiles, 1 << 16))), dim3(threads), sizeof(TileMemory<A>)};
  if (lines.tiles == 1) return launch(queue, "cumsum", grid, scan_tiles_kernel<A>, lines, nullptr);
  const DeviceScratch sums(count * lines.tiles * static_cast<int64_t>(sizeof(A)), queue);
  launch(queue, "cumsum_tile_sums", grid, sum_tiles_kernel<A>, lines, sums.as<A>());
  launch(queue, "cumsum_carry", grid_for(count * warp_size, threads), carry_kernel<A>, count, lines.tiles, sums.as<A>());
  launch(queue, "cumsum", grid, scan_tiles_kernel<A>, lines, sums.as<A>());
}

void cumsum(Queue queue, int axis, bool is_reversed, const ConstView& x, const View& y) {
  if (y.numel() == 0) return;
  const bool has_axis = x.rank() > 0;
  const int64_t length = has_axis ? x.shape[axis] : 1, x_step = has_axis ? x.strides[axis] : 0, y_step = has_axis ? y.strides[axis] : 0;
  const int64_t from = is_reversed ? length - 1 : 0, sign = is_reversed ? -1 : 1;
  const Lines lines{starts_of(axis, x, y), length, ceil_div<int64_t>(length, tile), sign * x_step, sign * y_step,
                    static_cast<const char*>(x.data) + from * x_step * size_of(x.dtype), static_cast<char*>(y.data) + from * y_step * size_of(y.dtype), x.dtype, y.dtype};
  if (is_floating(x.dtype) || is_floating(y.dtype)) run<double>(queue, lines);
  else run<int64_t>(queue, lines);
}

}  // namespace

void add_scan(KernelTable& t) { t.cumsum = cumsum; }

}  // namespace fovea::kernels::cuda
