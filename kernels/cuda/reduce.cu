// reduce: sum, mean, product, max, min, sum of squares, logsumexp, any, all over any axes; arg_reduce: the position of the largest or smallest element along an axis
// (the first of equals; NaN wins); variance: over any axes, with a correction.
// Layout: any strides, any dtypes. Overwrites y. A thread adds up to `run` accesses of float16, bfloat16 or float32 in float32 and goes on in float64; products and
// float64 in float64, integers in int64. Deterministic: the shape alone decides who adds what. Floor: one read of x.
//
// Note [Rows, columns and splits]
// Axes are put in the order of x's memory. Where a reduced axis is the innermost, the threads of a team are neighbours along it ("rows"); where a kept one is,
// neighbouring threads work for neighbouring outputs ("columns"), each for as many as one access of 16 bytes holds, where x is aligned for that. When there are too
// few outputs to fill a GPU, each fold is split over several blocks, whose partial results a second kernel joins.
#include <fovea/kernels/table.h>

#include <algorithm>
#include <cstdlib>
#include <limits>

#include <fovea/kernels/cuda/convert.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/strided.h>
#include <fovea/kernels/cuda/moments.h>
#include <fovea/kernels/cuda/team.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int run = 64;                      // accesses of a thread between two additions to the wide accumulator
constexpr int unroll = 4;                    // accesses under way at once

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }

template <class A>
__device__ constexpr A lowest_of() { return std::numeric_limits<A>::has_infinity ? -std::numeric_limits<A>::infinity() : std::numeric_limits<A>::lowest(); }
template <class A>
__device__ constexpr A highest_of() { return std::numeric_limits<A>::has_infinity ? std::numeric_limits<A>::infinity() : std::numeric_limits<A>::max(); }

// Integers wrap: computed without a sign, where that is defined.
template <class A>
__device__ inline A add(A a, A b) {
  if constexpr (std::is_integral_v<A>) return static_cast<A>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  else return a + b;
}
template <class A>
__device__ inline A multiply(A a, A b) {
  if constexpr (std::is_integral_v<A>) return static_cast<A>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  else return a * b;
}

template <class V> using Wide = std::conditional_t<std::is_same_v<V, float>, double, V>;

// What is folded. V is the type that elements are computed in. Part is what a thread adds elements to, Total what parts are joined in; result() is what is stored.

template <class V>
struct SumOf {
  using Part = V;
  using Total = Wide<V>;
  __device__ static Part part() { return 0; }
  __device__ static void add_element(Part& p, V v, int64_t) { p = add(p, v); }
  __device__ static Total total(const Part& p) { return p; }
  __device__ static Total join(const Total& a, const Total& b) { return add(a, b); }
  __device__ static Total result(const Total& t) { return t; }
};

template <class V>
struct SumOfSquares : SumOf<V> {
  __device__ static void add_element(V& p, V v, int64_t) { p = add(p, multiply(v, v)); }
};

template <class V>
struct ProductOf {
  using Part = Wide<V>;
  using Total = Wide<V>;
  __device__ static Part part() { return 1; }
  __device__ static void add_element(Part& p, V v, int64_t) { p = multiply(p, static_cast<Part>(v)); }
  __device__ static Total total(const Part& p) { return p; }
  __device__ static Total join(const Total& a, const Total& b) { return multiply(a, b); }
  __device__ static Total result(const Total& t) { return t; }
};

template <class V, bool is_max>
struct ExtremeOf {
  using Part = V;
  using Total = V;
  __device__ static Part part() { return is_max ? lowest_of<V>() : highest_of<V>(); }
  __device__ static Total join(const Total& a, const Total& b) { return (is_max ? a > b : a < b) || a != a ? a : b; }
  __device__ static void add_element(Part& p, V v, int64_t) { p = join(p, v); }
  __device__ static Total total(const Part& p) { return p; }
  __device__ static Total result(const Total& t) { return t; }
};
template <class V> using MaxOf = ExtremeOf<V, true>;
template <class V> using MinOf = ExtremeOf<V, false>;

