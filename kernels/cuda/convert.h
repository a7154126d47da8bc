// Values from any dtype to any dtype on the device, with the rules of kernels/cpu/convert.cpp.
#pragma once

#include <limits>

#include <fovea/kernels/cuda/core/numeric.h>

namespace fovea::kernels::cuda {

// The type that elementwise arithmetic on T is done in, as on the CPU: float for the half types, int64 for bool and every integer (which wraps to the narrower
// types as they would themselves), else T.
template <class T> using Compute = std::conditional_t<std::is_integral_v<T>, int64_t, Accumulate<T>>;

template <class T>
__device__ inline Compute<T> to_compute(T value) { return static_cast<Compute<T>>(widen(value)); }

// From a computed type to any.
template <class To, class C>
__device__ inline To convert(C value) {
  if constexpr (is_half<To>) {
    return narrow<To>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != C(0);
  } else if constexpr (std::is_floating_point_v<C> && std::is_integral_v<To>) {
    // A cast that does not fit is undefined in C++: whatever does not fit into 64 bits becomes the smallest integer, as x86 does, then wraps.
    const bool fits = value >= C(-0x1p63) && value < C(0x1p63);
    return static_cast<To>(fits ? static_cast<int64_t>(value) : std::numeric_limits<int64_t>::min());
  } else {
    return static_cast<To>(value);
  }
}

template <class C, class T>
__device__ inline C load_as(const void* data, int64_t i) { return convert<C>(to_compute(static_cast<const T*>(data)[i])); }

// Element i of memory whose dtype is only known at run time. All threads take the same branch.
template <class C>
__device__ inline C load_as(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::float32: return load_as<C, float>(data, i);
    case DType::float64: return load_as<C, double>(data, i);
    case DType::float16: return load_as<C, float16>(data, i);
    case DType::bfloat16: return load_as<C, bfloat16>(data, i);
    case DType::int32: return load_as<C, int32_t>(data, i);
    case DType::int64: return load_as<C, int64_t>(data, i);
    case DType::uint8: return load_as<C, uint8_t>(data, i);
    case DType::boolean: break;
  }
  return load_as<C, bool>(data, i);
}

template <class C>
__device__ inline void store_as(DType dtype, void* data, int64_t i, C value) {
  switch (dtype) {
    case DType::float32: static_cast<float*>(data)[i] = convert<float>(value); return;
    case DType::float64: static_cast<double*>(data)[i] = convert<double>(value); return;
    case DType::float16: static_cast<float16*>(data)[i] = convert<float16>(value); return;
    case DType::bfloat16: static_cast<bfloat16*>(data)[i] = convert<bfloat16>(value); return;
    case DType::int32: static_cast<int32_t*>(data)[i] = convert<int32_t>(value); return;
    case DType::int64: static_cast<int64_t*>(data)[i] = convert<int64_t>(value); return;
    case DType::uint8: static_cast<uint8_t*>(data)[i] = convert<uint8_t>(value); return;
    case DType::boolean: static_cast<bool*>(data)[i] = convert<bool>(value); return;
  }
}

// a * b and a + b, each rounded by itself: for numbers that have to agree with the CPU's bit for bit, where the compiler would make one fused operation.
__device__ inline float multiply_rounded(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
__device__ inline double multiply_rounded(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

}  // namespace fovea::kernels::cuda
