// Products of four warps.
//
// A product is carried out when its group is waited for, and reads shared memory only then; until then its sums are NaN. So whoever looks too early, or hands a tile
// back too early, computes NaN.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "model.h"
#include "ptx_checks.h"
#include "ptx_hopper.h"
#include "ptx_semantics.h"

namespace host_cuda {
namespace {

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
Products products[most_resident_threads / 32];
bool has_products = false;               // some warp has some, or had since the blocks began

struct Operands {
  float* d;
  int columns;
  uint64_t a, b;
  Element element;
  bool accumulates;
  Site site;
};

Products& of_this_warp() {
  has_products = true;
  return products[current_thread() / 32];
}

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
  Products& list = of_this_warp();
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

void begin_products(int threads) {
  for (int w = 0; w < threads / 32 && has_products; ++w) products[w].size = products[w].group = products[w].issued = 0, products[w].is_fenced = false;
  has_products = false;
}

std::string products_left_undone(int thread) {
  const Products& list = products[thread / 32];
  if (list.size > 0) return text(list.size, " products of its warp have not been waited for, the latest", at_site(list.items[list.size - 1].site));
  return "";
}

std::string products_left_undone_by_block(int first, int threads) {
  if (!has_products) return "";
  const int first_warp = first / 32, num_warps = (threads + 31) / 32;
  for (int w = 0; w < num_warps; ++w) {
    const Products &own = products[first_warp + w], &leading = products[first_warp + (w & ~3)];
    if (own.issued != leading.issued || (own.issued > 0 && (w & ~3) + 4 > num_warps))
      return text("warp ", w, " took part in ", own.issued, " products of four warps, warp ", w & ~3, " in ", leading.issued);
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
