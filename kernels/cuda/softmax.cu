// Softmax along an axis of x [outer, size, inner] and what is built on it:
//     softmax y = exp(x - max) / sum exp(x - max);  log-softmax y = x - max - log sum exp(x - max);
//     backward: dx = y * (dy - sum dy * y), and dx = dy - exp(y) * sum dy of the logarithm;
//     cross-entropy with label smoothing e (Szegedy et al. 2016, section 7) and class weights w, as PyTorch defines it:
//     loss = -(1 - e) * w[t] * logp[t] - e / classes * sum_c w[c] * logp[c];  d loss / d logits = softmax * S - G with G = -d loss / d logp, S = sum G,
//     of rows, or their sum, or that divided by the sum of w[t] (a block adds up its rows, a second kernel the blocks); of log-probabilities: -w[t] * x[t].
//     A row whose label is out of range (check_range has reported it) has a loss of NaN and a gradient of zero.
// Layout: contiguous. Overwrites its outputs. float32, float64, and the half types in float32 (class weights and losses of half logits are float32; y and dy of a half x may be). A lane adds up its share
// in the type it computes in; lanes are joined in float64 in a fixed order: deterministic.
// Floor: softmax one read and one write, backward two reads and one write; cross-entropy one read, its backward one read and one write. A warp or a block holds a row of up to `kept` elements a lane in registers; what goes
// beyond is read again, from the second-level cache if it can.
#include <fovea/kernels/table.h>

