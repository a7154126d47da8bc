// random: y[i] drawn from a distribution; dropout: y = x * mask / (1 - p), mask 1 with probability 1 - p (Srivastava et al. 2014, scaled in training).
// Layout: contiguous, any dtype. Overwrites y. Deterministic: element i depends on (seed, offset, i) alone. Floor: one write (dropout: and one read).
//
// Note [Which words make element i]
// Philox block offset + i / 4 holds four words of 32 bits; element i takes word i % 4. What needs 64 bits (float64 uniform and normal, wide integers)
// takes two words, so block offset + i / 2. Normal numbers are made in pairs of neighbours by Box and Muller 1958.
#include <cmath>

#include <fovea/kernels/cpu/convert.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/philox.h>
#include <fovea/kernels/table.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/random.cpp"
#include <fovea/kernels/cpu/simd.h>
#include <fovea/kernels/cpu/vector_math.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
namespace vm = vector_math;

// Philox::words of sixteen blocks beside each other, in loops the compiler vectorises. words[4 b + k]: word k of block first + b.
void philox_sixteen(uint64_t seed, uint64_t first, uint32_t* words) {
  constexpr int lanes = 16;
  uint32_t x0[lanes], x1[lanes], x2[lanes], x3[lanes];
  for (int j = 0; j < lanes; ++j) {
    const uint64_t counter = first + static_cast<uint64_t>(j);
    x0[j] = static_cast<uint32_t>(counter);
    x1[j] = static_cast<uint32_t>(counter >> 32);
    x2[j] = x3[j] = 0;
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int j = 0; j < lanes; ++j) {
      const uint64_t a = uint64_t{0xD2511F53u} * x0[j], b = uint64_t{0xCD9E8D57u} * x2[j];
      x0[j] = static_cast<uint32_t>(b >> 32) ^ x1[j] ^ key0;
      x1[j] = static_cast<uint32_t>(b);
      x2[j] = static_cast<uint32_t>(a >> 32) ^ x3[j] ^ key1;
      x3[j] = static_cast<uint32_t>(a);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int j = 0; j < lanes; ++j) {
    words[4 * j] = x0[j];
    words[4 * j + 1] = x1[j];
    words[4 * j + 2] = x2[j];
    words[4 * j + 3] = x3[j];
  }
}

// first[i], second[i] uniform in (0, 1] and [0, 1), turned into independent standard normals.
template <class T>
HWY_INLINE void box_muller(T* first, T* second, int64_t n) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));          // n is a multiple of it
  for (int64_t i = 0; i < n; i += lanes) {
    const auto radius = hn::Sqrt(hn::Mul(vm::constant(d, -2), vm::log(d, hn::LoadU(d, first + i))));
    const auto angle = hn::Mul(vm::constant(d, 6.28318530717958647692), hn::LoadU(d, second + i));
    hn::StoreU(hn::Mul(radius, vm::cos(d, angle)), d, first + i);
    hn::StoreU(hn::Mul(radius, vm::sin(d, angle)), d, second + i);
  }
}
void box_muller_float(float* first, float* second, int64_t n) { box_muller(first, second, n); }
void box_muller_double(double* first, double* second, int64_t n) { box_muller(first, second, n); }

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

constexpr int64_t grain = 16384, block = 512;    // elements; both multiples of 64, the elements of sixteen Philox blocks

// The words of elements [begin, begin + block) of a draw that takes `words_each` words an element.
void draw_words(PhiloxKey key, int64_t begin, int64_t words_each, uint32_t* words) {
  static const auto sixteen = FOVEA_BEST(philox_sixteen);
  const uint64_t first = key.offset + static_cast<uint64_t>(begin * words_each / 4);
  for (int64_t b = 0; b < block * words_each / 4; b += 16) sixteen(key.seed, first + static_cast<uint64_t>(b), words + 4 * b);
}

uint64_t wide(const uint32_t* words, int64_t i) { return (uint64_t{words[2 * i]} << 32) | words[2 * i + 1]; }

// Uniform numbers of as many bits as the dtype can tell apart below 1, so that none is rounded up to 1.
void uniform(DType dtype, Scalars s, const uint32_t* words, float* y) {
  const int dropped = dtype == DType::bfloat16 ? 24 : dtype == DType::float16 ? 21 : 8;
  const float scale = std::ldexp(1.0f, dropped - 32), low = static_cast<float>(s.alpha), range = static_cast<float>(s.beta - s.alpha);
  for (int64_t i = 0; i < block; ++i) y[i] = low + range * (static_cast<float>(words[i] >> dropped) * scale);
}

void uniform(Scalars s, const uint32_t* words, double* y) {
  for (int64_t i = 0; i < block; ++i) y[i] = s.alpha + (s.beta - s.alpha) * (static_cast<double>(wide(words, i) >> 11) * 0x1p-53);
}

void normal(Scalars s, const uint32_t* words, float* y) {
  static const auto transform = FOVEA_BEST(box_muller_float);
  alignas(64) float first[block / 2], second[block / 2];
  for (int64_t i = 0; i < block / 2; ++i) {
    first[i] = (static_cast<float>(words[2 * i]) + 0.5f) * 0x1p-32f;
    second[i] = Philox::uniform_float(words[2 * i + 1]);
  }
  transform(first, second, block / 2);
  const float mean = static_cast<float>(s.alpha), deviation = static_cast<float>(s.beta);
  for (int64_t i = 0; i < block / 2; ++i) {
    y[2 * i] = mean + deviation * first[i];
    y[2 * i + 1] = mean + deviation * second[i];
  }
}

