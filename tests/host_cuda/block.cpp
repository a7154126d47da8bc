// Runs the blocks of a grid in random order, now one alone, now several beside each other; the blocks of a cluster always together. Their threads are fibers of the
// calling thread: one runs until it must wait, and then goes on with another that need not; a kernel in which nobody waits never switches at all, its threads follow
// each other on one stack. The order is random too.
//
// Strict where hardware shrugs: a barrier is left when every thread of the block stands at the same line of it; a warp operation happens when all lanes of its mask have
// come with the same operation and the same mask; a mask may not name lanes that have returned or do not exist.
#include <pthread.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "fiber.h"
#include "model.h"
#include "ptx_cluster.h"
#include "sanitizers.h"

namespace host_cuda {
namespace {

struct Thread {
  uint3 index = {};                      // its threadIdx
  int block = 0;                         // of those that are resident
  int fiber = -1;                        // what it runs on, once it has begun
  bool has_returned = false;
  uint64_t value = 0;                    // what it brought to a warp operation; afterwards, what it takes away
  int argument = 0, width = 32;
  void* operands = nullptr;              // what it brought to a Collective
  const char* parked_in = nullptr;       // what it waits in, where that is neither a barrier of the block nor a warp operation
  Site parked_at = {};
  bool is_at_cluster_barrier = false;    // it has arrived there and not yet waited
  int cluster_phase = 0;                 // in which it has
  bool has_fenced = false;               // since it began
};

constexpr int most_threads = 1024;       // that a block can have
constexpr int together_threads = 2048;   // that blocks which need not be resident together have at most, when they are

// Not a std::vector: the thread sanitizer must not watch the model itself, and would see a vector move its elements, or take its code from a file of kernels.
template <class T, int most>
class List {
 public:
  bool empty() const { return size_ == 0; }
  int size() const { return size_; }
  T& operator[](int i) { return items_[i]; }
  const T& operator[](int i) const { return items_[i]; }
  void push_back(T item) { items_[size_++] = item; }
  T pop_back() { return items_[--size_]; }
  void remove(int i) { items_[i] = pop_back(); }
  void clear() { size_ = 0; }
  const T* begin() const { return items_; }
  const T* end() const { return items_ + size_; }

 private:
  T items_[most];
  int size_ = 0;
};
using ThreadList = List<int, most_threads + 1>;

// What the lanes of a mask do together: an operation of CUDA C++, or (where `collective` is given) an instruction of PTX.
struct Operation {
  WarpKind kind = WarpKind::sync;
  const Collective* collective = nullptr;
  bool operator==(const Operation&) const = default;
};

// Lanes that wait for the rest of their mask.
struct Rendezvous {
  Operation operation;
  uint32_t mask, arrived;
  Site site;
};

struct Warp {
  uint32_t lanes = 0, returned = 0;      // that exist; of those, that have returned
  List<Rendezvous, 32> open;
  uint32_t meetings = 0;
};

struct Barrier {
  BarrierKind kind = BarrierKind::plain;
  Site site = {};
  ThreadList waiting;
  int holds = 0;                         // threads whose predicate held
  int result = 0;                        // of the latest barrier that was left
  int phase = 0;
  char tokens[2];                        // the thread sanitizer knows meetings by addresses
};

// A block that is resident. Its threads are those from number `first` on.
struct Block {
  uint3 index = {};                      // its blockIdx
  int number = 0, first = 0;
  int returned = 0;                      // of its threads
  bool has_begun = false;
  Barrier barrier;
  void* seen[8] = {};                    // what its threads' latest atomic operations were on, for the thread sanitizer
  int num_seen = 0;
};

// Of the cluster that begins with a block of this number.
struct ClusterBarrier {
  int arrived = 0, present = 0;          // threads that have arrived in this phase; that have not returned
  int phase = 0;
  List<int, most_resident_threads> waiting;
  char tokens[2];
};

// Threads that can run, in the order in which they became able to.
class Ready {
 public:
  void clear() { first_ = last_ = 0; }
  bool empty() const { return first_ == last_; }
  void push(int thread) { at(last_++) = thread; }
  int take_first() { return at(first_++); }
  int take_last() { return at(--last_); }
  int take_any() {
    std::swap(at(first_), at(first_ + chance().below(last_ - first_)));
    return take_first();
  }

