// Batch norm over x [n, channels, spatial], y = gamma * (x - mean_c) / sqrt(var_c + eps) + beta (Ioffe & Szegedy 2015, algorithm 1; var is
// the biased variance over n and spatial), with a residual added and a ReLU on top if asked, and its backward pass
//     dx = gamma * invstd * (g - mean(g) - xhat * mean(g * xhat)),  dgamma = sum(g * xhat),  dbeta = sum(g),
//     g = dresidual = dy where the ReLU let y through.
// The running statistics that evaluation uses are moved by whoever has found a channel's own.
// Layout: contiguous here; channels-last tensors and rows of features go to norm_columns.cu. Overwrites its outputs. float32, float64, and the
// half types in float32; statistics are float32 or float64. Sums: Notes in norm_walk.h and moments.h; their order depends on the shape alone: deterministic.
// Floor: forward two reads of x, one of the residual and one write, backward two reads of dy and x (and y under a ReLU) and one write (two with a
// residual); the second read is free where a channel stays in the cache.
#include <fovea/kernels/table.h>

#include <fovea/kernels/cuda/norm_columns.h>
#include <fovea/kernels/cuda/norm_walk.h>

namespace fovea::kernels::cuda {
namespace {

template <class T, int pack>
struct ForwardPacks {
  Pack<T, pack> x, residual;
};

// y = relu(affine(x) + residual) over a block's share of a channel.
template <int pack, class T>
__device__ void apply(const Walk& walk, int64_t channel, const Affine<Accumulate<T>>& affine, const NormForward<T>& f) {
  const auto load = [&](const Place& at) {
    ForwardPacks<T, pack> packs = {};
    packs.x = load_pack<T, pack>(f.x + at.offset, 0);
    if (f.residual) packs.residual = load_pack<T, pack>(f.residual + at.offset, 0);
    return packs;
  };
  walk.for_each_pack<pack>(channel, walk.begin(), walk.end(), load, [&](const ForwardPacks<T, pack>& packs, const Place& at) {
    Pack<T, pack> y;
#pragma unroll
    for (int j = 0; j < pack; ++j) y[j] = f.result(affine(widen(packs.x[j])), packs.residual[j]);
    store_pack<T, pack>(f.y + at.offset, 0, y);
  });
}

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_kernel(Walk walk, NormForward<T> f, BatchStatistics<T> statistics,
                                                                    const Moments* partial) {
  walk.for_each_channel([&](int64_t channel, bool exists) {
    const Moments m = join_channel(walk, channel, exists, partial, FindMoments<pack, T>{f.x});
    if (!exists) return;
    apply<pack>(walk, channel, statistics.affine(f, channel, m.mean, m.variance(), blockIdx.y == 0 && walk.team.lane() == 0), f);
  });
}

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_eval_kernel(Walk walk, NormForward<T> f, KnownStatistics<T> statistics) {
  walk.for_each_channel([&](int64_t channel, bool exists) {
    if (exists) apply<pack>(walk, channel, statistics.affine(f, channel), f);
  });
}

// --- backward ---

template <int pack, class T>
struct FindSums {
  using Partial = GradientSums;
  using Join = JoinSums;
  NormBackward<T> b;
  __device__ GradientSums operator()(const Walk& walk, int64_t channel, int64_t begin, int64_t end) const {
    using A = Accumulate<T>;
    const A center = b.mean[channel];
    return lane_sums<pack, A>(
        walk, channel, begin, end, [&](const Place& at) { return load_gradients<pack>(b, at.offset); },
        [&](const GradientPacks<T, pack>& packs, const Place&, int j, A& sum, A& product) {
          const A g = b.gradient(packs.dy[j], packs.y[j]);
          sum += g;
          product += g * (widen(packs.x[j]) - center);
        });
  }
};

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_backward_kernel(Walk walk, NormBackward<T> b, const GradientSums* partial) {
  walk.for_each_channel([&](int64_t channel, bool exists) {
    const GradientSums sums = join_channel(walk, channel, exists, partial, FindSums<pack, T>{b});
    if (!exists) return;
    const Slope<Accumulate<T>> slope = b.slope(channel, sums, blockIdx.y == 0 && walk.team.lane() == 0);
    if (!b.dx && !b.dresidual) return;
    walk.for_each_pack<pack>(
        channel, walk.begin(), walk.end(), [&](const Place& at) { return load_gradients<pack>(b, at.offset); },
        [&](const GradientPacks<T, pack>& packs, const Place& at) {
          Pack<T, pack> dx, dresidual;
#pragma unroll
          for (int j = 0; j < pack; ++j) {
            const Accumulate<T> g = b.gradient(packs.dy[j], packs.y[j]);
            dx[j] = narrow<T>(slope(g, widen(packs.x[j])));
            dresidual[j] = narrow<T>(g);
          }
          if (b.dx) store_pack<T, pack>(b.dx + at.offset, 0, dx);
          if (b.dresidual) store_pack<T, pack>(b.dresidual + at.offset, 0, dresidual);
        });
  });
}

// --- the host's side ---

Walk walk_of(const NormGeometry& g, int pack) { return {g.channels, g.n, g.spatial, g.channels * g.spatial, pack}; }

// Whether neighbours in memory belong to different channels.
bool is_by_columns(const NormGeometry& g, const ConstView& x) { return g.channels > 1 && (g.spatial == 1 || !x.is_contiguous()); }

__global__ __launch_bounds__(1) void count_batch_kernel(int64_t* batches) { ++*batches; }

void train(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta, const View& y,
           const View& mean, const View& invstd, const RunningUpdate& update) {
  if (is_by_columns(g, x)) return batch_norm_train_columns(queue, g, has_relu, x, residual, gamma, beta, y, mean, invstd, update);
  with_pack("batch_norm", x.dtype, g.spatial, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const NormForward<T> f("batch_norm", has_relu, x, residual, gamma, beta, y);
    const BatchStatistics<T> statistics("batch_norm", g, mean, invstd, update);
    const Walk walk = walk_of(g, pack.value);
    with_partials(queue, "batch_norm_moments", walk, FindMoments<pack.value, T>{f.x}, [&](const Moments* partial) {
      launch(queue, "batch_norm", walk.template grid<Moments>(), batch_norm_kernel<pack.value, T>, walk, f, statistics, partial);
    });
  }, x.data, residual.data, y.data);
}

void batch_norm_train(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma,
                      const ConstView& beta, const View& y, const View& mean, const View& invstd, const RunningUpdate& update) {
  train(queue, g, has_relu, x, residual, gamma, beta, y, mean, invstd, update);
  // By a kernel of its own where all threads read the number before, and where no channel's keeper can count. Last: what fails has counted nothing.
  if (update.batches && (update.is_cumulative || g.channels == 0))
    launch(queue, "count_batch", Grid{dim3(1), dim3(1)}, count_batch_kernel, update.batches.as<int64_t>());
}

void batch_norm_eval(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma,
                     const ConstView& beta, const ConstView& mean, const ConstView& variance, const View& y) {
  if (is_by_columns(g, x)) return batch_norm_eval_columns(queue, g, has_relu, x, residual, gamma, beta, mean, variance, y);
  with_pack("batch_norm", x.dtype, g.spatial, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const NormForward<T> f("batch_norm", has_relu, x, residual, gamma, beta, y);
    const KnownStatistics<T> statistics("batch_norm", g.eps, mean, variance);
    const Walk walk = walk_of(g, pack.value);
    launch(queue, "batch_norm_eval", walk.template grid<Moments>(), batch_norm_eval_kernel<pack.value, T>, walk, f, statistics);
  }, x.data, residual.data, y.data);
}

