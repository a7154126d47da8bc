#include <fovea/kernels/cuda/allocator.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/streams.h>

namespace fovea::cuda {

using kernels::SizeClass;
using kernels::cuda::check_cuda;

namespace {

constexpr int64_t smallest_block = 512;
constexpr int64_t guard_bytes = 512;                       // on either side of a block in debug mode; keeps the block aligned
constexpr unsigned char guard_value = 0xb5;
constexpr size_t most_unchecked = 64;                      // freed blocks whose guards have not been looked at

// Does a request that failed like this ask for more than there is? To drivers, what no address space could hold is an invalid argument: the only one of these calls is the size.
bool is_for_want_of_memory(cudaError_t result) { return result == cudaErrorMemoryAllocation || result == cudaErrorInvalidValue; }

SizeClass class_of(int64_t bytes) { return kernels::size_class_of(bytes, smallest_block); }

// Events without times, used again and again: making one is slow. One can only be recorded on the device that it was made on.
class EventPool {
 public:
  // An event recorded on the stream; null if CUDA refuses, which it only does when the device is lost.
  cudaEvent_t recorded(cudaStream_t stream, int device) noexcept {
    cudaEvent_t event = nullptr;
    int active = device;
    cudaGetDevice(&active);
    if (active != device) cudaSetDevice(device);
    std::vector<cudaEvent_t>& unused = unused_[device];
    if (unused.empty()) {
      if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess) device_of_[event] = device;
      else event = nullptr;
    } else {
      event = unused.back();
      unused.pop_back();
    }
    if (event) cudaEventRecord(event, stream);
    if (active != device) cudaSetDevice(active);
    return event;
  }
  void give_back(std::vector<cudaEvent_t>& events) {
    for (const cudaEvent_t event : events) unused_[device_of_.at(event)].push_back(event);
    events.clear();
  }

 private:
  std::map<int, std::vector<cudaEvent_t>> unused_;         // by device
  std::map<cudaEvent_t, int> device_of_;
};

struct Use {
  cudaStream_t stream;
  int device;
  bool operator==(const Use&) const = default;
};

// A block that a tensor holds.
struct Held {
  int64_t bytes = 0;                                       // of its class
  cudaStream_t home = nullptr;                             // the stream it was asked for on
  bool has_home = true;                                    // false once that stream is gone
  bool is_guarded = false;
  std::vector<Use> uses;                                   // on other streams
};

// A block in the cache.
struct Free {
  void* data;
  cudaStream_t home;                                       // may be reused there at once, if has_home
  bool has_home;
  std::vector<cudaEvent_t> events;                         // may be reused by any stream when these have passed; never, if has_home and there are none
};

bool have_passed(const std::vector<cudaEvent_t>& events) {
  const bool all = std::all_of(events.begin(), events.end(), [](cudaEvent_t e) { return cudaEventQuery(e) == cudaSuccess; });
  if (!all) cudaGetLastError();                            // "not yet" counts as an error too, which others must not find
  return all;
}

// The free blocks, by size class.
class FreeBlocks {
 public:
  void put(int size_class, Free block) { lists_[static_cast<size_t>(size_class)].push_back(std::move(block)); }

  // A block that work on `stream` may use; null if there is none. The newest of the stream's own, which is still in the device's cache, else the oldest of others.
  void* take(int size_class, cudaStream_t stream, EventPool& pool) {
    std::vector<Free>& list = lists_[static_cast<size_t>(size_class)];
    for (size_t i = list.size(); i-- > 0;)
      if (list[i].has_home && list[i].home == stream) return taken(list, i, pool);
    for (size_t i = 0; i < list.size(); ++i)
      if ((!list[i].has_home || !list[i].events.empty()) && have_passed(list[i].events)) return taken(list, i, pool);
    return nullptr;
  }