 private:
  int& at(uint32_t i) { return ring_[i % most_resident_threads]; }
  uint32_t first_ = 0, last_ = 0;
  int ring_[most_resident_threads];
};

enum class Order { first, last, any };

// In the order of WarpKind.
const char* const kind_names[] = {
    "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",  "__shfl_xor_sync",   "__ballot_sync",     "__any_sync",
    "__all_sync",        "__match_any_sync",  "__match_all_sync",  "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_add_sync",
    "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
const char* name_of(WarpKind kind) { return kind_names[static_cast<int>(kind)]; }
const char* name_of(const Operation& o) { return o.collective ? o.collective->name : name_of(o.kind); }

// All there is to know of the grid that runs.
const Launch* launch = nullptr;
Thread threads[most_resident_threads];
Warp warps[most_resident_threads / 32];
Block blocks[most_resident_blocks];
ClusterBarrier cluster_barriers[most_resident_blocks];
Ready ready;
Order order = Order::first;
int thread_count = 0;                    // of a block
int stride = 0;                          // from one block's first thread to the next's: whole groups of four warps
int cluster_size = 1, block_count = 0;   // blocks of a cluster; that are resident
int returned = 0;                        // of all that are resident
int current = -1;                        // the thread that runs; -1: none does
Block* here = nullptr;                   // its block
pthread_t runner;                        // the host thread whose fibers run

Fiber host;
Fiber fibers[most_resident_threads + 1]; // one more: a fiber that starts a thread on another is still in use
int fiber_count = 0;
List<int, most_resident_threads + 1> free_fibers;
std::string failure_text;
cudaError_t failure_code = cudaSuccess;
bool has_failed = false;

// Addresses that the thread sanitizer knows meetings by.
char begin_token, end_token;
char warp_tokens[most_resident_threads / 32][16];

bool is_same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }
std::string triple(unsigned x, unsigned y, unsigned z) { return text("(", x, ",", y, ",", z, ")"); }
std::string index_of(int t) { return triple(threads[t].index.x, threads[t].index.y, threads[t].index.z); }
std::string thread_name(int t) { return "thread " + index_of(t); }
std::string block_name(const Block& b) { return "block " + triple(b.index.x, b.index.y, b.index.z); }
std::string of_block(int t) { return block_count > 1 ? " of " + block_name(blocks[threads[t].block]) : ""; }

void activate(int t) {
  current = t;
  threadIdx = threads[t].index;
  here = &blocks[threads[t].block];
  blockIdx = here->index;
}

int take_ready() {
  switch (order) {
    case Order::first: return ready.take_first();
    case Order::last: return ready.take_last();
    case Order::any: return ready.take_any();
  }
  return -1;
}

// ---- who waits for what ----

std::string list_threads(const ThreadList& list) {
  std::string all;
  for (int i = 0; i < list.size() && i < 4; ++i) all += (i ? ", " : "") + index_of(list[i]);
  if (list.size() > 4) all += text(" and ", list.size() - 4, " more");
  return (list.size() == 1 ? "thread " : "threads ") + all;
}

std::string who_waits() {
  std::string all;
  int listed = 0;
  for (const Block* b = blocks; b < blocks + block_count; ++b) {
    const ThreadList& waiting = b->barrier.waiting;
    if (waiting.empty()) continue;
    if (++listed > 4) return all + "; and others";
    all += "; " + list_threads(waiting) + of_block(waiting[0]) + (waiting.size() == 1 ? " waits" : " wait") + " at __syncthreads" + at_site(b->barrier.site);
  }
  listed = 0;
  for (int w = 0; w * 32 < block_count * stride; ++w)
    for (const Rendezvous& r : warps[w].open) {
      if (++listed > 4) return all + "; and others";
      all += text("; lanes ", hex(r.arrived), " of warp ", w * 32 % stride / 32, of_block(w * 32), " wait in ", name_of(r.operation), " with mask ", hex(r.mask),
                  at_site(r.site));
    }
  for (int t = 0; t < block_count * stride; ++t) {
    if (!threads[t].parked_in) continue;
    if (++listed > 4) return all + "; and others";
    all += "; " + thread_name(t) + of_block(t) + " waits in " + threads[t].parked_in + at_site(threads[t].parked_at);
  }
  return all;
}

[[noreturn]] void fail_deadlock() {
  fail_kernel(text("deadlock: nobody can go on", who_waits(), returned ? text("; ", returned, " threads have returned") : std::string()));
}

// ---- switching ----

void thread_loop();

int take_fiber() {
  if (free_fibers.empty()) {
    make_fiber(fibers[fiber_count]);
    free_fibers.push_back(fiber_count++);
  }
  return free_fibers.pop_back();
}

Fiber& fiber_of(int t) { return fibers[threads[t].fiber]; }

// Makes a thread that can run the current one, for the switch to it that must follow. A fresh one gets a stack.
void prepare(int next) {
  activate(next);
  if (threads[next].fiber >= 0) return;
  threads[next].fiber = take_fiber();
  start_fiber(fiber_of(next), thread_loop);
}

// The current thread waits until somebody has made it ready, and it is chosen.
void wait(bool takes_any = false) {
  const int me = current;
  happens_before(&end_token);            // it may be abandoned here, when another thread fails
  while (ready.empty() && land_transfer()) {
  }
  if (ready.empty()) fail_deadlock();
  const int next = takes_any ? ready.take_any() : take_ready();
  if (next == me) return;
  prepare(next);
  switch_fiber(fiber_of(me), fiber_of(next));
  activate(me);
}

void let_others_go() {
  if (ready.empty()) return;
  ready.push(current);
  wait(order == Order::last);            // where the last to become ready goes first, this would be the current thread again
}

void leave_barrier() {
  Barrier& barrier = here->barrier;
  switch (barrier.kind) {
    case BarrierKind::plain: break;
    case BarrierKind::any: barrier.result = barrier.holds > 0; break;
    case BarrierKind::all: barrier.result = barrier.holds == thread_count; break;
    case BarrierKind::count: barrier.result = barrier.holds; break;
  }
  for (int t : barrier.waiting) ready.push(t);
  barrier.waiting.clear();
  barrier.holds = 0;
  barrier.phase ^= 1;
}

// The phase of a cluster's barrier ends when all of its threads that have not returned have arrived.
void complete_cluster_phase(ClusterBarrier& b) {
  if (b.arrived < b.present || b.present == 0) return;
  ++b.phase;
  b.arrived = 0;
  for (int t : b.waiting) wake(t);
  b.waiting.clear();
}

ClusterBarrier& barrier_of_cluster() { return cluster_barriers[here->number / cluster_size * cluster_size]; }

void thread_returns() {
  const int me = current, lane = me % 32;
  Warp& warp = warps[me / 32];
  threads[me].has_returned = true;
  warp.returned |= 1u << lane;
  ++here->returned;
  ++returned;
  const Barrier& barrier = here->barrier;
  if (!barrier.waiting.empty())
    fail_kernel(text("returned, but ", list_threads(barrier.waiting), " of its block wait for it at __syncthreads", at_site(barrier.site)));
  for (const Rendezvous& r : warp.open)
    if (r.mask >> lane & 1)
      fail_kernel(text("returned, but lanes ", hex(r.arrived), " of its warp wait for it in ", name_of(r.operation), " with mask ", hex(r.mask), at_site(r.site)));
  if (threads[me].is_at_cluster_barrier) fail_kernel("returned, but has arrived at its cluster's barrier and not waited there");
  const std::string undone = left_undone(me);
  if (!undone.empty()) fail_kernel("returned, but " + undone);
  const std::string undone_by_block = here->returned == thread_count ? left_undone_by_block(here->first, thread_count) : "";
  if (!undone_by_block.empty()) fail_kernel("returned, the last of its block, but " + undone_by_block);
  if (cluster_size == 1) return;
  if (here->returned == thread_count) close_shared(here->number);
  --barrier_of_cluster().present;
  complete_cluster_phase(barrier_of_cluster());
}

// Thrown through a kernel to end it, so that what its frames own is released.
struct Ended {};

void note_failure(const std::string& what, cudaError_t code) {
  failure_text = text(describe(*launch), ", ", block_name(*here), ", ", thread_name(current), ": ", what, seed_note());
  failure_code = code;
  has_failed = true;
}

// The first thread of a block begins. Before it does, the others of its cluster may not touch its shared memory, nor after the last has returned.
void begin_block() {
  here->has_begun = true;
  if (cluster_size > 1) open_shared(here->number);
}

// Runs the current thread from beginning to end; false when the kernel has failed.
bool run_thread() {
  try {
    happens_after(&begin_token);
    if (!here->has_begun) begin_block();
    launch->thread();
    happens_before(&end_token);
    thread_returns();
    const int all = block_count * thread_count;
    while (ready.empty() && returned < all && land_transfer()) {
    }
    if (ready.empty() && returned < all) fail_deadlock();
    return true;
  } catch (const Ended&) {
  } catch (const std::exception& e) {
    note_failure(text("threw an exception: ", e.what()), cudaErrorLaunchFailure);
  }
  return false;
}

// Back to run_resident, for good.
void leave(Fiber& from) {
  current = -1;
  happens_before(&end_token);
  switch_fiber(from, host, true);
}

// What a fiber does: runs threads. When one has returned, a fresh one follows it on the same stack; when a waiting one is to go on, this fiber's stack is free.
void thread_loop() {
  enter_fiber(host);
  for (;;) {
    const int fiber = threads[current].fiber;
    if (!run_thread() || ready.empty()) leave(fibers[fiber]);
    const int next = take_ready();
    if (threads[next].fiber < 0 && !sanitize_threads) {
      threads[next].fiber = fiber;
      activate(next);
      continue;
    }
    prepare(next);
    free_fibers.push_back(fiber);        // only now: a fresh thread must not be handed the stack that we stand on
    switch_fiber(fibers[fiber], fiber_of(next), true);
  }
}

// ---- blocks ----

// The threads of all blocks that may be resident, for a launch.
void number_threads(dim3 shape) {
  thread_count = static_cast<int>(shape.x * shape.y * shape.z);
  stride = (thread_count + 127) / 128 * 128;
  for (int block = 0, first = 0; block < most_resident_blocks; ++block, first += stride) {
    blocks[block].number = block;
    blocks[block].first = first;
    int t = first;
    for (unsigned z = 0; z < shape.z; ++z)
      for (unsigned y = 0; y < shape.y; ++y)
        for (unsigned x = 0; x < shape.x; ++x, ++t) threads[t].index = {x, y, z}, threads[t].block = block;
  }
}

// i -> (a i + b) mod n with a prime to n visits everything once: a random order without a table.
class RandomOrder {
 public:
  explicit RandomOrder(uint64_t n) : n_(n) {
    if (n < 2) return;
    do step_ = 1 + chance().next() % (n - 1);
    while (std::gcd(step_, n) != 1);
    at_ = chance().next() % n;
  }
  uint64_t next() {
    const uint64_t now = at_;
    at_ += step_;
    if (at_ >= n_) at_ -= n_;
    return now;
  }

