// Softmax along an axis of x [outer, size, inner] and what is built on it:
//     softmax y = exp(x - max) / sum exp(x - max);  log-softmax y = x - max - log sum exp(x - max);
//     backward: dx = y * (dy - sum dy * y), and dx = dy - exp(y) * sum dy of the logarithm;
//     cross-entropy with label smoothing e (Szegedy et al. 2016, section 7) and class weights w, as PyTorch defines it:
//     loss = -(1 - e) * w[t] * logp[t] - e / classes * sum_c w[c] * logp[c];  d loss / d logits = softmax * S - G with G = -d loss / d logp, S = sum G.
//     A row whose label is out of range (check_range has reported it) has a loss of NaN and a gradient of zero.
// Layout: contiguous. Overwrites its outputs. float32, float64, and the half types in float32 (class weights and losses of half logits are float32). A lane adds up its share
// in the type it computes in; lanes are joined in float64 in a fixed order: deterministic.
// Floor: softmax one read and one write, backward two reads and one write. A warp or a block holds a row of up to `kept` elements a lane in registers; what goes
// beyond is read again, from the second-level cache if it can.
#include <fovea/kernels/table.h>

#include <limits>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/warp.h>
#include <fovea/kernels/cuda/team.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int row_threads = 512;             // of a block that has one row
constexpr int warps_per_block = 4;           // with a row each, where rows are short

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }

template <class A>
__device__ constexpr A lowest() { return -std::numeric_limits<A>::infinity(); }

struct RowScratch {
  double values[warp_size];
};

// The threads that share a row: a warp, or the whole block.
template <bool is_block>
struct RowTeam {
  RowScratch* scratch;

  __device__ static int lanes() { return is_block ? row_threads : warp_size; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % (is_block ? row_threads : warp_size); }
  __device__ static int64_t first() { return is_block ? blockIdx.x : global_thread() / warp_size; }
  __device__ static int64_t stride() { return is_block ? gridDim.x : global_threads() / warp_size; }

  template <class V, class Op>
  __device__ V reduce(V value, Op op, V identity) const {
    if constexpr (is_block) return block_reduce(value, op, identity, reinterpret_cast<V*>(scratch->values));
    else return warp_reduce(value, op);
  }
  template <class V>
  __device__ double sum(V value) const { return reduce(static_cast<double>(value), Sum{}, 0.0); }
  template <class V>
  __device__ V max(V value) const { return reduce(value, Max{}, lowest<V>()); }
};

template <bool is_block>
Grid grid_of_rows(int64_t rows) {
  constexpr int64_t most = 1 << 16;
  const int64_t blocks = is_block ? rows : ceil_div<int64_t>(rows, warps_per_block);
  return {dim3(static_cast<unsigned>(blocks < most ? blocks : most)), dim3(is_block ? row_threads : warps_per_block * warp_size), sizeof(RowScratch)};
}

// --- rows: inner == 1 ---

// f(i, x[i]) for a lane's share of a row, from the registers as far as they go.
template <bool is_block, int kept, class T>
struct Row {
  using A = Accumulate<T>;
  const T* x;
  int64_t size;
  A values[kept];

  __device__ Row(const T* from, int64_t n) : x(from), size(n) {
#pragma unroll
    for (int k = 0; k < kept; ++k) values[k] = at(k) < size ? widen(x[at(k)]) : A(0);
  }
  __device__ static int64_t at(int k) { return static_cast<int64_t>(k) * RowTeam<is_block>::lanes() + RowTeam<is_block>::lane(); }
  template <class F>
  __device__ void for_each(const F& f) const {
#pragma unroll
    for (int k = 0; k < kept; ++k)
      if (at(k) < size) f(at(k), values[k]);
    if constexpr (is_block)
      for (int64_t i = at(kept); i < size; i += row_threads) f(i, widen(x[i]));
  }
};

