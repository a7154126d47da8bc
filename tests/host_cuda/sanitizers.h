// What the address and thread sanitizers want to know of fibers and of memory; nothing in other builds.
#pragma once

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HOST_CUDA_ASAN
#endif
#if __has_feature(thread_sanitizer)
#define HOST_CUDA_TSAN
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define HOST_CUDA_ASAN
#endif
#ifdef __SANITIZE_THREAD__
#define HOST_CUDA_TSAN
#endif

#ifdef HOST_CUDA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define NO_SANITIZE __attribute__((no_sanitize("address")))
#elif defined(HOST_CUDA_TSAN)
#include <sanitizer/tsan_interface.h>
#define NO_SANITIZE __attribute__((no_sanitize("thread")))
#else
#define NO_SANITIZE
#endif

namespace host_cuda {

#ifdef HOST_CUDA_ASAN
inline void poison(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
inline void begin_switch(void** save, const void* bottom, size_t bytes) { __sanitizer_start_switch_fiber(save, bottom, bytes); }
// `old` are the bounds of the stack that was left: how the host thread's are learnt.
inline void end_switch(void* saved, const void** old_bottom = nullptr, size_t* old_bytes = nullptr) { __sanitizer_finish_switch_fiber(saved, old_bottom, old_bytes); }
#else
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
inline void begin_switch(void**, const void*, size_t) {}
inline void end_switch(void*, const void** = nullptr, size_t* = nullptr) {}
#endif

#ifdef HOST_CUDA_TSAN
inline constexpr bool sanitize_threads = true;
inline void* tsan_create_fiber() { return __tsan_create_fiber(0); }
inline void* tsan_current_fiber() { return __tsan_get_current_fiber(); }
inline void tsan_switch_to_fiber(void* fiber) { __tsan_switch_to_fiber(fiber, 1); }     // 1: a switch orders nothing
inline void happens_before(void* token) { __tsan_release(token); }
inline void happens_after(void* token) { __tsan_acquire(token); }
#else
inline constexpr bool sanitize_threads = false;
inline void* tsan_create_fiber() { return nullptr; }
inline void* tsan_current_fiber() { return nullptr; }
inline void tsan_switch_to_fiber(void*) {}
inline void happens_before(void*) {}
inline void happens_after(void*) {}
#endif

}  // namespace host_cuda