 private:
  uint64_t n_, step_ = 0, at_ = 0;
};

// The block of this number in the grid takes the place of number `place` among those that are resident.
void place_block(int place, uint3 index) {
  Block& b = blocks[place];
  b.index = index;
  b.returned = 0;
  b.has_begun = false;
  b.num_seen = 0;
  b.barrier.waiting.clear();
  b.barrier.holds = 0;
  for (int t = b.first; t < b.first + thread_count; ++t) {
    threads[t].fiber = -1, threads[t].has_returned = false, threads[t].parked_in = nullptr;
    threads[t].is_at_cluster_barrier = threads[t].has_fenced = false;
  }
  for (int w = 0; w * 32 < stride; ++w) {
    Warp& warp = warps[b.first / 32 + w];
    const int lanes = std::clamp(thread_count - w * 32, 0, 32);
    warp.lanes = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warp.returned = 0;
    warp.open.clear();
  }
  poison_shared(place);
  if (cluster_size > 1) close_shared(place);
}

// The cluster of this number in the grid takes the places from number `place` on.
void place_cluster(int place, uint64_t number) {
  const dim3 c = launch->cluster;
  const unsigned columns = launch->blocks.x / c.x, rows = launch->blocks.y / c.y;
  const uint3 first = {static_cast<unsigned>(number % columns) * c.x, static_cast<unsigned>(number / columns % rows) * c.y,
                       static_cast<unsigned>(number / columns / rows) * c.z};
  ClusterBarrier& barrier = cluster_barriers[place];
  barrier.arrived = barrier.phase = 0;
  barrier.present = cluster_size * thread_count;
  barrier.waiting.clear();
  for (unsigned z = 0; z < c.z; ++z)
    for (unsigned y = 0; y < c.y; ++y)
      for (unsigned x = 0; x < c.x; ++x) place_block(place++, {first.x + x, first.y + y, first.z + z});
}

void begin_resident() {
  begin_copies(block_count * stride);
  begin_transfers(block_count * stride);
  returned = 0;
  free_fibers.clear();
  for (int f = fiber_count - 1; f >= 0; --f) free_fibers.push_back(f);
  ready.clear();
  order = static_cast<Order>(chance().below(3));
  for (int b = 0; b < block_count; ++b) {
    RandomOrder numbers(static_cast<uint64_t>(thread_count));
    for (int t = 0; t < thread_count; ++t) ready.push(blocks[b].first + static_cast<int>(numbers.next()));
  }
}

// Blocks that were placed, from beginning to end.
void run_resident() {
  begin_resident();
  happens_before(&begin_token);
  const int first = take_ready();
  prepare(first);
  switch_fiber(host, fiber_of(first));
  happens_after(&end_token);
  current = -1;
  for (int b = 0; b < block_count && cluster_size > 1; ++b) open_shared(b);
  if (has_failed) throw Failure(failure_code, failure_text);
  for (int b = 0; b < block_count; ++b)
    if (const char* damage = damaged_shared(b))
      throw Failure(cudaErrorIllegalAddress, text(describe(*launch), ", ", block_name(blocks[b]), ": wrote to what lies ", damage, " its shared memory", seed_note()));
}

// How many clusters (blocks, where they have one only) run beside each other now. Alone is quickest, as the stacks of many are more than the caches hold; but only
// where they run together can they get into each other's way, and can the thread sanitizer see that.
int choose_clusters(uint64_t left) {
  const int room = std::max(1, std::min(most_resident_blocks / 2, together_threads / stride) / cluster_size);
  const int most = static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(room), left));
  if (most == 1 || sanitize_threads) return most;
  return chance().one_in(8) ? 2 + static_cast<int>(chance().below(static_cast<uint32_t>(std::min(most, 4) - 1))) : 1;
}

