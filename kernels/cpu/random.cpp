// random: y[i] drawn from a distribution; dropout: y = x * mask / (1 - p), mask 1 with probability 1 - p (Srivastava et al. 2014, scaled in
// training). Layout: contiguous, any dtype. Overwrites y. Deterministic: element i depends on (seed, offset, i) alone. Floor: one write
// (dropout: and one read).
//
// Note [Which words make element i]
// Philox block offset + i / 4 holds four words of 32 bits; element i takes word i % 4. What needs 64 bits (float64 uniform and normal, wide
// integers) takes two words, so block offset + i / 2. Normal numbers are made in pairs of neighbours by Box and Muller 1958.
#include <algorithm>
#include <array>
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

// Philox::words of blocks first, first + 1, ... (a multiple of sixteen of them). Each lane is a block; the 32-bit words stand in the low
// halves of 64-bit lanes, where the widening product wants them. What gathers in the high halves is never looked at.
void philox(uint64_t seed, uint64_t first, int64_t blocks, uint32_t* words) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t block = 0; block < blocks; ++block) {
    const std::array<uint32_t, 4> four = Philox::words(seed, first + static_cast<uint64_t>(block));
    std::copy(four.begin(), four.end(), words + 4 * block);
  }
#else
  const hn::ScalableTag<uint64_t> d;
  const hn::RepartitionToNarrow<decltype(d)> narrow;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto multiplier0 = hn::Set(narrow, 0xD2511F53u), multiplier1 = hn::Set(narrow, 0xCD9E8D57u);
  const V low_half = hn::Set(d, 0xffffffffu);
  for (int64_t block = 0; block < blocks; block += lanes) {
    const V counter = hn::Add(hn::Iota(d, 0), hn::Set(d, first + static_cast<uint64_t>(block)));
    V x0 = counter, x1 = hn::ShiftRight<32>(counter), x2 = hn::Zero(d), x3 = x2;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const V a = hn::MulEven(hn::BitCast(narrow, x0), multiplier0), b = hn::MulEven(hn::BitCast(narrow, x2), multiplier1);
      x0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(b), x1), hn::Set(d, key0));
      x1 = b;
      x2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(a), x3), hn::Set(d, key1));
      x3 = a;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const V x01 = hn::Or(hn::And(x0, low_half), hn::ShiftLeft<32>(x1)), x23 = hn::Or(hn::And(x2, low_half), hn::ShiftLeft<32>(x3));
    hn::StoreInterleaved2(x01, x23, d, reinterpret_cast<uint64_t*>(words + 4 * block));
  }
#endif
}

// y = x * scale where the word's 24 high bits are at least `threshold`, 0 elsewhere.
void drop_float(uint32_t threshold, float scale, const uint32_t* words, const float* x, float* y, int64_t n) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::RebindToSigned<decltype(d)> di;                     // 24 bits compare alike with a sign
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto bound = hn::Set(di, static_cast<int32_t>(threshold));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto is_dropped = hn::Lt(hn::BitCast(di, hn::ShiftRight<8>(hn::LoadU(du, words + i))), bound);
    hn::StoreU(hn::IfThenZeroElse(hn::RebindMask(d, is_dropped), hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale))), d, y + i);
  }
  for (; i < n; ++i) y[i] = words[i] >> 8 >= threshold ? x[i] * scale : 0.0f;
}

void drop_double(uint32_t threshold, double scale, const uint32_t* words, const double* x, double* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = words[i] >> 8 >= threshold ? x[i] * scale : 0.0;
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
  static const auto fill_words = FOVEA_BEST(philox);
  fill_words(key.seed, key.offset + static_cast<uint64_t>(begin * words_each / 4), block * words_each / 4, words);
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

void dropout(Queue, double p, PhiloxKey key, const ConstView& x, const View& y) {
  static const auto drop_floats = FOVEA_BEST(drop_float);
  static const auto drop_doubles = FOVEA_BEST(drop_double);
  const int64_t bytes = size_of(y.dtype);
  const ConvertRun to_float = convert_run(x.dtype, DType::float32), from_float = convert_run(DType::float32, y.dtype);
  const uint32_t threshold = static_cast<uint32_t>(std::ceil(p * 0x1p24));   // drops where Philox::uniform_float is below p
  const double scale = p < 1 ? 1 / (1 - p) : 0;
  parallel_for(y.numel(), grain, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[block];
    alignas(64) float values[block];
    for (; begin < end; begin += block) {
      const int64_t n = std::min(block, end - begin);
      draw_words(key, begin, 1, words);
      if (y.dtype == DType::float32) {
        drop_floats(threshold, static_cast<float>(scale), words, x.as<float>() + begin, y.as<float>() + begin, n);
      } else if (y.dtype == DType::float64) {
        drop_doubles(threshold, scale, words, x.as<double>() + begin, y.as<double>() + begin, n);
      } else {
        to_float(x.as<char>() + begin * bytes, bytes, values, sizeof(float), n);
        drop_floats(threshold, static_cast<float>(scale), words, values, values, n);
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