template <class V, bool is_any>
struct TruthOf {
  using Part = int64_t;
  using Total = int64_t;
  __device__ static Part part() { return is_any ? 0 : 1; }
  __device__ static void add_element(Part& p, V v, int64_t) { p = join(p, v != V(0)); }
  __device__ static Total total(const Part& p) { return p; }
  __device__ static Total join(const Total& a, const Total& b) { return is_any ? a | b : a & b; }
  __device__ static Total result(const Total& t) { return t; }
};
template <class V> using AnyOf = TruthOf<V, true>;
template <class V> using AllOf = TruthOf<V, false>;

// maximum + log(sum), where sum is that of e^(x - maximum). A shift between equals is 0 even if both are infinite.
template <class A>
struct ShiftedSum {
  A maximum, sum;
  __device__ static A shifted(A x, A maximum) { return x == maximum ? A(1) : exp_of(x - maximum); }
  __device__ void add(A x) {
    if (x > maximum) {
      sum = sum * shifted(maximum, x) + 1;
      maximum = x;
    } else {
      sum += shifted(x, maximum);
    }
  }
};

template <class V>
struct LogSumExpOf {
  using Part = ShiftedSum<V>;
  using Total = ShiftedSum<double>;
  __device__ static Part part() { return {lowest_of<V>(), 0}; }
  __device__ static void add_element(Part& p, V v, int64_t) { p.add(v); }
  __device__ static Total total(const Part& p) { return {static_cast<double>(p.maximum), static_cast<double>(p.sum)}; }
  __device__ static Total join(const Total& a, const Total& b) {
    const double maximum = a.maximum > b.maximum ? a.maximum : b.maximum;
    return {maximum, a.sum * Total::shifted(a.maximum, maximum) + b.sum * Total::shifted(b.maximum, maximum)};
  }
  __device__ static double result(const Total& t) {
    const bool is_infinite = t.maximum == lowest_of<double>() || t.maximum == highest_of<double>();
    return is_infinite && t.sum == t.sum ? t.maximum : t.maximum + log(t.sum);            // a NaN among the elements made the sum NaN
  }
};

template <class V, bool is_max>
struct PositionOf {
  struct Part {
    V value;
    int64_t position;                        // -1: none yet
  };
  using Total = Part;
  __device__ static bool is_better(V candidate, V best) {
    if (best != best) return false;
    return candidate != candidate || (is_max ? candidate > best : candidate < best);
  }
  __device__ static Part part() { return {V(0), -1}; }
  __device__ static void add_element(Part& p, V v, int64_t position) {
    if (p.position < 0 || is_better(v, p.value)) p = {v, position};
  }
  __device__ static Total total(const Part& p) { return p; }
  __device__ static Total join(const Total& a, const Total& b) {
    if (a.position < 0 || b.position < 0) return a.position < 0 ? b : a;
    if (is_better(b.value, a.value)) return b;
    if (is_better(a.value, b.value)) return a;
    return a.position < b.position ? a : b;
  }
  __device__ static int64_t result(const Total& t) { return t.position; }
};
template <class V> using PositionOfMax = PositionOf<V, true>;
template <class V> using PositionOfMin = PositionOf<V, false>;

// Elements are added in batches: Note [Variance without cancellation].
template <class V>
struct DeviationsOf {
  using Part = LaneMoments<V>;
  using Total = Moments;
  __device__ static Part part() { return {}; }
  template <int n>
  __device__ static void add_batch(Part& p, const V (&values)[n], int filled) { p.add(values, filled); }
  __device__ static Total total(const Part& p) { return p.wide(); }
  __device__ static Total join(const Total& a, const Total& b) { return JoinMoments{}(a, b); }
  __device__ static double result(const Total& t) { return t.m2 < 0 ? 0.0 : t.m2; }
};

template <class Op> inline constexpr bool is_batched = false;
template <class V> inline constexpr bool is_batched<DeviationsOf<V>> = true;

struct Fold {
  StridedIndex<1> reduced;                   // x
  StridedIndex<2> kept;                      // x, y
  Team team;
  int64_t length, outputs;                   // elements of a fold, folds
  int64_t splits, per_split;
  bool is_divided = false;                   // results are divided by divisor: means and variances
  double divisor = 1;
  void* y;
  DType dtype;