const void* fault_address = nullptr;
bool fault_is_known = false;
int fault_is_write = -1;
alignas(16) char emergency_stack[64 << 10];

std::string describe_fault() {
  if (!fault_is_known) return "used a pointer that is not one, or that is not aligned as its type must be";
  if (is_stack_guard(fault_address)) return text("used more than the ", fiber_stack_bytes >> 10, " KiB of stack that a thread has here");
  return (fault_is_write < 0 ? "touched " : fault_is_write ? "wrote to " : "read ") + describe_address(fault_address);
}

// Reached from the handler of SIGSEGV, on a stack of its own, as the thread's may be what overflowed. Nothing can be thrown from here.
void fault_in_kernel() {
  note_failure(describe_fault(), cudaErrorIllegalAddress);
  leave(fiber_of(current));
}

}  // namespace

std::string at_site(Site s) {
  const char* slash = std::strrchr(s.file, '/');
  return text(" at ", slash ? slash + 1 : s.file, ":", s.line);
}
std::string called(const char* name, Site site) { return text("calls ", name, at_site(site)); }
std::string hex(uint32_t v) {
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%08x", v);
  return digits;
}

std::string describe(const Launch& l) {
  const dim3 b = l.blocks, t = l.threads;
  const std::string name = l.name.empty() ? name_of_kernel(l.kernel) : l.name;
  const uint3 c = l.cluster;
  const std::string clusters = c.x * c.y * c.z > 1 ? text(" in clusters of ", c.x, "x", c.y, "x", c.z) : std::string();
  return text("kernel ", name, " (", b.x, "x", b.y, "x", b.z, " blocks of ", t.x, "x", t.y, "x", t.z, " threads", clusters, ", ", l.shared_bytes,
              " bytes of shared memory)");
}

