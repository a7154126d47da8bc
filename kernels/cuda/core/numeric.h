// How kernels read and write elements: half types are widened to float for arithmetic, everything else is computed as it is stored.
#pragma once

#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <fovea/kernels/cuda/core/device.h>

namespace fovea::kernels::cuda {

template <class T> inline constexpr bool is_half = std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>;

// The type that elements of T are computed in: float for the half types, else T itself.
template <class T> using Accumulate = std::conditional_t<is_half<T>, float, T>;

template <class T>
__device__ inline Accumulate<T> widen(T value) {
  if constexpr (std::is_same_v<T, float16>) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(value.bits));
#else
    return static_cast<float>(value);
#endif
  } else {
    return static_cast<Accumulate<T>>(value);
  }
}

// Rounds to nearest even, by one instruction on the device. There a NaN loses its sign and payload, which it keeps a part of in half.h.
template <class T>
__device__ inline T narrow(Accumulate<T> value) {
#ifdef __CUDA_ARCH__
  if constexpr (is_half<T>) {
    T result;
    if constexpr (std::is_same_v<T, float16>) result.bits = __half_as_ushort(__float2half_rn(value));
    else result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    return result;
  }
#endif
  return static_cast<T>(value);
}

// float32, float64, float16 or bfloat16; anything else is an error that names `op`.
template <class F>
decltype(auto) dispatch_floating(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::float32: return f(float{});
    case DType::float64: return f(double{});
    case DType::float16: return f(float16{});
    case DType::bfloat16: return f(bfloat16{});
    default: fail<DTypeError>(op, ": takes a floating-point dtype, got ", name_of(dtype), "; convert with to(x, DType::float32)");
  }
}

}  // namespace fovea::kernels::cuda
