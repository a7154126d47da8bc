// Batch norm over rows of channels: channels-last tensors, with a row for each place of each sample, and x [n, channels]. Formulas as in norm.cu.
// Layout: [rows, channels], dense. Overwrites its outputs. float32, float64, and the half types in float32; statistics are float32 or float64.
// Floor: forward two reads of x, one of the residual and one write, backward two reads of dy and x (and y under a ReLU) and one write (two with a
// residual); a second read is free as far as the cache still holds x.
//
// Note [Rows are split, channels lie across the threads]
// A thread has as many neighbouring channels as one access of 16 bytes holds, neighbouring threads have neighbouring packs, and the lanes of a team
// (core/team.h) take rows in turn. With few rows a block sees all of its channels' and one kernel does everything, reading x twice, the second time
// from the cache. Otherwise rows are split over blocks: the first kernel leaves a partial result for each channel and split, the second joins them,
// a block a channel, and the third goes over the rows again, from the last split to the first, because what was read last may still be in the cache.
// Who joins with whom depends on the shape alone: deterministic.
#include <fovea/kernels/cuda/norm_columns.h>

namespace fovea::kernels::cuda {
namespace {

struct Columns {
  int64_t rows, channels;
  Team team;                                 // of packs
  int64_t splits, per_split;                 // blocks that share the rows, and the rows of each

  Columns(int64_t all_rows, int64_t all_channels, int pack) : rows(all_rows), channels(all_channels) {
    const int64_t packs = ceil_div<int64_t>(channels, pack);
    team = column_team(packs, std::max<int64_t>(rows, 1));
    const int64_t wanted = splits_for(ceil_div<int64_t>(packs, team.width), rows / team.lanes);
    per_split = ceil_div(std::max<int64_t>(rows, 1), wanted);
    splits = ceil_div(std::max<int64_t>(rows, 1), per_split);
  }

  Grid grid(int pack, size_t shared_bytes) const {
    const int64_t blocks = ceil_div<int64_t>(channels, static_cast<int64_t>(team.width) * pack);
    return {dim3(static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 16)), static_cast<unsigned>(splits)), dim3(team_threads), shared_bytes};
  }

  __device__ int64_t begin(int64_t split) const { return split * per_split; }
  __device__ int64_t end(int64_t split) const { return min(rows, (split + 1) * per_split); }

  // f(first channel, whether there is such a channel) for the packs of this thread, all threads of the block together.
  template <int pack, class F>
  __device__ void for_each_pack(const F& f) const {
    const int64_t width = static_cast<int64_t>(team.width) * pack;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * width; at < channels; at += static_cast<int64_t>(gridDim.x) * width) {
      const int64_t first = at + team.member() * pack;
      f(first, first < channels);
    }
  }

  // use(load(offset), offset) for this lane's rows of a pack in [begin, end); several loads are under way at once.
  template <class Load, class Use>
  __device__ void for_each_row(int64_t first, int64_t begin, int64_t end, const Load& load, const Use& use) const {
    using Loaded = decltype(load(int64_t{}));
    constexpr int unroll = sizeof(Loaded) > 32 ? 2 : 4;                      // as many as registers hold
    for (int64_t row = begin + team.lane(); row < end; row += unroll * team.lanes) {
      Loaded loaded[unroll];
#pragma unroll
      for (int u = 0; u < unroll; ++u)
        if (row + u * team.lanes < end) loaded[u] = load((row + u * team.lanes) * channels + first);
#pragma unroll
      for (int u = 0; u < unroll; ++u)
        if (row + u * team.lanes < end) use(loaded[u], (row + u * team.lanes) * channels + first);
    }
  }
};

// --- statistics and sums ---

// Moments of neighbouring channels over the same rows.
template <int pack>
struct PackMoments {
  double count = 0, mean[pack] = {}, m2[pack] = {};
  __device__ Moments of(int j) const { return {count, mean[j], m2[j]}; }
};