bool in_kernel() { return current >= 0 && pthread_equal(runner, pthread_self()); }

void fail_kernel(const std::string& what, cudaError_t code) {
  note_failure(what, code);
  throw Ended{};
}

void* fault_entry() { return reinterpret_cast<void*>(fault_in_kernel); }
void* fault_stack_top() { return emergency_stack + sizeof emergency_stack - 64; }
void note_fault(const void* address, bool is_known, int is_write) {
  fault_address = address, fault_is_known = is_known, fault_is_write = is_write;
  unpoison(emergency_stack, sizeof emergency_stack);       // the last fault left it in the middle of everything
}

void run_grid(const Launch& l) {
  launch = &l;
  runner = pthread_self();
  has_failed = false;
  blockDim = l.threads;
  gridDim = l.blocks;
  number_threads(l.threads);
  cluster_size = static_cast<int>(l.cluster.x * l.cluster.y * l.cluster.z);
  adopt_host_thread(host);
  begin_shared(l.shared_bytes);
  const uint64_t clusters = static_cast<uint64_t>(l.blocks.x) * l.blocks.y * l.blocks.z / static_cast<uint64_t>(cluster_size);
  RandomOrder numbers(clusters);
  for (uint64_t done = 0; done < clusters;) {
    const int together = choose_clusters(clusters - done);
    block_count = together * cluster_size;
    for (int i = 0; i < together; ++i) place_cluster(i * cluster_size, numbers.next());
    run_resident();
    done += static_cast<uint64_t>(together);
  }
}