  // Frees all but those that is_kept(), by free_block(). Their work must be done.
  template <class FreeBlock, class IsKept>
  void clear(EventPool& pool, const FreeBlock& free_block, const IsKept& is_kept) {
    for (size_t size_class = 0; size_class < lists_.size(); ++size_class) {
      std::erase_if(lists_[size_class], [&](Free& block) {
        if (block.has_home && is_kept(block.home)) return false;
        pool.give_back(block.events);
        free_block(static_cast<int>(size_class), block.data);
        return true;
      });
    }
  }

  // Waits until the work on all of them is done.
  void wait() const {
    for (const std::vector<Free>& list : lists_)
      for (const Free& block : list)
        for (const cudaEvent_t event : block.events) check_cuda(cudaEventSynchronize(event), "cuda: while waiting for copies from and to pinned memory");
  }

  void forget(cudaStream_t stream) {
    for (std::vector<Free>& list : lists_)
      for (Free& block : list)
        if (block.has_home && block.home == stream) block.has_home = false;
  }

 private:
  static void* taken(std::vector<Free>& list, size_t i, EventPool& pool) {
    void* data = list[i].data;
    pool.give_back(list[i].events);
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
    return data;
  }

  std::array<std::vector<Free>, kernels::num_size_classes> lists_;
};

std::string readable(int64_t bytes) {
  static constexpr const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  double value = static_cast<double>(bytes);
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  char text[48];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

// The memory of one device.
struct Cache {
  std::mutex mutex;
  int device = 0;
  FreeBlocks free_blocks;
  std::map<const char*, Held> held;
  EventPool events;
  AllocatorStats stats;
  int64_t limit = 0;
  int64_t damaged = 0;
  std::set<cudaStream_t> of_graphs;                        // streams whose blocks stay with them
  std::map<cudaStream_t, void*> scratch;                   // of streams, beside all blocks
  std::vector<void*> abandoned_scratch;                    // of streams that went while a graph was recorded
  int recordings = 0;                                      // graphs that are being recorded: see note [Nothing waits for a device while a graph is recorded]
  struct Unchecked {
    char* raw;
    int64_t bytes;                                         // between the guards
  };
  std::vector<Unchecked> unchecked;                        // freed in debug mode

  void* allocate(int64_t bytes, bool is_debug);
  void release(void* block, int64_t bytes) noexcept;
  void clear();
  void check_guards();
  void* scratch_of(cudaStream_t stream, int64_t bytes);
  void make_room();

 private:
  void* from_cuda(int64_t bytes);
  void* fresh(int64_t bytes, SizeClass size, bool is_debug, cudaStream_t stream);
  std::string what_is_held() const;
};

// Null when the device has no more.
void* Cache::from_cuda(int64_t bytes) {
  void* block = nullptr;
  const cudaError_t result = cudaMalloc(&block, static_cast<size_t>(bytes));
  if (result == cudaSuccess) return block;
  cudaGetLastError();
  if (!is_for_want_of_memory(result)) check_cuda(result, "cuda:", device, ": allocating ", bytes, " bytes");
  return nullptr;
}

void* Cache::fresh(int64_t bytes, SizeClass size, bool is_debug, cudaStream_t stream) {
  if (!is_debug) return from_cuda(size.bytes);
  char* raw = static_cast<char*>(from_cuda(bytes + 2 * guard_bytes));
  if (!raw) return nullptr;
  check_cuda(cudaMemsetAsync(raw, guard_value, static_cast<size_t>(bytes + 2 * guard_bytes), stream), "cuda: writing guards");
  check_cuda(cudaMemsetAsync(raw + guard_bytes, 0xff, static_cast<size_t>(bytes), stream), "cuda: poisoning a block");
  return raw + guard_bytes;
}

std::string Cache::what_is_held() const {
  std::map<int64_t, int64_t, std::greater<>> count_of;                       // by size, the largest first
  for (const auto& [data, block] : held) ++count_of[block.bytes];
  std::string text = str("tensors hold ", readable(stats.active_bytes), " in ", held.size(), held.size() == 1 ? " block" : " blocks");
  int listed = 0;
  for (const auto& [bytes, count] : count_of) {
    if (++listed > 4) break;
    text += str(listed == 1 ? " (" : ", ", count, " of ", readable(bytes));
  }
  if (listed) text += listed > 4 ? ", ...)" : ")";
  if (stats.cached_bytes == 0) return text + ", the cache is empty";
  const std::string cached = readable(stats.cached_bytes);
  return text + (recordings ? ", the cache " + cached + ", which it cannot give back while a graph is recorded" : ", recorded graphs " + cached);
}

// Before an allocation that does not fit. What is still cached afterwards cannot be given back.
void Cache::make_room() {
  if (recordings == 0) clear();
}

void* Cache::allocate(int64_t bytes, bool is_debug) {
  const SizeClass size = class_of(bytes);
  const cudaStream_t stream = detail::current_handle(device);
  std::lock_guard lock(mutex);
  detail::DeviceScope scope(device);
  if (of_graphs.contains(stream)) is_debug = false;        // its memory is never given back one by one, so guards would never be looked at
  void* block = is_debug ? nullptr : free_blocks.take(size.index, stream, events);
  if (block) {
    stats.cached_bytes -= size.bytes;
    ++stats.cache_hits;
  } else {
    const auto is_within_limit = [&] { return !limit || stats.active_bytes + stats.cached_bytes + size.bytes <= limit; };
    if (!is_within_limit()) make_room();
    if (!is_within_limit())
      fail<MemoryError>("cuda:", device, ": out of memory: ", readable(bytes), " more would exceed the limit of ", readable(limit), " set by cuda::allocator::set_limit; ", what_is_held());
    block = fresh(bytes, size, is_debug, stream);
    if (!block) {
      make_room();
      block = fresh(bytes, size, is_debug, stream);
    }
    if (!block) {
      size_t available = 0, total = 0;
      cudaMemGetInfo(&available, &total);
      fail<MemoryError>("cuda:", device, ": out of memory: cannot allocate ", readable(bytes), "; ", what_is_held(), "; of the device's ",
                        readable(static_cast<int64_t>(total)), " there are ", readable(static_cast<int64_t>(available)),
                        " free; free tensors that are not needed, or make the batch smaller");
    }
  }
  held[static_cast<const char*>(block)] = {size.bytes, stream, true, is_debug, {}};
  stats.active_bytes += size.bytes;
  stats.peak_bytes = std::max(stats.peak_bytes, stats.active_bytes);
  ++stats.allocations;
  return block;
}

void Cache::release(void* block, int64_t bytes) noexcept {
  const cudaStream_t current = detail::current_handle(device);
  std::lock_guard lock(mutex);
  const auto found = held.find(static_cast<const char*>(block));
  if (found == held.end()) return;
  Held gone = std::move(found->second);
  held.erase(found);
  stats.active_bytes -= gone.bytes;
  if (gone.is_guarded) {
    unchecked.push_back({static_cast<char*>(block) - guard_bytes, bytes});
    if (unchecked.size() >= most_unchecked) check_guards();
    return;
  }
  Free free{block, gone.home, gone.has_home, {}};
  const Use here{current, device};
  const bool is_recorded = of_graphs.contains(current);     // what is freed while a graph is recorded, the graph may read in every run: it stays there
  const bool is_of_graph = is_recorded || (gone.has_home && of_graphs.contains(gone.home));
  if (is_recorded) free.home = current, free.has_home = true;
  const bool is_elsewhere = !gone.has_home || current != gone.home || !gone.uses.empty();
  if (!is_of_graph && (is_elsewhere || detail::has_many_streams(device))) {
    if (gone.has_home) free.events.push_back(events.recorded(gone.home, device));
    if (!gone.has_home || current != gone.home) free.events.push_back(events.recorded(current, device));
    for (const Use& use : gone.uses)
      if (use != here) free.events.push_back(events.recorded(use.stream, use.device));
    free.has_home = !is_elsewhere;
    std::erase(free.events, nullptr);
  }
  free_blocks.put(class_of(bytes).index, std::move(free));
  stats.cached_bytes += gone.bytes;
}

void Cache::clear() {
  detail::DeviceScope scope(device);
  check_guards();
  check_cuda(cudaDeviceSynchronize(), "cuda:", device, ": while waiting for the device to give memory back");
  const auto give_back = [&](int size_class, void* data) {
    cudaFree(data);
    stats.cached_bytes -= kernels::bytes_of_size_class(size_class);
  };
  free_blocks.clear(events, give_back, [&](cudaStream_t home) { return of_graphs.contains(home); });
}

void* Cache::scratch_of(cudaStream_t stream, int64_t bytes) {
  std::lock_guard lock(mutex);
  void*& memory = scratch[stream];
  if (memory) return memory;
  detail::DeviceScope scope(device);
  memory = from_cuda(bytes);
  if (!memory) {
    make_room();
    memory = from_cuda(bytes);
  }
  return memory;
}

void Cache::check_guards() {
  if (unchecked.empty() || recordings) return;             // they can wait
  int active = device;
  cudaGetDevice(&active);
  cudaSetDevice(device);
  // All guards come back together, into pinned memory, so that the host waits once.
  unsigned char* guards = nullptr;
  const bool is_lost = cudaDeviceSynchronize() != cudaSuccess ||
                       cudaMallocHost(reinterpret_cast<void**>(&guards), unchecked.size() * 2 * guard_bytes) != cudaSuccess;    // a lost device says so elsewhere
  unsigned char* to = guards;
  for (const Unchecked& block : unchecked) {
    if (is_lost) break;
    cudaMemcpyAsync(to, block.raw, guard_bytes, cudaMemcpyDeviceToHost, nullptr);
    cudaMemcpyAsync(to + guard_bytes, block.raw + guard_bytes + block.bytes, guard_bytes, cudaMemcpyDeviceToHost, nullptr);
    to += 2 * guard_bytes;
  }
  if (!is_lost && cudaStreamSynchronize(nullptr) == cudaSuccess) {
    for (const unsigned char* from = guards; from < to; from += 2 * guard_bytes)
      if (!std::all_of(from, from + 2 * guard_bytes, [](unsigned char byte) { return byte == guard_value; })) ++damaged;
  }
  if (guards) cudaFreeHost(guards);
  for (const Unchecked& block : unchecked) cudaFree(block.raw);
  unchecked.clear();
  cudaSetDevice(active);
}

std::atomic<bool> is_debug{false};

// Never destroyed: tensors with static lifetime may be freed after every other static object.
Cache& cache(int device) {
  static auto& caches = *new std::array<Cache, detail::max_devices>;
  static const bool are_numbered = [] {
    for (int i = 0; i < detail::max_devices; ++i) caches[static_cast<size_t>(i)].device = i;
    return true;
  }();
  static_cast<void>(are_numbered);
  return caches[static_cast<size_t>(device)];
}

Cache& checked_cache(int device) {
  check_device(device);
  return cache(device);
}

// Host memory that devices can reach.
struct PinnedCache {
  std::mutex mutex;
  FreeBlocks free_blocks;
  std::map<const char*, Held> held;
  EventPool events;
  AllocatorStats stats;

  void clear() {
    free_blocks.wait();
    const auto give_back = [&](int size_class, void* data) {
      cudaFreeHost(data);
      stats.cached_bytes -= kernels::bytes_of_size_class(size_class);
    };
    free_blocks.clear(events, give_back, [](cudaStream_t) { return true; });      // only graphs' have a home here
  }

  static PinnedCache& instance() {
    static auto* cache = new PinnedCache;
    return *cache;
  }
};

// The block that `data` points into; the map's end if there is none.
std::map<const char*, Held>::iterator block_around(std::map<const char*, Held>& held, const void* data) {
  auto after = held.upper_bound(static_cast<const char*>(data));
  if (after == held.begin()) return held.end();
  --after;
  return static_cast<const char*>(data) < after->first + after->second.bytes ? after : held.end();
}

bool is_of_graph(const Use& use) {
  Cache& c = cache(use.device);
  std::lock_guard lock(c.mutex);
  return c.of_graphs.contains(use.stream);
}

void add_use(Held& block, Use use) {
  if (std::find(block.uses.begin(), block.uses.end(), use) == block.uses.end()) block.uses.push_back(use);
}

}  // namespace

namespace detail {

void forget_stream(cudaStream_t stream, int device) noexcept {
  {
    Cache& c = cache(device);
    std::lock_guard lock(c.mutex);
    c.of_graphs.erase(stream);
    if (const auto scratch = c.scratch.find(stream); scratch != c.scratch.end()) {
      if (c.recordings) c.abandoned_scratch.push_back(scratch->second);
      else cudaFree(scratch->second);
      c.scratch.erase(scratch);
    }
    c.free_blocks.forget(stream);
    for (auto& [data, block] : c.held) {
      if (block.home == stream) block.has_home = false;
      std::erase(block.uses, Use{stream, device});
    }
  }
  PinnedCache& pinned = PinnedCache::instance();
  std::lock_guard lock(pinned.mutex);
  pinned.free_blocks.forget(stream);
  for (auto& [data, block] : pinned.held) std::erase(block.uses, Use{stream, device});
}

void keep_for_graph(cudaStream_t stream, int device) {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  c.of_graphs.insert(stream);
}

void* scratch_of(cudaStream_t stream, int device, int64_t bytes) { return cache(device).scratch_of(stream, bytes); }

void make_room(int device) {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  DeviceScope scope(device);
  c.make_room();
}

void begin_recording(int device) {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  ++c.recordings;
}

void end_recording(int device) noexcept {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  if (--c.recordings) return;
  for (void* memory : c.abandoned_scratch) cudaFree(memory);
  c.abandoned_scratch.clear();
}

void record_pinned_use(const void* host, cudaStream_t stream, int device) {
  PinnedCache& pinned = PinnedCache::instance();
  std::lock_guard lock(pinned.mutex);
  if (const auto block = block_around(pinned.held, host); block != pinned.held.end()) add_use(block->second, {stream, device});
}

}  // namespace detail

void record_use(const void* data, const Stream& stream) {
  Cache& c = cache(stream.device());
  std::lock_guard lock(c.mutex);
  const auto block = block_around(c.held, data);
  check<ValueError>(block != c.held.end(), "record_use: this is no memory that a tensor on cuda:", stream.device(), " holds");
  const auto handle = static_cast<cudaStream_t>(stream.handle());
  if (!block->second.has_home || block->second.home != handle) add_use(block->second, {handle, stream.device()});
}

void* allocate_pinned(int64_t bytes) {
  check_device(current_device());
  check<MemoryError>(bytes >= 0 && bytes < (int64_t{1} << 60), "allocate_pinned: cannot hold ", bytes, " bytes");
  const SizeClass size = class_of(bytes);
  PinnedCache& pinned = PinnedCache::instance();
  std::lock_guard lock(pinned.mutex);
  void* block = pinned.free_blocks.take(size.index, nullptr, pinned.events);
  if (block) {
    pinned.stats.cached_bytes -= size.bytes;
    ++pinned.stats.cache_hits;
  } else {
    cudaError_t result = cudaMallocHost(&block, static_cast<size_t>(size.bytes));
    if (is_for_want_of_memory(result)) {
      cudaGetLastError();                                  // or the next launch would be blamed for it
      pinned.clear();
      result = cudaMallocHost(&block, static_cast<size_t>(size.bytes));
    }
    if (is_for_want_of_memory(result)) {
      cudaGetLastError();
      fail<MemoryError>("out of memory: the system has no ", readable(bytes), " that can be pinned, beside the ", readable(pinned.stats.active_bytes), " that are held in ",
                        pinned.held.size(), pinned.held.size() == 1 ? " block" : " blocks");
    }
    check_cuda(result, "allocating ", bytes, " bytes of pinned memory");
  }
  pinned.held[static_cast<const char*>(block)] = {size.bytes, nullptr, false, false, {}};
  pinned.stats.active_bytes += size.bytes;
  pinned.stats.peak_bytes = std::max(pinned.stats.peak_bytes, pinned.stats.active_bytes);
  ++pinned.stats.allocations;
  return block;
}

void release_pinned(void* block, int64_t bytes) {
  PinnedCache& pinned = PinnedCache::instance();
  std::lock_guard lock(pinned.mutex);
  const auto found = pinned.held.find(static_cast<const char*>(block));
  if (found == pinned.held.end()) return;
  Free free{block, nullptr, false, {}};
  const std::vector<Use>& uses = found->second.uses;
  const auto of_graph = std::find_if(uses.begin(), uses.end(), [](const Use& use) { return is_of_graph(use); });
  if (of_graph != uses.end()) {                            // every run copies again, from or to here: it stays there
    free.home = of_graph->stream, free.has_home = true;
  } else {
    for (const Use& use : uses) free.events.push_back(pinned.events.recorded(use.stream, use.device));
    std::erase(free.events, nullptr);
  }
  pinned.stats.active_bytes -= found->second.bytes;
  pinned.stats.cached_bytes += found->second.bytes;
  pinned.held.erase(found);
  pinned.free_blocks.put(class_of(bytes).index, std::move(free));
}

namespace allocator {

void* allocate(int64_t bytes, int device) {
  check<MemoryError>(bytes >= 0 && bytes < (int64_t{1} << 60), "cuda:", device, ": cannot hold ", bytes, " bytes");
  return checked_cache(device).allocate(bytes, is_debug);
}

void release(void* block, int64_t bytes, int device) noexcept {
  cache(device).release(block, bytes);
}

AllocatorStats stats(int device) {
  Cache& c = checked_cache(device);
  std::lock_guard lock(c.mutex);
  return c.stats;
}

void reset_peak(int device) {
  Cache& c = checked_cache(device);
  std::lock_guard lock(c.mutex);
  c.stats.peak_bytes = c.stats.active_bytes;
}

void set_limit(int64_t bytes, int device) {
  check<ValueError>(bytes >= 0, "cuda::allocator::set_limit: bytes cannot be negative, got ", bytes);
  Cache& c = checked_cache(device);
  std::lock_guard lock(c.mutex);
  c.limit = bytes;
}

void clear(int device) {
  Cache& c = checked_cache(device);
  std::lock_guard lock(c.mutex);
  check<DeviceError>(c.recordings == 0, "cuda::allocator::clear: a graph is being recorded on cuda:", device, ", which waiting for the device would spoil; clear before or afterwards");
  c.clear();
}

AllocatorStats pinned_stats() {
  PinnedCache& pinned = PinnedCache::instance();
  std::lock_guard lock(pinned.mutex);
  return pinned.stats;
}

void clear_pinned() {
  PinnedCache& pinned = PinnedCache::instance();
  std::lock_guard lock(pinned.mutex);
  pinned.clear();
}

void set_debug(bool is_on) { is_debug = is_on; }

int64_t damaged_blocks() {
  int64_t damaged = 0;
  for (int device = 0; device < device_count(); ++device) {
    Cache& c = cache(device);
    std::lock_guard lock(c.mutex);
    c.check_guards();
    damaged += c.damaged;
  }
  return damaged;
}

}  // namespace allocator
}  // namespace fovea::cuda