template <bool is_block, int kept, class T>
__global__ __launch_bounds__(is_block ? row_threads : warps_per_block* warp_size, 1) void softmax_rows_kernel(int64_t rows, int64_t size, bool is_log, const T* x, T* y) {
  using A = Accumulate<T>;
  const RowTeam<is_block> team{&shared<RowScratch>()};
  for (int64_t r = team.first(); r < rows; r += team.stride()) {
    const Row<is_block, kept, T> row(x + r * size, size);
    T* out = y + r * size;
    A max = lowest<A>(), sum = 0;
    row.for_each([&](int64_t, A v) { max = Max{}(max, v); });
    max = team.max(max);
    row.for_each([&](int64_t, A v) { sum += exp_of(v - max); });
    const double total = team.sum(sum);
    if (is_log) {                            // which costs a short row as much as its elements do
      const A log_sum = static_cast<A>(log(total));
      row.for_each([&](int64_t i, A v) { out[i] = narrow<T>(v - max - log_sum); });
    } else {
      const A scale = static_cast<A>(1.0 / total);
      row.for_each([&](int64_t i, A v) { out[i] = narrow<T>(exp_of(v - max) * scale); });
    }
  }
}

template <bool is_block, int kept, class T>
__global__ __launch_bounds__(is_block ? row_threads : warps_per_block* warp_size, 1) void softmax_backward_rows_kernel(int64_t rows, int64_t size, bool is_log, const T* dy, const T* y,
                                                                                                              T* dx) {
  using A = Accumulate<T>;
  const RowTeam<is_block> team{&shared<RowScratch>()};
  for (int64_t r = team.first(); r < rows; r += team.stride()) {
    const Row<is_block, kept, T> gradient(dy + r * size, size);
    const T* out = y + r * size;
    T* in = dx + r * size;
    A part = 0;
    gradient.for_each([&](int64_t i, A g) { part += is_log ? g : g * widen(out[i]); });
    const A sum = static_cast<A>(team.sum(part));
    gradient.for_each([&](int64_t i, A g) {
      const A v = widen(out[i]);
      in[i] = narrow<T>(is_log ? g - exp_of(v) * sum : v * (g - sum));
    });
  }
}

// --- columns: inner > 1, so that neighbouring threads take neighbouring columns ---

template <class A>
struct ColumnScratch {
  A values[team_threads];
};

// f(offset of the column's first element, whether there is such a column) for the columns of a block, one after the other.
template <class F>
__device__ void for_each_column(const AxisGeometry& g, const Team& team, const F& f) {
  const int64_t columns = g.outer * g.inner;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * team.width; first < columns; first += static_cast<int64_t>(gridDim.x) * team.width) {
    const int64_t column = first + team.member();
    f(column / g.inner * g.size * g.inner + column % g.inner, column < columns);
  }
}

template <class T>
__global__ __launch_bounds__(team_threads) void softmax_columns_kernel(AxisGeometry g, Team team, bool is_log, const T* x, T* y) {
  using A = Accumulate<T>;
  auto& scratch = shared<ColumnScratch<A>>();
  for_each_column(g, team, [&](int64_t offset, bool exists) {
    const int64_t size = exists ? g.size : 0;
    const T* in = x + offset;
    T* out = y + offset;
    A max = lowest<A>(), sum = 0;
    for (int64_t k = team.lane(); k < size; k += team.lanes) max = Max{}(max, widen(in[k * g.inner]));
    max = team_reduce(team, max, Max{}, scratch.values);
    for (int64_t k = team.lane(); k < size; k += team.lanes) sum += exp_of(widen(in[k * g.inner]) - max);
    sum = team_reduce(team, sum, Sum{}, scratch.values);
    const A log_sum = static_cast<A>(log(static_cast<double>(sum))), scale = A(1) / sum;
    for (int64_t k = team.lane(); k < size; k += team.lanes) {
      const A shifted = widen(in[k * g.inner]) - max;
      out[k * g.inner] = narrow<T>(is_log ? shifted - log_sum : exp_of(shifted) * scale);
    }
  });
}

