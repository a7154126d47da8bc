// Asynchronous copies, and the instructions of tensor cores that a warp carries out together.
//
// A copy lands as late as it may: when its thread waits for its group, in a random order with the others of the group, reading its source only then. From its start
// on the destination holds NaN. So whoever reads too early, or whose slot of a ring is filled again too early, computes NaN.
#include "ptx.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "model.h"
#include "ptx_checks.h"
#include "ptx_semantics.h"

namespace host_cuda {
namespace {

struct Copy {
  char* to;
  const char* from;                      // nullptr: zeros
  int bytes;
  int group;                             // counted from the beginning of the block
};

// What a thread has started, oldest first. Not a std::vector, for the reason given at List in block.cpp.
class CopyQueue {
 public:
  void clear() { size_ = group_ = 0; }
  void push(char* to, const char* from, int bytes) {
    if (size_ == capacity_) grow();
    items_[size_++] = {to, from, bytes, group_};
  }
  void close_group() { ++group_; }
  // All but the latest groups land.
  void land(int groups_under_way) {
    int due = 0;
    while (due < size_ && items_[due].group < group_ - groups_under_way) ++due;
    for (int left = due; left > 0; --left) {
      std::swap(items_[left - 1], items_[chance().below(static_cast<uint32_t>(left))]);
      const Copy& c = items_[left - 1];
      if (c.from) std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
      else std::memset(c.to, 0, static_cast<size_t>(c.bytes));
    }
    size_ -= due;
    if (due > 0) std::memmove(items_, items_ + due, static_cast<size_t>(size_) * sizeof(Copy));
  }

 private:
  void grow() {
    capacity_ = capacity_ ? capacity_ * 2 : 16;
    items_ = static_cast<Copy*>(std::realloc(items_, static_cast<size_t>(capacity_) * sizeof(Copy)));
    if (!items_) throw std::bad_alloc();
  }

  Copy* items_ = nullptr;                // kept from one kernel to the next
  int size_ = 0, capacity_ = 0, group_ = 0;
};
CopyQueue copies[most_resident_threads];
bool has_copies = false;                 // somebody has some, or had since the blocks began

// ---- ldmatrix ----

struct MatrixLoad {
  const char* row;
  uint32_t* registers;
  Site site;
};

uint32_t pair_at(const char* first, const char* second) {
  uint16_t low, high;
  std::memcpy(&low, first, 2);
  std::memcpy(&high, second, 2);
  return low | static_cast<uint32_t>(high) << 16;
}

// Lane 8 m + i brings the address of row i of matrix m; with two matrices, the other lanes' addresses are not looked at.
template <int matrices, MatrixOrder order>
void load(void* const (&lanes)[32]) {
  const auto lane_load = [&](int lane) -> MatrixLoad& { return *static_cast<MatrixLoad*>(lanes[lane]); };
  for (int lane = 0; lane < 8 * matrices; ++lane)
    check_shared(lane_load(lane).row, 16, 16, [&] { return text(called("load_matrix", lane_load(lane).site), ": lane ", lane, " brings the address of a row"); });
  for (int matrix = 0; matrix < matrices; ++matrix) {
    const char* rows[8];
    for (int row = 0; row < 8; ++row) rows[row] = lane_load(8 * matrix + row).row;
    for (int lane = 0; lane < 32; ++lane) {
      const Place p = place_in_matrix(lane);
      lane_load(lane).registers[matrix] = order == MatrixOrder::plain ? pair_at(rows[p.row] + 2 * p.column, rows[p.row] + 2 * p.column + 2)
                                                                      : pair_at(rows[p.column] + 2 * p.row, rows[p.column + 1] + 2 * p.row);
    }
  }
}

// ---- mma.sync ----

struct Product {
  float* d;
  const uint32_t *a, *b;
};

template <int inner>
struct Tiles {
  float d[16][8], a[16][inner], b[inner][8];
};

void read_sums(void* const (&lanes)[32], float (&d)[16][8]) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) d[place_in_sums(lane, i).row][place_in_sums(lane, i).column] = static_cast<Product*>(lanes[lane])->d[i];
}
void write_sums(void* const (&lanes)[32], const float (&d)[16][8]) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) static_cast<Product*>(lanes[lane])->d[i] = d[place_in_sums(lane, i).row][place_in_sums(lane, i).column];
}

template <class Half>
float widen(uint32_t bits) {
  Half half;
  half.bits = static_cast<uint16_t>(bits);
  return half;
}

