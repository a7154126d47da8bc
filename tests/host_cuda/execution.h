// What kernels see of CUDA's execution: where a thread is, barriers, warp operations and atomics. block.cpp runs them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "vector_types.h"

// All blocks run on one thread of the host, so these are plain variables that change whenever another fiber goes on.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace host_cuda {

// A line of a kernel, for messages and to tell barriers apart.
struct Site {
  const char* file;
  int line;
};

enum class BarrierKind : uint8_t { plain, any, all, count };
enum class WarpKind : uint8_t {
  sync, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all, match_any, match_all,
  add, min, max, add_signed, min_signed, max_signed, bit_and, bit_or, bit_xor
};

// Waits for all threads of the block; the result is that of __syncthreads_or, _and or _count.
int arrive_at_barrier(BarrierKind kind, bool predicate, Site site);

// Waits for the lanes of `mask`. `argument` is a shuffle's lane, distance or lane mask, and `width` its group.
uint64_t arrive_at_warp(WarpKind kind, uint32_t mask, uint64_t value, int argument, int width, Site site);

uint32_t lanes_left();          // lanes of this warp that have not returned

// Atomic operations call this: now and then another thread goes on first.
void perhaps_yield();

// Of an access of so many bytes: ends the kernel unless the address is a multiple of them.
[[noreturn]] void refuse_address(const void* address, size_t bytes);
inline void require_multiple(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) [[unlikely]] refuse_address(address, bytes);
}

// For the thread sanitizer. A fence before an atomic operation publishes what was written before the fence, and one after it lets what others have published so be read.
void fence_memory();
void note_atomic(void* address);

template <class T>
concept Shuffled = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <class T>
uint64_t to_bits(T value) {
  if constexpr (sizeof(T) == 4) return std::bit_cast<uint32_t>(value);
  else return std::bit_cast<uint64_t>(value);
}
template <class T>
T from_bits(uint64_t bits) {
  if constexpr (sizeof(T) == 4) return std::bit_cast<T>(static_cast<uint32_t>(bits));
  else return std::bit_cast<T>(bits);
}

template <class T>
T shuffle(WarpKind kind, unsigned mask, T value, int argument, int width, Site site) {
  return from_bits<T>(arrive_at_warp(kind, mask, to_bits(value), argument, width, site));
}

}  // namespace host_cuda

// The line that is reported is the caller's: default arguments are evaluated there.
#define HOST_CUDA_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(HOST_CUDA_SITE) { host_cuda::arrive_at_barrier(host_cuda::BarrierKind::plain, false, {file, line}); }
inline int __syncthreads_or(int predicate, HOST_CUDA_SITE) { return host_cuda::arrive_at_barrier(host_cuda::BarrierKind::any, predicate != 0, {file, line}); }
inline int __syncthreads_and(int predicate, HOST_CUDA_SITE) { return host_cuda::arrive_at_barrier(host_cuda::BarrierKind::all, predicate != 0, {file, line}); }
inline int __syncthreads_count(int predicate, HOST_CUDA_SITE) { return host_cuda::arrive_at_barrier(host_cuda::BarrierKind::count, predicate != 0, {file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, HOST_CUDA_SITE) { host_cuda::arrive_at_warp(host_cuda::WarpKind::sync, mask, 0, 0, 32, {file, line}); }

template <host_cuda::Shuffled T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, HOST_CUDA_SITE) {
  return host_cuda::shuffle(host_cuda::WarpKind::shuffle, mask, value, lane, width, {file, line});
}
template <host_cuda::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = warpSize, HOST_CUDA_SITE) {
  return host_cuda::shuffle(host_cuda::WarpKind::shuffle_up, mask, value, static_cast<int>(distance), width, {file, line});
}
template <host_cuda::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = warpSize, HOST_CUDA_SITE) {
  return host_cuda::shuffle(host_cuda::WarpKind::shuffle_down, mask, value, static_cast<int>(distance), width, {file, line});
}
template <host_cuda::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, HOST_CUDA_SITE) {
  return host_cuda::shuffle(host_cuda::WarpKind::shuffle_xor, mask, value, lane_mask, width, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, HOST_CUDA_SITE) {
  return static_cast<unsigned>(host_cuda::arrive_at_warp(host_cuda::WarpKind::ballot, mask, predicate != 0, 0, 32, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, HOST_CUDA_SITE) {
  return static_cast<int>(host_cuda::arrive_at_warp(host_cuda::WarpKind::any, mask, predicate != 0, 0, 32, {file, line}));
}
inline int __all_sync(unsigned mask, int predicate, HOST_CUDA_SITE) {
  return static_cast<int>(host_cuda::arrive_at_warp(host_cuda::WarpKind::all, mask, predicate != 0, 0, 32, {file, line}));
}
template <host_cuda::Shuffled T>
unsigned __match_any_sync(unsigned mask, T value, HOST_CUDA_SITE) {
  return static_cast<unsigned>(host_cuda::arrive_at_warp(host_cuda::WarpKind::match_any, mask, host_cuda::to_bits(value), 0, 32, {file, line}));
}
template <host_cuda::Shuffled T>
unsigned __match_all_sync(unsigned mask, T value, int* all_match, HOST_CUDA_SITE) {
  const unsigned lanes = static_cast<unsigned>(host_cuda::arrive_at_warp(host_cuda::WarpKind::match_all, mask, host_cuda::to_bits(value), 0, 32, {file, line}));
  *all_match = lanes != 0;
  return lanes;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::add, mask, v, 0, 32, {file, line}); }
inline unsigned __reduce_min_sync(unsigned mask, unsigned v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::min, mask, v, 0, 32, {file, line}); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::max, mask, v, 0, 32, {file, line}); }
inline int __reduce_add_sync(unsigned mask, int v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::add_signed, mask, v, 0, 32, {file, line}); }
inline int __reduce_min_sync(unsigned mask, int v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::min_signed, mask, v, 0, 32, {file, line}); }
inline int __reduce_max_sync(unsigned mask, int v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::max_signed, mask, v, 0, 32, {file, line}); }
inline unsigned __reduce_and_sync(unsigned mask, unsigned v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::bit_and, mask, v, 0, 32, {file, line}); }
inline unsigned __reduce_or_sync(unsigned mask, unsigned v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::bit_or, mask, v, 0, 32, {file, line}); }
inline unsigned __reduce_xor_sync(unsigned mask, unsigned v, HOST_CUDA_SITE) { return host_cuda::shuffle(host_cuda::WarpKind::bit_xor, mask, v, 0, 32, {file, line}); }

