// The model of CUDA that kernels are tested on (tests/host_cuda): right kernels are right under every schedule, and mistakes that are planted here are caught.
// cuda_model_hopper_test.cpp has those about the instructions of sm_90.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/ptx.h>

#include "cuda_model.h"

namespace cuda = fovea::kernels::cuda;
using fovea::kernels::cuda::shared;
using namespace fovea::testing;

namespace {

constexpr unsigned all_lanes = 0xffffffffu;

// ---- kernels without a mistake, and the same with one ----

struct Numbers {
  int values[256];
};

// A block's sum as a tree in shared memory. `barriers` false: nobody waits between one level and the next.
template <bool barriers>
__global__ void tree_sum(const int* x, int* sums) {
  Numbers& s = shared<Numbers>();
  const int t = static_cast<int>(threadIdx.x);
  s.values[t] = x[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  for (int half = static_cast<int>(blockDim.x) / 2; half > 0; half /= 2) {
    if (t < half) s.values[t] += s.values[t + half];
    if (barriers) __syncthreads();
  }
  if (t == 0) sums[blockIdx.x] = s.values[0];
}

// Sums up to and including each element of a warp.
__global__ void warp_scan(const int* x, int* y) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), lane = static_cast<int>(threadIdx.x) % 32;
  int sum = x[i];
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(all_lanes, sum, static_cast<unsigned>(distance));
    if (lane >= distance) sum += below;
  }
  y[i] = sum;
}

struct Tile {
  int values[16][17];
};
__global__ void transpose(const int* x, int* y, int rows, int columns) {
  Tile& tile = shared<Tile>();
  const int column = static_cast<int>(blockIdx.x * 16 + threadIdx.x), row = static_cast<int>(blockIdx.y * 16 + threadIdx.y);
  if (row < rows && column < columns) tile.values[threadIdx.y][threadIdx.x] = x[row * columns + column];
  __syncthreads();
  const int to_column = static_cast<int>(blockIdx.y * 16 + threadIdx.x), to_row = static_cast<int>(blockIdx.x * 16 + threadIdx.y);
  if (to_row < columns && to_column < rows) y[to_row * rows + to_column] = tile.values[threadIdx.x][threadIdx.y];
}

__global__ void add_constant(const int* x, int* y, int constant) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = x[i] + constant;
}

__global__ void count_multiples(int* count, int of, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int number = __syncthreads_count(i < n && i % of == 0);
  if (threadIdx.x == 0) atomicAdd(count, number);
}

__global__ void neighbour_beyond_shared(int* y) {
  Numbers& s = shared<Numbers>();
  s.values[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s.values[threadIdx.x + 1];
}

__global__ void takes_too_much_shared(int* y) { y[0] = shared<Numbers>().values[0]; }

__global__ void half_a_warp(int* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(all_lanes, 1, 8);
  y[threadIdx.x] = 2;
}

__global__ void own_lane_left_out(int* y) { y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 8); }

__global__ void source_left_out(int* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 16);
}

__global__ void two_operations(int* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(all_lanes, 1, 8);
  else y[threadIdx.x] = __any_sync(all_lanes, 1);
}

__global__ void two_masks(int* y) {
  y[threadIdx.x] = threadIdx.x < 16 ? __shfl_sync(0x0001ffffu, 1, 0) : __shfl_sync(0xffff8000u, 1, 31);
}

__global__ void barrier_for_some(int* y) {
  if (threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void two_barriers(int* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
    y[threadIdx.x] = 1;
  } else {
    __syncthreads();
    y[threadIdx.x] = 2;
  }
}

// Half of the block waits for the other half's lanes, which wait at the barrier for them.
__global__ void barrier_against_warp(int* y) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  else y[threadIdx.x] = __shfl_sync(all_lanes, 1, 0);
}

__global__ void write_at(int* y, int64_t at) { y[at] = 1; }
__global__ void read_at(const int* x, int64_t at, int* y) { y[0] = x[at]; }

int depth_of(int n, volatile int* keeps) {
  volatile char frame[1024];
  frame[0] = static_cast<char>(n);
  return n == 0 ? *keeps : depth_of(n - 1, keeps) + frame[0];
}
__global__ void deep_recursion(int* y, int depth) {
  volatile int zero = 0;
  y[0] = depth_of(depth, &zero);
}

}  // namespace