// ---- what kernels call ----

int current_thread() { return current; }

void park(const char* what, Site site) {
  Thread& me = threads[current];
  me.parked_in = what, me.parked_at = site;
  wait();
}

void wake(int thread) {
  threads[thread].parked_in = nullptr;
  ready.push(thread);
}

SharedRange shared_range() { return {shared_of(here->number), launch->shared_bytes}; }

int current_block() { return current >= 0 ? here->number : -1; }
std::string name_of_block(int block) { return block_name(blocks[block]); }
std::string state_of_block(int block) {
  const Block& b = blocks[block];
  return !b.has_begun ? ", which has not begun" : b.returned == thread_count ? ", which has ended" : "";
}

void* shared_memory(size_t bytes) {
  if (!in_kernel()) throw std::logic_error("host_cuda: shared memory is for kernels");
  if (bytes > launch->shared_bytes) fail_kernel(text("wants ", bytes, " bytes of shared memory; its launch gave it ", launch->shared_bytes));
  return shared_of(here->number);
}

void refuse_address(const void* address, size_t bytes) {
  fail_kernel(text("reads or writes ", bytes, " bytes at once at ", describe_address(address), ": an address that is not a multiple of ", bytes), cudaErrorMisalignedAddress);
}

void perhaps_yield() {
  if (in_kernel() && chance().one_in(8)) let_others_go();
}

// Note [Blocks and the thread sanitizer]
// What a block wrote is visible to another when its thread then has a fence and an atomic operation, another block's thread an atomic operation on the same address
// later, and a thread of that block a fence after it. The sanitizer is told a little more than that: the first fence of a thread counts for all of its atomic
// operations after it, with what it wrote between them, and a fence for the atomic operations of its whole block (a barrier between the two is what kernels have there).
void fence_memory() {
  if (!in_kernel()) return;
  threads[current].has_fenced = true;
  if (sanitize_threads)
    for (int i = 0; i < std::min(here->num_seen, 8); ++i) happens_after(here->seen[i]);
  perhaps_yield();
}
void note_atomic(void* address) {
  if (!sanitize_threads || !in_kernel()) return;
  void** const end = here->seen + std::min(here->num_seen, 8);
  if (std::find(here->seen, end, address) == end) here->seen[here->num_seen++ % 8] = address;
  if (threads[current].has_fenced) happens_before(address);
}

uint32_t lanes_left() {
  const Warp& warp = warps[current / 32];
  return warp.lanes & ~warp.returned;
}

int arrive_at_barrier(BarrierKind kind, bool predicate, Site site) {
  Barrier& barrier = here->barrier;
  if (here->returned > 0) {
    int gone = here->first;
    while (!threads[gone].has_returned) ++gone;
    fail_kernel(text("waits at __syncthreads", at_site(site), ", but ", thread_name(gone), " of its block has returned"));
  }
  if (barrier.waiting.empty()) {
    barrier.kind = kind;
    barrier.site = site;
  } else if (kind != barrier.kind || !is_same(site, barrier.site)) {
    fail_kernel(text("waits at __syncthreads", at_site(site), ", but ", list_threads(barrier.waiting), " of its block at another one,", at_site(barrier.site)));
  }
  barrier.waiting.push_back(current);
  barrier.holds += predicate;
  char* token = &barrier.tokens[barrier.phase];
  happens_before(token);
  if (barrier.waiting.size() == thread_count) leave_barrier();
  wait();
  happens_after(token);
  return barrier.result;
}