  __device__ int64_t offset(int64_t i) const { return reduced.rank <= 1 ? i * reduced.strides[0][0] : reduced.offsets(i).of[0]; }
  template <class Result>
  __device__ void store(int64_t output, Result value) const {
    const int64_t at = kept.offsets(output).of[1];
    if (is_divided) store_as(dtype, y, at, static_cast<double>(value) / divisor);
    else store_as(dtype, y, at, value);
  }
};

// Adds packs whose elements are numbered from `first` on, one pack after the other or `step` elements apart.
template <class Op, int n, int pack, class T>
__device__ inline void add_packs(typename Op::Part& part, const Pack<T, pack> (&packs)[n], int64_t first, int64_t step) {
  if constexpr (is_batched<Op>) {
    Compute<T> values[n * pack];
#pragma unroll
    for (int i = 0; i < n * pack; ++i) values[i] = to_compute(packs[i / pack][i % pack]);
    Op::add_batch(part, values, n * pack);
  } else {
#pragma unroll
    for (int u = 0; u < n; ++u)
#pragma unroll
      for (int j = 0; j < pack; ++j) Op::add_element(part, to_compute(packs[u][j]), first + u * step + j);
  }
}

// Adds element j of each of the first `filled` packs to part j.
template <class Op, int n, int pack, class T>
__device__ inline void add_columns(typename Op::Part (&parts)[pack], const Pack<T, pack> (&packs)[n], int filled, int64_t first, int64_t step) {
#pragma unroll
  for (int j = 0; j < pack; ++j) {
    if constexpr (is_batched<Op>) {
      Compute<T> values[n];
#pragma unroll
      for (int u = 0; u < n; ++u) values[u] = u < filled ? to_compute(packs[u][j]) : Compute<T>(0);
      Op::add_batch(parts[j], values, filled);
    } else {
#pragma unroll
      for (int u = 0; u < n; ++u)
        if (u < filled) Op::add_element(parts[j], to_compute(packs[u][j]), first + u * step);
    }
  }
}

// A lane's share of the elements [begin, end) of a fold.
template <class Op, int pack, class T>
__device__ typename Op::Total fold_lane(const Fold& fold, const T* x, int64_t begin, int64_t end) {
  const int64_t step = static_cast<int64_t>(fold.team.lanes) * pack;
  typename Op::Total total = Op::total(Op::part());
  int64_t i = begin + fold.team.lane() * pack;
  while (i < end) {
    typename Op::Part part = Op::part();
    const int64_t stop = min(end, i + step * run);
    for (; i + (unroll - 1) * step < stop; i += unroll * step) {
      Pack<T, pack> values[unroll];
#pragma unroll
      for (int u = 0; u < unroll; ++u) values[u] = load_pack<T, pack>(x + fold.offset(i + u * step), 0);
      add_packs<Op>(part, values, i, step);
    }
    for (; i < stop; i += step) {
      const Pack<T, pack> values[1] = {load_pack<T, pack>(x + fold.offset(i), 0)};
      add_packs<Op>(part, values, i, step);
    }
    total = Op::join(total, Op::total(part));
  }
  return total;
}

template <class Total>
struct Scratch {
  Total values[team_threads];
};

// pack > 1: the reduced elements of an output lie beside each other.
template <class Op, int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void fold_kernel(Fold fold, const T* x, typename Op::Total* partial) {
  auto& scratch = shared<Scratch<typename Op::Total>>();
  const int64_t begin = blockIdx.y * fold.per_split, end = min(fold.length, begin + fold.per_split);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * fold.team.width; first < fold.outputs; first += static_cast<int64_t>(gridDim.x) * fold.team.width) {
    const int64_t output = first + fold.team.member();
    typename Op::Total total = Op::total(Op::part());
    if (output < fold.outputs) total = fold_lane<Op, pack>(fold, x + fold.kept.offsets(output).of[0], begin, end);
    total = team_reduce(fold.team, total, Op::join, scratch.values);
    if (output >= fold.outputs || fold.team.lane() != 0) continue;
    if (partial) partial[blockIdx.y * fold.outputs + output] = total;
    else fold.store(output, Op::result(total));
  }
}

// What the lanes of a column team have of neighbouring outputs.
template <class Op, int pack>
struct PackTotal {
  typename Op::Total values[pack];
};

