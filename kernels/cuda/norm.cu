// Batch norm over x [n, channels, spatial], with a ReLU on top if asked: y = gamma * (x - mean_c) / sqrt(var_c + eps) + beta
// (Ioffe & Szegedy 2015, algorithm 1; var is the biased variance over n and spatial), and its backward pass
//     dx = gamma * invstd * (g - mean(g) - xhat * mean(g * xhat)),  dgamma = sum(g * xhat),  dbeta = sum(g),  g = dy where the ReLU let y through.
// Layout: contiguous. Overwrites its outputs. float32, float64, and the half types in float32; statistics are float32 or float64. Sums: Notes in norm_walk.h;
// their order depends on the shape alone: deterministic.
// Floor: forward two reads and one write of x, backward two reads of dy and x (and y under a ReLU) and one write; the second read is free where a channel stays in the cache.
#include <fovea/kernels/table.h>

#include <fovea/kernels/cuda/norm_walk.h>

namespace fovea::kernels::cuda {
namespace {

// y = (x - center) * scale + shift over a block's share of a channel.
template <class A>
struct Affine {
  A center, scale, shift;
  bool has_relu;

  __device__ A operator()(A x) const {
    const A y = (x - center) * scale + shift;
    return has_relu && y < 0 ? A(0) : y;
  }
};

template <int pack, class T>
__device__ void apply(const Walk& walk, int64_t channel, const Affine<Accumulate<T>>& affine, const T* x, T* y) {
  walk.for_each_pack<pack>(
      channel, walk.begin(), walk.end(), [&](const Place& at) { return load_pack<T, pack>(x + at.offset, 0); },
      [&](Pack<T, pack> values, const Place& at) {
#pragma unroll
        for (int j = 0; j < pack; ++j) values[j] = narrow<T>(affine(widen(values[j])));
        store_pack<T, pack>(y + at.offset, 0, values);
      });
}

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_kernel(Walk walk, double eps, bool has_relu, const T* x, const T* gamma, const T* beta, T* y, Accumulate<T>* mean,
                                                                   Accumulate<T>* invstd, const Moments* partial) {
  using A = Accumulate<T>;
  walk.for_each_channel([&](int64_t channel, bool exists) {
    const Moments m = join_channel(walk, channel, exists, partial,
                                   [&](int64_t begin, int64_t end) { return lane_moments<pack>(walk, x, channel, begin, end); }, JoinMoments{});
    if (!exists) return;
    const double inverse = 1.0 / sqrt(m.variance() + eps), scale = inverse * value_or(gamma, channel, 1);
    const A center = static_cast<A>(m.mean);
    const double shift = value_or(beta, channel, 0) + (static_cast<double>(center) - m.mean) * scale;       // makes up for center's rounding
    if (blockIdx.y == 0 && walk.team.lane() == 0) {
      mean[channel] = center;
      invstd[channel] = static_cast<A>(inverse);
    }
    apply<pack>(walk, channel, Affine<A>{center, static_cast<A>(scale), static_cast<A>(shift), has_relu}, x, y);
  });
}

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_eval_kernel(Walk walk, double eps, bool has_relu, const T* x, const T* gamma, const T* beta, const Accumulate<T>* mean,
                                                                        const Accumulate<T>* variance, T* y) {
  using A = Accumulate<T>;
  walk.for_each_channel([&](int64_t channel, bool exists) {
    if (!exists) return;
    const double scale = 1.0 / sqrt(static_cast<double>(variance[channel]) + eps) * value_or(gamma, channel, 1);
    apply<pack>(walk, channel, Affine<A>{mean[channel], static_cast<A>(scale), static_cast<A>(value_or(beta, channel, 0)), has_relu}, x, y);
  });
}

// --- backward ---

template <class T>
struct Backward {
  using A = Accumulate<T>;
  const T *dy, *x, *y;                       // y: null without a ReLU
  const T* gamma;
  const A *mean, *invstd;
  T *dx, *dgamma, *dbeta;

  template <int pack>
  __device__ GradientPacks<T, pack> load(const Place& at) const {
    GradientPacks<T, pack> packs;
    packs.dy = load_pack<T, pack>(dy + at.offset, 0);
    packs.x = load_pack<T, pack>(x + at.offset, 0);
    if (y) packs.y = load_pack<T, pack>(y + at.offset, 0);
    return packs;
  }
  template <int pack>
  __device__ A gradient(const GradientPacks<T, pack>& packs, int j) const { return y && widen(packs.y[j]) <= 0 ? A(0) : widen(packs.dy[j]); }

