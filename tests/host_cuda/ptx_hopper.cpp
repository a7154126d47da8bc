// Barriers with phases, and what arrives at them: copies of boxes and stores to other blocks of a cluster.
//
// A copy lands in a random order with all others: now and then when somebody waits for a phase, else when nobody can go on. Until then its destination holds NaN. A
// copy to several blocks lands in each of them at a time of its own.
#include "ptx_hopper.h"

#include <cstring>
#include <utility>

#include "model.h"
#include "ptx_checks.h"
#include "ptx_cluster.h"
#include "ptx_semantics.h"
#include "sanitizers.h"

namespace host_cuda {
namespace {

// ---- barriers with phases ----

constexpr uint64_t barrier_mark = 0x5068617365644261;
struct Phases {
  PhasedBarrier* barrier = nullptr;
  int arrivals = 0, missing = 0;         // threads that complete a phase; those that have not arrived in this one
  int64_t bytes = 0;                     // announced and not yet there
  int phase = 0;
  int waiting[1024], num_waiting = 0;    // threads of its own block
  char tokens[2];                        // the thread sanitizer knows phases by these
};
constexpr int most_barriers = 64 * most_resident_blocks;
Phases table[most_barriers];
int num_barriers = 0;

Phases* look_up(const PhasedBarrier& barrier) {
  for (int i = 0; i < num_barriers; ++i)
    if (table[i].barrier == &barrier) return &table[i];
  return nullptr;
}

// A barrier in the shared memory of any block of the cluster.
Phases& find(const PhasedBarrier& barrier, const char* name, Site site) {
  const int block = block_of_shared(&barrier);
  const std::string state = block >= 0 && block != current_block() ? state_of_block(block) : std::string();
  if (!state.empty()) fail_kernel(text(called(name, site), " with a barrier of ", name_of_block(block), state));
  Phases* found = look_up(barrier);
  if (!found) fail_kernel(text(called(name, site), " with a barrier that has not been initialised"));
  if (barrier.state != barrier_mark) fail_kernel(text(called(name, site), " with a barrier whose memory something else was written to"));
  return *found;
}
// One in the shared memory of the block itself.
Phases& find_own(const PhasedBarrier& barrier, const char* name, Site site) {
  const int block = block_of_shared(&barrier);
  if (block >= 0 && block != current_block())
    fail_kernel(text(called(name, site), " with a barrier of ", name_of_block(block), "; a block can only do that with its own"));
  return find(barrier, name, site);
}

void complete_if_all_is_there(Phases& p) {
  if (p.missing > 0 || p.bytes != 0) return;
  ++p.phase;
  p.missing = p.arrivals;
  for (int i = 0; i < p.num_waiting; ++i) wake(p.waiting[i]);
  p.num_waiting = 0;
}

void arrive_with(PhasedBarrier& barrier, int bytes, Phases& (*find_it)(const PhasedBarrier&, const char*, Site), const char* name, Site site) {
  perhaps_yield();
  Phases& p = find_it(barrier, name, site);
  if (p.missing == 0) fail_kernel(text(called(name, site), ", but all ", p.arrivals, " arrivals of this phase have happened, and only its bytes are missing"));
  happens_before(&p.tokens[p.phase & 1]);
  p.bytes += bytes;
  --p.missing;
  const int phase = p.phase;
  complete_if_all_is_there(p);
  // Whoever waits for this arrival may go on before the caller does, and often should where he can.
  const int chances = p.phase != phase ? 8 : 1;
  for (int i = 0; i < chances; ++i) perhaps_yield();
}

// ---- copies of boxes ----

struct Transfer {
  BoxDescription map;
  char* memory;                          // in shared memory
  int at[5];
  uint16_t offsets[3];                   // in im2col mode
  PhasedBarrier* barrier;                // of a load
  int group;                             // of a store
  unsigned char value[16];               // of a store to another block, which has no map
  int bytes;
};

int box_bytes(const BoxDescription& m) {
  int bytes = m.element_bytes;
  for (int i = 0; i < 5; ++i) bytes *= m.box[i];
  return bytes;
}

// The last position of the bounding box in direction d: width, height or depth.
int64_t last_of_bounds(const BoxDescription& m, int d) { return int64_t{m.sizes[d + 1]} - 1 + m.upper[d]; }

// The same for a column of pixels: from the first on along the innermost dimension of the bounding box, then along the next, then of the next image. Each is moved by
// the offsets after that, and may come to lie outside of the tensor.
template <class Row>
void for_each_pixel(const Transfer& t, const Row& row) {
  const BoxDescription& m = t.map;
  const int directions = m.rank - 2;
  int64_t at[3] = {t.at[1], t.at[2], t.at[3]}, image = t.at[m.rank - 1];
  char* memory = t.memory;
  for (int pixel = 0; pixel < m.box[1]; ++pixel, memory += m.box[0] * m.element_bytes) {
    bool is_there = image >= 0 && image < m.sizes[m.rank - 1];
    char* from = m.data + image * m.stride_bytes[directions];
    for (int d = 0; d < directions; ++d) {
      const int64_t moved = at[d] + t.offsets[d];
      is_there = is_there && moved >= 0 && moved < m.sizes[d + 1];
      from += moved * m.stride_bytes[d];
    }
    row(memory, is_there ? from : nullptr);
    int d = 0;
    for (; d < directions && (at[d] += m.steps[d]) > last_of_bounds(m, d); ++d) at[d] = m.lower[d];
    if (d == directions) ++image;
  }
}

// Calls row(first byte of a row of the box in shared memory before swizzling, its first element in global memory or nullptr where the row lies outside of the tensor).
template <class Row>
void for_each_row(const Transfer& t, const Row& row) {
  const BoxDescription& m = t.map;
  if (m.magic == im2col_magic) return for_each_pixel(t, row);
  int i[5] = {};
  char* memory = t.memory;
  for (;;) {
    bool is_there = true;
    char* from = m.data;
    for (int d = 1; d < m.rank; ++d) {
      const int64_t at = int64_t{t.at[d]} + i[d];
      is_there = is_there && at >= 0 && at < m.sizes[d];
      from += at * m.stride_bytes[d - 1];
    }
    row(memory, is_there ? from : nullptr);
    memory += m.box[0] * m.element_bytes;
    int d = 1;
    while (d < m.rank && ++i[d] == m.box[d]) i[d++] = 0;
    if (d >= m.rank) return;
  }
}

// The part of the box's rows that lies in the tensor, in elements of the row.
struct Part {
  int first, end;
};
Part part_of(const Transfer& t) {
  const int64_t begin = -int64_t{t.at[0]}, end = int64_t{t.map.sizes[0]} - t.at[0], box = t.map.box[0];
  const int first = static_cast<int>(begin < 0 ? 0 : begin > box ? box : begin), last = static_cast<int>(end < first ? first : end > box ? box : end);
  return {first, last};
}

// Where 16 bytes that belong at p lie.
char* place(char* p, int swizzle) {
  const uint32_t address = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p));
  return p + static_cast<int32_t>(swizzled_address(address, swizzle) - address);
}