template <int pack>
struct JoinPackMoments {
  __device__ PackMoments<pack> operator()(const PackMoments<pack>& a, const PackMoments<pack>& b) const {
    if (a.count == 0 || b.count == 0) return a.count == 0 ? b : a;
    PackMoments<pack> sum;
    sum.count = a.count + b.count;
    const double share = b.count / sum.count, weight = a.count * share;
#pragma unroll
    for (int j = 0; j < pack; ++j) {
      const double delta = b.mean[j] - a.mean[j];
      sum.mean[j] = a.mean[j] + delta * share;
      sum.m2[j] = a.m2[j] + b.m2[j] + delta * weight * delta;
    }
    return sum;
  }
};

template <int pack>
struct PackSums {
  double gradient[pack] = {}, product[pack] = {};
  __device__ GradientSums of(int j) const { return {gradient[j], product[j]}; }
};

template <int pack>
struct JoinPackSums {
  __device__ PackSums<pack> operator()(const PackSums<pack>& a, const PackSums<pack>& b) const {
    PackSums<pack> sum;
#pragma unroll
    for (int j = 0; j < pack; ++j) {
      sum.gradient[j] = a.gradient[j] + b.gradient[j];
      sum.product[j] = a.product[j] + b.product[j];
    }
    return sum;
  }
};

// Note [Variance without cancellation] in moments.h: batches of rows here. LaneMoments would divide twice in every column; batches have one
// size for all columns, so it is divided by once.
template <int pack, class T>
struct FindColumnMoments {
  using Packed = PackMoments<pack>;
  using Partial = Moments;
  using Join = JoinPackMoments<pack>;
  const T* x;

  __device__ Packed operator()(const Columns& columns, int64_t first, int64_t begin, int64_t end) const {
    using A = Accumulate<T>;
    constexpr int loads = 4;
    const int64_t lanes = columns.team.lanes;
    A count = 0, mean[pack] = {}, m2[pack] = {};
    for (int64_t row = begin + columns.team.lane(); row < end; row += loads * lanes) {
      Pack<T, pack> values[loads];
      int filled = 0;
#pragma unroll
      for (int u = 0; u < loads; ++u) {
        if (row + u * lanes >= end) break;
        values[u] = load_pack<T, pack>(x + (row + u * lanes) * columns.channels + first, 0);
        ++filled;
      }
      const A size = static_cast<A>(filled), total = count + size, share = size / total, one = A(1) / size, weight = count * share;
#pragma unroll
      for (int j = 0; j < pack; ++j) {
        A sum = 0, squares = 0;
#pragma unroll
        for (int u = 0; u < loads; ++u) sum += u < filled ? widen(values[u][j]) : A(0);
        const A center = sum * one, delta = center - mean[j];
#pragma unroll
        for (int u = 0; u < loads; ++u) {
          const A deviation = u < filled ? widen(values[u][j]) - center : A(0);
          squares += deviation * deviation;
        }
        mean[j] += delta * share;
        m2[j] += squares + delta * weight * delta;
      }
      count = total;
    }
    Packed result;
    result.count = static_cast<double>(count);
#pragma unroll
    for (int j = 0; j < pack; ++j) {
      result.mean[j] = static_cast<double>(mean[j]);
      result.m2[j] = static_cast<double>(m2[j]);
    }
    return result;
  }
};

// Sums in the type that T is computed in over a run of rows, in float64 beyond.
template <int pack, class T>
struct FindColumnSums {
  using Packed = PackSums<pack>;
  using Partial = GradientSums;
  using Join = JoinPackSums<pack>;
  NormBackward<T> b;

  __device__ Packed operator()(const Columns& columns, int64_t first, int64_t begin, int64_t end) const {
    using A = Accumulate<T>;
    constexpr int64_t run = 64;
    A center[pack];
#pragma unroll
    for (int j = 0; j < pack; ++j) center[j] = b.mean[first + j];
    Packed total;
    for (int64_t from = begin; from < end; from += run * columns.team.lanes) {
      A gradient[pack] = {}, product[pack] = {};
      columns.for_each_row(
          first, from, min(end, from + run * columns.team.lanes), [&](int64_t offset) { return load_gradients<pack>(b, offset); },
          [&](const GradientPacks<T, pack>& packs, int64_t) {
#pragma unroll
            for (int j = 0; j < pack; ++j) {
              const A g = b.gradient(packs.dy[j], packs.y[j]);
              gradient[j] += g;
              product[j] += g * (widen(packs.x[j]) - center[j]);
            }
          });
#pragma unroll
      for (int j = 0; j < pack; ++j) {
        total.gradient[j] += static_cast<double>(gradient[j]);
        total.product[j] += static_cast<double>(product[j]);
      }
    }
    return total;
  }
};