  template <int pack>
  __device__ GradientSums sums(const Walk& walk, int64_t channel, int64_t begin, int64_t end) const {
    const A center = mean[channel];
    return lane_sums<pack, A>(
        walk, channel, begin, end, [&](const Place& at) { return load<pack>(at); },
        [&](const GradientPacks<T, pack>& packs, const Place&, int j, A& sum, A& product) {
          const A g = gradient(packs, j);
          sum += g;
          product += g * (widen(packs.x[j]) - center);
        });
  }
};

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_sums_kernel(Walk walk, Backward<T> b, GradientSums* partial) {
  walk.for_each_channel([&](int64_t channel, bool exists) {
    const GradientSums sums = join_lanes<GradientSums>(
        walk, exists, walk.begin(), walk.end(), [&](int64_t begin, int64_t end) { return b.template sums<pack>(walk, channel, begin, end); }, JoinSums{});
    if (exists && walk.team.lane() == 0) partial[channel * walk.splits + blockIdx.y] = sums;
  });
}

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void batch_norm_backward_kernel(Walk walk, Backward<T> b, const GradientSums* partial) {
  using A = Accumulate<T>;
  walk.for_each_channel([&](int64_t channel, bool exists) {
    const GradientSums sums = join_channel(
        walk, channel, exists, partial, [&](int64_t begin, int64_t end) { return b.template sums<pack>(walk, channel, begin, end); }, JoinSums{});
    if (!exists) return;
    const double inverse = static_cast<double>(b.invstd[channel]), count = static_cast<double>(walk.elements());
    if (blockIdx.y == 0 && walk.team.lane() == 0) {
      if (b.dgamma) b.dgamma[channel] = narrow<T>(static_cast<A>(sums.product * inverse));
      if (b.dbeta) b.dbeta[channel] = narrow<T>(static_cast<A>(sums.gradient));
    }
    if (!b.dx) return;
    const A center = b.mean[channel], scale = static_cast<A>(inverse * value_or(b.gamma, channel, 1)), mean_g = static_cast<A>(sums.gradient / count);
    const A slope = static_cast<A>(sums.product * inverse * inverse / count);
    walk.for_each_pack<pack>(
        channel, walk.begin(), walk.end(), [&](const Place& at) { return b.template load<pack>(at); },
        [&](const GradientPacks<T, pack>& packs, const Place& at) {
          Pack<T, pack> out;
#pragma unroll
          for (int j = 0; j < pack; ++j) out[j] = narrow<T>(scale * (b.gradient(packs, j) - mean_g - (widen(packs.x[j]) - center) * slope));
          store_pack<T, pack>(b.dx + at.offset, 0, out);
        });
  });
}

// --- the host's side ---

Walk walk_of(const NormGeometry& g, int pack) { return {g.channels, g.n, g.spatial, g.channels * g.spatial, pack}; }

// Calls f with the type that x is computed in and the number of elements of an access: as many as fill it, where planes split into that many.
template <class F, class... Pointers>
void with_pack(const char* op, DType dtype, int64_t run, const F& f, const Pointers*... pointers) {
  dispatch_floating(dtype, op, [&](auto zero) {
    constexpr int full = full_pack<decltype(zero)>;
    if (run % full == 0 && all_aligned(pointers...)) f(zero, std::integral_constant<int, full>{});
    else f(zero, std::integral_constant<int, 1>{});
  });
}

void batch_norm_train(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& gamma, const ConstView& beta, const View& y,
                      const View& mean, const View& invstd) {
  with_pack("batch_norm", x.dtype, g.spatial, [&](auto zero, auto pack) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    check_statistics<T>("batch_norm", mean, invstd);
    const Walk walk = walk_of(g, pack.value);
    const auto finish = [&](const Moments* partial) {
      launch(queue, "batch_norm", walk.template grid<Moments>(), batch_norm_kernel<pack.value, T>, walk, g.eps, has_relu, x.as<T>(), gamma.as<T>(), beta.as<T>(),
             y.as<T>(), mean.as<A>(), invstd.as<A>(), partial);
    };
    if (walk.splits == 1) return finish(nullptr);
    const DeviceScratch partial(walk.template partial_bytes<Moments>(), queue);
    launch(queue, "batch_norm_moments", walk.template grid<Moments>(), moments_kernel<pack.value, T>, walk, x.as<T>(), partial.as<Moments>());
    finish(partial.as<Moments>());
  }, x.data, y.data);
}

void batch_norm_eval(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& gamma, const ConstView& beta, const ConstView& mean,
                     const ConstView& variance, const View& y) {
  with_pack("batch_norm", x.dtype, g.spatial, [&](auto zero, auto pack) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    check_statistics<T>("batch_norm", mean, variance);
    const Walk walk = walk_of(g, pack.value);
    launch(queue, "batch_norm_eval", walk.template grid<Moments>(), batch_norm_eval_kernel<pack.value, T>, walk, g.eps, has_relu, x.as<T>(), gamma.as<T>(), beta.as<T>(),
           mean.as<A>(), variance.as<A>(), y.as<T>());
  }, x.data, y.data);
}

void batch_norm_backward(Queue queue, const NormGeometry& g, bool has_relu, const ConstView& dy, const ConstView& x, const ConstView& y, const ConstView& gamma,
                         const ConstView& mean, const ConstView& invstd, const View& dx, const View& dgamma, const View& dbeta) {
  const void* const mask = has_relu ? y.data : nullptr;
  with_pack("batch_norm_backward", x.dtype, g.spatial, [&](auto zero, auto pack) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    check_statistics<T>("batch_norm_backward", mean, invstd);
    const Walk walk = walk_of(g, pack.value);
    const Backward<T> b{dy.as<T>(), x.as<T>(), static_cast<const T*>(mask), gamma.as<T>(), mean.as<A>(), invstd.as<A>(), dx.as<T>(), dgamma.as<T>(), dbeta.as<T>()};
    const auto finish = [&](const GradientSums* partial) {
      launch(queue, "batch_norm_backward", walk.template grid<GradientSums>(), batch_norm_backward_kernel<pack.value, T>, walk, b, partial);
    };
    if (walk.splits == 1) return finish(nullptr);
    const DeviceScratch partial(walk.template partial_bytes<GradientSums>(), queue);
    launch(queue, "batch_norm_sums", walk.template grid<GradientSums>(), batch_norm_sums_kernel<pack.value, T>, walk, b, partial.as<GradientSums>());
    finish(partial.as<GradientSums>());
  }, dy.data, x.data, mask, dx.data);
}

}  // namespace

void add_batch_norm(KernelTable& t) {
  t.batch_norm_train = batch_norm_train;
  t.batch_norm_eval = batch_norm_eval;
  t.batch_norm_backward = batch_norm_backward;
}

}  // namespace fovea::kernels::cuda
