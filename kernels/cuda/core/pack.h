// Several elements in one access of up to 16 bytes, which is what fills the memory bus.
#pragma once

#include <fovea/kernels/cuda/core/device.h>

namespace fovea::kernels::cuda {

template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  static_assert(sizeof(T) * n <= 16 && (n & (n - 1)) == 0, "an access has 1, 2, 4, 8 or 16 bytes");
  T values[n];
  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};

template <class T> inline constexpr int full_pack = static_cast<int>(16 / sizeof(T));

// The packs that begin at an address. A GPU ends a kernel that reads or writes one at an address that is not a multiple of its size; the host's processor may do
// what it is told, so the model of CUDA looks.
template <class P, class T>
__device__ inline P* as_packs(T* address) {
#ifdef FOVEA_HOST_CUDA
  host_cuda::require_multiple(address, sizeof(P));
#endif
  return reinterpret_cast<P*>(address);
}

// i counts packs.
template <class T, int n = full_pack<T>>
__device__ inline Pack<T, n> load_pack(const T* from, int64_t i) { return as_packs<const Pack<T, n>>(from)[i]; }

template <class T, int n = full_pack<T>>
__device__ inline void store_pack(T* to, int64_t i, const Pack<T, n>& pack) { as_packs<Pack<T, n>>(to)[i] = pack; }

// Whether packs may be read or written there.
inline bool is_aligned(const void* p, size_t bytes = 16) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace fovea::kernels::cuda