TEST_CASE("model: a tree of sums in shared memory, a scan by shuffles and a transposition are right under every schedule") {
  const Buffer<int> x(numbers(1024)), sums(size_t{4}), scanned(size_t{1024});
  for_every_seed([&] {
    launch(nullptr, "tree_sum", {4, 256, sizeof(Numbers)}, tree_sum<true>, x.get(), sums.get());
    CHECK(sums.values() == std::vector<int>{32896, 98432, 163968, 229504});
    launch(nullptr, "warp_scan", {4, 256}, warp_scan, x.get(), scanned.get());
    const std::vector<int> y = scanned.values();
    CHECK(y[31] == 528);
    CHECK(y[32] == 33);
    CHECK(y[1023] == 32272);
  });

  const int rows = 37, columns = 50;
  const Buffer<int> matrix(numbers(rows * columns)), transposed(static_cast<size_t>(rows * columns));
  for_every_seed([&] {
    launch(nullptr, "transpose", {dim3(4, 3), dim3(16, 16), sizeof(Tile)}, transpose, matrix.get(), transposed.get(), rows, columns);
    const std::vector<int> y = transposed.values();
    bool is_right = true;
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < columns; ++column) is_right = is_right && y[static_cast<size_t>(column * rows + row)] == row * columns + column + 1;
    CHECK(is_right);
  });
}

TEST_CASE("model: a barrier counts, and atomic sums add up") {
  const Buffer<int> count(std::vector<int>{0});
  launch(nullptr, "count_multiples", {5, 96}, count_multiples, count.get(), 7, 400);
  CHECK(count.values() == std::vector<int>{58});
}

namespace {

// Every warp operation's result for each of the 32 lanes.
struct Taken {
  int shuffled, up, down, crossed, narrow, any, all, matches, sum, lowest;
  unsigned ballot, both;
  double wide;
};
__global__ void warp_operations(Taken* taken) {
  const int lane = static_cast<int>(threadIdx.x);
  Taken t;
  t.shuffled = __shfl_sync(all_lanes, lane * 10, lane + 3, 8);
  t.up = __shfl_up_sync(all_lanes, lane, 2, 16);
  t.down = __shfl_down_sync(all_lanes, lane, 5);
  t.crossed = __shfl_xor_sync(all_lanes, lane, 17);
  t.narrow = __shfl_xor_sync(all_lanes, lane, 8, 8);
  t.any = __any_sync(all_lanes, lane == 9);
  t.all = __all_sync(all_lanes, lane != 9);
  t.matches = __popc(__match_any_sync(all_lanes, lane / 5));
  t.sum = __reduce_add_sync(all_lanes, -lane);
  t.lowest = __reduce_min_sync(all_lanes, lane - 5);
  t.ballot = __ballot_sync(all_lanes, lane % 3 == 0);
  t.both = lane < 16 ? __ballot_sync(0x0000ffffu, 1) : __ballot_sync(0xffff0000u, lane & 1);
  t.wide = __shfl_sync(all_lanes, lane * 0.5, 31 - lane);
  taken[lane] = t;
}

}  // namespace

TEST_CASE("model: warp operations give each lane what CUDA gives it") {
  const Buffer<Taken> taken(size_t{32});
  for_every_seed([&] {
    launch(nullptr, "warp_operations", {1, 32}, warp_operations, taken.get());
    const std::vector<Taken> lanes = taken.values();
    for (int lane = 0; lane < 32; ++lane) {
      CAPTURE(lane);
      const Taken& t = lanes[static_cast<size_t>(lane)];
      CHECK(t.shuffled == (lane / 8 * 8 + (lane + 3) % 8) * 10);
      CHECK(t.up == (lane % 16 >= 2 ? lane - 2 : lane));
      CHECK(t.down == (lane + 5 < 32 ? lane + 5 : lane));
      CHECK(t.crossed == (lane ^ 17));
      CHECK(t.narrow == (lane & 8 ? lane ^ 8 : lane));       // from a later group a lane reads nothing, from an earlier one it does
      CHECK(t.any == 1);
      CHECK(t.all == 0);
      CHECK(t.matches == (lane >= 30 ? 2 : 5));
      CHECK(t.sum == -496);
      CHECK(t.lowest == -5);
      CHECK(t.ballot == 0x49249249u);
      CHECK(t.both == (lane < 16 ? 0x0000ffffu : 0xaaaa0000u));
      CHECK(t.wide == (31 - lane) * 0.5);
    }
  });
}

TEST_CASE("model: a missing barrier gives a wrong sum under some schedule" * doctest::skip(host_cuda::has_thread_sanitizer())) {
  const Buffer<int> x(numbers(256)), sums(size_t{1});
  int wrong = 0;
  for_every_seed([&] {
    launch(nullptr, "tree_sum", {1, 256, sizeof(Numbers)}, tree_sum<false>, x.get(), sums.get());
    wrong += sums.values()[0] != 32896;
  });
  CHECK(wrong >= num_seeds / 2);
}