int rank_in_cluster() { return here->number % cluster_size; }
int blocks_in_cluster() { return cluster_size; }

int block_of_rank(int rank, const char* name, Site site) {
  if (rank < 0 || rank >= cluster_size) fail_kernel(text(called(name, site), " with block ", rank, " of a cluster of ", cluster_size));
  return here->number - rank_in_cluster() + rank;
}

void* map_to_block(const void* p, int rank, Site site) {
  const SharedRange own = shared_range();
  const int block = block_of_rank(rank, "in_block", site);
  const char* address = static_cast<const char*>(p);
  if (address < own.begin || address >= own.begin + own.bytes)
    fail_kernel(text(called("in_block", site), " with ", describe_address(p), "; it takes an address of its own shared memory"));
  return shared_of(block) + (address - own.begin);
}

void arrive_at_cluster(const char* file, int line) {
  const Site site{file, line};
  perhaps_yield();
  Thread& me = threads[current];
  ClusterBarrier& b = barrier_of_cluster();
  if (me.is_at_cluster_barrier) fail_kernel(called("arrive_at_cluster", site) + ", but has not waited since it called it last");
  me.is_at_cluster_barrier = true;
  me.cluster_phase = b.phase;
  happens_before(&b.tokens[b.phase & 1]);
  ++b.arrived;
  complete_cluster_phase(b);
}

void wait_for_cluster(const char* file, int line) {
  const Site site{file, line};
  perhaps_yield();
  Thread& me = threads[current];
  ClusterBarrier& b = barrier_of_cluster();
  if (!me.is_at_cluster_barrier) fail_kernel(called("wait_for_cluster", site) + " without arrive_at_cluster() before it");
  if (b.phase == me.cluster_phase) {
    b.waiting.push_back(current);
    park("wait_for_cluster", site);
  }
  me.is_at_cluster_barrier = false;
  happens_after(&b.tokens[me.cluster_phase & 1]);
}