template <class Op, int pack>
struct JoinPackTotals {
  __device__ PackTotal<Op, pack> operator()(const PackTotal<Op, pack>& a, const PackTotal<Op, pack>& b) const {
    PackTotal<Op, pack> joined;
#pragma unroll
    for (int j = 0; j < pack; ++j) joined.values[j] = Op::join(a.values[j], b.values[j]);
    return joined;
  }
};

// A lane's share of the elements [begin, end) of the folds of neighbouring outputs.
template <class Op, int pack, class T>
__device__ PackTotal<Op, pack> fold_column_lane(const Fold& fold, const T* x, int64_t begin, int64_t end) {
  const int64_t step = fold.team.lanes;
  PackTotal<Op, pack> total;
#pragma unroll
  for (int j = 0; j < pack; ++j) total.values[j] = Op::total(Op::part());
  int64_t i = begin + fold.team.lane();
  while (i < end) {
    typename Op::Part part[pack];
#pragma unroll
    for (int j = 0; j < pack; ++j) part[j] = Op::part();
    const int64_t stop = min(end, i + step * run);
    for (; i < stop; i += unroll * step) {
      Pack<T, pack> values[unroll];
      int filled = 0;
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        if (i + u * step >= stop) break;
        values[u] = load_pack<T, pack>(x + fold.offset(i + u * step), 0);
        ++filled;
      }
      add_columns<Op>(part, values, filled, i, step);
    }
#pragma unroll
    for (int j = 0; j < pack; ++j) total.values[j] = Op::join(total.values[j], Op::total(part[j]));
  }
  return total;
}

// Columns in packs: a team's threads have `pack` outputs each, whose elements lie beside each other.
template <class Op, int pack, class T>
__global__ __launch_bounds__(team_threads, 1) void fold_columns_kernel(Fold fold, const T* x, typename Op::Total* partial) {
  using Packed = PackTotal<Op, pack>;
  auto& scratch = shared<Scratch<Packed>>();
  const int64_t begin = blockIdx.y * fold.per_split, end = min(fold.length, begin + fold.per_split);
  const int64_t width = static_cast<int64_t>(fold.team.width) * pack;
  for (int64_t first = blockIdx.x * width; first < fold.outputs; first += gridDim.x * width) {
    const int64_t output = first + fold.team.member() * pack;
    const bool exists = output < fold.outputs;
    const Packed found = fold_column_lane<Op, pack>(fold, exists ? x + fold.kept.offsets(output).of[0] : x, begin, exists ? end : begin);
    const Packed total = team_reduce(fold.team, found, JoinPackTotals<Op, pack>(), scratch.values);
    if (!exists || fold.team.lane() != 0) continue;
#pragma unroll
    for (int j = 0; j < pack; ++j) {
      if (partial) partial[blockIdx.y * fold.outputs + output + j] = total.values[j];
      else fold.store(output + j, Op::result(total.values[j]));
    }
  }
}

// Joins the partial results [splits, outputs].
template <class Op>
__global__ __launch_bounds__(team_threads, 2) void join_kernel(Fold fold, const typename Op::Total* partial) {
  auto& scratch = shared<Scratch<typename Op::Total>>();
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * fold.team.width; first < fold.outputs; first += static_cast<int64_t>(gridDim.x) * fold.team.width) {
    const int64_t output = first + fold.team.member();
    typename Op::Total total = Op::total(Op::part());
    for (int64_t split = fold.team.lane(); output < fold.outputs && split < fold.splits; split += fold.team.lanes)
      total = Op::join(total, partial[split * fold.outputs + output]);
    total = team_reduce(fold.team, total, Op::join, scratch.values);
    if (output < fold.outputs && fold.team.lane() == 0) fold.store(output, Op::result(total));
  }
}

// --- the host's side ---

// The axes of one kind in the order of x's memory, outermost first.
struct AxisList {
  Shape shape;
  Strides x, y;

  void add(int64_t size, int64_t x_stride, int64_t y_stride) {
    int at = 0;
    while (at < shape.rank() && std::abs(x[at]) >= std::abs(x_stride)) ++at;
    shape.insert(at, size);
    x.insert(at, x_stride);
    y.insert(at, y_stride);
  }
};

int64_t inner_stride(const AxisList& axes) { return axes.shape.rank() > 0 ? std::abs(axes.x.back()) : std::numeric_limits<int64_t>::max(); }

