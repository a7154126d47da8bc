// Indexing along an axis: gather y[..i..] = x[..index[..i..]..], scatter_add y[..index[..i..]..] += source[..i..], and the same with one index for the whole axis
// (index_select, index_add), plus the search for values out of range. Indices are int64; of one out of range (check_range has reported it)
// gather and index_select read 0, and scatter_add and index_add add nothing for it.
// Layout: any strides. gather and index_select overwrite y and move any dtype; scatter_add and index_add accumulate into y in its own dtype, half types in float32.
// Deterministic. Floor: one read of index and x, one write of y; rows with one index move in 16-byte accesses.
//
// Note [Adding without atomics]
// Additions to one element have to come in a fixed order, so each target has one owner. Where there are many lines along the axis, a thread owns a line, and where
// all lines share one index, a warp owns some rows of y. Where there are few and long ones, a warp owns a range of targets of one line. Owners of rows or ranges read
// the whole index, 32 at a time, and take what falls to them: reading an index is cheap, since all owners read the same ones at about the same time.
#include <fovea/kernels/table.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/strided.h>
#include <fovea/kernels/cuda/core/warp.h>
#include <fovea/kernels/cuda/range_report.h>

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

__device__ inline bool is_inside(int64_t index, int64_t size) { return static_cast<uint64_t>(index) < static_cast<uint64_t>(size); }

// place: offsets into x (where the axis, of `size`, does not count), index and y.
template <class T>
__global__ __launch_bounds__(threads, 2) void gather_kernel(StridedIndex<3> place, const T* x, int64_t x_step, int64_t size, const int64_t* index, T* y) {
  for (int64_t i = global_thread(); i < place.numel; i += global_threads()) {
    const auto at = place.offsets(i);
    const int64_t from = index[at.of[1]];
    y[at.of[2]] = is_inside(from, size) ? x[at.of[0] + from * x_step] : T{};
  }
}

// The views of a gather, which may be seen as views of wider elements.
struct Gather {
  Shape shape;                               // y's
  Strides x, index, y;
  int axis;
  int64_t x_step, x_size;                    // along the axis
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
  launch(queue, "gather", grid_for(place.numel, threads), gather_kernel<T>, place, x.as<T>(), g.x_step, g.x_size, index.as<int64_t>(), y.as<T>());
}