void load(const Transfer& t) {
  const int size = t.map.element_bytes, bytes = t.map.box[0] * size;
  const Part part = part_of(t);
  for_each_row(t, [&](char* memory, const char* from) {
    char row[256 * 8] = {};
    if (from && part.end > part.first)
      std::memcpy(row + part.first * size, from + (int64_t{t.at[0]} + part.first) * size, static_cast<size_t>((part.end - part.first) * size));
    for (int i = 0; i < bytes; i += 16) std::memcpy(place(memory + i, t.map.swizzle), row + i, 16);
  });
}

void store(const Transfer& t) {
  const int size = t.map.element_bytes, bytes = t.map.box[0] * size;
  const Part part = part_of(t);
  for_each_row(t, [&](char* memory, char* to) {
    if (!to || part.end <= part.first) return;
    char row[256 * 8];
    for (int i = 0; i < bytes; i += 16) std::memcpy(row + i, place(memory + i, t.map.swizzle), 16);
    std::memcpy(to + (int64_t{t.at[0]} + part.first) * size, row + part.first * size, static_cast<size_t>((part.end - part.first) * size));
  });
}

// Not std::vectors, for the reason given at List in block.cpp.
constexpr int most_transfers = 256 * most_resident_blocks;
Transfer loads[most_transfers];
int num_loads = 0;
char load_token;

constexpr int most_stores = 16;          // of a thread
struct Stores {
  Transfer items[most_stores];
  int size = 0, group = 0;
};
Stores stores[most_resident_threads];
bool has_stores = false;                 // somebody has some, or had since the blocks began

Transfer describe(const void* map, uint32_t magic, const void* memory, const int* at, int rank, const char* name, Site site) {
  Transfer t{};
  std::memcpy(&t.map, map, sizeof t.map);
  if (t.map.magic != tiled_magic && t.map.magic != im2col_magic)
    fail_kernel(text(called(name, site), " with a map that is none: a kernel takes it by value, as const __grid_constant__ TensorMap"));
  if (t.map.magic != magic) fail_kernel(text(called(name, site), " with a map made by ", t.map.magic == im2col_magic ? "im2col_map()" : "tiled_map()"));
  if (t.map.rank != rank) fail_kernel(text(called(name, site), " with ", rank, " coordinates, but the map has ", t.map.rank, " dimensions"));
  if (!find_device(t.map.data)) fail_kernel(text(called(name, site), ", but the map's tensor begins at ", describe_address(t.map.data)), cudaErrorIllegalAddress);
  check_shared(memory, box_bytes(t.map), 128, [&] { return called(name, site) + " with a tile"; });
  t.memory = static_cast<char*>(const_cast<void*>(memory));
  t.bytes = box_bytes(t.map);
  for (int i = 0; i < rank; ++i) t.at[i] = at[i];
  return t;
}