// What all lanes together find in the rows [begin, end).
template <class Find>
__device__ typename Find::Packed join_rows(const Columns& columns, int64_t first, bool exists, int64_t begin, int64_t end, const Find& find) {
  using Packed = typename Find::Packed;
  Packed* const scratch = &shared<Packed>();
  return team_reduce(columns.team, exists ? find(columns, first, begin, end) : Packed{}, typename Find::Join{}, scratch);
}

// Leaves partial results [channels, splits].
template <int pack, class Find>
__global__ __launch_bounds__(team_threads, 2) void column_partial_kernel(Columns columns, Find find, typename Find::Partial* partial) {
  columns.for_each_pack<pack>([&](int64_t first, bool exists) {
    const auto found = join_rows(columns, first, exists, columns.begin(blockIdx.y), columns.end(blockIdx.y), find);
    if (!exists || columns.team.lane() != 0) return;
#pragma unroll
    for (int j = 0; j < pack; ++j) partial[(first + j) * columns.splits + blockIdx.y] = found.of(j);
  });
}

// Joins each channel's partial results [channels, splits] and calls finish(channel, joined) in one thread.
template <class Partial, class Join, class Finish>
__global__ __launch_bounds__(team_threads) void column_finish_kernel(Team team, int64_t channels, int64_t splits, const Partial* partial, Finish finish) {
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * team.width; at < channels; at += static_cast<int64_t>(gridDim.x) * team.width) {
    const int64_t channel = at + team.member();
    Partial total{};
    if (channel < channels)
      for (int64_t split = team.lane(); split < splits; split += team.lanes) total = Join{}(total, partial[channel * splits + split]);
    total = team_reduce(team, total, Join{}, &shared<Partial>());
    if (channel < channels && team.lane() == 0) finish(channel, total);
  }
}

// --- forward ---

template <class T, int pack>
struct ForwardPacks {
  Pack<T, pack> x, residual;
};

template <int pack, class T>
__device__ void apply_rows(const Columns& columns, int64_t first, int64_t begin, int64_t end, const Affine<Accumulate<T>> (&affine)[pack], const NormForward<T>& f) {
  const auto load = [&](int64_t offset) {
    ForwardPacks<T, pack> packs = {};
    packs.x = load_pack<T, pack>(f.x + offset, 0);
    if (f.residual) packs.residual = load_pack<T, pack>(f.residual + offset, 0);
    return packs;
  };
  columns.for_each_row(first, begin, end, load, [&](const ForwardPacks<T, pack>& packs, int64_t offset) {
    Pack<T, pack> y;
#pragma unroll
    for (int j = 0; j < pack; ++j) y[j] = f.result(affine[j](widen(packs.x[j])), packs.residual[j]);
    store_pack<T, pack>(f.y + offset, 0, y);
  });
}

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_columns_kernel(Columns columns, NormForward<T> f, BatchStatistics<T> statistics) {
  columns.for_each_pack<pack>([&](int64_t first, bool exists) {
    const PackMoments<pack> moments = join_rows(columns, first, exists, 0, columns.rows, FindColumnMoments<pack, T>{f.x});
    if (!exists) return;
    Affine<Accumulate<T>> affine[pack];
#pragma unroll
    for (int j = 0; j < pack; ++j)
      affine[j] = statistics.affine(f, first + j, moments.mean[j], moments.of(j).variance(), columns.team.lane() == 0);
    apply_rows<pack>(columns, first, 0, columns.rows, affine, f);
  });
}

template <class T>
struct FinishMoments {
  NormForward<T> f;
  BatchStatistics<T> statistics;
  Affine<Accumulate<T>>* affine;             // [channels]
  __device__ void operator()(int64_t channel, const Moments& m) const { affine[channel] = statistics.affine(f, channel, m.mean, m.variance(), true); }
};