namespace {

// The lane that a shuffle of `lane` reads.
int source_of(WarpKind kind, int lane, int argument, int width) {
  const int first = lane & ~(width - 1), last = lane | (width - 1);
  switch (kind) {
    case WarpKind::shuffle: return first | (argument & (width - 1));
    case WarpKind::shuffle_up: return lane - argument < first ? lane : lane - argument;
    case WarpKind::shuffle_down: return lane + argument > last ? lane : lane + argument;
    default: return (lane ^ argument) > last ? lane : lane ^ argument;
  }
}

uint64_t combine(WarpKind kind, uint64_t a, uint64_t b) {
  const uint32_t u = static_cast<uint32_t>(a), v = static_cast<uint32_t>(b);
  const int32_t i = static_cast<int32_t>(u), j = static_cast<int32_t>(v);
  switch (kind) {
    case WarpKind::any: case WarpKind::bit_or: return u | v;
    case WarpKind::all: case WarpKind::bit_and: return u & v;
    case WarpKind::bit_xor: return u ^ v;
    case WarpKind::add: case WarpKind::add_signed: return u + v;
    case WarpKind::min: return std::min(u, v);
    case WarpKind::max: return std::max(u, v);
    case WarpKind::min_signed: return static_cast<uint32_t>(std::min(i, j));
    default: return static_cast<uint32_t>(std::max(i, j));
  }
}

// All lanes of the mask have come: what each of them takes away.
void evaluate(const Rendezvous& r, Thread* lanes) {
  const WarpKind kind = r.operation.kind;
  if (r.operation.collective) {
    void* operands[32];
    for (int lane = 0; lane < 32; ++lane) operands[lane] = lanes[lane].operands;
    return r.operation.collective->run(operands);
  }
  uint64_t brought[32];
  uint32_t left = r.mask;
  for (uint32_t m = r.mask; m; m &= m - 1) brought[std::countr_zero(m)] = lanes[std::countr_zero(m)].value;
  uint64_t shared_result = brought[std::countr_zero(left)];
  uint32_t ballot = 0;
  bool all_equal = true;
  for (uint32_t m = r.mask; m; m &= m - 1) {
    const int lane = std::countr_zero(m);
    ballot |= (brought[lane] != 0) << lane;
    all_equal = all_equal && brought[lane] == shared_result;
  }
  switch (kind) {
    case WarpKind::sync: return;
    case WarpKind::shuffle: case WarpKind::shuffle_up: case WarpKind::shuffle_down: case WarpKind::shuffle_xor:
      for (uint32_t m = r.mask; m; m &= m - 1) {
        const int lane = std::countr_zero(m), from = source_of(kind, lane, lanes[lane].argument, lanes[lane].width);
        if (from < 0 || from > 31 || !(r.mask >> from & 1))
          fail_kernel(text("lane ", lane, " reads lane ", from, " in ", name_of(kind), at_site(r.site), ", which is not in the mask ", hex(r.mask)));
        lanes[lane].value = brought[from];
      }
      return;
    case WarpKind::match_any:
      for (uint32_t m = r.mask; m; m &= m - 1) {
        uint32_t equal = 0;
        for (uint32_t other = r.mask; other; other &= other - 1) equal |= (brought[std::countr_zero(other)] == brought[std::countr_zero(m)]) << std::countr_zero(other);
        lanes[std::countr_zero(m)].value = equal;
      }
      return;
    case WarpKind::ballot: shared_result = ballot; break;
    case WarpKind::match_all: shared_result = all_equal ? r.mask : 0; break;
    default:
      for (uint32_t m = left & (left - 1); m; m &= m - 1) shared_result = combine(kind, shared_result, brought[std::countr_zero(m)]);
  }
  for (uint32_t m = r.mask; m; m &= m - 1) lanes[std::countr_zero(m)].value = shared_result;
}

// Those who wait with this mask; opened when this lane is the first.
int rendezvous_of(Warp& warp, const Operation& operation, uint32_t mask, Site site) {
  for (int i = 0; i < warp.open.size(); ++i) {
    const Rendezvous& r = warp.open[i];
    if (r.mask != mask) continue;
    // Instructions of PTX are .aligned: the lanes must be at the same one, not only at one of the same name.
    if (r.operation != operation || (operation.collective && !is_same(r.site, site)))
      fail_kernel(text("calls ", name_of(operation), at_site(site), ", but lanes ", hex(r.arrived), " of its warp wait with the same mask in ", name_of(r.operation),
                       at_site(r.site)));
    return i;
  }
  warp.open.push_back({operation, mask, 0, site});
  return warp.open.size() - 1;
}

// Waits for the lanes of the mask; the last to come evaluates the operation for all.
void meet(const Operation& operation, uint32_t mask, Site site) {
  const int me = current, lane = me % 32;
  Warp& warp = warps[me / 32];
  if (!(mask >> lane & 1)) fail_kernel(text("calls ", name_of(operation), at_site(site), " with mask ", hex(mask), ", which leaves out its own lane ", lane));
  if (mask & ~warp.lanes) fail_kernel(text("calls ", name_of(operation), at_site(site), " with mask ", hex(mask), ", but its warp has only lanes ", hex(warp.lanes)));
  if (mask & warp.returned)
    fail_kernel(text("calls ", name_of(operation), at_site(site), " with mask ", hex(mask), ", but lanes ", hex(mask & warp.returned), " of its warp have returned"));
  const int i = rendezvous_of(warp, operation, mask, site);
  warp.open[i].arrived |= 1u << lane;
  char* token = &warp_tokens[me / 32][warp.meetings % 16];
  happens_before(token);
  if (warp.open[i].arrived != mask) {
    wait();
  } else {
    const Rendezvous complete = warp.open[i];
    warp.open.remove(i);
    ++warp.meetings;
    evaluate(complete, &threads[me & ~31]);
    for (uint32_t m = mask & ~(1u << lane); m; m &= m - 1) ready.push((me & ~31) + std::countr_zero(m));
    if (chance().one_in(2)) let_others_go();
  }
  happens_after(token);
}

}  // namespace

uint64_t arrive_at_warp(WarpKind kind, uint32_t mask, uint64_t value, int argument, int width, Site site) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail_kernel(text("calls ", name_of(kind), at_site(site), " with width ", width, ", which is not a power of two up to 32"));
  Thread& thread = threads[current];
  thread.value = value;
  thread.argument = argument;
  thread.width = width;
  meet({kind, nullptr}, mask, site);
  return thread.value;
}

void arrive_together(const Collective& collective, void* operands, Site site) {
  threads[current].operands = operands;
  meet({WarpKind::sync, &collective}, 0xffffffffu, site);
}

}  // namespace host_cuda