#undef HOST_CUDA_SITE

inline unsigned __activemask() { return host_cuda::lanes_left(); }

inline void __threadfence_block() {}
inline void __threadfence() { host_cuda::fence_memory(); }
inline void __threadfence_system() { host_cuda::fence_memory(); }
inline void __nanosleep(unsigned) { host_cuda::perhaps_yield(); }

namespace host_cuda {

// The old value; `change` computes the new one. Real atomic instructions, so that the thread sanitizer knows them for what they are.
template <class T, class Change>
T atomic_change(T* address, Change change) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  perhaps_yield();
  Bits* bits = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<Bits>(change(std::bit_cast<T>(old))), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  note_atomic(address);
  return std::bit_cast<T>(old);
}

template <class T>
concept AtomicInteger = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;
template <class T>
concept AtomicNumber = AtomicInteger<T> || std::is_same_v<T, float> || std::is_same_v<T, double>;
template <class T>
concept AtomicOrdered = AtomicInteger<T> || std::is_same_v<T, long long>;

}  // namespace host_cuda

template <host_cuda::AtomicNumber T>
T atomicAdd(T* a, std::type_identity_t<T> v) { return host_cuda::atomic_change(a, [v](T old) { return static_cast<T>(old + v); }); }
template <class T> requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>)
T atomicSub(T* a, std::type_identity_t<T> v) { return host_cuda::atomic_change(a, [v](T old) { return static_cast<T>(old - v); }); }
template <host_cuda::AtomicOrdered T>
T atomicMax(T* a, std::type_identity_t<T> v) { return host_cuda::atomic_change(a, [v](T old) { return old < v ? v : old; }); }
template <host_cuda::AtomicOrdered T>
T atomicMin(T* a, std::type_identity_t<T> v) { return host_cuda::atomic_change(a, [v](T old) { return v < old ? v : old; }); }
template <host_cuda::AtomicInteger T>
T atomicAnd(T* a, std::type_identity_t<T> v) { return host_cuda::atomic_change(a, [v](T old) { return static_cast<T>(old & v); }); }
template <host_cuda::AtomicInteger T>
T atomicOr(T* a, std::type_identity_t<T> v) { return host_cuda::atomic_change(a, [v](T old) { return static_cast<T>(old | v); }); }
template <host_cuda::AtomicInteger T>
T atomicXor(T* a, std::type_identity_t<T> v) { return host_cuda::atomic_change(a, [v](T old) { return static_cast<T>(old ^ v); }); }
template <class T> requires(host_cuda::AtomicInteger<T> || std::is_same_v<T, float>)
T atomicExch(T* a, std::type_identity_t<T> v) { return host_cuda::atomic_change(a, [v](T) { return v; }); }
template <host_cuda::AtomicInteger T>
T atomicCAS(T* a, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return host_cuda::atomic_change(a, [=](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned* a, unsigned limit) { return host_cuda::atomic_change(a, [=](unsigned old) { return old >= limit ? 0u : old + 1; }); }
inline unsigned atomicDec(unsigned* a, unsigned limit) { return host_cuda::atomic_change(a, [=](unsigned old) { return old == 0 || old > limit ? limit : old - 1; }); }
