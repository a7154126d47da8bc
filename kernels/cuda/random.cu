// random: y[i] drawn from a distribution; dropout: y = x * mask / (1 - p), mask 1 with probability 1 - p (Srivastava et al. 2014, scaled in training).
// Layout: contiguous, any dtype. Overwrites y. Deterministic: element i depends on (seed, offset, i) alone, by Note [Which words make element i] of
// kernels/cpu/random.cpp; uniform, integers, bernoulli and dropout give the CPU's bits, normal its numbers within rounding. Floor: one write
// (dropout: and one read).
// A thread makes one Philox block, and the two or four neighbouring elements that its words are for.
#include <fovea/kernels/cuda/convert.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/recorded_random.h>
#include <fovea/kernels/philox.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace fovea::kernels::cuda {
namespace {

constexpr int draw_threads = 256;

using Words = std::array<uint32_t, 4>;

__device__ uint64_t wide(const Words& words, int i) { return (static_cast<uint64_t>(words[2 * i]) << 32) | words[2 * i + 1]; }

__device__ void sine_and_cosine(float angle, float& sine, float& cosine) { ::sincosf(angle, &sine, &cosine); }
__device__ void sine_and_cosine(double angle, double& sine, double& cosine) { ::sincos(angle, &sine, &cosine); }

// Independent standard normals from `first` in (0, 1] and `second` in [0, 1): Box & Muller 1958.
template <class T>
__device__ void box_muller(T first, T second, T* result) {
  T sine, cosine;
  sine_and_cosine(T(6.28318530717958647692) * second, sine, cosine);
  const T radius = std::sqrt(T(-2) * std::log(first));
  result[0] = radius * cosine;
  result[1] = radius * sine;
}

// Each distribution turns the words of one block into `count` values.
struct Uniform32 {
  using Value = float;
  static constexpr int count = 4;
  float low, range, scale;
  int dropped;                                 // bits: as many are kept as the dtype can tell apart below 1, so that none is rounded up to 1
  __device__ void operator()(const Words& words, float* values) const {
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = low + multiply_rounded(range, static_cast<float>(words[j] >> dropped) * scale);
  }
};

struct Uniform64 {
  using Value = double;
  static constexpr int count = 2;
  double low, range;
  __device__ void operator()(const Words& words, double* values) const {
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = low + multiply_rounded(range, static_cast<double>(wide(words, j) >> 11) * 0x1p-53);
  }
};

struct Normal32 {
  using Value = float;
  static constexpr int count = 4;
  float mean, deviation;
  __device__ void operator()(const Words& words, float* values) const {
#pragma unroll
    for (int j = 0; j < count; j += 2) box_muller((static_cast<float>(words[j]) + 0.5f) * 0x1p-32f, Philox::uniform_float(words[j + 1]), values + j);
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = mean + deviation * values[j];
  }
};

// A pair takes 64 bits for each of its two uniform numbers: one block.
struct Normal64 {
  using Value = double;
  static constexpr int count = 2;
  double mean, deviation;
  __device__ void operator()(const Words& words, double* values) const {
    box_muller(static_cast<double>((wide(words, 0) >> 11) + 1) * 0x1p-53, static_cast<double>(wide(words, 1) >> 11) * 0x1p-53, values);
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = mean + deviation * values[j];
  }
};

struct Bernoulli {
  using Value = float;
  static constexpr int count = 4;
  uint32_t threshold;                          // 1 where a word's 24 high bits are below it
  __device__ void operator()(const Words& words, float* values) const {
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = words[j] >> 8 < threshold ? 1.0f : 0.0f;
  }
};

// The high part of word * range: every number within one part in 2^32 (2^64) of equally likely.
struct Integers32 {
  using Value = int64_t;
  static constexpr int count = 4;
  int64_t low;
  uint64_t range;                              // at most 2^32
  __device__ void operator()(const Words& words, int64_t* values) const {
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = low + static_cast<int64_t>((words[j] * range) >> 32);
  }
};

struct Integers64 {
  using Value = int64_t;
  static constexpr int count = 2;
  int64_t low;
  uint64_t range;
  __device__ void operator()(const Words& words, int64_t* values) const {
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const uint64_t high = static_cast<uint64_t>((static_cast<unsigned __int128>(wide(words, j)) * range) >> 64);
      values[j] = static_cast<int64_t>(static_cast<uint64_t>(low) + high);
    }
  }
};

