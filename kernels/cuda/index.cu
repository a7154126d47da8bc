// Indexing along an axis: gather y[..i..] = x[..index[..i..]..], scatter_add y[..index[..i..]..] += source[..i..], and the same with one index for the whole axis
// (index_select, index_add), plus the search for an index out of range. Indices are int64 and were checked.
// Layout: any strides. gather and index_select overwrite y and move any dtype; scatter_add and index_add accumulate into y in its own dtype (not the 16-bit floats).
// Deterministic. Floor: one read of index and x, one write of y; rows with one index move in 16-byte accesses.
//
// Note [Adding without atomics]
// Additions to one element have to come in a fixed order, so each target has one owner. Where there are many lines along the axis, a thread owns a line, and where
// all lines share one index, a warp owns some rows of y. Where there are few and long ones, a warp owns a range of targets of one line. Owners of rows or ranges read
// the whole index, 32 at a time, and take what falls to them: reading an index is cheap, since all owners read the same ones at about the same time.
#include <fovea/kernels/table.h>

#include <algorithm>
#include <cstdlib>
#include <type_traits>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/strided.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads = 256;

// A view of rank 0 seen as one element of rank 1.
template <class V>
V with_an_axis(V v) {
  if (v.rank() > 0) return v;
  v.shape.push_back(1);
  v.strides.push_back(1);
  return v;
}

Strides without(Strides strides, int axis) {
  strides[axis] = 0;
  return strides;
}

// --- gather ---

struct alignas(16) Word16 {
  uint64_t halves[2];
};

// place: offsets into x (where the axis does not count), index and y.
template <class T>
__global__ __launch_bounds__(threads, 2) void gather_kernel(StridedIndex<3> place, const T* x, int64_t x_step, const int64_t* index, T* y) {
  for (int64_t i = global_thread(); i < place.numel; i += global_threads()) {
    const auto at = place.offsets(i);
    y[at.of[2]] = x[at.of[0] + index[at.of[1]] * x_step];
  }
}

// The views of a gather, which may be seen as views of wider elements.
struct Gather {
  Shape shape;                               // y's
  Strides x, index, y;
  int axis;
  int64_t x_step;                            // along the axis
  int64_t bytes;                             // of an element

  // The rows of y's last axis as rows of 16-byte elements, if one index stands for a row and everything is aligned.
  bool widen(const void* from, const void* to) {
    const int last = shape.rank() - 1;
    const int64_t factor = 16 / bytes;
    if (axis == last || index[last] != 0 || x[last] != 1 || y[last] != 1 || shape[last] % factor != 0 || x_step % factor != 0) return false;
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0 || reinterpret_cast<uintptr_t>(to) % 16 != 0) return false;
    for (int i = 0; i < last; ++i)
      if (x[i] % factor != 0 || y[i] % factor != 0) return false;
    for (int i = 0; i < last; ++i) {
      x[i] /= factor;
      y[i] /= factor;
    }
    shape[last] /= factor;
    x_step /= factor;
    bytes = 16;
    return true;
  }
};

template <class T>
void run_gather(Queue queue, const Gather& g, const ConstView& x, const ConstView& index, const View& y) {
  const Strides* const strides[] = {&g.x, &g.index, &g.y};
  const StridedIndex<3> place(g.shape, strides);
  launch(queue, "gather", grid_for(place.numel, threads), gather_kernel<T>, place, x.as<T>(), g.x_step, index.as<int64_t>(), y.as<T>());
}

void gather(Queue queue, int axis, const ConstView& x_, const ConstView& index_, const View& y_) {
  const ConstView x = with_an_axis(x_), index = with_an_axis(index_);
  const View y = with_an_axis(y_);
  if (y.numel() == 0) return;
  Gather g{y.shape, without(x.strides, axis), index.strides, y.strides, axis, x.strides[axis], size_of(y.dtype)};
  g.widen(x.data, y.data);
  switch (g.bytes) {
    case 1: return run_gather<uint8_t>(queue, g, x, index, y);
    case 2: return run_gather<uint16_t>(queue, g, x, index, y);
    case 4: return run_gather<uint32_t>(queue, g, x, index, y);
    case 8: return run_gather<uint64_t>(queue, g, x, index, y);
    default: return run_gather<Word16>(queue, g, x, index, y);
  }
}

// --- scatter_add ---

template <class T>
struct Scatter {
  StridedIndex<3> lines;                     // offsets of a line in index, source and y
  int64_t steps, size;                       // of the axis: index's length, and y's
  int64_t index_step, source_step, y_step;   // along the axis
  const int64_t* index;
  const T* source;
  T* y;
  int64_t range = 1;                         // targets of an owner

  __device__ static T add(T a, T b) { return static_cast<T>(a + b); }
};