StridedIndex<1> index_of_x(const AxisList& axes) {
  const Strides* const strides[] = {&axes.x};
  return {axes.shape, strides};
}
StridedIndex<2> index_of_both(const AxisList& axes) {
  const Strides* const strides[] = {&axes.x, &axes.y};
  return {axes.shape, strides};
}

// Whether every fold begins at a multiple of `pack` elements and has whole packs.
bool splits_into_packs(const Fold& fold, const void* x, int pack, int64_t bytes) {
  bool fits = fold.reduced.rank == 1 && fold.reduced.strides[0][0] == 1 && fold.length % pack == 0 && is_aligned(x, static_cast<size_t>(pack * bytes));
  for (int axis = 0; axis < fold.kept.rank; ++axis) fits = fits && fold.kept.strides[0][axis] % pack == 0;
  return fits;
}

// Whether neighbouring outputs come in whole packs of neighbouring elements.
bool columns_split_into_packs(const Fold& fold, const void* x, int pack, int64_t bytes) {
  bool fits = fold.kept.rank > 0 && fold.kept.strides[0][0] == 1 && fold.kept.sizes[0] % pack == 0 && is_aligned(x, static_cast<size_t>(pack * bytes));
  for (int axis = 1; axis < fold.kept.rank; ++axis) fits = fits && fold.kept.strides[0][axis] % pack == 0;
  for (int axis = 0; axis < fold.reduced.rank; ++axis) fits = fits && fold.reduced.strides[0][axis] % pack == 0;
  return fits;
}

// How many elements a thread reads at once: along a fold, or of as many folds.
struct Packing {
  int row = 1, column = 1;
};

Grid grid_of(const Fold& fold, int64_t splits, size_t shared_bytes, int column_pack = 1) {
  const int64_t groups = ceil_div<int64_t>(fold.outputs, static_cast<int64_t>(fold.team.width) * column_pack);
  return {dim3(static_cast<unsigned>(std::min<int64_t>(groups, 1 << 16)), static_cast<unsigned>(splits)), dim3(team_threads), shared_bytes};
}

// is_reduced(axis) says which axes go.
template <class IsReduced>
Fold fold_of(const ConstView& x, const View& y, int most_packed, const IsReduced& is_reduced, Packing& pack) {
  AxisList reduced, kept;
  for (int axis = 0; axis < x.rank(); ++axis) {
    if (x.shape[axis] <= 1) continue;
    if (is_reduced(axis)) reduced.add(x.shape[axis], x.strides[axis], 0);
    else kept.add(x.shape[axis], x.strides[axis], y.strides[axis]);
  }
  Fold fold{index_of_x(reduced), index_of_both(kept), {}, 0, 0, 1, 0, false, 1, y.data, y.dtype};
  fold.length = x.numel() > 0 ? fold.reduced.numel : 0;
  fold.outputs = fold.kept.numel;
  const bool is_row = inner_stride(reduced) <= inner_stride(kept) && fold.reduced.rank > 0;
  if (is_row && splits_into_packs(fold, x.data, most_packed, size_of(x.dtype))) pack.row = most_packed;
  if (!is_row && columns_split_into_packs(fold, x.data, most_packed, size_of(x.dtype))) pack.column = most_packed;
  fold.team = is_row ? row_team_of_packs(ceil_div<int64_t>(fold.length, pack.row)) : column_team(fold.outputs / pack.column, fold.length);
  const int64_t per_pass = static_cast<int64_t>(fold.team.lanes) * pack.row, groups = ceil_div<int64_t>(fold.outputs, static_cast<int64_t>(fold.team.width) * pack.column);
  const int64_t splits = splits_for(groups, fold.length / per_pass, 1024, unroll);
  fold.per_split = std::max<int64_t>(1, ceil_div(ceil_div(fold.length, splits), per_pass)) * per_pass;
  fold.splits = std::max<int64_t>(1, ceil_div(fold.length, fold.per_split));
  return fold;
}