// Run by the next test, in a process of its own.
TEST_CASE("planted: a kernel without its barrier" * doctest::skip()) {
  const Buffer<int> x(numbers(256)), sums(size_t{1});
  launch(nullptr, "tree_sum", {1, 256, sizeof(Numbers)}, tree_sum<false>, x.get(), sums.get());
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

// That it reports nothing else shows in all other tests of this program.
TEST_CASE("model: the thread sanitizer names a kernel without its barrier" * doctest::skip(!host_cuda::has_thread_sanitizer())) {
  const std::string said = said_by_child([] { execl("/proc/self/exe", "test_cuda_model", "--no-skip", "--test-case=planted: a kernel without*", nullptr); });
  CHECK_CONTAINS(said, "ThreadSanitizer: data race");
  CHECK_CONTAINS(said, "in tree_sum<false>");
}

// ---- blocks that meet in global memory ----

namespace {

enum class Meeting { right, has_no_fence, has_no_atomic };

// Each block leaves its sum, and the block that comes last adds them up.
template <Meeting meeting>
__global__ void last_block_sums(const int* x, int* sums, unsigned* done, int* total) {
  Numbers& s = shared<Numbers>();
  const int t = static_cast<int>(threadIdx.x);
  s.values[t] = x[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  bool is_last = false;
  if (t == 0) {
    int sum = 0;
    for (unsigned i = 0; i < blockDim.x; ++i) sum += s.values[i];
    sums[blockIdx.x] = sum;
    if (meeting == Meeting::right) __threadfence();
    is_last = meeting == Meeting::has_no_atomic ? ++*done == gridDim.x : atomicAdd(done, 1u) == gridDim.x - 1;
    if (meeting == Meeting::right) __threadfence();
  }
  if (!__syncthreads_or(is_last)) return;
  if (t == 0) *total = 0;
  __syncthreads();
  if (t < static_cast<int>(gridDim.x)) atomicAdd(total, sums[t]);
}

// A block's threads write one element more than they have.
__global__ void overlapping_blocks(int* y) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = i;
  if (threadIdx.x + 1 == blockDim.x) y[i + 1] = i + 1;
}

// A block waits for the one before it: only possible where the two are resident together, in whatever order.
__global__ void wait_for_block_before(int* flags) {
  if (blockIdx.x > 0)
    while (atomicAdd(&flags[blockIdx.x - 1], 0) == 0) {
    }
  atomicExch(&flags[blockIdx.x], 1);
}

// How many blocks were ever seen between their first and their last atomic operation at once.
__global__ void count_blocks_inside(int* inside, int* most) {
  atomicMax(most, atomicAdd(inside, 1) + 1);
  for (int i = 0; i < 8; ++i) atomicAdd(inside, 0);
  atomicSub(inside, 1);
}

template <Meeting meeting>
int run_last_block() {
  const Buffer<int> x(numbers(256)), sums(size_t{8}), total(size_t{1});
  const Buffer<unsigned> done(std::vector<unsigned>{0});
  launch(nullptr, "last_block_sums", {8, 32, sizeof(Numbers)}, last_block_sums<meeting>, x.get(), sums.get(), done.get(), total.get());
  return total.values()[0];
}

}  // namespace

TEST_CASE("model: the block that comes last sees what the others left") {
  for_every_seed([&] { CHECK(run_last_block<Meeting::right>() == 32896); });
}

TEST_CASE("model: blocks run beside each other now and then") {
  int together = 0;
  for_every_seed([&] {
    const Buffer<int> inside(std::vector<int>{0}), most(std::vector<int>{0});
    launch(nullptr, "count_blocks_inside", {32, 1}, count_blocks_inside, inside.get(), most.get());
    CHECK(inside.values()[0] == 0);
    together += most.values()[0] > 1;
  });
  CHECK(together >= num_seeds / 2);
}

TEST_CASE("model: a block may wait for another of its cluster") {
  const Buffer<int> flags(size_t{2});
  int together = 0;
  for_every_seed([&] {
    REQUIRE(cudaMemset(flags.get(), 0, 8) == cudaSuccess);
    launch(nullptr, "wait_for_block_before", {dim3(2), 1, 0, dim3(2)}, wait_for_block_before, flags.get());
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    together += flags.values() == std::vector<int>{1, 1};
  });
  CHECK(together == num_seeds);
}

// Run by the next test, each in a process of its own.
TEST_CASE("planted: the last block without a fence" * doctest::skip()) { run_last_block<Meeting::has_no_fence>(); }
TEST_CASE("planted: the last block without an atomic operation" * doctest::skip()) { run_last_block<Meeting::has_no_atomic>(); }
TEST_CASE("planted: two blocks that write to one address" * doctest::skip()) {
  const Buffer<int> y(size_t{8 * 32 + 1});
  launch(nullptr, "overlapping_blocks", {8, 32}, overlapping_blocks, y.get());
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

TEST_CASE("model: the thread sanitizer names kernels whose blocks get into each other's way" * doctest::skip(!host_cuda::has_thread_sanitizer())) {
  const auto said = [](const char* planted) { return said_by_child([=] { execl("/proc/self/exe", "test_cuda_model", "--no-skip", planted, nullptr); }); };
  CHECK_CONTAINS(said("--test-case=planted: the last block without a fence"), "in last_block_sums<");
  CHECK_CONTAINS(said("--test-case=planted: the last block without an atomic*"), "in last_block_sums<");
  CHECK_CONTAINS(said("--test-case=planted: two blocks that write*"), "in overlapping_blocks");
}

TEST_CASE("model: shared memory ends where the launch says") {
  const Buffer<int> y(size_t{256});
  CHECK_CONTAINS(complaint({1, 256, sizeof(Numbers)}, neighbour_beyond_shared, y.get()), "thread (255,0,0): read just past the end of its 1024 bytes of shared memory");
  CHECK_CONTAINS(complaint({1, 1, 16}, takes_too_much_shared, y.get()), "wants 1024 bytes of shared memory; its launch gave it 16");
}

TEST_CASE("model: warp operations without a lane of their mask are errors that say what and where") {
  const Buffer<int> y(size_t{64});
  for_every_seed([&] {
    const std::string half = complaint({1, 32}, half_a_warp, y.get());
    CHECK_CONTAINS(half, "__shfl_xor_sync");
    CHECK_CONTAINS(half, "returned");
    CHECK_CONTAINS(half, "cuda_model_test.cpp:");
    CHECK_CONTAINS(half, "kernel half_a_warp (1x1x1 blocks of 32x1x1 threads");
    CHECK_CONTAINS(half, fovea::str("FOVEA_HOST_CUDA_SEED=", host_cuda::seed()));
    CHECK_CONTAINS(complaint({1, 32}, two_operations, y.get()), "wait with the same mask");
    CHECK_CONTAINS(complaint({1, 32}, two_masks, y.get()), "deadlock: nobody can go on; lanes ");
  });
  CHECK_CONTAINS(complaint({1, 32}, own_lane_left_out, y.get()), "which leaves out its own lane");
  CHECK_CONTAINS(complaint({1, 32}, source_left_out, y.get()), "which is not in the mask 0x0000ffff");
  CHECK_CONTAINS(complaint({1, 48}, warp_scan, y.get(), y.get()), "but its warp has only lanes 0x0000ffff");
}

TEST_CASE("model: a barrier that some threads do not reach, or that they reach elsewhere, is an error") {
  const Buffer<int> y(size_t{64});
  for_every_seed([&] {
    CHECK_CONTAINS(complaint({1, 64}, barrier_for_some, y.get()), "returned");
    CHECK_CONTAINS(complaint({1, 64}, two_barriers, y.get()), "of its block at another one, at cuda_model_test.cpp:");
    const std::string deadlock = complaint({1, 32}, barrier_against_warp, y.get());
    CHECK_CONTAINS(deadlock, "deadlock: nobody can go on; threads ");
    CHECK_CONTAINS(deadlock, "wait at __syncthreads at cuda_model_test.cpp:");
    CHECK_CONTAINS(deadlock, "lanes 0xaaaaaaaa of warp 0 wait in __shfl_sync with mask 0xffffffff");
  });
}

// ---- instructions of PTX ----

namespace {

enum class Ring { right, waits_too_little, has_no_barrier, frees_a_slot_early };

struct RingOfTiles {
  alignas(16) int slots[3][32 * 4];
};

// Adds up `tiles` tiles of 32 packs of four, each thread what its neighbour has copied.
template <Ring ring>
__global__ void ring_of_tiles(const int* x, int tiles, int* sums) {
  RingOfTiles& s = shared<RingOfTiles>();
  const int thread = static_cast<int>(threadIdx.x), neighbour = (thread + 1) % 32;
  const auto start = [&](int tile) {
    if (tile < tiles) cuda::copy_async<16>(&s.slots[tile % 3][thread * 4], x + (tile * 32 + thread) * 4, true);
    cuda::commit_copies();
  };
  start(0);
  start(1);
  int sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    cuda::wait_for_copies<ring == Ring::waits_too_little ? 2 : 1>();
    if (ring != Ring::has_no_barrier) __syncthreads();
    start(tile + (ring == Ring::frees_a_slot_early ? 3 : 2));
    for (int i = 0; i < 4; ++i) sum += s.slots[tile % 3][neighbour * 4 + i];
  }
  sums[thread] = sum;
}

// The number of seeds under which some sum is wrong.
template <Ring ring>
int wrong_rings() {
  constexpr int tiles = 7;
  const std::vector<int> x = numbers(tiles * 128);
  const Buffer<int> on_device(x), sums(size_t{32});
  int wrong = 0;
  for_every_seed([&] {
    launch(nullptr, "ring_of_tiles", {1, 32, sizeof(RingOfTiles)}, ring_of_tiles<ring>, on_device.get(), tiles, sums.get());
    const std::vector<int> got = sums.values();
    bool is_right = true;
    for (int thread = 0; thread < 32; ++thread) {
      int sum = 0;
      for (int tile = 0; tile < tiles; ++tile)
        for (int i = 0; i < 4; ++i) sum += x[static_cast<size_t>((tile * 32 + (thread + 1) % 32) * 4 + i)];
      is_right = is_right && got[static_cast<size_t>(thread)] == sum;
    }
    wrong += !is_right;
  });
  return wrong;
}

struct Rows {
  alignas(16) uint16_t elements[32][8];
};
// Loads matrices whose rows begin `offset` elements after the 16-byte boundary; of half a warp, or by lanes at two lines, where that is asked for.
enum class Lanes { all, half, at_two_lines };
template <Lanes lanes>
__global__ void load_rows(int* y, int offset) {
  Rows& s = shared<Rows>();
  for (uint16_t& element : s.elements[threadIdx.x]) element = 1;
  __syncthreads();
  uint32_t r[4] = {};
  const uint16_t* row = s.elements[threadIdx.x] + offset;
  if (lanes == Lanes::all || threadIdx.x < 16) cuda::load_matrix_x4(r, row);
  else if (lanes == Lanes::at_two_lines) cuda::load_matrix_x4(r, row);
  y[threadIdx.x] = static_cast<int>(r[0]);
}

__global__ void half_a_warp_multiplies(int* y) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x % 32 < 16) cuda::multiply(d, a, b, fovea::float16{});
  y[threadIdx.x] = static_cast<int>(d[0]);
}