template <class Half>
void multiply_halves(void* const (&lanes)[32]) {
  Tiles<16> t;
  for (int lane = 0; lane < 32; ++lane) {
    const Product& p = *static_cast<Product*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const Place at = place_in_left(lane, i);
      t.a[at.row][at.column] = widen<Half>(p.a[i]);
      t.a[at.row][at.column + 1] = widen<Half>(p.a[i] >> 16);
    }
    for (int i = 0; i < 2; ++i) {
      const Place at = place_in_right(lane, i);
      t.b[at.row][at.column] = widen<Half>(p.b[i]);
      t.b[at.row + 1][at.column] = widen<Half>(p.b[i] >> 16);
    }
  }
  read_sums(lanes, t.d);
  multiply_tiles<16>(t.d, t.a, t.b);
  write_sums(lanes, t.d);
}

void multiply_tf32s(void* const (&lanes)[32]) {
  Tiles<8> t;
  for (int lane = 0; lane < 32; ++lane) {
    const Product& p = *static_cast<Product*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) t.a[place_in_left_tf32(lane, i).row][place_in_left_tf32(lane, i).column] = as_tf32(p.a[i]);
    for (int i = 0; i < 2; ++i) t.b[place_in_right_tf32(lane, i).row][place_in_right_tf32(lane, i).column] = as_tf32(p.b[i]);
  }
  read_sums(lanes, t.d);
  multiply_tiles<8>(t.d, t.a, t.b);
  write_sums(lanes, t.d);
}

constexpr Collective load_x4{"load_matrix_x4", load<4, MatrixOrder::plain>}, load_x2{"load_matrix_x2", load<2, MatrixOrder::plain>},
    load_x4_transposed{"load_matrix_x4_transposed", load<4, MatrixOrder::transposed>},
    load_x2_transposed{"load_matrix_x2_transposed", load<2, MatrixOrder::transposed>}, multiply_float16{"multiply (float16)", multiply_halves<fovea::float16>},
    multiply_bfloat16{"multiply (bfloat16)", multiply_halves<fovea::bfloat16>}, multiply_tf32_tiles{"multiply_tf32", multiply_tf32s};

void multiply_together(const Collective& collective, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Product product{d, a, b};
  arrive_together(collective, &product, site);
}

}  // namespace

// ---- copies ----

void begin_copies(int threads) {
  for (int t = 0; t < threads && has_copies; ++t) copies[t].clear();
  has_copies = false;
}

void start_copy(void* to, const void* from, int bytes, bool is_there, Site site) {
  const auto who = [&] { return called("copy_async", site); };
  check_shared(to, bytes, bytes, [&] { return who() + " to an address"; });
  if (is_there) {
    if (!is_device_range(from)) fail_kernel(text(who(), " from ", describe_address(from)), cudaErrorIllegalAddress);
    if (reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(bytes) != 0)
      fail_kernel(text(who(), " of ", bytes, " bytes from ", describe_address(from), ": an address that is not a multiple of ", bytes), cudaErrorIllegalAddress);
    // Read now as well, so that an address where nothing is allocated is reported here and not at the wait.
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  std::memset(to, 0xff, static_cast<size_t>(bytes));
  has_copies = true;
  copies[current_thread()].push(static_cast<char*>(to), is_there ? static_cast<const char*>(from) : nullptr, bytes);
}

void commit_copies() {
  has_copies = true;
  copies[current_thread()].close_group();
}

void land_copies(int groups_under_way) { copies[current_thread()].land(groups_under_way); }

// ---- what a warp does together ----

void load_matrices(uint32_t* registers, int matrices, MatrixOrder order, const void* row, Site site) {
  MatrixLoad brought{static_cast<const char*>(row), registers, site};
  if (order == MatrixOrder::plain) arrive_together(matrices == 4 ? load_x4 : load_x2, &brought, site);
  else arrive_together(matrices == 4 ? load_x4_transposed : load_x2_transposed, &brought, site);
}

void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], fovea::float16, const char* file, int line) {
  multiply_together(multiply_float16, d, a, b, {file, line});
}
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], fovea::bfloat16, const char* file, int line) {
  multiply_together(multiply_bfloat16, d, a, b, {file, line});
}
void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  multiply_together(multiply_tf32_tiles, d, a, b, {file, line});
}

uint32_t to_tf32(float value) { return round_to_tf32(value); }

}  // namespace host_cuda