template <class Op, int most_packed = 1, class T>
void run_fold(Queue queue, const char* name, Fold& fold, const T* x, const Packing& pack) {
  using Total = typename Op::Total;
  auto kernel = fold_kernel<Op, 1, T>;
  if constexpr (most_packed > 1) {
    if (pack.row > 1) kernel = fold_kernel<Op, most_packed, T>;
    if (pack.column > 1) kernel = fold_columns_kernel<Op, most_packed, T>;
  }
  const Grid grid = grid_of(fold, fold.splits, pack.column * sizeof(Scratch<Total>), pack.column);
  if (fold.splits == 1) return launch(queue, name, grid, kernel, fold, x, nullptr);
  const DeviceScratch partial(fold.splits * fold.outputs * static_cast<int64_t>(sizeof(Total)), queue);
  launch(queue, name, grid, kernel, fold, x, partial.as<Total>());
  fold.team = column_team(fold.outputs, fold.splits);
  launch(queue, name, grid_of(fold, 1, sizeof(Scratch<Total>)), join_kernel<Op>, fold, partial.as<Total>());
}

template <class T>
void reduce_as(Queue queue, Reduce op, const ConstView& x, const View& y) {
  using V = Compute<T>;
  constexpr int most_packed = std::is_integral_v<T> ? 1 : full_pack<T>;
  Packing pack;
  Fold fold = fold_of(x, y, most_packed, [&](int axis) { return y.shape[axis] == 1; }, pack);
  const T* data = x.as<T>();
  switch (op) {
    case Reduce::sum: return run_fold<SumOf<V>, most_packed>(queue, "sum", fold, data, pack);
    case Reduce::mean:
      fold.is_divided = true, fold.divisor = static_cast<double>(fold.length);
      return run_fold<SumOf<V>, most_packed>(queue, "mean", fold, data, pack);
    case Reduce::product: return run_fold<ProductOf<V>, most_packed>(queue, "product", fold, data, pack);
    case Reduce::max: return run_fold<MaxOf<V>, most_packed>(queue, "max", fold, data, pack);
    case Reduce::min: return run_fold<MinOf<V>, most_packed>(queue, "min", fold, data, pack);
    case Reduce::sum_squares: return run_fold<SumOfSquares<V>, most_packed>(queue, "sum_squares", fold, data, pack);
    case Reduce::any: return run_fold<AnyOf<V>, most_packed>(queue, "any", fold, data, pack);
    case Reduce::all: return run_fold<AllOf<V>, most_packed>(queue, "all", fold, data, pack);
    case Reduce::logsumexp: break;
  }
  if constexpr (std::is_integral_v<V>) fail<DTypeError>("logsumexp: takes floating-point tensors, got an integer one; convert with to(x, DType::float32)");
  else run_fold<LogSumExpOf<V>, most_packed>(queue, "logsumexp", fold, data, pack);
}

void reduce(Queue queue, Reduce op, const ConstView& x, const View& y) {
  if (y.numel() == 0) return;
  dispatch(x.dtype, [&](auto zero) { reduce_as<decltype(zero)>(queue, op, x, y); });
}

void arg_reduce(Queue queue, ArgReduce op, int axis, const ConstView& x, const View& y) {
  if (y.numel() == 0 || x.numel() == 0) return;
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using V = Compute<T>;
    constexpr int most_packed = std::is_integral_v<T> ? 1 : full_pack<T>;
    Packing pack;
    Fold fold = fold_of(x, y, most_packed, [&](int i) { return i == axis; }, pack);
    if (op == ArgReduce::argmax) run_fold<PositionOfMax<V>, most_packed>(queue, "argmax", fold, x.as<T>(), pack);
    else run_fold<PositionOfMin<V>, most_packed>(queue, "argmin", fold, x.as<T>(), pack);
  });
}

void variance(Queue queue, double correction, const ConstView& x, const View& y) {
  if (y.numel() == 0) return;
  dispatch_floating(x.dtype, "variance", [&](auto zero) {
    using T = decltype(zero);
    Packing pack;
    Fold fold = fold_of(x, y, full_pack<T>, [&](int axis) { return y.shape[axis] == 1; }, pack);
    fold.is_divided = true, fold.divisor = std::max(0.0, static_cast<double>(fold.length) - correction);
    run_fold<DeviationsOf<Compute<T>>, full_pack<T>>(queue, "variance", fold, x.as<T>(), pack);
  });
}

}  // namespace

void add_reduce(KernelTable& t) {
  t.reduce = reduce;
  t.arg_reduce = arg_reduce;
  t.variance = variance;
}

}  // namespace fovea::kernels::cuda
