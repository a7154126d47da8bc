// Runs of elements from any dtype to any dtype. float16 and bfloat16 go through float32; contiguous runs of them are vectorised.
// Elements of one dtype are moved as bits, so NaN payloads stay. Deterministic. Floor: one read and one write.
#include <fovea/kernels/cpu/convert.h>

#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/convert.cpp"
#include <fovea/kernels/cpu/simd.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Whole vectors of `lanes` elements; returns how many elements were done, the caller does the rest one by one.
int64_t float16_to_float32(const uint16_t* x, float* y, int64_t n) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> half;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(x + i))), d, y + i);
  return i;
}

int64_t float32_to_float16(const float* x, uint16_t* y, int64_t n) {
#if HWY_TARGET <= HWY_AVX2  // F16C rounds to nearest even; Highway's emulation for older processors does not
  const hn::ScalableTag<float> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> half;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::DemoteTo(half, hn::LoadU(d, x + i)), half, reinterpret_cast<hwy::float16_t*>(y + i));
  return i;
#else
  (void)x, (void)y, (void)n;
  return 0;
#endif
}

// The bit tricks of bfloat16's constructor, in loops the compiler vectorises.
int64_t bfloat16_to_float32(const uint16_t* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    std::memcpy(y + i, &bits, sizeof bits);
  }
  return n;
}

int64_t float32_to_bfloat16(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t u;
    std::memcpy(&u, x + i, sizeof u);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    y[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
  return n;
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

template <class T> inline constexpr bool is_half = std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>;
template <class T> inline constexpr bool is_real = std::is_floating_point_v<T> || is_half<T>;

template <class To, class From>
inline To convert_value(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (is_half<From>) {
    return convert_value<To>(static_cast<float>(x));
  } else if constexpr (is_half<To>) {
    return To(static_cast<float>(x));
  } else if constexpr (std::is_same_v<To, bool>) {
    return x != From(0);
  } else if constexpr (is_real<From> && std::is_integral_v<To>) {
    // A cast that does not fit is undefined in C++: whatever does not fit into 64 bits becomes the smallest integer, as x86 does, then
    // wraps.
    const bool fits = x >= From(-0x1p63) && x < From(0x1p63);
    return static_cast<To>(fits ? static_cast<int64_t>(x) : std::numeric_limits<int64_t>::min());
  } else {
    return static_cast<To>(x);
  }
}

// Vectorised runs for the half types; 0 done where there is none.
template <class From, class To>
int64_t convert_fast(const From* x, To* y, int64_t n) {
  if constexpr (std::is_same_v<From, float16> && std::is_same_v<To, float>) {
    static const auto best = FOVEA_BEST(float16_to_float32);
    return best(&x->bits, y, n);
  } else if constexpr (std::is_same_v<From, float> && std::is_same_v<To, float16>) {
    static const auto best = FOVEA_BEST(float32_to_float16);
    return best(x, &y->bits, n);
  } else if constexpr (std::is_same_v<From, bfloat16> && std::is_same_v<To, float>) {
    static const auto best = FOVEA_BEST(bfloat16_to_float32);
    return best(&x->bits, y, n);
  } else if constexpr (std::is_same_v<From, float> && std::is_same_v<To, bfloat16>) {
    static const auto best = FOVEA_BEST(float32_to_bfloat16);
    return best(x, &y->bits, n);
  } else {
    return 0;
  }
}

template <class From, class To>
void convert(const void* from, int64_t from_stride, void* to, int64_t to_stride, int64_t n) {
  constexpr int64_t from_size = sizeof(From), to_size = sizeof(To);
  const From* x = static_cast<const From*>(from);
  To* y = static_cast<To*>(to);
  if (from_stride == from_size && to_stride == to_size) {
    if constexpr (std::is_same_v<From, To>) {
      std::memcpy(y, x, static_cast<size_t>(n) * sizeof(To));
    } else {
      for (int64_t i = convert_fast<From, To>(x, y, n); i < n; ++i) y[i] = convert_value<To>(x[i]);
    }
    return;
  }
  if (from_stride == 0 && to_stride == to_size) {
    const To value = convert_value<To>(*x);
    for (int64_t i = 0; i < n; ++i) y[i] = value;
    return;
  }
  const int64_t x_step = from_stride / from_size, y_step = to_stride / to_size;
  for (int64_t i = 0; i < n; ++i) y[i * y_step] = convert_value<To>(x[i * x_step]);
}

template <class From>
ConvertRun convert_from(DType to) {
  return dispatch(to, [](auto zero) -> ConvertRun { return &convert<From, decltype(zero)>; });
}

}  // namespace

ConvertRun convert_run(DType from, DType to) {
  if (from == to) {                                            // bits are bits: four functions do for all dtypes
    switch (size_of(from)) {
      case 1: return &convert<uint8_t, uint8_t>;
      case 2: return &convert<uint16_t, uint16_t>;
      case 4: return &convert<uint32_t, uint32_t>;
      default: return &convert<uint64_t, uint64_t>;
    }
  }
  return dispatch(from, [to](auto zero) { return convert_from<decltype(zero)>(to); });
}

}  // namespace fovea::kernels
#endif