// A thread a line.
template <class T>
__global__ __launch_bounds__(threads, 2) void scatter_lines_kernel(Scatter<T> s) {
  for (int64_t line = global_thread(); line < s.lines.numel; line += global_threads()) {
    const auto at = s.lines.offsets(line);
    for (int64_t k = 0; k < s.steps; ++k) {
      T& target = s.y[at.of[2] + s.index[at.of[0] + k * s.index_step] * s.y_step];
      target = Scatter<T>::add(target, s.source[at.of[1] + k * s.source_step]);
    }
  }
}

// Calls take(k, target) for the steps whose target lies in [first, last), in order, with all lanes of the warp.
template <class T, class Take>
__device__ void for_each_hit(const Scatter<T>& s, const int64_t* index, int64_t first, int64_t last, const Take& take) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int64_t k = 0; k < s.steps; k += warp_size) {
    const int64_t own = k + lane < s.steps ? index[(k + lane) * s.index_step] : -1;
    unsigned hits = __ballot_sync(all_lanes, own >= first && own < last);
    while (hits != 0) {
      const int hit = __ffs(static_cast<int>(hits)) - 1;
      hits &= hits - 1;
      take(k + hit, __shfl_sync(all_lanes, own, hit));
    }
  }
}

// One index for all lines. A warp owns `range` rows of y over 32 neighbouring lines.
template <class T>
__global__ __launch_bounds__(threads, 2) void scatter_rows_kernel(Scatter<T> s) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t chunks = ceil_div<int64_t>(s.lines.numel, warp_size), ranges = ceil_div(s.size, s.range);
  for (int64_t owner = global_thread() / warp_size; owner < chunks * ranges; owner += global_threads() / warp_size) {
    const int64_t line = owner % chunks * warp_size + lane, first = owner / chunks * s.range;
    const bool exists = line < s.lines.numel;
    const auto at = s.lines.offsets(exists ? line : 0);
    for_each_hit(s, s.index, first, min(s.size, first + s.range), [&](int64_t k, int64_t row) {
      if (!exists) return;
      T& target = s.y[at.of[2] + row * s.y_step];
      target = Scatter<T>::add(target, s.source[at.of[1] + k * s.source_step]);
    });
  }
}

// An index for each line. A warp owns `range` targets of one; a single target is added up by all lanes, each the steps that it sees.
template <class T>
__global__ __launch_bounds__(threads, 2) void scatter_ranges_kernel(Scatter<T> s) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t ranges = ceil_div(s.size, s.range);
  for (int64_t owner = global_thread() / warp_size; owner < s.lines.numel * ranges; owner += global_threads() / warp_size) {
    const auto at = s.lines.offsets(owner / ranges);
    const int64_t first = owner % ranges * s.range;
    const int64_t* index = s.index + at.of[0];
    const T* source = s.source + at.of[1];
    T* y = s.y + at.of[2];
    if (s.range > 1) {
      for_each_hit(s, index, first, min(s.size, first + s.range), [&](int64_t k, int64_t target) {
        if (lane == 0) y[target * s.y_step] = Scatter<T>::add(y[target * s.y_step], source[k * s.source_step]);
      });
      continue;
    }
    using Wide = std::conditional_t<sizeof(T) < sizeof(int), int, T>;         // what lanes can pass to each other
    Wide sum = 0;
    bool has_any = false;
    for (int64_t k = lane; k < s.steps; k += warp_size) {
      if (index[k * s.index_step] != first) continue;
      sum += source[k * s.source_step];
      has_any = true;
    }
    has_any = __ballot_sync(all_lanes, has_any) != 0;
    sum = warp_reduce(sum, Sum{});
    if (has_any && lane == 0) y[first * s.y_step] = static_cast<T>(y[first * s.y_step] + sum);
  }
}

// The axes beside `axis`, in the order of the source's memory.
StridedIndex<3> lines_of(int axis, const Shape& shape, const Strides& index, const Strides& source, const Strides& y) {
  Shape sizes;
  Strides strides[3];
  for (int i = 0; i < shape.rank(); ++i) {
    if (i == axis || shape[i] == 1) continue;
    int at = 0;
    while (at < sizes.rank() && std::abs(strides[1][at]) >= std::abs(source[i])) ++at;
    sizes.insert(at, shape[i]);
    strides[0].insert(at, index[i]);
    strides[1].insert(at, source[i]);
    strides[2].insert(at, y[i]);
  }
  const Strides* const all[] = {&strides[0], &strides[1], &strides[2]};
  return {sizes, all};
}

bool is_shared(const StridedIndex<3>& lines) {
  for (int i = 0; i < lines.rank; ++i)
    if (lines.strides[0][i] != 0) return false;
  return true;
}

