// What the normalisations share: how a channel's elements are shared out over lanes and blocks, its mean and variance, and the sums that gradients need.
//
// Note [A channel is a row of planes]
// A channel's elements, numbered through, lie in `planes` runs of `spatial` elements. Where a run is one element (rows of features), neighbouring threads take
// neighbouring channels. With too few channels to fill a GPU, each is split over several blocks: a first kernel leaves partial results in memory, and every block of
// the second joins all of its channel's, in the same order. Otherwise the second kernel does everything, reading x twice, the second time from the cache if it fits.
#pragma once

#include <algorithm>
#include <initializer_list>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/strided.h>
#include <fovea/kernels/cuda/moments.h>
#include <fovea/kernels/cuda/team.h>

namespace fovea::kernels::cuda {

// Sums over a channel of the gradient, and of the gradient times what goes with it (a deviation, or a normalised x).
struct GradientSums {
  double gradient = 0, product = 0;
};

struct JoinSums {
  __device__ GradientSums operator()(const GradientSums& a, const GradientSums& b) const { return {a.gradient + b.gradient, a.product + b.product}; }
};

// An element's offset into the tensor, its plane and its position within that.
struct Place {
  int64_t offset, plane, position;
};

struct Walk {
  int64_t channels, planes, spatial;
  int64_t plane_step;                        // from a plane of a channel to the next; channels are `spatial` apart
  Divide divide;
  Team team;
  int64_t splits = 1, per_split;             // blocks that share a channel, and the elements of each

  // The elements of a channel are taken `pack` at a time.
  Walk(int64_t all_channels, int64_t all_planes, int64_t plane, int64_t step, int pack)
      : channels(all_channels), planes(all_planes), spatial(plane), plane_step(step), divide(std::max<int64_t>(plane, 1), all_planes * plane) {
    const int64_t count = elements();
    team = spatial == 1 && channels > 1 && planes > 1 ? column_team(channels, planes) : row_team_of_packs(ceil_div<int64_t>(count, pack));
    const int64_t pass = static_cast<int64_t>(team.lanes) * pack;
    const int64_t wanted = splits_for(ceil_div<int64_t>(channels, team.width), count / pass);
    per_split = std::max<int64_t>(1, ceil_div(ceil_div(count, wanted), pass)) * pass;
    splits = std::max<int64_t>(1, ceil_div(count, per_split));
  }

  __host__ __device__ int64_t elements() const { return planes * spatial; }
  template <class Partial>
  int64_t partial_bytes() const { return channels * splits * static_cast<int64_t>(sizeof(Partial)); }
  template <class Partial>
  Grid grid() const {
    const int64_t blocks = ceil_div<int64_t>(channels, team.width);
    return {dim3(static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 16)), static_cast<unsigned>(splits)), dim3(team_threads), sizeof(Partial) * team_threads};
  }

  __device__ int64_t begin() const { return blockIdx.y * per_split; }
  __device__ int64_t end() const { return min(elements(), begin() + per_split); }
  __device__ Place locate(int64_t channel, int64_t element) const {
    const int64_t plane = divide.quotient(element), position = element - plane * spatial;
    return {plane * plane_step + channel * spatial + position, plane, position};
  }

  // f(channel, whether there is such a channel) for the channels of this thread, all threads of the block together.
  template <class F>
  __device__ void for_each_channel(const F& f) const {
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * team.width; first < channels; first += static_cast<int64_t>(gridDim.x) * team.width) {
      const int64_t channel = first + team.member();
      f(channel, channel < channels);
    }
  }

  // use(load(place), place) for this lane's packs among the elements [begin, end) of a channel; several loads are under way at once.
  template <int pack, class Load, class Use>
  __device__ void for_each_pack(int64_t channel, int64_t begin, int64_t end, const Load& load, const Use& use) const {
    using Loaded = decltype(load(Place{}));
    constexpr int unroll = sizeof(Loaded) > 32 ? 2 : 4;                      // as many as registers hold
    const int64_t step = static_cast<int64_t>(team.lanes) * pack;
    for (int64_t e = begin + team.lane() * pack; e < end; e += unroll * step) {
      Place places[unroll];
      Loaded loaded[unroll];
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        if (e + u * step >= end) break;
        places[u] = locate(channel, e + u * step);
        loaded[u] = load(places[u]);
      }
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        if (e + u * step >= end) break;
        use(loaded[u], places[u]);
      }
    }
  }
};

// The moments of this lane's elements among [begin, end) of a channel.
template <int pack, class T>
__device__ Moments lane_moments(const Walk& walk, const T* x, int64_t channel, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int loads = pack == 1 ? 8 : 4, batch = loads * pack;
  const int64_t step = static_cast<int64_t>(walk.team.lanes) * pack;
  LaneMoments<A> moments;
  for (int64_t e = begin + walk.team.lane() * pack; e < end; e += loads * step) {
    A values[batch];
    int filled = 0;
#pragma unroll
    for (int u = 0; u < loads; ++u) {
      const bool exists = e + u * step < end;
      Pack<T, pack> p;
      if (exists) p = load_pack<T, pack>(x + walk.locate(channel, e + u * step).offset, 0);
#pragma unroll
      for (int j = 0; j < pack; ++j) values[u * pack + j] = exists ? widen(p[j]) : A(0);
      filled += exists ? pack : 0;
    }
    moments.add(values, filled);
  }
  return moments.wide();
}