void normal(Scalars s, const uint32_t* words, double* y) {
  static const auto transform = FOVEA_BEST(box_muller_double);
  alignas(64) double first[block / 2], second[block / 2];
  for (int64_t i = 0; i < block / 2; ++i) {
    first[i] = static_cast<double>((wide(words, 2 * i) >> 11) + 1) * 0x1p-53;
    second[i] = static_cast<double>(wide(words, 2 * i + 1) >> 11) * 0x1p-53;
  }
  transform(first, second, block / 2);
  for (int64_t i = 0; i < block / 2; ++i) {
    y[2 * i] = s.alpha + s.beta * first[i];
    y[2 * i + 1] = s.alpha + s.beta * second[i];
  }
}

void bernoulli(double probability, const uint32_t* words, float* y) {
  for (int64_t i = 0; i < block; ++i) y[i] = static_cast<double>(Philox::uniform_float(words[i])) < probability ? 1.0f : 0.0f;
}

// The high part of word * range: every number within one part in 2^32 (2^64) of equally likely.
void integers(int64_t low, uint64_t range, const uint32_t* words, int64_t* y) {
  if (range <= uint64_t{1} << 32) {
    for (int64_t i = 0; i < block; ++i) y[i] = low + static_cast<int64_t>((words[i] * range) >> 32);
  } else {
    for (int64_t i = 0; i < block; ++i) y[i] = low + static_cast<int64_t>((static_cast<unsigned __int128>(wide(words, i)) * range) >> 64);
  }
}

void random(Queue, Distribution distribution, Scalars s, PhiloxKey key, const View& y) {
  const bool is_double = y.dtype == DType::float64 && (distribution == Distribution::uniform || distribution == Distribution::normal);
  const bool is_integer = distribution == Distribution::integers;
  const int64_t low = is_integer ? static_cast<int64_t>(s.alpha) : 0;
  const uint64_t range = is_integer ? static_cast<uint64_t>(static_cast<int64_t>(s.beta) - low) : 0;
  const int64_t words_each = is_double || range > uint64_t{1} << 32 ? 2 : 1;
  const ConvertRun convert = convert_run(is_double ? DType::float64 : is_integer ? DType::int64 : DType::float32, y.dtype);
  const int64_t from_bytes = is_double || is_integer ? 8 : 4, bytes = size_of(y.dtype);
  parallel_for(y.numel(), grain, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[2 * block];
    alignas(64) double doubles[block];
    alignas(64) float floats[block];
    alignas(64) int64_t wholes[block];
    for (; begin < end; begin += block) {
      draw_words(key, begin, words_each, words);
      const void* drawn = is_double ? static_cast<const void*>(doubles) : is_integer ? static_cast<const void*>(wholes) : floats;
      switch (distribution) {
        case Distribution::uniform: is_double ? uniform(s, words, doubles) : uniform(y.dtype, s, words, floats); break;
        case Distribution::normal: is_double ? normal(s, words, doubles) : normal(s, words, floats); break;
        case Distribution::bernoulli: bernoulli(s.alpha, words, floats); break;
        case Distribution::integers: integers(low, range, words, wholes); break;
      }
      convert(drawn, from_bytes, y.as<char>() + begin * bytes, bytes, std::min(block, end - begin));
    }
  });
}

template <class T>
void drop(double p, const uint32_t* words, const T* x, T* y, int64_t n) {
  const float threshold = static_cast<float>(p);
  const T scale = p < 1 ? static_cast<T>(1 / (1 - p)) : T(0);
  for (int64_t i = 0; i < n; ++i) {
    const T kept = x[i] * scale;
    y[i] = Philox::uniform_float(words[i]) >= threshold ? kept : T(0);
  }
}

void dropout(Queue, double p, PhiloxKey key, const ConstView& x, const View& y) {
  const int64_t bytes = size_of(y.dtype);
  const ConvertRun to_float = convert_run(x.dtype, DType::float32), from_float = convert_run(DType::float32, y.dtype);
  parallel_for(y.numel(), grain, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[block];
    alignas(64) float values[block];
    for (; begin < end; begin += block) {
      const int64_t n = std::min(block, end - begin);
      draw_words(key, begin, 1, words);
      if (y.dtype == DType::float32) {
        drop(p, words, x.as<float>() + begin, y.as<float>() + begin, n);
      } else if (y.dtype == DType::float64) {
        drop(p, words, x.as<double>() + begin, y.as<double>() + begin, n);
      } else {
        to_float(x.as<char>() + begin * bytes, bytes, values, sizeof(float), n);
        drop(p, words, values, values, n);
        from_float(values, sizeof(float), y.as<char>() + begin * bytes, bytes, n);
      }
    }
  });
}

}  // namespace

void add_random(KernelTable& t) {
  t.random = random;
  t.dropout = dropout;
}

}  // namespace fovea::kernels
#endif
