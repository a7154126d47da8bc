// Softmax along an axis of x [outer, size, inner] and what is built on it:
//     softmax y = exp(x - max) / sum exp(x - max);  log-softmax y = x - max - log sum exp(x - max);
//     backward: dx = y * (dy - sum dy * y), and dx = dy - exp(y) * sum dy of the logarithm;
//     cross-entropy with label smoothing e (Szegedy et al. 2016, section 7) and class weights w, as PyTorch defines it:
//     loss = -(1 - e) * w[t] * logp[t] - e / classes * sum_c w[c] * logp[c];  d loss / d logits = softmax * S - G with G = -d loss / d logp, S = sum G,
//     of rows, or their sum, or that divided by the sum of w[t] (a block adds up its rows, a second kernel the blocks); of log-probabilities: -w[t] * x[t].
//     A row whose label is out of range (check_range has reported it) has a loss of NaN and a gradient of zero.
// Layout: contiguous. Overwrites its outputs. float32, float64, and the half types in float32 (class weights and losses of half logits are float32; y and dy of a half x may be). A lane adds up its share
// in the type it computes in; lanes are joined in float64 in a fixed order: deterministic.
// Floor: softmax one read and one write, backward two reads and one write; cross-entropy one read, its backward one read and one write: reached where rows stay on chip
// (Note [Rows]). Along another axis than the last, everything is read twice.
#include <fovea/kernels/table.h>

#include <algorithm>
#include <limits>

#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/strided.h>
#include <fovea/kernels/cuda/rows.h>
#include <fovea/kernels/cuda/team.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int loss_threads = 256;

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }

template <class A>
__device__ constexpr A lowest() { return -std::numeric_limits<A>::infinity(); }

// The largest of some numbers and the sum of e^(x - maximum) over them, in one pass: what has been added up is rescaled where a larger number comes.
template <class A>
struct ShiftedSum {
  A maximum = lowest<A>(), sum = 0;

  template <int n>
  __device__ void add(const A (&values)[n]) {
    A top = maximum;
#pragma unroll
    for (int i = 0; i < n; ++i) top = Max{}(top, values[i]);
    const A shift = top == lowest<A>() ? A(0) : top;       // of nothing but -infinity: no share, not NaN
    A part = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) part += exp_of(values[i] - shift);
    sum = sum * exp_of(maximum - shift) + part;
    maximum = top;
  }
  // The sum seen from a maximum of more numbers.
  __device__ A below(A top) const { return sum * exp_of(maximum - top); }
};

// What makes log-probabilities of a row's scores: x - max - log(sum).
template <class A>
struct Normalizer {
  A max;
  double sum;

  template <class Team, class Row>
  __device__ Normalizer(const Team& team, const Row& row) {
    ShiftedSum<A> part;
    row.for_each_batch([&](const auto& values) { part.add(values[0]); });
    max = team.reduce(part.maximum, Max{}, lowest<A>());
    sum = team.reduce(static_cast<double>(part.below(max)), Sum{}, 0.0);
  }
};

// --- rows: inner == 1 ---

template <class Layout, class T, class Y>
__global__ __launch_bounds__(row_threads<Layout>, row_residents<Layout, T>) void softmax_rows_kernel(RowShape shape, bool is_log, const T* x, Y* y) {
  using A = Accumulate<T>;
  const typename Layout::Team team;
  team.for_each_row(shape.rows, [&](int64_t r, bool exists) {
    const typename Layout::template Row<1, T, Y> row(team, shape, {x}, r, exists, lowest<A>());
    const Normalizer<A> n(team, row);
    Y* const out = y + r * shape.size;
    if (is_log) {
      const A log_sum = static_cast<A>(log(n.sum));
      store_row(out, row, [&](int64_t, const auto& v) { return v[0] - n.max - log_sum; });
    } else {
      const A scale = static_cast<A>(1.0 / n.sum);
      store_row(out, row, [&](int64_t, const auto& v) { return exp_of(v[0] - n.max) * scale; });
    }
  });
}