// `total` neighbours from y[first] on, fewer at the end; in packs where y is aligned to them.
template <class T, int total>
__device__ void store_neighbours(T* y, int64_t first, int64_t numel, bool is_packed, const T (&values)[total]) {
  constexpr int n = total < full_pack<T> ? total : full_pack<T>;
  if (is_packed && first + total <= numel) {
#pragma unroll
    for (int j = 0; j < total; j += n) {
      Pack<T, n> pack;
#pragma unroll
      for (int k = 0; k < n; ++k) pack[k] = values[j + k];
      store_pack<T, n>(y, (first + j) / n, pack);
    }
  } else {
#pragma unroll
    for (int j = 0; j < total; ++j)
      if (first + j < numel) y[first + j] = values[j];
  }
}

// A key that a recorded graph moves on from run to run.
struct RunKey {
  PhiloxKey key;
  const PhiloxKey* of_run;                   // null: the key is the one given; else the generator as this run begins, and `key` counts from there

  explicit RunKey(PhiloxKey given) : key(given), of_run(nullptr) {
    const RecordedRandom& recorded = recorded_random();
    if (!recorded.of_run || given.seed != recorded.begin.seed || given.offset < recorded.begin.offset) return;
    key.offset -= recorded.begin.offset;
    of_run = recorded.of_run;
  }
  __device__ PhiloxKey now() const { return of_run ? PhiloxKey{of_run->seed, of_run->offset + key.offset} : key; }
};

__global__ __launch_bounds__(1) void set_run_key(PhiloxKey* of_run, PhiloxKey key) { *of_run = key; }

template <class D, class T>
__global__ void __launch_bounds__(draw_threads) draw(D distribution, RunKey run_key, T* y, int64_t numel, bool is_packed) {
  const PhiloxKey key = run_key.now();
  for (int64_t block = global_thread(); block * D::count < numel; block += global_threads()) {
    typename D::Value drawn[D::count];
    distribution(Philox::words(key.seed, key.offset + static_cast<uint64_t>(block)), drawn);
    T values[D::count];
#pragma unroll
    for (int j = 0; j < D::count; ++j) values[j] = convert<T>(drawn[j]);
    store_neighbours(y, block * D::count, numel, is_packed, values);
  }
}

template <class T>
bool takes_packs(const void* data, int neighbours) { return is_aligned(data, std::min<size_t>(16, sizeof(T) * static_cast<size_t>(neighbours))); }

template <class T, class D>
void draw_all(Queue queue, const D& distribution, PhiloxKey key, const View& y) {
  const int64_t n = y.numel();
  const bool is_packed = takes_packs<T>(y.data, D::count);
  launch(queue, "random", grid_for(ceil_div<int64_t>(n, D::count), draw_threads), draw<D, T>, distribution, RunKey(key), y.as<T>(), n, is_packed);
}

// How many of the 2^24 values of a word's high bits lie below p.
uint32_t threshold_of(double p) { return static_cast<uint32_t>(std::ceil(std::clamp(p, 0.0, 1.0) * 0x1p24)); }