__global__ void copies_to(int* y, const int* x, int to, int from) {
  RingOfTiles& s = shared<RingOfTiles>();
  if (threadIdx.x == 0) cuda::copy_async<16>(&s.slots[0][0] + to, x + from, true);
  cuda::commit_copies();
  cuda::wait_for_copies<0>();
  __syncthreads();
  y[threadIdx.x] = s.slots[0][0];
}

}  // namespace

TEST_CASE("model: asynchronous copies that are not waited for, have no barrier, or overwrite what is still read give wrong results" *
          doctest::skip(host_cuda::has_thread_sanitizer())) {
  CHECK(wrong_rings<Ring::right>() == 0);
  CHECK(wrong_rings<Ring::waits_too_little>() == num_seeds);
  CHECK(wrong_rings<Ring::has_no_barrier>() >= num_seeds / 2);
  CHECK(wrong_rings<Ring::frees_a_slot_early>() >= num_seeds / 2);
}

TEST_CASE("model: asynchronous copies beside shared memory, from elsewhere than device memory, or misaligned are errors") {
  const Buffer<int> y(size_t{32}), x(size_t{384});
  const Grid grid{1, 32, sizeof(RingOfTiles)};
  CHECK(complaint(grid, copies_to, y.get(), x.get(), 380, 380) == "");
  CHECK_CONTAINS(complaint(grid, copies_to, y.get(), x.get(), 381, 0), "calls copy_async at cuda_model_test.cpp:");
  CHECK_CONTAINS(complaint(grid, copies_to, y.get(), x.get(), 381, 0), "to an address, byte 1524 of its 1536 bytes of shared memory, but it takes 16 bytes of shared memory");
  CHECK_CONTAINS(complaint(grid, copies_to, y.get(), x.get(), 1, 0), "to an address, byte 4 of its 1536 bytes of shared memory, which is not a multiple of 16");
  CHECK_CONTAINS(complaint(grid, copies_to, y.get(), x.get(), 0, 1), "of 16 bytes from byte 4 of an allocation of 1536 bytes on device 0: an address that is not a multiple of 16");
  CHECK_CONTAINS(complaint(grid, copies_to, y.get(), x.get(), 0, 4096), "read 14848 bytes past the end of an allocation of 1536 bytes");
  CHECK_CONTAINS(complaint(grid, copies_to, y.get(), static_cast<const int*>(nullptr), 0, 0), "from address 0: a null pointer");
}