#include <algorithm>
#include <limits>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/scratch.h>
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
Grid grid_of_rows(int64_t rows, int64_t most = 1 << 16) {
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

template <bool is_block, int kept, class T, class Y>
__global__ __launch_bounds__(is_block ? row_threads : warps_per_block* warp_size, 1) void softmax_rows_kernel(int64_t rows, int64_t size, bool is_log, const T* x, Y* y) {
  using A = Accumulate<T>;
  const RowTeam<is_block> team{&shared<RowScratch>()};
  for (int64_t r = team.first(); r < rows; r += team.stride()) {
    const Row<is_block, kept, T> row(x + r * size, size);
    Y* out = y + r * size;
    A max = lowest<A>(), sum = 0;
    row.for_each([&](int64_t, A v) { max = Max{}(max, v); });
    max = team.max(max);
    row.for_each([&](int64_t, A v) { sum += exp_of(v - max); });
    const double total = team.sum(sum);
    if (is_log) {                            // which costs a short row as much as its elements do
      const A log_sum = static_cast<A>(log(total));
      row.for_each([&](int64_t i, A v) { out[i] = narrow<Y>(v - max - log_sum); });
    } else {
      const A scale = static_cast<A>(1.0 / total);
      row.for_each([&](int64_t i, A v) { out[i] = narrow<Y>(exp_of(v - max) * scale); });
    }
  }
}

template <bool is_block, int kept, class T, class Y>
__global__ __launch_bounds__(is_block ? row_threads : warps_per_block* warp_size, 1) void softmax_backward_rows_kernel(int64_t rows, int64_t size, bool is_log, const Y* dy, const Y* y,
                                                                                                              T* dx) {
  using A = Accumulate<T>;
  const RowTeam<is_block> team{&shared<RowScratch>()};
  for (int64_t r = team.first(); r < rows; r += team.stride()) {
    const Row<is_block, kept, Y> gradient(dy + r * size, size);
    const Y* out = y + r * size;
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

template <class T, class Y>
__global__ __launch_bounds__(team_threads) void softmax_columns_kernel(AxisGeometry g, Team team, bool is_log, const T* x, Y* y) {
  using A = Accumulate<T>;
  auto& scratch = shared<ColumnScratch<A>>();
  for_each_column(g, team, [&](int64_t offset, bool exists) {
    const int64_t size = exists ? g.size : 0;
    const T* in = x + offset;
    Y* out = y + offset;
    A max = lowest<A>(), sum = 0;
    for (int64_t k = team.lane(); k < size; k += team.lanes) max = Max{}(max, widen(in[k * g.inner]));
    max = team_reduce(team, max, Max{}, scratch.values);
    for (int64_t k = team.lane(); k < size; k += team.lanes) sum += exp_of(widen(in[k * g.inner]) - max);
    sum = team_reduce(team, sum, Sum{}, scratch.values);
    const A log_sum = static_cast<A>(log(static_cast<double>(sum))), scale = A(1) / sum;
    for (int64_t k = team.lane(); k < size; k += team.lanes) {
      const A shifted = widen(in[k * g.inner]) - max;
      out[k * g.inner] = narrow<Y>(is_log ? shifted - log_sum : exp_of(shifted) * scale);
    }
  });
}

template <class T, class Y>
__global__ __launch_bounds__(team_threads) void softmax_backward_columns_kernel(AxisGeometry g, Team team, bool is_log, const Y* dy, const Y* y, T* dx) {
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

// Calls f(0 of x's type, 0 of y's type): y is of x's dtype, or float32 beside a half x.
template <class F>
void with_types(const char* name, DType x, DType y, const F& f) {
  dispatch_floating(x, name, [&](auto zero) {
    using T = decltype(zero);
    if (x == y) f(zero, zero);
    else f(zero, Accumulate<T>());
  });
}

void softmax(Queue queue, const AxisGeometry& g, bool is_log, const ConstView& x, const View& y) {
  const char* name = is_log ? "log_softmax" : "softmax";
  if (g.size == 0 || g.outer == 0 || g.inner == 0) return;
  with_types(name, x.dtype, y.dtype, [&](auto x_zero, auto y_zero) {
    using T = decltype(x_zero);
    using Y = decltype(y_zero);
    if (g.inner > 1) {
      const ColumnPlan plan = plan_columns<Accumulate<T>>(g);
      return launch(queue, name, plan.grid, softmax_columns_kernel<T, Y>, g, plan.team, is_log, x.as<T>(), y.as<Y>());
    }
    with_row_team(g.size, [&](auto is_block, auto kept) {
      launch(queue, name, grid_of_rows<is_block.value>(g.outer), softmax_rows_kernel<is_block.value, kept.value, T, Y>, g.outer, g.size, is_log, x.as<T>(), y.as<Y>());
    });
  });
}

void softmax_backward(Queue queue, const AxisGeometry& g, bool is_log, const ConstView& dy, const ConstView& y, const View& dx) {
  const char* name = is_log ? "log_softmax_backward" : "softmax_backward";
  if (g.size == 0 || g.outer == 0 || g.inner == 0) return;
  with_types(name, dx.dtype, y.dtype, [&](auto x_zero, auto y_zero) {
    using T = decltype(x_zero);
    using Y = decltype(y_zero);
    if (g.inner > 1) {
      const ColumnPlan plan = plan_columns<Accumulate<T>>(g);
      return launch(queue, name, plan.grid, softmax_backward_columns_kernel<T, Y>, g, plan.team, is_log, dy.as<Y>(), y.as<Y>(), dx.as<T>());
    }
    with_row_team(g.size, [&](auto is_block, auto kept) {
      launch(queue, name, grid_of_rows<is_block.value>(g.outer), softmax_backward_rows_kernel<is_block.value, kept.value, T, Y>, g.outer, g.size, is_log, dy.as<Y>(), y.as<Y>(),
             dx.as<T>());
    });
  });
}

// --- cross-entropy ---

template <class T>
struct CrossEntropy {
  using A = Accumulate<T>;
  CrossEntropyGeometry g;
  const T* logits;
  const A* weights;                          // null: all one
  const int64_t* targets;

  CrossEntropy(const CrossEntropyGeometry& geometry, const ConstView& scores, const ConstView& labels, const ConstView& class_weights)
      : g(geometry), logits(scores.as<T>()), weights(class_weights.as<A>()), targets(labels.as<int64_t>()) {}

  __device__ A weight(int64_t c) const { return weights ? weights[c] : A(1); }
  __device__ bool is_class(int64_t target) const { return target >= 0 && target < g.classes; }
  __device__ bool counts(int64_t target) const { return target != g.ignore_index && is_class(target); }
  __device__ double of_target(int64_t target) const { return (1 - g.label_smoothing) * static_cast<double>(weight(target)); }
  __device__ double of_each() const { return g.label_smoothing / static_cast<double>(g.classes); }
};

// What makes log-probabilities of a row's scores: x - max - log(sum).
template <class A>
struct Normalizer {
  A max;
  double sum;

  template <bool is_block, int kept, class T>
  __device__ Normalizer(const RowTeam<is_block>& team, const Row<is_block, kept, T>& row) {
    A top = lowest<A>(), part = 0;
    row.for_each([&](int64_t, A v) { top = Max{}(top, v); });
    max = team.max(top);
    row.for_each([&](int64_t, A v) { part += exp_of(v - max); });
    sum = team.sum(part);
  }
};

// The losses of rows and their weights, added up.
struct LossSums {
  double loss = 0, weight = 0;
};

// The sums of all threads of a block. All of them call it.
__device__ inline void keep_partial(const LossSums& sums, LossSums* partial) {
  double* const scratch = shared<RowScratch>().values;
  const double loss = block_reduce(sums.loss, Sum{}, 0.0, scratch), weight = block_reduce(sums.weight, Sum{}, 0.0, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = {loss, weight};
}

// Writes losses [rows] unless null, and partial [blocks] unless null.
template <bool is_block, int kept, class T>
__global__ __launch_bounds__(is_block ? row_threads : warps_per_block* warp_size, 1) void cross_entropy_kernel(CrossEntropy<T> c, Accumulate<T>* losses, LossSums* partial) {
  using A = Accumulate<T>;
  const RowTeam<is_block> team{&shared<RowScratch>()};
  LossSums sums;                             // of the team's rows, in its first lane
  for (int64_t r = team.first(); r < c.g.rows; r += team.stride()) {
    const int64_t target = c.targets[r];
    double loss = target == c.g.ignore_index ? 0.0 : std::numeric_limits<double>::quiet_NaN(), weight = 0;
    if (c.counts(target)) {
      const T* x = c.logits + r * c.g.classes;
      const Row<is_block, kept, T> row(x, c.g.classes);
      const Normalizer<A> n(team, row);
      const double log_sum = log(n.sum), shift = static_cast<double>(n.max);
      loss = c.of_target(target) * (log_sum - (static_cast<double>(widen(x[target])) - shift));
      weight = static_cast<double>(c.weight(target));
      if (c.g.label_smoothing > 0) {
        double weights = 0, shifted = 0;     // sum_c w[c] and sum_c w[c] * (x[c] - max)
        row.for_each([&](int64_t i, A v) {
          const double w = static_cast<double>(c.weight(i));
          weights += w;
          shifted += w * (static_cast<double>(v) - shift);
        });
        weights = team.sum(weights);
        loss += c.of_each() * (weights * log_sum - team.sum(shifted));
      }
    }
    if (team.lane() != 0) continue;
    if (losses) losses[r] = static_cast<A>(loss);
    sums.loss += loss;
    sums.weight += weight;
  }
  if (partial) keep_partial(sums, partial);
}

// divisor: null for a sum.
template <class A>
__global__ __launch_bounds__(row_threads, 1) void finish_losses_kernel(int64_t count, const LossSums* partial, A* result, A* divisor) {
  double* const scratch = shared<RowScratch>().values;
  LossSums sums;
  for (int64_t i = threadIdx.x; i < count; i += row_threads) {
    sums.loss += partial[i].loss;
    sums.weight += partial[i].weight;
  }
  const double loss = block_reduce(sums.loss, Sum{}, 0.0, scratch), weight = block_reduce(sums.weight, Sum{}, 0.0, scratch);
  if (threadIdx.x != 0) return;
  *result = static_cast<A>(divisor ? loss / weight : loss);
  if (divisor) *divisor = static_cast<A>(weight);
}

// What a row's gradient is multiplied by.
template <class A>
struct Upstream {
  const A *dlosses, *divisor;                // divisor: null unless the losses were averaged
  int64_t step;                              // from a row's to the next
  __device__ A of(int64_t row) const { return divisor ? dlosses[row * step] / *divisor : dlosses[row * step]; }
};

template <bool is_block, int kept, class T>
__global__ __launch_bounds__(is_block ? row_threads : warps_per_block* warp_size, 1) void cross_entropy_backward_kernel(CrossEntropy<T> c, Upstream<Accumulate<T>> upstream, T* dlogits) {
  using A = Accumulate<T>;
  const RowTeam<is_block> team{&shared<RowScratch>()};
  for (int64_t r = team.first(); r < c.g.rows; r += team.stride()) {
    const int64_t target = c.targets[r];
    T* dx = dlogits + r * c.g.classes;
    if (!c.counts(target)) {
      for (int64_t i = team.lane(); i < c.g.classes; i += team.lanes()) dx[i] = narrow<T>(A(0));
      continue;
    }
    const Row<is_block, kept, T> row(c.logits + r * c.g.classes, c.g.classes);
    const Normalizer<A> n(team, row);
    double weights = 0;
    if (c.g.label_smoothing > 0) {
      row.for_each([&](int64_t i, A) { weights += static_cast<double>(c.weight(i)); });
      weights = team.sum(weights);
    }
    const double of_target = c.of_target(target), of_each = c.of_each();
    const A scale = static_cast<A>((of_target + of_each * weights) / n.sum), each = static_cast<A>(of_each), label = static_cast<A>(of_target), dloss = upstream.of(r);
    row.for_each([&](int64_t i, A v) { dx[i] = narrow<T>((exp_of(v - n.max) * scale - each * c.weight(i) - (i == target ? label : A(0))) * dloss); });
  }
}

// --- of log-probabilities: a thread a row, and backward a thread an element ---

template <class T>
__global__ __launch_bounds__(row_threads, 1) void nll_kernel(CrossEntropy<T> c, Accumulate<T>* losses, LossSums* partial) {
  using A = Accumulate<T>;
  LossSums sums;
  for (int64_t r = global_thread(); r < c.g.rows; r += global_threads()) {
    const int64_t target = c.targets[r];
    double loss = target == c.g.ignore_index ? 0.0 : std::numeric_limits<double>::quiet_NaN(), weight = 0;
    if (c.counts(target)) {
      weight = static_cast<double>(c.weight(target));
      loss = weight * -static_cast<double>(widen(c.logits[(r / c.g.inner * c.g.classes + target) * c.g.inner + r % c.g.inner]));
    }
    if (losses) losses[r] = static_cast<A>(loss);
    sums.loss += loss;
    sums.weight += weight;
  }
  if (partial) keep_partial(sums, partial);
}

template <class T>
__global__ __launch_bounds__(row_threads, 1) void nll_backward_kernel(CrossEntropy<T> c, Upstream<Accumulate<T>> upstream, T* dx) {
  using A = Accumulate<T>;
  for (int64_t i = global_thread(); i < c.g.rows * c.g.classes; i += global_threads()) {
    const int64_t plane = i / c.g.inner, row = plane / c.g.classes * c.g.inner + i % c.g.inner, target = c.targets[row];
    dx[i] = narrow<T>(target == plane % c.g.classes && target != c.g.ignore_index ? -c.weight(target) * upstream.of(row) : A(0));
  }
}

// --- the host's side ---

constexpr int64_t most_partial_sums = 2048;

// Calls f(grid, kernel) with the kernel for rows of this geometry and a grid of at most so many blocks.
template <class T, class F>
void with_loss_kernel(const CrossEntropyGeometry& g, int64_t most_blocks, const F& f) {
  if (g.is_normalized) return f(Grid{dim3(static_cast<unsigned>(std::min(ceil_div<int64_t>(g.rows, row_threads), most_blocks))), dim3(row_threads), sizeof(RowScratch)}, nll_kernel<T>);
  with_row_team(g.classes, [&](auto is_block, auto kept) { f(grid_of_rows<is_block.value>(g.rows, most_blocks), cross_entropy_kernel<is_block.value, kept.value, T>); });
}

void cross_entropy(Queue queue, const CrossEntropyGeometry& g, const ConstView& logits, const ConstView& targets, const ConstView& class_weights, const View& losses,
                   const View& divisor) {
  const char* name = g.is_normalized ? "nll_loss" : "cross_entropy";
  dispatch_floating(logits.dtype, name, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const CrossEntropy<T> c(g, logits, targets, class_weights);
    const bool is_each = g.reduction == Reduction::none;
    with_loss_kernel<T>(g, is_each ? int64_t{1} << 16 : most_partial_sums, [&](const Grid& grid, auto kernel) {
      if (is_each) return launch(queue, name, grid, kernel, c, losses.as<A>(), nullptr);
      const DeviceScratch partial(std::max<int64_t>(1, grid.blocks.x) * static_cast<int64_t>(sizeof(LossSums)), queue);
      launch(queue, name, grid, kernel, c, nullptr, partial.as<LossSums>());
      launch(queue, "finish_losses", Grid{dim3(1), dim3(row_threads), sizeof(RowScratch)}, finish_losses_kernel<A>, grid.blocks.x, partial.as<LossSums>(), losses.as<A>(),
             g.reduction == Reduction::mean ? divisor.as<A>() : nullptr);
    });
  });
}

void cross_entropy_backward(Queue queue, const CrossEntropyGeometry& g, const ConstView& dlosses, const ConstView& divisor, const ConstView& logits, const ConstView& targets,
                            const ConstView& class_weights, const View& dlogits) {
  dispatch_floating(logits.dtype, "cross_entropy_backward", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const CrossEntropy<T> c(g, logits, targets, class_weights);
    const Upstream<A> upstream{dlosses.as<A>(), g.reduction == Reduction::mean ? divisor.as<A>() : nullptr, g.reduction == Reduction::none ? dlosses.strides[0] : 0};
    if (g.is_normalized) return launch(queue, "nll_loss_backward", grid_for(g.rows * g.classes, row_threads), nll_backward_kernel<T>, c, upstream, dlogits.as<T>());
    with_row_team(g.classes, [&](auto is_block, auto kept) {
      launch(queue, "cross_entropy_backward", grid_of_rows<is_block.value>(g.rows), cross_entropy_backward_kernel<is_block.value, kept.value, T>, c, upstream, dlogits.as<T>());
    });
  });
}

}  // namespace

void add_softmax(KernelTable& t) {
  t.computes_half.add(Family::softmax);
  t.softmax = softmax;
  t.softmax_backward = softmax_backward;
  t.cross_entropy = cross_entropy;
  t.cross_entropy_backward = cross_entropy_backward;
}

}  // namespace fovea::kernels::cuda