template <class Layout, class T, class Y>
__global__ __launch_bounds__(row_threads<Layout>, row_residents<Layout, T>) void softmax_backward_rows_kernel(RowShape shape, bool is_log, const Y* dy, const Y* y, T* dx) {
  using A = Accumulate<Y>;
  const typename Layout::Team team;
  team.for_each_row(shape.rows, [&](int64_t r, bool exists) {
    const typename Layout::template Row<2, Y, T> row(team, shape, {dy, y}, r, exists, A(0));
    A part = 0;
    row.for_each_batch([&]<int n>(const A (&values)[2][n]) {
#pragma unroll
      for (int i = 0; i < n; ++i) part += is_log ? values[0][i] : values[0][i] * values[1][i];
    });
    const A sum = static_cast<A>(team.reduce(static_cast<double>(part), Sum{}, 0.0));
    store_row(dx + r * shape.size, row, [&](int64_t, const auto& v) { return is_log ? v[0] - exp_of(v[1]) * sum : v[1] * (v[0] - sum); });
  });
}

// --- columns: inner > 1, so that neighbouring threads take neighbouring columns ---

constexpr int column_unroll = 4;             // elements of a thread that are under way at once

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
__global__ __launch_bounds__(team_threads, 1) void softmax_columns_kernel(AxisGeometry g, Team team, bool is_log, const T* x, Y* y) {
  using A = Accumulate<T>;
  auto& scratch = shared<ColumnScratch<A>>();
  for_each_column(g, team, [&](int64_t offset, bool exists) {
    const int64_t size = exists ? g.size : 0;
    const T* in = x + offset;
    Y* out = y + offset;
    ShiftedSum<A> part;
    for (int64_t k = team.lane(); k < size; k += column_unroll * team.lanes) {
      A values[column_unroll];
#pragma unroll
      for (int u = 0; u < column_unroll; ++u) values[u] = k + u * team.lanes < size ? widen(in[(k + u * team.lanes) * g.inner]) : lowest<A>();
      part.add(values);
    }
    const A max = team_reduce(team, part.maximum, Max{}, scratch.values), sum = team_reduce(team, part.below(max), Sum{}, scratch.values);
    const A log_sum = static_cast<A>(log(static_cast<double>(sum))), scale = A(1) / sum;
    for (int64_t k = team.lane(); k < size; k += team.lanes) {
      const A shifted = widen(in[k * g.inner]) - max;
      out[k * g.inner] = narrow<Y>(is_log ? shifted - log_sum : exp_of(shifted) * scale);
    }
  });
}