template <class T>
void scatter_add_as(Queue queue, int axis, const ConstView& index, const ConstView& source, const View& y) {
  constexpr int64_t most_owners = 1 << 14;
  Scatter<T> s{lines_of(axis, index.shape, index.strides, source.strides, y.strides), index.shape[axis], y.shape[axis], index.strides[axis], source.strides[axis],
               y.strides[axis], index.as<int64_t>(), source.as<T>(), y.as<T>()};
  const int64_t lines = s.lines.numel;
  if (s.steps <= 8 || (lines >= 4096 && !is_shared(s.lines))) return launch(queue, "scatter_add_lines", grid_for(lines, threads), scatter_lines_kernel<T>, s);
  const bool is_by_row = is_shared(s.lines) && lines >= 8;
  const int64_t per_range = is_by_row ? ceil_div<int64_t>(lines, warp_size) : lines;
  s.range = std::max<int64_t>(1, ceil_div(s.size * per_range, most_owners));
  const Grid grid = grid_for(ceil_div(s.size, s.range) * per_range * warp_size, threads);
  if (is_by_row) launch(queue, "scatter_add_rows", grid, scatter_rows_kernel<T>, s);
  else launch(queue, "scatter_add_ranges", grid, scatter_ranges_kernel<T>, s);
}

void scatter_add(Queue queue, int axis, const ConstView& index_, const ConstView& source_, const View& y_) {
  const ConstView index = with_an_axis(index_), source = with_an_axis(source_);
  const View y = with_an_axis(y_);
  if (index.numel() == 0) return;
  switch (y.dtype) {
    case DType::float32: return scatter_add_as<float>(queue, axis, index, source, y);
    case DType::float64: return scatter_add_as<double>(queue, axis, index, source, y);
    case DType::int32: return scatter_add_as<int32_t>(queue, axis, index, source, y);
    case DType::int64: return scatter_add_as<int64_t>(queue, axis, index, source, y);
    case DType::uint8: return scatter_add_as<uint8_t>(queue, axis, index, source, y);
    case DType::boolean: return scatter_add_as<bool>(queue, axis, index, source, y);
    default: fail<DTypeError>("scatter_add: cannot accumulate in ", name_of(y.dtype), "; convert with to(x, DType::float32)");
  }
}

// --- one index for the whole axis: the same, with an index that repeats over the other axes ---

ConstView repeated_index(const ConstView& index, int axis, const Shape& shape) {
  ConstView v = index;
  v.shape = shape;
  v.strides = Strides::filled(shape.rank(), 0);
  if (shape.rank() > 0) v.strides[axis] = index.rank() > 0 ? index.strides[0] : 0;
  return v;
}

void index_select(Queue queue, int axis, const ConstView& x, const ConstView& index, const View& y) {
  gather(queue, axis, x, repeated_index(index, axis, y.shape), y);
}

void index_add(Queue queue, int axis, const ConstView& index, const ConstView& source, const View& y) {
  scatter_add(queue, axis, repeated_index(index, axis, source.shape), source, y);
}

// The smallest position of an index outside, as an unsigned number; it starts as the largest there is. Which thread is first does not change a minimum.
__global__ __launch_bounds__(threads, 2) void first_out_of_range_kernel(StridedIndex<1> place, int64_t size, const int64_t* index, unsigned long long* first) {
  for (int64_t i = global_thread(); i < place.numel; i += global_threads()) {
    if (static_cast<uint64_t>(index[place.offsets(i).of[0]]) < static_cast<uint64_t>(size)) continue;
    atomicMin(first, static_cast<unsigned long long>(i));
    return;                                  // this thread's next ones come later
  }
}

int64_t first_out_of_range(Queue queue, int64_t size, const ConstView& index) {
  if (index.numel() == 0) return -1;
  const Strides* const strides[] = {&index.strides};
  const StridedIndex<1> place(index.shape, strides);
  const DeviceScratch first(sizeof(int64_t), queue);
  check_cuda(cudaMemsetAsync(first.data(), 0xff, sizeof(int64_t), stream_of(queue)), "cuda: setting the result of first_out_of_range");
  launch(queue, "first_out_of_range", grid_for(place.numel, threads), first_out_of_range_kernel, place, size, index.as<int64_t>(), first.as<unsigned long long>());
  int64_t position = -1;
  check_cuda(cudaMemcpyAsync(&position, first.data(), sizeof(position), cudaMemcpyDeviceToHost, stream_of(queue)), "cuda: reading the result of first_out_of_range");
  check_cuda(cudaStreamSynchronize(stream_of(queue)), "cuda: waiting for first_out_of_range");
  return position;
}

}  // namespace

void add_index(KernelTable& t) {
  t.gather = gather;
  t.scatter_add = scatter_add;
  t.index_select = index_select;
  t.index_add = index_add;
  t.first_out_of_range = first_out_of_range;
}

}  // namespace fovea::kernels::cuda
