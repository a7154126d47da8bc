// Barriers with phases, copies of boxes, products of four warps.
//
// A copy lands in a random order with all others of its block: now and then when somebody waits for a phase, else when nobody can go on. Until then its destination
// holds NaN. A product is carried out when its group is waited for, and reads shared memory only then; until then the sums are NaN. So whoever looks too early, or
// hands a tile back too early, computes NaN.
#include "ptx_hopper.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "model.h"
#include "ptx_checks.h"
#include "ptx_semantics.h"
#include "sanitizers.h"

namespace host_cuda {
namespace {

constexpr int most_threads = 1024;

// ---- barriers with phases ----

constexpr uint64_t barrier_mark = 0x5068617365644261;
struct Phases {
  PhasedBarrier* barrier = nullptr;
  int arrivals = 0, missing = 0;         // threads that complete a phase; those that have not arrived in this one
  int64_t bytes = 0;                     // announced and not yet there
  int phase = 0;
  int waiting[most_threads], num_waiting = 0;
  char tokens[2];                        // the thread sanitizer knows phases by these
};
constexpr int most_barriers = 64;
Phases table[most_barriers];
int num_barriers = 0;

Phases* look_up(const PhasedBarrier& barrier) {
  for (int i = 0; i < num_barriers; ++i)
    if (table[i].barrier == &barrier) return &table[i];
  return nullptr;
}

Phases& find(const PhasedBarrier& barrier, const char* name, Site site) {
  Phases* found = look_up(barrier);
  if (!found) fail_kernel(text(called(name, site), " with a barrier that has not been initialised"));
  if (barrier.state != barrier_mark) fail_kernel(text(called(name, site), " with a barrier whose memory something else was written to"));
  return *found;
}

void complete_if_all_is_there(Phases& p) {
  if (p.missing > 0 || p.bytes != 0) return;
  ++p.phase;
  p.missing = p.arrivals;
  for (int i = 0; i < p.num_waiting; ++i) wake(p.waiting[i]);
  p.num_waiting = 0;
}

void arrive_with(PhasedBarrier& barrier, int bytes, const char* name, Site site) {
  perhaps_yield();
  Phases& p = find(barrier, name, site);
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

uint32_t swizzled_address(uint32_t address, int swizzle) { return address ^ ((address >> 7 & ((1u << swizzle) - 1)) << 4); }

struct Transfer {
  TiledDescription map;
  char* memory;                          // in shared memory
  int at[5];
  PhasedBarrier* barrier;                // of a load
  int group;                             // of a store
};

int box_bytes(const TiledDescription& m) {
  int bytes = m.element_bytes;
  for (int i = 0; i < 5; ++i) bytes *= m.box[i];
  return bytes;
}

// Calls row(first byte of a row of the box in shared memory before swizzling, its first element in global memory or nullptr where the row lies outside of the tensor).
template <class Row>
void for_each_row(const Transfer& t, const Row& row) {
  const TiledDescription& m = t.map;
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
constexpr int most_transfers = 256;
Transfer loads[most_transfers];
int num_loads = 0;
char load_token;

constexpr int most_stores = 16;          // of a thread
struct Stores {
  Transfer items[most_stores];
  int size = 0, group = 0;
};
Stores stores[most_threads];

Transfer describe(const void* map, const void* memory, const int* at, int rank, const char* name, Site site) {
  Transfer t{};
  std::memcpy(&t.map, map, sizeof t.map);
  if (t.map.magic != tiled_magic) fail_kernel(text(called(name, site), " with a map that is none: a kernel takes it by value, as const __grid_constant__ TensorMap"));
  if (t.map.rank != rank) fail_kernel(text(called(name, site), " with ", rank, " coordinates, but the map has ", t.map.rank, " dimensions"));
  if (!find_device(t.map.data)) fail_kernel(text(called(name, site), ", but the map's tensor begins at ", describe_address(t.map.data)), cudaErrorIllegalAddress);
  check_shared(memory, box_bytes(t.map), 128, [&] { return called(name, site) + " with a tile"; });
  t.memory = static_cast<char*>(const_cast<void*>(memory));
  for (int i = 0; i < rank; ++i) t.at[i] = at[i];
  return t;
}

// ---- products ----

constexpr int most_products = 32;        // of a warp, under way at once
struct Product {
  float* d[32];
  float saved[32][128];                  // d, where no product before this one computes it
  bool is_first, accumulates;
  uint64_t a, b;
  int columns, group;
  Element element;
  Site site;
};
struct Products {
  Product* items = nullptr;              // made when a warp's first product starts, and kept
  int size = 0, group = 0, issued = 0;
  bool is_fenced = false;
};
Products products[most_threads / 32];
int num_warps = 0;

struct Operands {
  float* d;
  int columns;
  uint64_t a, b;
  Element element;
  bool accumulates;
  Site site;
};

Products& of_this_warp() { return products[current_thread() / 32]; }

// The address in shared memory that the low 14 bits of a descriptor stand for.
const char* tile_of(uint64_t descriptor, const char* operand, Site site) {
  const uint32_t address = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const SharedRange s = shared_range();
  const uint32_t offset = (address - static_cast<uint32_t>(reinterpret_cast<uintptr_t>(s.begin))) & 0x3ffff;
  if (address & 0x380)
    fail_kernel(text(called("multiply_group", site), " with its ", operand, " operand in a tile that does not begin at a multiple of 1024 bytes"));
  return s.begin + offset;
}

void check_tile(const char* tile, int rows, const char* operand, Site site) {
  const SharedRange s = shared_range();
  const int64_t end = tile - s.begin - (reinterpret_cast<uintptr_t>(tile) & 127) + rows * int64_t{128};
  if (end > static_cast<int64_t>(s.bytes))
    fail_kernel(text(called("multiply_group", site), " with its ", operand, " operand of ", rows, " rows of 128 bytes at ", describe_address(tile), ", which end ",
                     end - static_cast<int64_t>(s.bytes), " bytes past the end"));
}

// An element of a row of 128 bytes, row r of eight at `tile` + 128 r.
float element_of(const char* tile, int row, int k, Element element) {
  const int size = element == Element::tf32 ? 4 : 2;
  const char* linear = tile + row * 128 + k * size;
  const char* p = linear + static_cast<int32_t>(swizzled_address(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(linear)), 3) -
                                                static_cast<uint32_t>(reinterpret_cast<uintptr_t>(linear)));
  if (element == Element::tf32) {
    uint32_t bits;
    std::memcpy(&bits, p, 4);
    return as_tf32(bits);
  }
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  if (element == Element::bfloat16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  fovea::float16 half;
  half.bits = bits;
  return half;
}

// This warp's 16 rows of the product, into `sums`.
void carry_out(const Product& p, int warp, float (&sums)[16][256]) {
  const int inner = p.element == Element::tf32 ? 8 : 16;
  const char *a = tile_of(p.a, "left", p.site), *b = tile_of(p.b, "right", p.site);
  float right[16][256];
  for (int column = 0; column < p.columns; ++column)
    for (int k = 0; k < inner; ++k) right[k][column] = element_of(b, column, k, p.element);
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < inner; ++k) {
      const float left = element_of(a, warp % 4 * 16 + row, k, p.element);
      for (int column = 0; column < p.columns; ++column) sums[row][column] += left * right[k][column];
    }
}

// The oldest product of a warp. Its sums go where they belong, or on to the next product that adds to them.
void finish_oldest(Products& list, int warp) {
  Product& p = list.items[0];
  static float sums[16][256];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < p.columns / 2; ++i) {
      const Place at = place_in_sums(lane, i % 4);
      sums[at.row][i / 4 * 8 + at.column] = p.accumulates ? p.saved[lane][i] : 0;
    }
  carry_out(p, warp, sums);
  Product* next = nullptr;
  for (int i = 1; i < list.size && !next; ++i)
    if (list.items[i].d[0] == p.d[0]) next = &list.items[i];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < p.columns / 2; ++i) {
      const Place at = place_in_sums(lane, i % 4);
      (next ? next->saved[lane][i] : p.d[lane][i]) = sums[at.row][i / 4 * 8 + at.column];
    }
  std::memmove(list.items, list.items + 1, static_cast<size_t>(--list.size) * sizeof(Product));
}

void start(void* const (&lanes)[32]) {
  const Operands& first = *static_cast<Operands*>(lanes[0]);
  const int warp = current_thread() / 32;
  Products& list = products[warp];
  for (int lane = 1; lane < 32; ++lane) {
    const Operands& other = *static_cast<Operands*>(lanes[lane]);
    if (other.a != first.a || other.b != first.b || other.columns != first.columns || other.accumulates != first.accumulates)
      fail_kernel(text(called("multiply_group", first.site), " with operands that differ between lanes 0 and ", lane));
  }
  check_tile(tile_of(first.a, "left", first.site), 64, "left", first.site);
  check_tile(tile_of(first.b, "right", first.site), first.columns, "right", first.site);
  if (!list.is_fenced) fail_kernel(text(called("multiply_group", first.site), " without fence_products() since the kernel began or the latest wait_for_products()"));
  if (list.size == most_products) fail_kernel(text(called("multiply_group", first.site), " while ", most_products, " products are under way, the most that the model knows"));
  if (!list.items) list.items = static_cast<Product*>(std::malloc(most_products * sizeof(Product)));
  if (!list.items) throw std::bad_alloc();
  Product& p = list.items[list.size];
  p.is_first = true;
  for (int i = 0; i < list.size; ++i) p.is_first = p.is_first && list.items[i].d[0] != first.d;
  p.accumulates = first.accumulates, p.a = first.a, p.b = first.b, p.columns = first.columns, p.group = list.group, p.element = first.element, p.site = first.site;
  for (int lane = 0; lane < 32; ++lane) {
    p.d[lane] = static_cast<Operands*>(lanes[lane])->d;
    if (!p.is_first) continue;
    for (int i = 0; i < p.columns / 2; ++i) p.saved[lane][i] = std::exchange(p.d[lane][i], std::numeric_limits<float>::quiet_NaN());
  }
  ++list.size;
  ++list.issued;
}

void fence(void* const (&)[32]) { of_this_warp().is_fenced = true; }
void commit(void* const (&)[32]) { ++of_this_warp().group; }
void land(void* const (&lanes)[32]) {
  Products& list = of_this_warp();
  list.is_fenced = false;
  while (list.size > 0 && list.items[0].group < list.group - *static_cast<int*>(lanes[0])) finish_oldest(list, current_thread() / 32);
}
void nothing(void* const (&)[32]) {}

constexpr Collective starting{"multiply_group", start}, fencing{"fence_products", fence}, committing{"commit_products", commit}, landing{"wait_for_products", land},
    changing_registers{"setmaxnreg", nothing};

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

void arrive(PhasedBarrier& barrier, const char* file, int line) { arrive_with(barrier, 0, "arrive", {file, line}); }
void arrive_expecting(PhasedBarrier& barrier, int bytes, const char* file, int line) { arrive_with(barrier, bytes, "arrive_expecting", {file, line}); }

void wait_for_phase(PhasedBarrier& barrier, int parity, const char* file, int line) {
  const Site site{file, line};
  if (chance().one_in(4)) land_transfer();
  perhaps_yield();
  for (;;) {
    Phases& p = find(barrier, "wait_for_phase", site);
    if ((p.phase & 1) != parity) {
      happens_after(&p.tokens[parity]);
      return;
    }
    p.waiting[p.num_waiting++] = current_thread();
    park("wait_for_phase", site);
  }
}

void invalidate_barrier(PhasedBarrier& barrier, const char* file, int line) {
  Phases& p = find(barrier, "invalidate_barrier", {file, line});
  if (p.num_waiting > 0 || p.bytes != 0) fail_kernel(called("invalidate_barrier", {file, line}) + " with a barrier that threads wait for, or that bytes are to arrive at");
  p = table[--num_barriers];
}

void begin_transfers(int threads) {
  num_barriers = num_loads = 0;
  for (int t = 0; t < threads; ++t) stores[t].size = stores[t].group = 0;
  num_warps = (threads + 31) / 32;
  for (int w = 0; w < num_warps; ++w) products[w].size = products[w].group = products[w].issued = 0, products[w].is_fenced = false;
}

void start_box(void* to, const void* map, PhasedBarrier& barrier, const int* at, int rank, Site site) {
  Transfer t = describe(map, to, at, rank, "load_box", site);
  find(barrier, "load_box", site);
  t.barrier = &barrier;
  if (num_loads == most_transfers) fail_kernel(text(called("load_box", site), " while ", most_transfers, " copies are under way, the most that the model knows"));
  std::memset(to, 0xff, static_cast<size_t>(box_bytes(t.map)));
  happens_before(&load_token);
  loads[num_loads++] = t;
}

bool land_transfer() {
  if (num_loads == 0) return false;
  const uint32_t i = chance().below(static_cast<uint32_t>(num_loads));
  const Transfer t = std::exchange(loads[i], loads[num_loads - 1]);
  --num_loads;
  happens_after(&load_token);
  load(t);
  Phases* p = look_up(*t.barrier);
  if (!p) fail_kernel("a copy of a box arrives at a barrier that has been invalidated");
  happens_before(&p->tokens[p->phase & 1]);
  p->bytes -= box_bytes(t.map);
  complete_if_all_is_there(*p);
  return true;
}

void start_store(const void* map, const void* from, const int* at, int rank, Site site) {
  Transfer t = describe(map, from, at, rank, "store_box", site);
  Stores& mine = stores[current_thread()];
  if (mine.size == most_stores) fail_kernel(text(called("store_box", site), " while ", most_stores, " stores of this thread are under way, the most that the model knows"));
  t.group = mine.group;
  mine.items[mine.size++] = t;
}
void commit_stores() { ++stores[current_thread()].group; }

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
  const Products& list = products[thread / 32];
  if (list.size > 0) return text(list.size, " products of its warp have not been waited for, the latest", at_site(list.items[list.size - 1].site));
  return "";
}