void gather(Queue queue, int axis, const ConstView& x_, const ConstView& index_, const View& y_) {
  const ConstView x = with_an_axis(x_), index = with_an_axis(index_);
  const View y = with_an_axis(y_);
  if (y.numel() == 0) return;
  Gather g{y.shape, without(x.strides, axis), index.strides, y.strides, axis, x.strides[axis], x.shape[axis], size_of(y.dtype)};
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

// Of source elements S into y's, or into the sums that are kept of them, T.
template <class T, class S>
struct Scatter {
  StridedIndex<3> lines;                     // offsets of a line in index, source and y
  int64_t steps, size;                       // of the axis: index's length, and y's
  int64_t index_step, source_step, y_step;   // along the axis
  const int64_t* index;
  const S* source;
  T* y;
  int64_t range = 1;                         // targets of an owner

  __device__ static T add(T a, T b) { return static_cast<T>(a + b); }
};

// A thread a line.
template <class T, class S>
__global__ __launch_bounds__(threads, 2) void scatter_lines_kernel(Scatter<T, S> s) {
  for (int64_t line = global_thread(); line < s.lines.numel; line += global_threads()) {
    const auto at = s.lines.offsets(line);
    for (int64_t k = 0; k < s.steps; ++k) {
      const int64_t to = s.index[at.of[0] + k * s.index_step];
      if (!is_inside(to, s.size)) continue;
      T& target = s.y[at.of[2] + to * s.y_step];
      target = Scatter<T, S>::add(target, widen(s.source[at.of[1] + k * s.source_step]));
    }
  }
}

// Calls take(k, target) for the steps whose target lies in [first, last), in order, with all lanes of the warp.
template <class T, class S, class Take>
__device__ void for_each_hit(const Scatter<T, S>& s, const int64_t* index, int64_t first, int64_t last, const Take& take) {
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
template <class T, class S>
__global__ __launch_bounds__(threads, 2) void scatter_rows_kernel(Scatter<T, S> s) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t chunks = ceil_div<int64_t>(s.lines.numel, warp_size), ranges = ceil_div(s.size, s.range);
  for (int64_t owner = global_thread() / warp_size; owner < chunks * ranges; owner += global_threads() / warp_size) {
    const int64_t line = owner % chunks * warp_size + lane, first = owner / chunks * s.range;
    const bool exists = line < s.lines.numel;
    const auto at = s.lines.offsets(exists ? line : 0);
    for_each_hit(s, s.index, first, min(s.size, first + s.range), [&](int64_t k, int64_t row) {
      if (!exists) return;
      T& target = s.y[at.of[2] + row * s.y_step];
      target = Scatter<T, S>::add(target, widen(s.source[at.of[1] + k * s.source_step]));
    });
  }
}

// An index for each line. A warp owns `range` targets of one; a single target is added up by all lanes, each the steps that it sees.
template <class T, class S>
__global__ __launch_bounds__(threads, 2) void scatter_ranges_kernel(Scatter<T, S> s) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t ranges = ceil_div(s.size, s.range);
  for (int64_t owner = global_thread() / warp_size; owner < s.lines.numel * ranges; owner += global_threads() / warp_size) {
    const auto at = s.lines.offsets(owner / ranges);
    const int64_t first = owner % ranges * s.range;
    const int64_t* index = s.index + at.of[0];
    const S* source = s.source + at.of[1];
    T* y = s.y + at.of[2];
    if (s.range > 1) {
      for_each_hit(s, index, first, min(s.size, first + s.range), [&](int64_t k, int64_t target) {
        if (lane == 0) y[target * s.y_step] = Scatter<T, S>::add(y[target * s.y_step], widen(source[k * s.source_step]));
      });
      continue;
    }
    using Wide = std::conditional_t<sizeof(T) < sizeof(int), int, T>;         // what lanes can pass to each other
    Wide sum = 0;
    bool has_any = false;
    for (int64_t k = lane; k < s.steps; k += warp_size) {
      if (index[k * s.index_step] != first) continue;
      sum += widen(source[k * s.source_step]);
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

template <class T, class S = T>
void scatter_add_as(Queue queue, int axis, const ConstView& index, const ConstView& source, const View& y) {
  constexpr int64_t most_owners = 1 << 14;
  Scatter<T, S> s{lines_of(axis, index.shape, index.strides, source.strides, y.strides), index.shape[axis], y.shape[axis], index.strides[axis], source.strides[axis],
               y.strides[axis], index.as<int64_t>(), source.as<S>(), y.as<T>()};
  const int64_t lines = s.lines.numel;
  if (s.steps <= 8 || (lines >= 4096 && !is_shared(s.lines))) return launch(queue, "scatter_add_lines", grid_for(lines, threads), scatter_lines_kernel<T, S>, s);
  const bool is_by_row = is_shared(s.lines) && lines >= 8;
  const int64_t per_range = is_by_row ? ceil_div<int64_t>(lines, warp_size) : lines;
  s.range = std::max<int64_t>(1, ceil_div(s.size * per_range, most_owners));
  const Grid grid = grid_for(ceil_div(s.size, s.range) * per_range * warp_size, threads);
  if (is_by_row) launch(queue, "scatter_add_rows", grid, scatter_rows_kernel<T, S>, s);
  else launch(queue, "scatter_add_ranges", grid, scatter_ranges_kernel<T, S>, s);
}

// Half types add up in a float32 copy of y, which is rounded once all are in.
template <class S>
void scatter_add_half(Queue queue, int axis, const ConstView& index, const ConstView& source, const View& y) {
  const DeviceScratch memory(y.numel() * static_cast<int64_t>(sizeof(float)), queue);
  View sums = y;
  sums.data = memory.data();
  sums.dtype = DType::float32;
  sums.strides = contiguous_strides(y.shape);
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cuda: asking for the current device");
  const KernelTable& table = cuda_table(device);
  table.copy(queue, y, sums);
  scatter_add_as<float, S>(queue, axis, index, source, sums);
  table.copy(queue, sums, y);
}

void scatter_add(Queue queue, int axis, const ConstView& index_, const ConstView& source_, const View& y_) {
  const ConstView index = with_an_axis(index_), source = with_an_axis(source_);
  const View y = with_an_axis(y_);
  if (index.numel() == 0) return;
  switch (y.dtype) {
    case DType::float32: return scatter_add_as<float>(queue, axis, index, source, y);
    case DType::float64: return scatter_add_as<double>(queue, axis, index, source, y);
    case DType::float16: return scatter_add_half<float16>(queue, axis, index, source, y);
    case DType::bfloat16: return scatter_add_half<bfloat16>(queue, axis, index, source, y);
    case DType::int32: return scatter_add_as<int32_t>(queue, axis, index, source, y);
    case DType::int64: return scatter_add_as<int64_t>(queue, axis, index, source, y);
    case DType::uint8: return scatter_add_as<uint8_t>(queue, axis, index, source, y);
    case DType::boolean: return scatter_add_as<bool>(queue, axis, index, source, y);
  }
  fail<DTypeError>("scatter_add: unknown dtype ", static_cast<int>(y.dtype));
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

// --- values out of range ---

constexpr int64_t nowhere = std::numeric_limits<int64_t>::max();
constexpr int block_threads = 1024;
constexpr int64_t most_in_block = 64 * block_threads;         // values that one block looks at; more of them are worth three launches

// What is looked at, and where a finding goes.
struct Values {
  StridedIndex<1> place;
  const int64_t *values, *lengths;           // lengths null: all count
  int64_t columns;                           // of a row
  Shape shape;
  RangeCheck check;
  RangeReport* report;

  __device__ bool is_wrong(int64_t i) const {
    if (lengths && i % columns >= lengths[i / columns]) return false;
    return !check.allows(values[place.offsets(i).of[0]]);
  }
  // The first wrong one among first, first + step, ...
  __device__ int64_t find(int64_t first, int64_t step) const {
    for (int64_t i = first; i < place.numel; i += step)
      if (is_wrong(i)) return i;
    return nowhere;
  }
  // One thread. Whoever comes while the report is not empty has found something later, or on another stream.
  __device__ void tell(int64_t position) const {
    if (atomicCAS(&report->state, static_cast<unsigned>(RangeReport::empty), static_cast<unsigned>(RangeReport::taken)) != RangeReport::empty) return;
    report->position = position;
    report->value = values[place.offsets(position).of[0]];
    report->check = check;
    report->shape = shape;
    __threadfence_system();                  // the host sees all of it before it sees that it is complete
    atomicExch(&report->state, static_cast<unsigned>(RangeReport::complete));
  }
};

struct FoundInBlock {
  int64_t scratch[warp_size];
};

__global__ __launch_bounds__(block_threads) void check_range_in_block(Values v) {
  const int64_t own = v.find(threadIdx.x, blockDim.x);
  if (!__syncthreads_or(own != nowhere)) return;
  const int64_t first = block_reduce(own, Min{}, nowhere, shared<FoundInBlock>().scratch);
  if (threadIdx.x == 0) v.tell(first);
}

// `first` starts as the largest number there is. Which thread comes first does not change a minimum.
__global__ __launch_bounds__(threads, 2) void check_range_in_grid(Values v, unsigned long long* first) {
  const int64_t own = v.find(global_thread(), global_threads());
  if (own != nowhere) atomicMin(first, static_cast<unsigned long long>(own));
}

__global__ __launch_bounds__(1) void tell_range(Values v, const unsigned long long* first) {
  if (*first < static_cast<unsigned long long>(nowhere)) v.tell(static_cast<int64_t>(*first));
}

void check_range(Queue queue, const RangeCheck& check, const ConstView& values_, const ConstView& lengths) {
  const ConstView values = with_an_axis(values_);
  if (values.numel() == 0) return;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cuda: asking for the current device");
  const Strides* const strides[] = {&values.strides};
  const Values v{StridedIndex<1>(values.shape, strides), values.as<int64_t>(), lengths.as<int64_t>(), values.shape.back(), values_.shape, check, range_report_of(device)};
  if (v.place.numel <= most_in_block) {
    const unsigned wanted = v.place.numel <= threads ? threads : block_threads;
    launch(queue, "check_range", {dim3(1), dim3(wanted), sizeof(FoundInBlock)}, check_range_in_block, v);
  } else {
    const DeviceScratch first(sizeof(int64_t), queue);
    check_cuda(cudaMemsetAsync(first.data(), 0xff, sizeof(int64_t), stream_of(queue)), "cuda: setting the result of check_range");
    launch(queue, "check_range", grid_for(v.place.numel, threads), check_range_in_grid, v, first.as<unsigned long long>());
    launch(queue, "tell_range", {dim3(1), dim3(1), 0}, tell_range, v, first.as<unsigned long long>());
  }
  if (is_synchronous()) throw_reported(device);
}

}  // namespace

void add_index(KernelTable& t) {
  t.computes_half.add(Family::index);
  t.gather = gather;
  t.scatter_add = scatter_add;
  t.index_select = index_select;
  t.index_add = index_add;
  t.check_range = check_range;
}

}  // namespace fovea::kernels::cuda
