#include <fovea/tensor/allocator.h>

#include <array>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <vector>

#include <fovea/kernels/error.h>

namespace fovea::allocator {
namespace {

constexpr int64_t smallest_block = 64;
constexpr int64_t steps = 8;                               // classes between one power of two and the next
constexpr int num_classes = 8 * 64;

struct SizeClass {
  int index;
  int64_t bytes;
};

SizeClass class_of(int64_t bytes) {
  if (bytes <= smallest_block) return {0, smallest_block};
  const int power = std::bit_width(static_cast<uint64_t>(bytes - 1)) - 1;      // 2^power <= bytes - 1 < 2^(power + 1)
  const int64_t base = int64_t{1} << power, step = base / steps;
  const int64_t k = (bytes - base + step - 1) / step;                            // 1..8
  return {static_cast<int>((power - 6) * steps + k), base + k * step};
}

void* from_system(int64_t bytes) {
  return std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
}

struct Cache {
  std::mutex mutex;
  std::array<std::vector<void*>, num_classes> free_blocks;
  AllocatorStats stats;
  int64_t limit = 0;

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

}  // namespace

void* allocate(int64_t bytes) {
  check<MemoryError>(bytes >= 0 && bytes < (int64_t{1} << 60), "allocate: cannot hold ", bytes, " bytes");
  const SizeClass size = class_of(bytes);
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  void* block = nullptr;
  if (auto& blocks = c.free_blocks[size.index]; !blocks.empty()) {
    block = blocks.back();
    blocks.pop_back();
    c.stats.cached_bytes -= size.bytes;
    ++c.stats.cache_hits;
  } else {
    if (c.limit && c.stats.active_bytes + c.stats.cached_bytes + size.bytes > c.limit) c.clear();
    const bool is_within_limit = !c.limit || c.stats.active_bytes + size.bytes <= c.limit;
    if (is_within_limit) block = from_system(size.bytes);
    if (!block && is_within_limit) {
      c.clear();
      block = from_system(size.bytes);
    }
    check<MemoryError>(block != nullptr, "out of memory: cannot allocate ", bytes, " bytes; tensors hold ", c.stats.active_bytes, " bytes, ",
                       is_within_limit ? "the system has no more" : "which the limit set by allocator::set_limit does not allow");
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
  c.free_blocks[size.index].push_back(block);
  c.stats.active_bytes -= size.bytes;
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

}  // namespace fovea::allocator