// What all lanes together found in their share of [begin, end): find(begin, end) is one lane's.
template <class Partial, class Join, class Find>
__device__ Partial join_lanes(const Walk& walk, bool exists, int64_t begin, int64_t end, const Find& find, const Join& join) {
  Partial* const scratch = &shared<Partial>();
  return team_reduce(walk.team, exists ? find(begin, end) : Partial{}, join, scratch);
}

// The functors below find one lane's partial result among the elements [begin, end) of a channel, and say how two of them are joined.
template <int pack, class T>
struct FindMoments {
  using Partial = Moments;
  using Join = JoinMoments;
  const T* x;
  __device__ Moments operator()(const Walk& walk, int64_t channel, int64_t begin, int64_t end) const { return lane_moments<pack>(walk, x, channel, begin, end); }
};

// Leaves partial results [channels, splits].
template <class Find>
__global__ __launch_bounds__(team_threads, 2) void partial_kernel(Walk walk, Find find, typename Find::Partial* partial) {
  using Partial = typename Find::Partial;
  walk.for_each_channel([&](int64_t channel, bool exists) {
    const auto of_lane = [&](int64_t begin, int64_t end) { return find(walk, channel, begin, end); };
    const Partial joined = join_lanes<Partial>(walk, exists, walk.begin(), walk.end(), of_lane, typename Find::Join{});
    if (exists && walk.team.lane() == 0) partial[channel * walk.splits + blockIdx.y] = joined;
  });
}

// The whole channel's: from the partial results of that kernel, or found here where there are none.
template <class Find>
__device__ typename Find::Partial join_channel(const Walk& walk, int64_t channel, bool exists, const typename Find::Partial* partial, const Find& find) {
  using Partial = typename Find::Partial;
  const typename Find::Join join{};
  if (!partial) return join_lanes<Partial>(walk, exists, 0, walk.elements(), [&](int64_t begin, int64_t end) { return find(walk, channel, begin, end); }, join);
  const auto joined = [&](int64_t begin, int64_t end) {
    Partial total{};
    for (int64_t split = begin + walk.team.lane(); split < end; split += walk.team.lanes) total = join(total, partial[channel * walk.splits + split]);
    return total;
  };
  return join_lanes<Partial>(walk, exists, 0, walk.splits, joined, join);
}

// Calls finish(partial results) after a kernel `name` that has left them, where channels are split over blocks; finish(nullptr) otherwise.
template <class Find, class Finish>
void with_partials(Queue queue, const char* name, const Walk& walk, const Find& find, const Finish& finish) {
  using Partial = typename Find::Partial;
  if (walk.splits == 1) return finish(nullptr);
  const DeviceScratch partial(walk.template partial_bytes<Partial>(), queue);
  launch(queue, name, walk.template grid<Partial>(), partial_kernel<Find>, walk, find, partial.as<Partial>());
  finish(partial.as<Partial>());
}

// A channel's gradient and x (and under a ReLU, y), as they come from memory.
template <class T, int pack>
struct GradientPacks {
  Pack<T, pack> dy, x, y;
};

// term(packs, place, j) gives the gradient and the product of one element; they are added up in the type that T is computed in over `run` packs, in float64 beyond.
template <int pack, class A, class Load, class Term>
__device__ GradientSums lane_sums(const Walk& walk, int64_t channel, int64_t begin, int64_t end, const Load& load, const Term& term) {
  constexpr int64_t run = 64;
  const int64_t chunk = run * walk.team.lanes * pack;
  GradientSums total;
  for (int64_t first = begin; first < end; first += chunk) {
    A gradient = 0, product = 0;
    walk.for_each_pack<pack>(channel, first, min(end, first + chunk), load, [&](const auto& packs, const Place& place) {
#pragma unroll
      for (int j = 0; j < pack; ++j) term(packs, place, j, gradient, product);
    });
    total.gradient += static_cast<double>(gradient);
    total.product += static_cast<double>(product);
  }
  return total;
}

// Element c of an optional parameter.
template <class A>
__device__ inline A value_or(const A* values, int64_t c, A otherwise) { return values ? values[c] : otherwise; }

// Whether all of these can be read or written in packs of so many bytes; those that are not there do not matter.
template <class... Pointers>
bool all_aligned(size_t bytes, const Pointers*... pointers) { return (is_aligned(pointers, bytes) && ...); }

// Calls f with the type behind `dtype` and the number of elements of an access: as many as 16 bytes hold, or 8 bytes of a half type, where runs of `run` elements split
// into them; one otherwise.
template <class F, class... Pointers>
void with_pack(const char* op, DType dtype, int64_t run, const F& f, const Pointers*... pointers) {
  dispatch_floating(dtype, op, [&](auto zero) {
    using T = decltype(zero);
    constexpr int full = full_pack<T>, some = is_half<T> ? 4 : 1;
    if (run % full == 0 && all_aligned(16, pointers...)) f(zero, std::integral_constant<int, full>{});
    else if (run % some == 0 && all_aligned(some * sizeof(T), pointers...)) f(zero, std::integral_constant<int, some>{});
    else f(zero, std::integral_constant<int, 1>{});
  });
}

// What there is one of for each channel is float32 or float64 beside values of T; some may be absent.
template <class T>
void check_of_channels(const char* op, std::initializer_list<ConstView> all) {
  constexpr DType expected = dtype_of<Accumulate<T>>;
  for (const ConstView& v : all)
    check<DTypeError>(!v || v.dtype == expected, op, ": statistics and parameters beside ", name_of(dtype_of<T>), " values are ", name_of(expected), ", got ",
                      name_of(v.dtype));
}

}  // namespace fovea::kernels::cuda
