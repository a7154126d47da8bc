// The functions that nvcc knows in device code and that C++ lacks, with the rounding that CUDA's reference gives them where the host can do that. The fast ones
// (__expf, __fdividef, ...) are computed exactly here: their error is a matter for a GPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

// Overloads as CUDA has them; a NaN loses against a number.
inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline long min(long a, long b) { return b < a ? b : a; }
inline long max(long a, long b) { return a < b ? b : a; }
inline unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
inline unsigned long max(unsigned long a, unsigned long b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float rcbrtf(float x) { return static_cast<float>(1.0 / std::cbrt(static_cast<double>(x))); }
inline double rcbrt(double x) { return 1.0 / std::cbrt(x); }
inline float normcdff(float x) { return static_cast<float>(0.5 * std::erfc(-static_cast<double>(x) * 0.70710678118654752440)); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }
inline float sinpif(float x) { return static_cast<float>(std::sin(3.14159265358979323846 * std::remainder(static_cast<double>(x), 2.0))); }
inline float cospif(float x) { return static_cast<float>(std::cos(3.14159265358979323846 * std::remainder(static_cast<double>(x), 2.0))); }
inline double sinpi(double x) { return std::sin(3.14159265358979323846 * std::remainder(x, 2.0)); }
inline double cospi(double x) { return std::cos(3.14159265358979323846 * std::remainder(x, 2.0)); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
inline void sincospi(double x, double* s, double* c) { *s = sinpi(x), *c = cospi(x); }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }     // a NaN becomes 0

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return static_cast<float>(std::pow(10.0, static_cast<double>(x))); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline void __sincosf(float x, float* s, float* c) { *s = std::sin(x), *c = std::cos(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }

// Rounded to nearest even, and never contracted into a fused operation. volatile: the host's compiler must not contract either.
inline float __fadd_rn(float a, float b) { volatile float r = a + b; return r; }
inline float __fsub_rn(float a, float b) { volatile float r = a - b; return r; }
inline float __fmul_rn(float a, float b) { volatile float r = a * b; return r; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { volatile double r = a + b; return r; }
inline double __dsub_rn(double a, double b) { volatile double r = a - b; return r; }
inline double __dmul_rn(double a, double b) { volatile double r = a * b; return r; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __drcp_rn(double a) { return 1.0 / a; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __double2loint(double x) { return static_cast<int>(std::bit_cast<uint64_t>(x)); }
inline int __double2hiint(double x) { return static_cast<int>(std::bit_cast<uint64_t>(x) >> 32); }
inline double __hiloint2double(int high, int low) {
  return std::bit_cast<double>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low));
}

namespace host_cuda {
// A GPU's conversions saturate, and NaN becomes 0 (0x8000... for 64 bits), where C++ leaves them undefined.
template <class I, class F>
I saturating(F x, I of_nan = 0) {
  if (x != x) return of_nan;
  const F lowest = static_cast<F>(std::is_signed_v<I> ? -std::ldexp(1.0, sizeof(I) * 8 - 1) : 0.0);
  const F above = static_cast<F>(std::ldexp(1.0, sizeof(I) * 8 - std::is_signed_v<I>));
  if (x >= above) return static_cast<I>(~I{0} ^ (std::is_signed_v<I> ? I{1} << (sizeof(I) * 8 - 1) : I{0}));
  if (x < lowest) return static_cast<I>(std::is_signed_v<I> ? I{1} << (sizeof(I) * 8 - 1) : I{0});
  return static_cast<I>(x);
}
}  // namespace host_cuda

inline int __float2int_rn(float x) { return host_cuda::saturating<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return host_cuda::saturating<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return host_cuda::saturating<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return host_cuda::saturating<int>(std::ceil(x)); }
inline unsigned __float2uint_rn(float x) { return host_cuda::saturating<unsigned>(std::nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return host_cuda::saturating<unsigned>(std::trunc(x)); }
inline long long __float2ll_rn(float x) { return host_cuda::saturating<long long>(std::nearbyint(x), static_cast<long long>(1ull << 63)); }
inline long long __float2ll_rz(float x) { return host_cuda::saturating<long long>(std::trunc(x), static_cast<long long>(1ull << 63)); }
inline int __double2int_rn(double x) { return host_cuda::saturating<int>(std::nearbyint(x)); }
inline int __double2int_rz(double x) { return host_cuda::saturating<int>(std::trunc(x)); }
inline long long __double2ll_rn(double x) { return host_cuda::saturating<long long>(std::nearbyint(x), static_cast<long long>(1ull << 63)); }
inline long long __double2ll_rz(double x) { return host_cuda::saturating<long long>(std::trunc(x), static_cast<long long>(1ull << 63)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __ffsll(long long x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1; }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1u) << (31 - i);
  return result;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline int __mul24(int a, int b) {
  const auto low = [](int v) { return static_cast<int64_t>(static_cast<int32_t>(static_cast<uint32_t>(v) << 8) >> 8); };
  return static_cast<int>(static_cast<uint32_t>(low(a) * low(b)));
}
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
__extension__ typedef __int128 host_cuda_int128;
__extension__ typedef unsigned __int128 host_cuda_uint128;
inline long long __mul64hi(long long a, long long b) { return static_cast<long long>((static_cast<host_cuda_int128>(a) * b) >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<host_cuda_uint128>(a) * b) >> 64);
}

// Loads and stores that only differ in what the caches keep.
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcv(const T* p) { return *p; }
template <class T> T __ldlu(const T* p) { return *p; }
template <class T> void __stcs(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stcg(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stwb(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stwt(T* p, std::type_identity_t<T> value) { *p = value; }