// A column of pixels begins at one that the bounding box's steps reach.
void check_first_pixel(const Transfer& t, const char* name, Site site) {
  for (int d = 0; d < t.map.rank - 2; ++d) {
    const int64_t at = t.at[d + 1], first = t.map.lower[d], last = last_of_bounds(t.map, d);
    if (at < first || at > last || (at - first) % t.map.steps[d] != 0)
      fail_kernel(text(called(name, site), " at ", at, " along dimension ", d + 1, ", but the pixels there are ", first, " to ", last, " in steps of ", int{t.map.steps[d]}));
  }
}

// What the same address is in another block of the cluster.
template <class T>
T* in_other_block(T* p, int block) {
  const ptrdiff_t offset = reinterpret_cast<char*>(p) - shared_range().begin;
  return reinterpret_cast<T*>(shared_of(block) + offset);
}

void start_load(const Transfer& t, const char* name, Site site) {
  if (num_loads == most_transfers) fail_kernel(text(called(name, site), " while ", most_transfers, " copies are under way, the most that the model knows"));
  std::memset(t.memory, 0xff, static_cast<size_t>(t.bytes));
  happens_before(&load_token);
  loads[num_loads++] = t;
}

void start_loads(const Transfer& t, int blocks, const char* name, Site site) {
  if (blocks == own_block) {
    find_own(*t.barrier, name, site);
    return start_load(t, name, site);
  }
  if (blocks <= 0 || blocks >> blocks_in_cluster())
    fail_kernel(text(called(name, site), " for blocks ", hex(static_cast<uint32_t>(blocks)), " of a cluster of ", blocks_in_cluster()));
  for (int rank = 0; rank < blocks_in_cluster(); ++rank) {
    if (!(blocks >> rank & 1)) continue;
    const int block = block_of_rank(rank, name, site);
    Transfer there = t;
    there.memory = in_other_block(t.memory, block);
    there.barrier = in_other_block(t.barrier, block);
    find(*there.barrier, name, site);
    start_load(there, name, site);
  }
}

}  // namespace

void init_barrier(PhasedBarrier& barrier, int arrivals, const char* file, int line) {
  const auto who = [&] { return called("init_barrier", {file, line}); };
  check_shared(&barrier, 8, 8, who);
  if (look_up(barrier)) fail_kernel(who() + " with a barrier that is in use: invalidate_barrier() it first");
  if (arrivals < 1) fail_kernel(text(who(), " with ", arrivals, " arrivals"));
  if (num_barriers == most_barriers) fail_kernel(text(who(), " although there are ", most_barriers, " barriers, the most that the model knows"));
  Phases& p = table[num_barriers++];
  p.barrier = &barrier, p.arrivals = p.missing = arrivals;
  p.bytes = p.phase = p.num_waiting = 0;
  barrier.state = barrier_mark;
}

void arrive(PhasedBarrier& barrier, const char* file, int line) { arrive_with(barrier, 0, find_own, "arrive", {file, line}); }
void arrive_expecting(PhasedBarrier& barrier, int bytes, const char* file, int line) { arrive_with(barrier, bytes, find_own, "arrive_expecting", {file, line}); }
void arrive_across(PhasedBarrier& barrier, const char* file, int line) { arrive_with(barrier, 0, find, "arrive_across", {file, line}); }
void arrive_expecting_across(PhasedBarrier& barrier, int bytes, const char* file, int line) { arrive_with(barrier, bytes, find, "arrive_expecting_across", {file, line}); }

void wait_for_phase(PhasedBarrier& barrier, int parity, const char* file, int line) {
  const Site site{file, line};
  if (chance().one_in(4)) land_transfer();
  perhaps_yield();
  for (;;) {
    Phases& p = find_own(barrier, "wait_for_phase", site);
    if ((p.phase & 1) != parity) {
      happens_after(&p.tokens[parity]);
      return;
    }
    p.waiting[p.num_waiting++] = current_thread();
    park("wait_for_phase", site);
  }
}

void invalidate_barrier(PhasedBarrier& barrier, const char* file, int line) {
  Phases& p = find_own(barrier, "invalidate_barrier", {file, line});
  if (p.num_waiting > 0 || p.bytes != 0) fail_kernel(called("invalidate_barrier", {file, line}) + " with a barrier that threads wait for, or that bytes are to arrive at");
  p = table[--num_barriers];
}