template <class T>
__global__ __launch_bounds__(team_threads) void softmax_backward_columns_kernel(AxisGeometry g, Team team, bool is_log, const T* dy, const T* y, T* dx) {
  using A = Accumulate<T>;
  auto& scratch = shared<ColumnScratch<A>>();
  for_each_column(g, team, [&](int64_t offset, bool exists) {
    const int64_t size = exists ? g.size : 0;
    A sum = 0;
    for (int64_t k = team.lane(); k < size; k += team.lanes) {
      const int64_t at = offset + k * g.inner;
      sum += is_log ? widen(dy[at]) : widen(dy[at]) * widen(y[at]);
    }
    sum = team_reduce(team, sum, Sum{}, scratch.values);
    for (int64_t k = team.lane(); k < size; k += team.lanes) {
      const int64_t at = offset + k * g.inner;
      const A gradient = widen(dy[at]), out = widen(y[at]);
      dx[at] = narrow<T>(is_log ? gradient - exp_of(out) * sum : out * (gradient - sum));
    }
  });
}

// Calls f with (is_block, kept) as types: how a row of this size is shared out. A warp has it as long as registers hold its share: what is
// done once for each warp of a row, joining lanes above all, is as much as a dozen elements are.
template <class F>
void with_row_team(int64_t size, const F& f) {
  if (size <= warp_size) f(std::false_type{}, std::integral_constant<int, 1>{});
  else if (size <= 4 * warp_size) f(std::false_type{}, std::integral_constant<int, 4>{});
  else if (size <= 16 * warp_size) f(std::false_type{}, std::integral_constant<int, 16>{});
  else if (size <= 32 * warp_size) f(std::false_type{}, std::integral_constant<int, 32>{});
  else f(std::true_type{}, std::integral_constant<int, 8>{});
}

struct ColumnPlan {
  Team team;
  Grid grid;
};

template <class A>
ColumnPlan plan_columns(const AxisGeometry& g) {
  const Team team = column_team(g.outer * g.inner, g.size);
  const int64_t blocks = ceil_div<int64_t>(g.outer * g.inner, team.width);
  return {team, {dim3(static_cast<unsigned>(blocks < (1 << 16) ? blocks : 1 << 16)), dim3(team_threads), sizeof(ColumnScratch<A>)}};
}

void softmax(Queue queue, const AxisGeometry& g, bool is_log, const ConstView& x, const View& y) {
  const char* name = is_log ? "log_softmax" : "softmax";
  dispatch_floating(x.dtype, name, [&](auto zero) {
    using T = decltype(zero);
    if (g.size == 0 || g.outer == 0 || g.inner == 0) return;
    if (g.inner > 1) {
      const ColumnPlan plan = plan_columns<Accumulate<T>>(g);
      return launch(queue, name, plan.grid, softmax_columns_kernel<T>, g, plan.team, is_log, x.as<T>(), y.as<T>());
    }
    with_row_team(g.size, [&](auto is_block, auto kept) {
      launch(queue, name, grid_of_rows<is_block.value>(g.outer), softmax_rows_kernel<is_block.value, kept.value, T>, g.outer, g.size, is_log, x.as<T>(), y.as<T>());
    });
  });
}

void softmax_backward(Queue queue, const AxisGeometry& g, bool is_log, const ConstView& dy, const ConstView& y, const View& dx) {
  const char* name = is_log ? "log_softmax_backward" : "softmax_backward";
  dispatch_floating(y.dtype, name, [&](auto zero) {
    using T = decltype(zero);
    if (g.size == 0 || g.outer == 0 || g.inner == 0) return;
    if (g.inner > 1) {
      const ColumnPlan plan = plan_columns<Accumulate<T>>(g);
      return launch(queue, name, plan.grid, softmax_backward_columns_kernel<T>, g, plan.team, is_log, dy.as<T>(), y.as<T>(), dx.as<T>());
    }
    with_row_team(g.size, [&](auto is_block, auto kept) {
      launch(queue, name, grid_of_rows<is_block.value>(g.outer), softmax_backward_rows_kernel<is_block.value, kept.value, T>, g.outer, g.size, is_log, dy.as<T>(),
             y.as<T>(), dx.as<T>());
    });
  });
}