TEST_CASE("model: instructions of a warp without half of its lanes, at two lines, on misaligned rows or beside shared memory are errors") {
  const Buffer<int> y(size_t{64});
  const Grid grid{1, 32, sizeof(Rows)};
  for_every_seed([&] {
    CHECK(complaint(grid, load_rows<Lanes::all>, y.get(), 0) == "");
    CHECK_CONTAINS(complaint(grid, load_rows<Lanes::half>, y.get(), 0), "load_matrix_x4");
    CHECK_CONTAINS(complaint(grid, load_rows<Lanes::half>, y.get(), 0), "returned");
    CHECK_CONTAINS(complaint(grid, load_rows<Lanes::at_two_lines>, y.get(), 0), "of its warp wait with the same mask in load_matrix_x4 at cuda_model_test.cpp:");
    CHECK_CONTAINS(complaint({1, 64}, half_a_warp_multiplies, y.get()), "multiply (float16)");
  });
  CHECK_CONTAINS(complaint(grid, load_rows<Lanes::all>, y.get(), 4), "lane 0 brings the address of a row, byte 8 of its 512 bytes of shared memory, which is not a multiple of 16");
  CHECK_CONTAINS(complaint(grid, load_rows<Lanes::all>, y.get(), 8), "lane 31 brings the address of a row, just past the end of its 512 bytes of shared memory, but it takes 16");
  CHECK_CONTAINS(complaint({1, 16}, half_a_warp_multiplies, y.get()), "but its warp has only lanes 0x0000ffff");
}