template <class T, class Y>
__global__ __launch_bounds__(team_threads, 1) void softmax_backward_columns_kernel(AxisGeometry g, Team team, bool is_log, const Y* dy, const Y* y, T* dx) {
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

constexpr int64_t most_blocks = 1 << 16;

// Whether rows of T beside rows of Y can be read in packs there.
template <class T, class Y>
bool is_row_aligned(const ConstView& x) { return is_aligned(x.data, row_pack<T, Y> * sizeof(T)); }

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
    const bool is_packed = is_row_aligned<T, Y>(x) && is_row_aligned<Y, T>(y);
    with_rows<T, Y, 1>(g.outer, g.size, is_packed, most_blocks, [&](auto layout, const RowPlan& plan) {
      launch(queue, name, plan.grid, softmax_rows_kernel<decltype(layout), T, Y>, plan.shape, is_log, x.as<T>(), y.as<Y>());
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
    const bool is_packed = is_row_aligned<Y, T>(dy) && is_row_aligned<Y, T>(y) && is_row_aligned<T, Y>(dx);
    with_rows<Y, T, 2>(g.outer, g.size, is_packed, most_blocks, [&](auto layout, const RowPlan& plan) {
      launch(queue, name, plan.grid, softmax_backward_rows_kernel<decltype(layout), T, Y>, plan.shape, is_log, dy.as<Y>(), y.as<Y>(), dx.as<T>());
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

// The losses of rows and their weights, added up.
struct LossSums {
  double loss = 0, weight = 0;
};

// The sums of all threads of a block. All of them call it.
__device__ inline void keep_partial(const LossSums& sums, LossSums* partial) {
  double* const scratch = shared<BlockScratch>().values;
  const double loss = block_reduce(sums.loss, Sum{}, 0.0, scratch), weight = block_reduce(sums.weight, Sum{}, 0.0, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = {loss, weight};
}

// Writes losses [rows] unless null, and partial [blocks] unless null.
template <class Layout, class T>
__global__ __launch_bounds__(row_threads<Layout>, row_residents<Layout, T>) void cross_entropy_kernel(RowShape shape, CrossEntropy<T> c, Accumulate<T>* losses, LossSums* partial) {
  using A = Accumulate<T>;
  const typename Layout::Team team;
  LossSums sums;                             // of the team's rows, in its first lane
  team.for_each_row(shape.rows, [&](int64_t r, bool exists) {
    const int64_t target = exists ? c.targets[r] : c.g.ignore_index;
    const bool counts = c.counts(target);
    const typename Layout::template Row<1, T, T> row(team, shape, {c.logits}, r, counts, lowest<A>());
    const Normalizer<A> n(team, row);
    const double log_sum = log(n.sum), shift = static_cast<double>(n.max);
    double weights = 0, shifted = 0;         // sum_c w[c] and sum_c w[c] * (x[c] - max)
    if (c.g.label_smoothing > 0) {
      for_each_element(row, [&](int64_t i, const auto& v) {
        const double w = static_cast<double>(c.weight(i));
        weights += w;
        shifted += w * (static_cast<double>(v[0]) - shift);
      });
      weights = team.reduce(weights, Sum{}, 0.0), shifted = team.reduce(shifted, Sum{}, 0.0);
    }
    if (team.place() != 0 || !exists) return;
    double loss = target == c.g.ignore_index ? 0.0 : std::numeric_limits<double>::quiet_NaN(), weight = 0;
    if (counts) {
      const double score = static_cast<double>(widen(c.logits[r * shape.size + target]));
      loss = c.of_target(target) * (log_sum - (score - shift));
      if (c.g.label_smoothing > 0) loss += c.of_each() * (weights * log_sum - shifted);
      weight = static_cast<double>(c.weight(target));
    }
    if (losses) losses[r] = static_cast<A>(loss);
    sums.loss += loss;
    sums.weight += weight;
  });
  if (partial) keep_partial(sums, partial);
}

// divisor: null for a sum.
template <class A>
__global__ __launch_bounds__(loss_threads, 1) void finish_losses_kernel(int64_t count, const LossSums* partial, A* result, A* divisor) {
  double* const scratch = shared<BlockScratch>().values;
  LossSums sums;
  for (int64_t i = threadIdx.x; i < count; i += loss_threads) {
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

template <class Layout, class T>
__global__ __launch_bounds__(row_threads<Layout>, row_residents<Layout, T>) void cross_entropy_backward_kernel(RowShape shape, CrossEntropy<T> c, Upstream<Accumulate<T>> upstream, T* dlogits) {
  using A = Accumulate<T>;
  const typename Layout::Team team;
  team.for_each_row(shape.rows, [&](int64_t r, bool exists) {
    const int64_t target = exists ? c.targets[r] : c.g.ignore_index;
    const bool counts = c.counts(target);
    const typename Layout::template Row<1, T, T> row(team, shape, {c.logits}, r, counts, lowest<A>());
    const Normalizer<A> n(team, row);
    double weights = 0;
    if (c.g.label_smoothing > 0) {
      for_each_element(row, [&](int64_t i, const auto&) { weights += static_cast<double>(c.weight(i)); });
      weights = team.reduce(weights, Sum{}, 0.0);
    }
    if (!counts) {
      if (exists) fill_row<Layout::template pack<T, T>>(team, dlogits, r, shape.size, narrow<T>(A(0)));
      return;
    }
    const double of_target = c.of_target(target), of_each = c.of_each();
    const A scale = static_cast<A>((of_target + of_each * weights) / n.sum), each = static_cast<A>(of_each), label = static_cast<A>(of_target), dloss = upstream.of(r);
    store_row(dlogits + r * shape.size, row, [&](int64_t i, const auto& v) {
      const A share = each > 0 ? each * c.weight(i) : A(0);
      return (exp_of(v[0] - n.max) * scale - share - (i == target ? label : A(0))) * dloss;
    });
  });
}

// --- of log-probabilities: a thread a row, and backward a thread an element ---

template <class T>
__global__ __launch_bounds__(loss_threads, 1) void nll_kernel(CrossEntropy<T> c, Accumulate<T>* losses, LossSums* partial) {
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

// Which row and which class an element of the scores [rows / inner, classes, inner] belongs to.
struct Labelled {
  Divide by_inner, by_classes;
  int64_t classes, inner;

  explicit Labelled(const CrossEntropyGeometry& g)
      : by_inner(std::max<int64_t>(g.inner, 1), g.rows * g.classes), by_classes(std::max<int64_t>(g.classes, 1), g.rows * g.classes), classes(g.classes), inner(g.inner) {}
};

template <int pack, class T>
__global__ __launch_bounds__(loss_threads, 1) void nll_backward_kernel(CrossEntropy<T> c, Labelled labelled, Upstream<Accumulate<T>> upstream, T* dx) {
  using A = Accumulate<T>;
  for (int64_t k = global_thread(); k < c.g.rows * c.g.classes / pack; k += global_threads()) {
    Pack<T, pack> gradients;
#pragma unroll
    for (int j = 0; j < pack; ++j) {
      const int64_t i = k * pack + j, plane = labelled.by_inner.quotient(i), sample = labelled.by_classes.quotient(plane);
      const int64_t row = sample * labelled.inner + i - plane * labelled.inner, target = c.targets[row];
      const bool is_label = target == plane - sample * labelled.classes && target != c.g.ignore_index;
      gradients[j] = narrow<T>(is_label ? -c.weight(target) * upstream.of(row) : A(0));
    }
    store_pack<T, pack>(dx, k, gradients);
  }
}

// --- the host's side ---

constexpr int64_t most_partial_sums = 2048;

// Calls f(blocks, start): start(losses, partial) starts the kernel for this geometry in so many blocks, `most` at most.
template <class T, class F>
void with_losses(Queue queue, const char* name, const CrossEntropy<T>& c, int64_t most, const F& f) {
  if (c.g.is_normalized) {
    const Grid grid{blocks_of(std::min(ceil_div<int64_t>(c.g.rows, loss_threads), most)), dim3(loss_threads), sizeof(BlockScratch)};
    return f(grid.blocks.x, [&](Accumulate<T>* losses, LossSums* partial) { launch(queue, name, grid, nll_kernel<T>, c, losses, partial); });
  }
  with_rows<T, T, 1>(c.g.rows, c.g.classes, is_aligned(c.logits), most, [&](auto layout, const RowPlan& plan) {
    f(plan.grid.blocks.x, [&](Accumulate<T>* losses, LossSums* partial) {
      launch(queue, name, plan.grid, cross_entropy_kernel<decltype(layout), T>, plan.shape, c, losses, partial);
    });
  });
}

void cross_entropy(Queue queue, const CrossEntropyGeometry& g, const ConstView& logits, const ConstView& targets, const ConstView& class_weights, const View& losses,
                   const View& divisor) {
  const char* name = g.is_normalized ? "nll_loss" : "cross_entropy";
  dispatch_floating(logits.dtype, name, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const CrossEntropy<T> c(g, logits, targets, class_weights);
    const bool is_each = g.reduction == Reduction::none;
    with_losses<T>(queue, name, c, is_each ? most_blocks : most_partial_sums, [&](unsigned blocks, const auto& start) {
      if (is_each) return start(losses.as<A>(), nullptr);
      const DeviceScratch partial(std::max<int64_t>(1, blocks) * static_cast<int64_t>(sizeof(LossSums)), queue);
      start(nullptr, partial.as<LossSums>());
      launch(queue, "finish_losses", Grid{dim3(1), dim3(loss_threads), sizeof(BlockScratch)}, finish_losses_kernel<A>, blocks, partial.as<LossSums>(), losses.as<A>(),
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
    if (g.is_normalized) {
      const int64_t elements = g.rows * g.classes;
      const bool is_packed = is_aligned(dlogits.data) && elements % full_pack<T> == 0;
      const auto kernel = is_packed ? nll_backward_kernel<full_pack<T>, T> : nll_backward_kernel<1, T>;
      return launch(queue, "nll_loss_backward", grid_for(elements / (is_packed ? full_pack<T> : 1), loss_threads), kernel, c, Labelled(g), upstream, dlogits.as<T>());
    }
    with_rows<T, T, 1>(g.rows, g.classes, is_aligned(logits.data) && is_aligned(dlogits.data), most_blocks, [&](auto layout, const RowPlan& plan) {
      launch(queue, "cross_entropy_backward", plan.grid, cross_entropy_backward_kernel<decltype(layout), T>, plan.shape, c, upstream, dlogits.as<T>());
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
