// Group norm over x [n, channels, spatial] and layer norm over rows: y = gamma * (x - mean) / sqrt(var + eps) + beta, with the biased variance of each sample and
// group (Wu & He 2018; Ba, Kiros & Hinton 2016). Instance norm is group norm with groups = channels. Backward, over the m elements of a group, with g = dy * gamma:
//     dx = invstd * (g - mean(g) - xhat * mean(g * xhat)),  dgamma = sum_n(dy * xhat),  dbeta = sum_n(dy).
// Layout: contiguous. Overwrites its outputs. float32, float64, and the half types in float32; statistics are float32 or float64. Sums: Notes in norm_walk.h and moments.h, where a
// group counts as a channel of one plane; their order depends on the shape alone: deterministic.
// Floor: forward two reads of x (the second from the cache, where a group fits) and one write; backward reads dy and x twice, once more for dgamma, and writes dx.
#include <fovea/kernels/table.h>

#include <fovea/kernels/cuda/norm_walk.h>

namespace fovea::kernels::cuda {
namespace {

// Where the parameters of a group's elements are: a group is `width` channels of `spatial` elements.
struct Groups {
  int64_t groups, width, spatial;
  bool has_aligned_parameters;               // gamma and beta, where they are there, can be read in packs
  Divide divide;

  Groups(const NormGeometry& g, const ConstView& gamma, const ConstView& beta)
      : groups(g.groups), width(g.channels / g.groups), spatial(g.spatial), has_aligned_parameters(is_aligned(gamma.data) && is_aligned(beta.data)),
        divide(std::max<int64_t>(g.spatial, 1), g.channels / g.groups * g.spatial) {}

  // The channel of the element at `position` in group `group`. A pack lies within a channel, unless channels have one element.
  __device__ int64_t channel(int64_t group, int64_t position) const { return group % groups * width + (spatial == 1 ? position : divide.quotient(position)); }
  // Those of gamma or beta that belong to a pack; `otherwise` where there are none.
  template <int pack, class A>
  __device__ void load(A (&values)[pack], const A* parameters, int64_t group, int64_t position, A otherwise) const {
    constexpr int together = full_pack<A>;
    const int64_t first = channel(group, position);
    if (parameters && pack % together == 0 && spatial == 1 && has_aligned_parameters && first % together == 0) {
#pragma unroll
      for (int j = 0; j + together <= pack; j += together) {
        const Pack<A, together> some = load_pack<A>(parameters + first + j, 0);
#pragma unroll
        for (int k = 0; k < together; ++k) values[j + k] = some[k];
      }
      return;
    }
    const A shared_value = parameters && spatial != 1 ? parameters[first] : otherwise;
#pragma unroll
    for (int j = 0; j < pack; ++j) values[j] = parameters && spatial == 1 ? parameters[first + j] : shared_value;
  }
};

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void group_norm_kernel(Walk walk, Groups groups, double eps, const T* x, const Accumulate<T>* gamma, const Accumulate<T>* beta, T* y,
                                                                   Accumulate<T>* mean,
                                                                   Accumulate<T>* invstd, const Moments* partial) {
  using A = Accumulate<T>;
  walk.for_each_channel([&](int64_t group, bool exists) {
    const Moments m = join_channel(walk, group, exists, partial, FindMoments<pack, T>{x});
    if (!exists) return;
    const double inverse = 1.0 / sqrt(m.variance() + eps);
    const A center = static_cast<A>(m.mean), scale = static_cast<A>(inverse);
    const A rest = static_cast<A>((static_cast<double>(center) - m.mean) * inverse);                        // makes up for center's rounding
    if (blockIdx.y == 0 && walk.team.lane() == 0) {
      if (mean) mean[group] = center;
      if (invstd) invstd[group] = scale;
    }
    walk.for_each_pack<pack>(
        group, walk.begin(), walk.end(), [&](const Place& at) { return load_pack<T, pack>(x + at.offset, 0); },
        [&](Pack<T, pack> values, const Place& at) {
          A slopes[pack], shifts[pack];
          groups.load(slopes, gamma, group, at.position, A(1));
          groups.load(shifts, beta, group, at.position, A(0));
#pragma unroll
          for (int j = 0; j < pack; ++j) values[j] = narrow<T>(((widen(values[j]) - center) * scale + rest) * slopes[j] + shifts[j]);
          store_pack<T, pack>(y + at.offset, 0, values);
        });
  });
}

// --- backward ---

template <class T, int pack>
struct ScaledPacks {
  Pack<T, pack> dy, x;
  Accumulate<T> gamma[pack];
  __device__ Accumulate<T> gradient(int j) const { return widen(dy[j]) * gamma[j]; }
};

template <class T>
struct Backward {
  using A = Accumulate<T>;
  Groups groups;
  const T *dy, *x;
  const A *gamma, *mean, *invstd;
  T* dx;
  A *dgamma, *dbeta;