// source(f, channel) gives a channel's affine function.
template <int pack, class T, class Source>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_columns_apply_kernel(Columns columns, NormForward<T> f, Source source) {
  const int64_t split = columns.splits - 1 - blockIdx.y;
  columns.for_each_pack<pack>([&](int64_t first, bool exists) {
    if (!exists) return;
    Affine<Accumulate<T>> affine[pack];
#pragma unroll
    for (int j = 0; j < pack; ++j) affine[j] = source(f, first + j);
    apply_rows<pack>(columns, first, columns.begin(split), columns.end(split), affine, f);
  });
}

template <class T>
struct FinishedStatistics {
  const Affine<Accumulate<T>>* affine;
  __device__ Affine<Accumulate<T>> operator()(const NormForward<T>&, int64_t channel) const { return affine[channel]; }
};

template <class T>
struct RunningStatistics {
  KnownStatistics<T> statistics;
  __device__ Affine<Accumulate<T>> operator()(const NormForward<T>& f, int64_t channel) const { return statistics.affine(f, channel); }
};

// --- backward ---

template <int pack, class T>
__device__ void gradient_rows(const Columns& columns, int64_t first, int64_t begin, int64_t end, const Slope<Accumulate<T>> (&slope)[pack], const NormBackward<T>& b) {
  if (!b.dx && !b.dresidual) return;
  columns.for_each_row(
      first, begin, end, [&](int64_t offset) { return load_gradients<pack>(b, offset); },
      [&](const GradientPacks<T, pack>& packs, int64_t offset) {
        Pack<T, pack> dx, dresidual;
#pragma unroll
        for (int j = 0; j < pack; ++j) {
          const Accumulate<T> g = b.gradient(packs.dy[j], packs.y[j]);
          dx[j] = narrow<T>(slope[j](g, widen(packs.x[j])));
          dresidual[j] = narrow<T>(g);
        }
        if (b.dx) store_pack<T, pack>(b.dx + offset, 0, dx);
        if (b.dresidual) store_pack<T, pack>(b.dresidual + offset, 0, dresidual);
      });
}

// One block to a multiprocessor: it is for small tensors, and more registers than two blocks leave keep its sums from spilling. The 1 has to be said: by
// itself ptxas aims at more blocks, and spills for them.
template <int pack, class T>
__global__ __launch_bounds__(team_threads, 1) void batch_norm_columns_backward_kernel(Columns columns, NormBackward<T> b) {
  columns.for_each_pack<pack>([&](int64_t first, bool exists) {
    const PackSums<pack> sums = join_rows(columns, first, exists, 0, columns.rows, FindColumnSums<pack, T>{b});
    if (!exists) return;
    Slope<Accumulate<T>> slope[pack];
#pragma unroll
    for (int j = 0; j < pack; ++j) slope[j] = b.slope(first + j, sums.of(j), columns.team.lane() == 0);
    gradient_rows<pack>(columns, first, 0, columns.rows, slope, b);
  });
}

template <class T>
struct FinishSums {
  NormBackward<T> b;
  Slope<Accumulate<T>>* slope;               // [channels]
  __device__ void operator()(int64_t channel, const GradientSums& sums) const { slope[channel] = b.slope(channel, sums, true); }
};

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_columns_gradient_kernel(Columns columns, NormBackward<T> b, const Slope<Accumulate<T>>* slopes) {
  const int64_t split = columns.splits - 1 - blockIdx.y;
  columns.for_each_pack<pack>([&](int64_t first, bool exists) {
    if (!exists) return;
    Slope<Accumulate<T>> slope[pack];
#pragma unroll
    for (int j = 0; j < pack; ++j) slope[j] = slopes[first + j];
    gradient_rows<pack>(columns, first, columns.begin(split), columns.end(split), slope, b);
  });
}

// --- the host's side ---