void batch_norm_backward(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& dy, const ConstView& x, const ConstView& y,
                         const ConstView& gamma, const ConstView& mean, const ConstView& invstd, const View& dx, const View& dresidual,
                         const View& dgamma, const View& dbeta) {
  const ConstView mask = has_relu ? y : ConstView();
  if (is_by_columns(g, x)) return batch_norm_backward_columns(queue, g, dy, x, mask, gamma, mean, invstd, dx, dresidual, dgamma, dbeta);
  with_pack("batch_norm_backward", x.dtype, g.spatial, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const NormBackward<T> b(g, dy, x, mask, gamma, mean, invstd, dx, dresidual, dgamma, dbeta);
    const Walk walk = walk_of(g, pack.value);
    with_partials(queue, "batch_norm_sums", walk, FindSums<pack.value, T>{b}, [&](const GradientSums* partial) {
      launch(queue, "batch_norm_backward", walk.template grid<GradientSums>(), batch_norm_backward_kernel<pack.value, T>, walk, b, partial);
    });
  }, dy.data, x.data, mask.data, dx.data, dresidual.data);
}

}  // namespace

void add_batch_norm(KernelTable& t) {
  t.computes_half.add(Family::norm);         // group_norm.cu's too
  t.batch_norm_train = batch_norm_train;
  t.batch_norm_eval = batch_norm_eval;
  t.batch_norm_backward = batch_norm_backward;
}

}  // namespace fovea::kernels::cuda