  template <int pack>
  __device__ GradientPacks<T, pack> load(const Place& at) const {
    GradientPacks<T, pack> packs = {};
    packs.dy = load_pack<T, pack>(dy + at.offset, 0);
    packs.x = load_pack<T, pack>(x + at.offset, 0);
    return packs;
  }
  template <int pack>
  __device__ ScaledPacks<T, pack> load_scaled(const Place& at, int64_t group) const {
    ScaledPacks<T, pack> packs;
    packs.dy = load_pack<T, pack>(dy + at.offset, 0);
    packs.x = load_pack<T, pack>(x + at.offset, 0);
    groups.load(packs.gamma, gamma, group, at.position, A(1));
    return packs;
  }

  // Over a group, for dx: sums of g and of g * (x - mean).
  template <int pack>
  __device__ GradientSums group_sums(const Walk& walk, int64_t group, int64_t begin, int64_t end) const {
    const A center = mean[group];
    return lane_sums<pack, A>(
        walk, group, begin, end, [&](const Place& at) { return load_scaled<pack>(at, group); },
        [&](const ScaledPacks<T, pack>& packs, const Place&, int j, A& sum, A& product) {
          const A g = packs.gradient(j);
          sum += g;
          product += g * (widen(packs.x[j]) - center);
        });
  }
  // Over a channel, for dgamma and dbeta: sums of dy and of dy * xhat, whose statistics differ from sample to sample.
  template <int pack>
  __device__ GradientSums channel_sums(const Walk& walk, int64_t channel, int64_t begin, int64_t end) const {
    const int64_t group = channel / groups.width;
    return lane_sums<pack, A>(
        walk, channel, begin, end, [&](const Place& at) { return load<pack>(at); },
        [&](const GradientPacks<T, pack>& packs, const Place& at, int j, A& sum, A& product) {
          const int64_t statistic = at.plane * groups.groups + group;
          const A gradient = widen(packs.dy[j]);
          sum += gradient;
          product += gradient * ((widen(packs.x[j]) - mean[statistic]) * invstd[statistic]);
        });
  }
};

template <int pack, class T>
struct FindGroupSums {
  using Partial = GradientSums;
  using Join = JoinSums;
  Backward<T> b;
  __device__ GradientSums operator()(const Walk& walk, int64_t group, int64_t begin, int64_t end) const { return b.template group_sums<pack>(walk, group, begin, end); }
};

template <int pack, class T>
struct FindChannelSums {
  using Partial = GradientSums;
  using Join = JoinSums;
  Backward<T> b;
  __device__ GradientSums operator()(const Walk& walk, int64_t channel, int64_t begin, int64_t end) const { return b.template channel_sums<pack>(walk, channel, begin, end); }
};

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void group_norm_backward_kernel(Walk walk, Backward<T> b, const GradientSums* partial) {
  using A = Accumulate<T>;
  walk.for_each_channel([&](int64_t group, bool exists) {
    const GradientSums sums = join_channel(walk, group, exists, partial, FindGroupSums<pack, T>{b});
    if (!exists) return;
    const double inverse = static_cast<double>(b.invstd[group]), count = static_cast<double>(walk.elements());
    const A center = b.mean[group], scale = b.invstd[group], mean_g = static_cast<A>(sums.gradient / count);
    const A slope = static_cast<A>(sums.product * inverse * inverse / count);
    walk.for_each_pack<pack>(
        group, walk.begin(), walk.end(), [&](const Place& at) { return b.template load_scaled<pack>(at, group); },
        [&](const ScaledPacks<T, pack>& packs, const Place& at) {
          Pack<T, pack> out;
#pragma unroll
          for (int j = 0; j < pack; ++j) out[j] = narrow<T>(scale * (packs.gradient(j) - mean_g - (widen(packs.x[j]) - center) * slope));
          store_pack<T, pack>(b.dx + at.offset, 0, out);
        });
  });
}

template <int pack, class T>
__global__ __launch_bounds__(team_threads, 2) void group_norm_affine_kernel(Walk walk, Backward<T> b, const GradientSums* partial) {
  walk.for_each_channel([&](int64_t channel, bool exists) {
    const GradientSums sums = join_channel(walk, channel, exists, partial, FindChannelSums<pack, T>{b});
    if (!exists || walk.team.lane() != 0) return;
    if (b.dgamma) b.dgamma[channel] = static_cast<Accumulate<T>>(sums.product);
    if (b.dbeta) b.dbeta[channel] = static_cast<Accumulate<T>>(sums.gradient);
  });
}

// --- the host's side ---

// Layer norm is group norm with one group, a channel for each element of a row and one position.
NormGeometry rows_as_channels(const NormGeometry& g) { return {g.n, g.spatial, 1, 1, g.eps}; }

int64_t group_elements(const NormGeometry& g) { return g.channels / g.groups * g.spatial; }

Walk walk_groups(const NormGeometry& g, int pack) {
  const int64_t elements = group_elements(g);
  return {g.n * g.groups, 1, elements, elements, pack};
}

Walk walk_channels(const NormGeometry& g, int pack) { return {g.channels, g.n, g.spatial, g.channels * g.spatial, pack}; }

// A pack must lie within a group, and within a channel where those have more than one element.
int64_t run_of(const NormGeometry& g) { return g.spatial == 1 ? group_elements(g) : g.spatial; }

void group_norm(Queue queue, const NormGeometry& g, const ConstView& x, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean,
                const View& invstd) {
  with_pack("group_norm", x.dtype, run_of(g), [&](auto zero, auto pack) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    check_of_channels<T>("group_norm", {gamma, beta, mean, invstd});
    const Walk walk = walk_groups(g, pack.value);
    with_partials(queue, "group_norm_moments", walk, FindMoments<pack.value, T>{x.as<T>()}, [&](const Moments* partial) {
      launch(queue, "group_norm", walk.template grid<Moments>(), group_norm_kernel<pack.value, T>, walk, Groups(g, gamma, beta), g.eps, x.as<T>(), gamma.as<A>(), beta.as<A>(),
             y.as<T>(), mean.as<A>(), invstd.as<A>(), partial);
    });
  }, x.data, y.data);
}

template <int pack, class T>
void backward_x(Queue queue, const NormGeometry& g, const Backward<T>& b) {
  const Walk walk = walk_groups(g, pack);
  with_partials(queue, "group_norm_sums", walk, FindGroupSums<pack, T>{b}, [&](const GradientSums* partial) {
    launch(queue, "group_norm_backward", walk.grid<GradientSums>(), group_norm_backward_kernel<pack, T>, walk, b, partial);
  });
}

template <int pack, class T>
void backward_affine(Queue queue, const NormGeometry& g, const Backward<T>& b) {
  const Walk walk = walk_channels(g, pack);
  with_partials(queue, "group_norm_affine_sums", walk, FindChannelSums<pack, T>{b}, [&](const GradientSums* partial) {
    Grid grid = walk.grid<GradientSums>();
    grid.blocks.y = 1;                       // nothing is left to split
    launch(queue, "group_norm_affine", grid, group_norm_affine_kernel<pack, T>, walk, b, partial);
  });
}

void group_norm_backward(Queue queue, const NormGeometry& g, const ConstView& dy, const ConstView& x, const ConstView& gamma, const ConstView& mean,
                         const ConstView& invstd, const View& dx, const View& dgamma, const View& dbeta) {
  const char* const op = "group_norm_backward";
  with_pack(op, x.dtype, run_of(g), [&](auto zero, auto pack) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    check_of_channels<T>(op, {gamma, mean, invstd, dgamma, dbeta});
    const Backward<T> b{Groups(g, gamma, {}), dy.as<T>(), x.as<T>(), gamma.as<A>(), mean.as<A>(), invstd.as<A>(), dx.as<T>(), dgamma.as<A>(), dbeta.as<A>()};
    if (b.dx) backward_x<pack.value>(queue, g, b);
    if (!b.dgamma && !b.dbeta) return;
    if (g.spatial == 1) backward_affine<1>(queue, g, b);
    else backward_affine<pack.value>(queue, g, b);
  }, dy.data, x.data, dx.data);
}

void layer_norm(Queue queue, const NormGeometry& g, const ConstView& x, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean,
                const View& invstd) {
  group_norm(queue, rows_as_channels(g), x, gamma, beta, y, mean, invstd);
}

void layer_norm_backward(Queue queue, const NormGeometry& g, const ConstView& dy, const ConstView& x, const ConstView& gamma, const ConstView& mean,
                         const ConstView& invstd, const View& dx, const View& dgamma, const View& dbeta) {
  group_norm_backward(queue, rows_as_channels(g), dy, x, gamma, mean, invstd, dx, dgamma, dbeta);
}

}  // namespace

void add_group_norm(KernelTable& t) {
  t.group_norm = group_norm;
  t.group_norm_backward = group_norm_backward;
  t.layer_norm = layer_norm;
  t.layer_norm_backward = layer_norm_backward;
}

}  // namespace fovea::kernels::cuda