// --- cross-entropy ---

template <class T>
struct CrossEntropy {
  int64_t rows, classes, ignore_index;
  double smoothing;
  const T* logits;
  const Accumulate<T>* weights;              // null: all one
  const int64_t* targets;
  Accumulate<T>* losses;
  T* dlogits;                                // may be null

  __device__ Accumulate<T> weight(int64_t c) const { return weights ? weights[c] : Accumulate<T>(1); }
};

template <bool is_block, class T>
__global__ __launch_bounds__(is_block ? row_threads : warps_per_block* warp_size) void cross_entropy_kernel(CrossEntropy<T> c) {
  using A = Accumulate<T>;
  const RowTeam<is_block> team{&shared<RowScratch>()};
  const int lanes = team.lanes(), lane = team.lane();
  for (int64_t r = team.first(); r < c.rows; r += team.stride()) {
    const int64_t target = c.targets[r];
    const T* x = c.logits + r * c.classes;
    T* dx = c.dlogits ? c.dlogits + r * c.classes : nullptr;
    if (target == c.ignore_index || target < 0 || target >= c.classes) {
      for (int64_t i = lane; dx && i < c.classes; i += lanes) dx[i] = narrow<T>(A(0));
      if (lane == 0) c.losses[r] = target == c.ignore_index ? A(0) : std::numeric_limits<A>::quiet_NaN();
      continue;
    }
    A max = lowest<A>(), part = 0;
    for (int64_t i = lane; i < c.classes; i += lanes) max = Max{}(max, widen(x[i]));
    max = team.max(max);
    double weights = 0, shifted = 0;         // sum_c w[c] and sum_c w[c] * (x[c] - max), for the smoothing
    for (int64_t i = lane; i < c.classes; i += lanes) {
      const A v = widen(x[i]);
      part += exp_of(v - max);
      if (c.smoothing > 0) {
        const double w = static_cast<double>(c.weight(i));
        weights += w;
        shifted += w * (static_cast<double>(v) - static_cast<double>(max));
      }
    }
    const double sum = team.sum(part), log_sum = log(sum);
    const double of_target = (1 - c.smoothing) * static_cast<double>(c.weight(target)), of_each = c.smoothing / static_cast<double>(c.classes);
    double loss = of_target * (log_sum - (static_cast<double>(widen(x[target])) - static_cast<double>(max)));
    if (c.smoothing > 0) {
      weights = team.sum(weights);
      loss += of_each * (weights * log_sum - team.sum(shifted));
    }
    if (lane == 0) c.losses[r] = static_cast<A>(loss);
    const A scale = static_cast<A>((of_target + of_each * weights) / sum), each = static_cast<A>(of_each), label = static_cast<A>(of_target);
    for (int64_t i = lane; dx && i < c.classes; i += lanes)
      dx[i] = narrow<T>(exp_of(widen(x[i]) - max) * scale - each * c.weight(i) - (i == target ? label : A(0)));
  }
}

void cross_entropy(Queue queue, double label_smoothing, int64_t ignore_index, const ConstView& logits, const ConstView& targets, const ConstView& class_weights,
                   const View& losses, const View& dlogits) {
  dispatch_floating(logits.dtype, "cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    const CrossEntropy<T> c{logits.shape[0],     logits.shape[1],       ignore_index,    label_smoothing, logits.as<T>(), class_weights.as<Accumulate<T>>(),
                            targets.as<int64_t>(), losses.as<Accumulate<T>>(), dlogits.as<T>()};
    if (c.classes <= 1024) launch(queue, "cross_entropy", grid_of_rows<false>(c.rows), cross_entropy_kernel<false, T>, c);
    else launch(queue, "cross_entropy", grid_of_rows<true>(c.rows), cross_entropy_kernel<true, T>, c);
  });
}

}  // namespace

void add_softmax(KernelTable& t) {
  t.computes_half.add(Family::softmax);
  t.softmax = softmax;
  t.softmax_backward = softmax_backward;
  t.cross_entropy = cross_entropy;
}

}  // namespace fovea::kernels::cuda