// The first two kernels over split rows: what `find` finds, joined over each channel, goes to `finish`.
template <int pack, class Join, class Find, class Finish>
void join_channels(Queue queue, const char* name, const Columns& columns, const Find& find, const Finish& finish) {
  using Partial = typename Find::Partial;
  const DeviceScratch partial(columns.channels * columns.splits * static_cast<int64_t>(sizeof(Partial)), queue);
  launch(queue, name, columns.grid(pack, sizeof(typename Find::Packed) * team_threads), column_partial_kernel<pack, Find>, columns, find, partial.as<Partial>());
  const Team team = row_team(columns.splits);
  const int64_t blocks = std::min<int64_t>(ceil_div<int64_t>(columns.channels, team.width), 1 << 16);
  launch(queue, "batch_norm_columns_finish", Grid{dim3(static_cast<unsigned>(blocks)), dim3(team_threads), sizeof(Partial) * team_threads},
         column_finish_kernel<Partial, Join, Finish>, team, columns.channels, columns.splits, partial.as<Partial>(), finish);
}

}  // namespace

void batch_norm_train_columns(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma,
                              const ConstView& beta, const View& y, const View& mean, const View& invstd, const RunningUpdate& update) {
  with_pack("batch_norm", x.dtype, g.channels, [&](auto zero, auto pack) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const NormForward<T> f("batch_norm", has_relu, x, residual, gamma, beta, y);
    const BatchStatistics<T> statistics("batch_norm", g, mean, invstd, update);
    const Columns columns(g.n * g.spatial, g.channels, pack.value);
    if (columns.splits == 1)
      return launch(queue, "batch_norm_columns", columns.grid(pack.value, sizeof(PackMoments<pack.value>) * team_threads),
                    batch_norm_columns_kernel<pack.value, T>, columns, f, statistics);
    const DeviceScratch affine(g.channels * static_cast<int64_t>(sizeof(Affine<A>)), queue);
    join_channels<pack.value, JoinMoments>(queue, "batch_norm_columns_moments", columns, FindColumnMoments<pack.value, T>{f.x},
                                           FinishMoments<T>{f, statistics, affine.as<Affine<A>>()});
    launch(queue, "batch_norm_columns_apply", columns.grid(pack.value, 0), batch_norm_columns_apply_kernel<pack.value, T, FinishedStatistics<T>>, columns, f,
           FinishedStatistics<T>{affine.as<Affine<A>>()});
  }, x.data, residual.data, y.data);
}

void batch_norm_eval_columns(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma,
                             const ConstView& beta, const ConstView& mean, const ConstView& variance, const View& y) {
  with_pack("batch_norm", x.dtype, g.channels, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const NormForward<T> f("batch_norm", has_relu, x, residual, gamma, beta, y);
    const RunningStatistics<T> statistics{KnownStatistics<T>("batch_norm", g.eps, mean, variance)};
    const Columns columns(g.n * g.spatial, g.channels, pack.value);
    launch(queue, "batch_norm_columns_eval", columns.grid(pack.value, 0), batch_norm_columns_apply_kernel<pack.value, T, RunningStatistics<T>>, columns, f,
           statistics);
  }, x.data, residual.data, y.data);
}

void batch_norm_backward_columns(Queue queue, const NormGeometry& g, const ConstView& dy, const ConstView& x, const ConstView& y, const ConstView& gamma,
                                 const ConstView& mean, const ConstView& invstd, const View& dx, const View& dresidual, const View& dgamma, const View& dbeta) {
  with_pack("batch_norm_backward", x.dtype, g.channels, [&](auto zero, auto pack) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const NormBackward<T> b(g, dy, x, y, gamma, mean, invstd, dx, dresidual, dgamma, dbeta);
    const Columns columns(g.n * g.spatial, g.channels, pack.value);
    if (columns.splits == 1)
      return launch(queue, "batch_norm_columns_backward", columns.grid(pack.value, sizeof(PackSums<pack.value>) * team_threads),
                    batch_norm_columns_backward_kernel<pack.value, T>, columns, b);
    const DeviceScratch slope(g.channels * static_cast<int64_t>(sizeof(Slope<A>)), queue);
    join_channels<pack.value, JoinSums>(queue, "batch_norm_columns_sums", columns, FindColumnSums<pack.value, T>{b}, FinishSums<T>{b, slope.as<Slope<A>>()});
    launch(queue, "batch_norm_columns_gradient", columns.grid(pack.value, 0), batch_norm_columns_gradient_kernel<pack.value, T>, columns, b,
           slope.as<Slope<A>>());
  }, dy.data, x.data, y.data, dx.data, dresidual.data);
}

}  // namespace fovea::kernels::cuda