namespace {

struct Words {
  alignas(16) float values[40];
};
// Four numbers from x[from] on, by way of memory[there], to y[to] on.
__global__ void move_a_pack(const float* x, float* y, int from, int there, int to) {
  Words& memory = shared<Words>();
  cuda::store_pack(memory.values + there, 0, cuda::load_pack(x + from, 0));
  cuda::store_pack(y + to, 0, cuda::load_pack(memory.values + there, 0));
}

}  // namespace

TEST_CASE("model: packs at addresses that are not multiples of their size are errors") {
  const Buffer<float> x(std::vector<float>(40, 1)), y(size_t{40});
  const Grid grid{1, 1, sizeof(Words)};
  const auto moved = [&](int from, int there, int to) { return complaint(grid, move_a_pack, static_cast<const float*>(x.get()), y.get(), from, there, to); };
  CHECK(moved(4, 8, 16) == "");
  CHECK_CONTAINS(moved(5, 8, 16), "reads or writes 16 bytes at once at byte 20 of an allocation of 160 bytes on device 0: an address that is not a multiple of 16");
  CHECK_CONTAINS(moved(4, 10, 16), "at byte 40 of its 160 bytes of shared memory: an address that is not a multiple of 16");
  CHECK_CONTAINS(moved(4, 8, 18), "at byte 72 of an allocation of 160 bytes on device 0: an address that is not a multiple of 16");
  launch(nullptr, "misaligned", grid, move_a_pack, static_cast<const float*>(x.get()), y.get(), 1, 0, 0);
  CHECK(cudaDeviceSynchronize() == cudaErrorMisalignedAddress);
  cudaGetLastError();
}

