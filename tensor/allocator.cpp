#include <fovea/tensor/allocator.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_set>
#include <vector>

#include <fovea/kernels/cuda/allocator.h>
#include <fovea/kernels/error.h>

namespace fovea::allocator {
namespace {

using kernels::SizeClass;

SizeClass class_of(int64_t bytes) { return kernels::size_class_of(bytes, 64); }

constexpr int64_t guard_bytes = 64;                        // on either side of a block in debug mode; keeps the block aligned
constexpr unsigned char guard_value = 0xb5;

void* from_system(int64_t bytes) {
  return std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
}

struct Cache {
  std::mutex mutex;
  std::array<std::vector<void*>, kernels::num_size_classes> free_blocks;
  AllocatorStats stats;
  int64_t limit = 0;
  bool is_debug = false;
  std::unordered_set<void*> guarded;                       // blocks handed out in debug mode
  int64_t damaged = 0;

  void clear() {
    for (auto& blocks : free_blocks) {
      for (void* block : blocks) std::free(block);
      blocks.clear();
    }
    stats.cached_bytes = 0;
  }
};

// Never destroyed: tensors with static lifetime may be freed after every other static object.
Cache& cache() {
  static Cache* instance = new Cache;
  return *instance;
}

// A block of exactly `bytes` between guards, poisoned; null when the system has no more.
void* guarded_block(int64_t bytes) {
  auto* raw = static_cast<unsigned char*>(from_system(bytes + 2 * guard_bytes));
  if (!raw) return nullptr;
  std::memset(raw, guard_value, guard_bytes);
  std::memset(raw + guard_bytes, 0xff, static_cast<size_t>(bytes));
  std::memset(raw + guard_bytes + bytes, guard_value, guard_bytes);
  return raw + guard_bytes;
}

// Frees it; false if something was written outside of it.
bool free_guarded(void* block, int64_t bytes) {
  unsigned char* raw = static_cast<unsigned char*>(block) - guard_bytes;
  bool is_whole = true;
  for (int64_t i = 0; i < guard_bytes; ++i) is_whole = is_whole && raw[i] == guard_value && raw[guard_bytes + bytes + i] == guard_value;
  std::free(raw);
  return is_whole;
}

}  // namespace

void* allocate(int64_t bytes) {
  check<MemoryError>(bytes >= 0 && bytes < (int64_t{1} << 60), "allocate: cannot hold ", bytes, " bytes");
  const SizeClass size = class_of(bytes);
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  auto fresh = [&] { return c.is_debug ? guarded_block(bytes) : from_system(size.bytes); };
  void* block = nullptr;
  if (auto& blocks = c.free_blocks[size.index]; !blocks.empty() && !c.is_debug) {
    block = blocks.back();
    blocks.pop_back();
    c.stats.cached_bytes -= size.bytes;
    ++c.stats.cache_hits;
  } else {
    if (c.limit && c.stats.active_bytes + c.stats.cached_bytes + size.bytes > c.limit) c.clear();
    const bool is_within_limit = !c.limit || c.stats.active_bytes + size.bytes <= c.limit;
    if (is_within_limit) block = fresh();
    if (!block && is_within_limit) {
      c.clear();
      block = fresh();
    }
    check<MemoryError>(block != nullptr, "out of memory: cannot allocate ", bytes, " bytes; tensors hold ", c.stats.active_bytes, " bytes, ",
                       is_within_limit ? "the system has no more" : "which the limit set by allocator::set_limit does not allow");
    if (c.is_debug) c.guarded.insert(block);
  }
  c.stats.active_bytes += size.bytes;
  if (c.stats.active_bytes > c.stats.peak_bytes) c.stats.peak_bytes = c.stats.active_bytes;
  ++c.stats.allocations;
  return block;
}

void release(void* block, int64_t bytes) {
  const SizeClass size = class_of(bytes);
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  c.stats.active_bytes -= size.bytes;
  if (!c.guarded.empty() && c.guarded.erase(block) > 0) {
    if (!free_guarded(block, bytes)) ++c.damaged;
    return;
  }
  c.free_blocks[size.index].push_back(block);
  c.stats.cached_bytes += size.bytes;
}

AllocatorStats stats() {
  std::lock_guard lock(cache().mutex);
  return cache().stats;
}

void reset_peak() {
  std::lock_guard lock(cache().mutex);
  cache().stats.peak_bytes = cache().stats.active_bytes;
}

void set_limit(int64_t bytes) {
  check<ValueError>(bytes >= 0, "allocator::set_limit: bytes cannot be negative, got ", bytes);
  std::lock_guard lock(cache().mutex);
  cache().limit = bytes;
}

void clear() {
  std::lock_guard lock(cache().mutex);
  cache().clear();
}

void set_debug(bool is_on) {
  cuda::allocator::set_debug(is_on);
  std::lock_guard lock(cache().mutex);
  cache().is_debug = is_on;
}

int64_t damaged_blocks() {
  const int64_t damaged_elsewhere = cuda::allocator::damaged_blocks();
  std::lock_guard lock(cache().mutex);
  return cache().damaged + damaged_elsewhere;
}

}  // namespace fovea::allocator