template <class T>
void random_of(Queue queue, Distribution distribution, Scalars s, PhiloxKey key, const View& y) {
  switch (distribution) {
    case Distribution::uniform:
      if constexpr (std::is_same_v<T, double>) {
        return draw_all<T>(queue, Uniform64{s.alpha, s.beta - s.alpha}, key, y);
      } else {
        const int dropped = y.dtype == DType::bfloat16 ? 24 : y.dtype == DType::float16 ? 21 : 8;
        const float low = static_cast<float>(s.alpha), range = static_cast<float>(s.beta - s.alpha);
        return draw_all<T>(queue, Uniform32{low, range, std::ldexp(1.0f, dropped - 32), dropped}, key, y);
      }
    case Distribution::normal:
      if constexpr (std::is_same_v<T, double>) return draw_all<T>(queue, Normal64{s.alpha, s.beta}, key, y);
      else return draw_all<T>(queue, Normal32{static_cast<float>(s.alpha), static_cast<float>(s.beta)}, key, y);
    case Distribution::bernoulli: return draw_all<T>(queue, Bernoulli{threshold_of(s.alpha)}, key, y);
    case Distribution::integers: {
      const int64_t low = static_cast<int64_t>(s.alpha);
      const uint64_t range = static_cast<uint64_t>(static_cast<int64_t>(s.beta)) - static_cast<uint64_t>(low);
      if (range <= uint64_t{1} << 32) return draw_all<T>(queue, Integers32{low, range}, key, y);
      return draw_all<T>(queue, Integers64{low, range}, key, y);
    }
  }
}

void random(Queue queue, Distribution distribution, Scalars s, PhiloxKey key, const View& y) {
  if (y.numel() == 0) return;
  dispatch(y.dtype, [&](auto zero) { random_of<decltype(zero)>(queue, distribution, s, key, y); });
}

// C is what the product with `scale` is made in.
template <class T, class C>
__global__ void __launch_bounds__(draw_threads) drop(uint32_t threshold, C scale, RunKey run_key, const T* x, T* y, int64_t numel, bool is_packed) {
  constexpr int count = 4, n = count < full_pack<T> ? count : full_pack<T>;
  const PhiloxKey key = run_key.now();
  for (int64_t block = global_thread(); block * count < numel; block += global_threads()) {
    const int64_t first = block * count;
    T values[count] = {};
    if (is_packed && first + count <= numel) {
#pragma unroll
      for (int j = 0; j < count; j += n) {
        const Pack<T, n> pack = load_pack<T, n>(x, (first + j) / n);
#pragma unroll
        for (int k = 0; k < n; ++k) values[j + k] = pack[k];
      }
    } else {
#pragma unroll
      for (int j = 0; j < count; ++j)
        if (first + j < numel) values[j] = x[first + j];
    }
    const Words words = Philox::words(key.seed, key.offset + static_cast<uint64_t>(block));
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = words[j] >> 8 < threshold ? convert<T>(C(0)) : convert<T>(convert<C>(to_compute(values[j])) * scale);
    store_neighbours(y, first, numel, is_packed, values);
  }
}

void dropout(Queue queue, double p, PhiloxKey key, const ConstView& x, const View& y) {
  const int64_t n = y.numel();
  if (n == 0) return;
  dispatch(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const C scale = p < 1 ? static_cast<C>(1 / (1 - p)) : C(0);
    const bool is_packed = takes_packs<T>(x.data, 4) && takes_packs<T>(y.data, 4);
    launch(queue, "dropout", grid_for(ceil_div<int64_t>(n, 4), draw_threads), drop<T, C>, threshold_of(p), scale, RunKey(key), x.as<T>(), y.as<T>(), n, is_packed);
  });
}

}  // namespace

RecordedRandom& recorded_random() {
  thread_local RecordedRandom recorded;
  return recorded;
}

void begin_run(Queue queue, PhiloxKey* of_run, PhiloxKey key) { launch(queue, "set_run_key", {dim3(1), dim3(1), 0}, set_run_key, of_run, key); }

void add_random(KernelTable& t) {
  t.random = random;
  t.dropout = dropout;
}

}  // namespace fovea::kernels::cuda