TEST_CASE("model: device memory ends where the allocation does") {
  const Buffer<int> y(size_t{100}), x(size_t{100});
  if (!host_cuda::has_address_sanitizer()) {
    CHECK_CONTAINS(complaint({1, 1}, write_at, y.get(), int64_t{100}), "wrote to just past the end of an allocation of 400 bytes on device 0");
    CHECK_CONTAINS(complaint({1, 1}, write_at, y.get(), int64_t{-1}), "wrote to 4 bytes before the beginning of an allocation of 400 bytes");
    CHECK_CONTAINS(complaint({1, 1}, write_at, static_cast<int*>(nullptr), int64_t{1}), "wrote to address 4: a null pointer");
  }
  CHECK_CONTAINS(complaint({1, 1}, write_at, y.get(), int64_t{1024}), "thread (0,0,0): wrote to 3696 bytes past the end of an allocation of 400 bytes");
  CHECK_CONTAINS(complaint({1, 1}, read_at, x.get(), int64_t{1024}, y.get()), "thread (0,0,0): read 3696 bytes past the end of an allocation of 400 bytes");
  CHECK(complaint({1, 1}, write_at, y.get(), int64_t{99}) == "");          // and the model works on

  int* freed = nullptr;
  REQUIRE(cudaMalloc(&freed, 4000) == cudaSuccess);
  launch(nullptr, "write_at", {1, 1}, write_at, freed, int64_t{0});
  CHECK(cudaFree(freed) == cudaSuccess);
  CHECK_CONTAINS(complaint({1, 1}, write_at, freed, int64_t{5}), "wrote to byte 20 of an allocation of 4000 bytes that has been freed");
  CHECK(cudaFree(freed) == cudaErrorInvalidValue);
  CHECK(cudaFree(y.get() + 1) == cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_CASE("model: fresh device memory holds NaN, and a stack that overflows is named") {
  float* x = nullptr;
  float host[4];
  REQUIRE(cudaMalloc(&x, sizeof host) == cudaSuccess);
  REQUIRE(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost) == cudaSuccess);
  for (float value : host) CHECK(value != value);
  cudaFree(x);
  const Buffer<int> y(size_t{1});
  CHECK_CONTAINS(complaint({1, 1}, deep_recursion, y.get(), 2000), "used more than the 256 KiB of stack that a thread has here");
  CHECK(complaint({1, 1}, deep_recursion, y.get(), 20) == "");
}

TEST_CASE("model: the device's memory has an end") {
  size_t free = 0, total = 0;
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  host_cuda::set_memory_size(total - free + (4 << 20));
  void *first = nullptr, *second = nullptr;
  CHECK(cudaMalloc(&first, 3 << 20) == cudaSuccess);
  CHECK(cudaMalloc(&second, 2 << 20) == cudaErrorMemoryAllocation);
  CHECK(second == nullptr);
  CHECK(cudaMalloc(&second, size_t{1} << 48) == cudaErrorInvalidValue);
  CHECK(cudaMallocHost(&second, size_t{1} << 48) == cudaErrorInvalidValue);
  CHECK(second == nullptr);
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  CHECK(free == 1 << 20);
  CHECK(cudaFree(first) == cudaSuccess);
  CHECK(cudaMalloc(&second, 2 << 20) == cudaSuccess);
  CHECK(cudaFree(second) == cudaSuccess);
  host_cuda::set_memory_size(size_t{2} << 30);
  cudaGetLastError();
}

TEST_CASE("model: host code that follows a device pointer dies with a sentence") {
  const Buffer<int> y(std::vector<int>{1, 2, 3});
  const std::string said = said_by_child([&] {
    signal(SIGSEGV, SIG_DFL);                    // not the test framework's report
    cudaMemset(y.get(), 0, 4);                   // the model's handler is put back in front
    _exit(*static_cast<volatile int*>(y.get() + 2));
  });
  CHECK_CONTAINS(said, "host code touched device memory: byte 8 of an allocation of 12 bytes on device 0");
}

TEST_CASE("model: a function of the host that runs in a stream may not touch device memory, though kernels before it have") {
  const Buffer<int> y(std::vector<int>{1, 2, 3});
  const std::string said = said_by_child([&] {
    signal(SIGSEGV, SIG_DFL);
    launch(nullptr, "write_at", {1, 1}, write_at, y.get(), int64_t{1});
    cudaLaunchHostFunc(nullptr, [](void* p) { _exit(*static_cast<volatile int*>(p)); }, y.get() + 1);
    cudaDeviceSynchronize();
  });
  CHECK_CONTAINS(said, "host code touched device memory: byte 4 of an allocation of 12 bytes on device 0");
}

// Run by the next test, in a process with two devices. The copy before the kernel may touch both of them.
TEST_CASE("planted: a kernel that touches the memory of another device" * doctest::skip()) {
  const Buffer<int> first(std::vector<int>{1, 2, 3});
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  const Buffer<int> second(size_t{3});
  CHECK(cudaMemcpyAsync(second.get(), first.get(), 12, cudaMemcpyDeviceToDevice, nullptr) == cudaSuccess);
  std::fprintf(stderr, "%s\n", complaint({1, 1}, write_at, first.get(), int64_t{1}).c_str());
  CHECK(complaint({1, 1}, write_at, second.get(), int64_t{1}) == "");
}

TEST_CASE("model: a kernel that touches the memory of another device is an error") {
  const std::string said = said_by_child([] {
    setenv("FOVEA_HOST_CUDA_DEVICES", "2", 1);
    execl("/proc/self/exe", "test_cuda_model", "--no-skip", "--test-case=planted: a kernel that touches*", nullptr);
  });
  CHECK_CONTAINS(said, "wrote to byte 4 of an allocation of 12 bytes on device 0");
}

// ---- streams ----

namespace {

struct Streams {
  cudaStream_t first = nullptr, second = nullptr;
  cudaEvent_t event = nullptr;
  Streams() {
    cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  }
  ~Streams() {
    cudaEventDestroy(event);
    cudaStreamDestroy(first);
    cudaStreamDestroy(second);
  }
};

// One stream adds, the other doubles the result's distance from it. Returns the first value.
int produce_and_consume(bool waits) {
  const Streams s;
  const Buffer<int> x(numbers(64)), between(std::vector<int>(64, 0)), y(size_t{64});
  launch(s.first, "produce", {1, 64}, add_constant, x.get(), between.get(), 100);
  cudaEventRecord(s.event, s.first);
  if (waits) cudaStreamWaitEvent(s.second, s.event);
  launch(s.second, "consume", {1, 64}, add_constant, between.get(), y.get(), 1000);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  return y.values()[0];
}

}  // namespace

TEST_CASE("model: a stream that waits for an event sees what came before it; without the wait some schedule shows the mistake") {
  int wrong = 0;
  for_every_seed([&] {
    CHECK(produce_and_consume(true) == 1101);
    wrong += produce_and_consume(false) != 1101;
  });
  CHECK(wrong >= 1);
  CHECK(wrong < num_seeds);
}

TEST_CASE("model: the default stream orders itself with blocking streams, and only with those") {
  int late = 0;
  for_every_seed([&] {
    for (const unsigned flags : {cudaStreamDefault, cudaStreamNonBlocking}) {
      cudaStream_t stream;
      cudaStreamCreateWithFlags(&stream, flags);
      const Buffer<int> x(numbers(32)), between(std::vector<int>(32, 0)), y(size_t{32});
      launch(stream, "first", {1, 32}, add_constant, x.get(), between.get(), 10);
      launch(nullptr, "second", {1, 32}, add_constant, between.get(), y.get(), 100);
      launch(stream, "third", {1, 32}, add_constant, x.get(), between.get(), 0);
      CHECK(cudaDeviceSynchronize() == cudaSuccess);
      const int first = y.values()[0];
      if (flags == cudaStreamDefault) CHECK(first == 111);
      else late += first != 111;
      cudaStreamDestroy(stream);
    }
  });
  CHECK(late >= 1);
}

TEST_CASE("model: work runs late; copies from pageable memory take their bytes at once, from pinned memory late") {
  const Streams s;
  int* pinned = nullptr;
  REQUIRE(cudaMallocHost(&pinned, 4) == cudaSuccess);
  const Buffer<int> a(size_t{1}), b(size_t{1});
  int pageable = 1;
  *pinned = 1;
  cudaMemcpyAsync(a.get(), &pageable, 4, cudaMemcpyHostToDevice, s.first);
  cudaMemcpyAsync(b.get(), pinned, 4, cudaMemcpyHostToDevice, s.first);
  pageable = *pinned = 2;
  CHECK(cudaStreamSynchronize(s.first) == cudaSuccess);
  CHECK(a.values()[0] == 1);
  CHECK(b.values()[0] == 2);

  *pinned = 3;
  cudaMemcpyAsync(pinned, a.get(), 4, cudaMemcpyDeviceToHost, s.first);
  cudaEventRecord(s.event, s.first);
  CHECK(*pinned == 3);
  while (cudaEventQuery(s.event) == cudaErrorNotReady) {
  }
  CHECK(*pinned == 1);
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
}

TEST_CASE("model: a copy that says the wrong direction, or leaves its allocation, is refused") {
  const Buffer<int> x(size_t{4});
  int host[8] = {};
  CHECK(cudaMemcpy(host, x.get(), 16, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK_CONTAINS(host_cuda::last_failure(), "the destination is not device memory");
  CHECK(cudaMemcpy(host, x.get(), 20, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK_CONTAINS(host_cuda::last_failure(), "the source does not lie in one allocation: 20 bytes at");
  CHECK(cudaMemset(host, 0, 4) == cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_CASE("model: launches that hardware refuses are refused") {
  const Buffer<int> y(size_t{4});
  cudaLaunchConfig_t config{};
  const auto result = [&](dim3 blocks, dim3 threads, size_t shared_bytes) {
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    return cudaLaunchKernelEx(&config, write_at, y.get(), int64_t{0});
  };
  CHECK(result(1, 1025, 0) == cudaErrorInvalidConfiguration);
  CHECK(result(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
  CHECK(result(0, 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(result(dim3(1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(result(1, 1, 49153) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(write_at, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536) == cudaSuccess);
  CHECK(result(1, 1, 49153) == cudaSuccess);
  CHECK(cudaFuncSetAttribute(write_at, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449) == cudaErrorInvalidValue);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  cudaGetLastError();
}

TEST_CASE("model: a captured graph runs again and again, in the order in which it was captured") {
  const Streams s;
  const Buffer<int> x(numbers(32)), between(size_t{32}), y(std::vector<int>(32, 0));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(s.first, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  launch(s.first, "first", {1, 32}, add_constant, x.get(), between.get(), 10);
  cudaEventRecord(s.event, s.first);
  cudaStreamWaitEvent(s.second, s.event);
  launch(s.second, "second", {1, 32}, add_constant, between.get(), y.get(), 100);
  cudaEventRecord(s.event, s.second);
  cudaStreamWaitEvent(s.first, s.event);
  launch(s.first, "third", {1, 32}, add_constant, between.get(), x.get(), 0);
  CHECK(cudaStreamEndCapture(s.first, &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&executable, graph) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(y.values()[0] == 0);                     // capturing runs nothing
  for (int i = 0; i < 3; ++i) CHECK(cudaGraphLaunch(executable, s.first) == cudaSuccess);
  CHECK(cudaStreamSynchronize(s.first) == cudaSuccess);
  CHECK(y.values()[0] == 131);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);

  CHECK(cudaStreamBeginCapture(s.first, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaStreamSynchronize(s.first) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamEndCapture(s.first, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(cudaStreamBeginCapture(s.first, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaStreamQuery(s.first) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamEndCapture(s.first, &graph) == cudaErrorStreamCaptureInvalidated);

  CHECK(cudaStreamBeginCapture(s.first, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  cudaEventRecord(s.event, s.first);
  cudaStreamWaitEvent(s.second, s.event);
  launch(s.second, "nobody waits for it", {1, 32}, add_constant, between.get(), y.get(), 100);
  CHECK(cudaStreamEndCapture(s.first, &graph) == cudaErrorStreamCaptureUnjoined);

  cudaEventRecord(s.event, s.second);
  CHECK(cudaStreamBeginCapture(s.first, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(s.first, s.event) == cudaErrorStreamCaptureIsolation);
  CHECK(cudaStreamEndCapture(s.first, &graph) == cudaErrorStreamCaptureInvalidated);
  cudaGetLastError();
}
