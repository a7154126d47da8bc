// The CPU's memory: a cache of freed blocks, because fresh pages are what makes CPU tensor code slow.
#pragma once

#include <cstdint>

#include <fovea/kernels/memory.h>

namespace fovea {

// Policy: a request is rounded up to one of eight steps between powers of two (at most 12.5 % waste; 64 bytes at least) and served by a cached block of exactly
// that class, else by the system. Freed blocks go to the cache and stay there until clear(), or until the limit would be exceeded: then the cache is
// emptied before MemoryError is thrown. Blocks are aligned to 64 bytes. All functions may be called from any thread.
namespace allocator {

void* allocate(int64_t bytes);                // not null for 0 bytes; MemoryError when the limit or the machine has no more
void release(void* block, int64_t bytes);     // bytes as given to allocate()
AllocatorStats stats();
void reset_peak();
void set_limit(int64_t bytes);                // of active + cached bytes; 0 (the default): no limit
void clear();                                 // gives the cached blocks back to the system

// For tests; off by default; for CUDA devices too. While it is on, a block handed out is filled with 0xff (NaN in every floating dtype, -1 in the integers), stands between guard
// bytes that release() checks, and goes back to the system instead of the cache, so that the address sanitizer sees a use after release.
void set_debug(bool is_on);
int64_t damaged_blocks();                     // released so far with overwritten guard bytes: something wrote outside its tensor; on CUDA devices too

}  // namespace allocator
}  // namespace fovea