void begin_transfers(int threads) {
  num_barriers = num_loads = 0;
  for (int t = 0; t < threads && has_stores; ++t) stores[t].size = stores[t].group = 0;
  has_stores = false;
  begin_products(threads);
}

void start_box(void* to, const void* map, PhasedBarrier& barrier, const int* at, int rank, int blocks, Site site) {
  const char* name = blocks == own_block ? "load_box" : "load_box_to_blocks";
  Transfer t = describe(map, tiled_magic, to, at, rank, name, site);
  t.barrier = &barrier;
  start_loads(t, blocks, name, site);
}

void start_im2col(void* to, const void* map, PhasedBarrier& barrier, const int* at, const uint16_t* offsets, int rank, int blocks, Site site) {
  const char* name = blocks == own_block ? "load_im2col" : "load_im2col_to_blocks";
  Transfer t = describe(map, im2col_magic, to, at, rank, name, site);
  check_first_pixel(t, name, site);
  for (int d = 0; d < rank - 2; ++d) t.offsets[d] = offsets[d];
  t.barrier = &barrier;
  start_loads(t, blocks, name, site);
}

void start_value(void* to, const void* value, int bytes, PhasedBarrier& barrier, Site site) {
  const char* name = "store_async";
  const int block = block_of_shared(to);
  if (block < 0 || static_cast<char*>(to) < shared_of(block) || static_cast<char*>(to) + bytes > shared_of(block) + shared_range().bytes)
    fail_kernel(text(called(name, site), " to ", describe_address(to), ", which is not shared memory of its cluster"));
  if (block_of_shared(&barrier) != block) fail_kernel(called(name, site) + " with a barrier that lies in another block than what it stores to");
  find(barrier, name, site);
  Transfer t{};
  t.memory = static_cast<char*>(to);
  t.barrier = &barrier;
  t.bytes = bytes;
  std::memcpy(t.value, value, static_cast<size_t>(bytes));
  start_load(t, name, site);
}

bool land_transfer() {
  if (num_loads == 0) return false;
  const uint32_t i = chance().below(static_cast<uint32_t>(num_loads));
  const Transfer t = std::exchange(loads[i], loads[num_loads - 1]);
  --num_loads;
  happens_after(&load_token);
  if (t.map.magic) load(t);
  else std::memcpy(t.memory, t.value, static_cast<size_t>(t.bytes));
  Phases* p = look_up(*t.barrier);
  if (!p) fail_kernel("a copy arrives at a barrier that has been invalidated");
  if (t.barrier->state != barrier_mark) fail_kernel("a copy arrives at a barrier whose memory something else was written to");
  happens_before(&p->tokens[p->phase & 1]);
  p->bytes -= t.bytes;
  complete_if_all_is_there(*p);
  return true;
}

void start_store(const void* map, const void* from, const int* at, int rank, Site site) {
  Transfer t = describe(map, tiled_magic, from, at, rank, "store_box", site);
  Stores& mine = stores[current_thread()];
  if (mine.size == most_stores) fail_kernel(text(called("store_box", site), " while ", most_stores, " stores of this thread are under way, the most that the model knows"));
  has_stores = true;
  t.group = mine.group;
  mine.items[mine.size++] = t;
}
void commit_stores() {
  has_stores = true;
  ++stores[current_thread()].group;
}

void land_stores(int groups_under_way) {
  Stores& mine = stores[current_thread()];
  int kept = 0;
  for (int i = 0; i < mine.size; ++i) {
    if (mine.items[i].group < mine.group - groups_under_way) store(mine.items[i]);
    else mine.items[kept++] = mine.items[i];
  }
  mine.size = kept;
}

std::string left_undone(int thread) {
  if (stores[thread].size > 0) return text(stores[thread].size, " of its stores of boxes have not been waited for");
  return products_left_undone(thread);
}

std::string left_undone_by_block(int first, int threads) {
  int coming = 0;
  for (int i = 0; i < num_loads; ++i) coming += block_of_shared(loads[i].memory) == current_block();
  if (coming > 0) return text(coming, " copies into its shared memory are under way");
  for (int i = 0; i < num_barriers; ++i) {
    if (table[i].bytes == 0 || block_of_shared(table[i].barrier) != current_block()) continue;
    if (table[i].bytes > 0) return text("at one of its barriers ", table[i].bytes, " bytes were announced and have not arrived");
    return text("at one of its barriers ", -table[i].bytes, " bytes have arrived that nobody had announced");
  }
  return products_left_undone_by_block(first, threads);
}

}  // namespace host_cuda