std::string left_undone_by_block() {
  if (num_loads > 0) return text(num_loads, " copies of boxes into its shared memory are under way");
  for (int w = 0; w < num_warps; ++w) {
    const int first = w & ~3;
    if (products[w].issued != products[first].issued || (products[w].issued > 0 && first + 4 > num_warps))
      return text("warp ", w, " took part in ", products[w].issued, " products of four warps, warp ", first, " in ", products[first].issued);
  }
  return "";
}

void start_product(float* d, int columns, uint64_t a, uint64_t b, Element element, bool accumulates, Site site) {
  Operands brought{d, columns, a, b, element, accumulates, site};
  arrive_together(starting, &brought, site);
}
void fence_products(const char* file, int line) { arrive_together(fencing, nullptr, {file, line}); }
void commit_products(const char* file, int line) { arrive_together(committing, nullptr, {file, line}); }
void land_products(int groups_under_way, Site site) { arrive_together(landing, &groups_under_way, site); }

void change_registers(int registers, Site site) {
  if (registers < 24 || registers > 256 || registers % 8 != 0) fail_kernel(text(called("setmaxnreg", site), " with ", registers, " registers: a multiple of 8 from 24 to 256"));
  arrive_together(changing_registers, nullptr, site);
}

}  // namespace host_cuda
