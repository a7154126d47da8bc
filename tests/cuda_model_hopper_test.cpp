// The model of CUDA that kernels are tested on (tests/host_cuda): mistakes with the instructions of sm_90 that are planted here are caught. See cuda_model_test.cpp.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/ptx_hopper.h>

#include "cuda_model.h"

namespace cuda = fovea::kernels::cuda;
using fovea::kernels::cuda::shared;
using namespace fovea::testing;

namespace {

enum class Slip { none, reads_without_waiting, frees_a_slot_early, forgets_to_initialise, announces_too_little, arrives_twice };

struct RingOfBoxes {
  alignas(128) int slots[2][32];
  cuda::PhasedBarrier full[2], empty[2];
};

// The first warp's first lane loads boxes of 32 numbers into a ring of two slots, the second warp adds them up, each lane its neighbour's.
template <Slip slip>
__global__ void ring_of_boxes(cuda::TensorMap map, int boxes, int* sums) {
  RingOfBoxes& s = shared<RingOfBoxes>();
  const int thread = static_cast<int>(threadIdx.x), neighbour = (thread + 1) % 32;
  if (thread == 0)
    for (int i = 0; i < (slip == Slip::forgets_to_initialise ? 1 : 2); ++i) cuda::init_barrier(s.full[i], 1), cuda::init_barrier(s.empty[i], 32);
  __syncthreads();
  int sum = 0;
  for (int box = 0; box < boxes; ++box) {
    const int slot = box % 2, parity = box / 2 % 2;
    if (thread == 0) {
      cuda::wait_for_phase(s.empty[slot], parity ^ 1);
      cuda::arrive_expecting(s.full[slot], slip == Slip::announces_too_little ? 64 : 128);
      if (slip == Slip::arrives_twice) cuda::arrive(s.full[slot]);
      cuda::load_box(s.slots[slot], map, s.full[slot], {box * 32});
    } else if (thread >= 32) {
      if (slip != Slip::reads_without_waiting || box > 1) cuda::wait_for_phase(s.full[slot], parity);
      if (slip == Slip::frees_a_slot_early) cuda::arrive(s.empty[slot]);
      sum += s.slots[slot][neighbour];
      if (slip != Slip::frees_a_slot_early) cuda::arrive(s.empty[slot]);
    }
  }
  if (thread >= 32) sums[thread - 32] = sum;
}

template <Slip slip>
std::string complaint_about_boxes(const int* x, int* sums) {
  cuda::TiledLayout l;
  l.data = x, l.dtype = fovea::DType::int32, l.rank = 1, l.sizes[0] = 192, l.strides[0] = 1, l.box[0] = 32;
  return complaint({1, 64, sizeof(RingOfBoxes)}, ring_of_boxes<slip>, cuda::tiled_map(l), 6, sums);
}

// The number of seeds under which some sum is wrong, or the kernel ends with a complaint (phases that were not waited for get mixed up, up to a deadlock).
template <Slip slip>
int wrong_boxes() {
  const Buffer<int> x(numbers(192)), sums(size_t{32});
  int wrong = 0;
  for_every_seed([&] {
    bool is_right = complaint_about_boxes<slip>(x.get(), sums.get()).empty();
    const std::vector<int> got = sums.values();
    for (int lane = 0; lane < 32; ++lane) is_right = is_right && got[static_cast<size_t>(lane)] == 6 * ((lane + 1) % 32 + 1) + 32 * 15;
    wrong += !is_right;
  });
  return wrong;
}

enum class Group { right, looks_early, never_waits, has_no_fence, lacks_a_warp, is_misplaced };
struct Operands {
  alignas(1024) unsigned char a[64 * 128], b[64 * 128 + 1024];
};
// A product of zeros; y is 1 for a thread that sees its sums as they must be.
template <Group group>
__global__ void product_of_zeros(int* y) {
  Operands& s = shared<Operands>();
  for (unsigned i = threadIdx.x; i < sizeof s; i += blockDim.x) (i < sizeof s.a ? s.a[i] : s.b[i - sizeof s.a]) = 0;
  cuda::fence_async_proxy();
  __syncthreads();
  float d[32] = {1};
  if (group == Group::lacks_a_warp && threadIdx.x >= 96) return;
  if (group != Group::has_no_fence) cuda::fence_products();
  cuda::multiply_group<64>(d, cuda::group_operand(s.a), cuda::group_operand(s.b + (group == Group::is_misplaced ? 128 : 0)), fovea::float16{}, true);
  cuda::commit_products();
  const bool is_right = d[0] == 1;
  if (group != Group::never_waits) cuda::wait_for_products<0>();
  y[threadIdx.x] = group == Group::looks_early ? is_right : d[0] == 1;
}

// ---- stores of boxes ----

enum class Storing { right, overwrites_at_once, never_waits, waits_for_too_few };
struct OneTile {
  alignas(128) int values[64];
};

// Stores two rows of 32 numbers, one after the other, through one tile.
template <Storing storing>
__global__ void store_rows(cuda::TensorMap map, const int* x) {
  OneTile& s = shared<OneTile>();
  const int thread = static_cast<int>(threadIdx.x);
  for (int row = 0; row < 2; ++row) {
    s.values[thread] = x[row * 32 + thread];
    cuda::fence_async_proxy();
    __syncthreads();
    if (thread == 0) {
      cuda::store_box(map, s.values, {row * 32});
      cuda::commit_stores();
      if (storing == Storing::waits_for_too_few) cuda::wait_for_stores_to_read<1>();
      if (storing == Storing::right) cuda::wait_for_stores_to_read<0>();
    }
    if (storing != Storing::overwrites_at_once || row > 0) __syncthreads();
  }
  if (thread == 0 && storing != Storing::never_waits) cuda::wait_for_stores<0>();
}

cuda::TensorMap map_of_row(const int* x, int64_t size) {
  cuda::TiledLayout l;
  l.data = x, l.dtype = fovea::DType::int32, l.rank = 1, l.sizes[0] = size, l.strides[0] = 1, l.box[0] = 32;
  return cuda::tiled_map(l);
}

template <Storing storing>
int wrong_stores() {
  const Buffer<int> x(numbers(64)), y(std::vector<int>(64, 0));
  int wrong = 0;
  for_every_seed([&] {
    CHECK(complaint({1, 32, sizeof(OneTile)}, store_rows<storing>, map_of_row(y.get(), 64), x.get()) == "");
    wrong += y.values() != numbers(64);
  });
  return wrong;
}

// ---- the memory of barriers ----

enum class Careless { no, overwrites_it, overwrites_it_before_a_copy_lands, initialises_it_again, invalidates_it_too_early, uses_it_after_invalidating };
struct GuardedTile {
  alignas(128) int values[32];
  cuda::PhasedBarrier full;
};

template <Careless careless>
__global__ void load_a_row(cuda::TensorMap map, int* y) {
  GuardedTile& s = shared<GuardedTile>();
  const bool is_first = threadIdx.x == 0;
  if (is_first) cuda::init_barrier(s.full, 1);
  __syncthreads();
  if (is_first) {
    if (careless == Careless::overwrites_it) *reinterpret_cast<uint64_t*>(&s.full) = 5;
    cuda::arrive_expecting(s.full, 128);
    cuda::load_box(s.values, map, s.full, {0});
    if (careless == Careless::overwrites_it_before_a_copy_lands) *reinterpret_cast<uint64_t*>(&s.full) = 5;
    if (careless == Careless::initialises_it_again) cuda::init_barrier(s.full, 1);
    if (careless == Careless::invalidates_it_too_early) cuda::invalidate_barrier(s.full);
  }
  cuda::wait_for_phase(s.full, 0);
  y[threadIdx.x] = s.values[threadIdx.x];
  __syncthreads();
  if (is_first) cuda::invalidate_barrier(s.full);
  __syncthreads();
  if (careless == Careless::uses_it_after_invalidating && is_first) cuda::arrive(s.full);
}

template <Careless careless>
std::string complaint_about_memory(const int* x, int* y) { return complaint({1, 32, sizeof(GuardedTile)}, load_a_row<careless>, map_of_row(x, 32), y); }

// ---- columns of pixels ----

struct Pixels {
  alignas(128) float values[8][4];
  cuda::PhasedBarrier full;
};
__global__ void load_pixels(cuda::TensorMap map, int first, bool waits, float* y) {
  Pixels& s = shared<Pixels>();
  if (threadIdx.x == 0) {
    cuda::init_barrier(s.full, 1);
    cuda::arrive_expecting(s.full, sizeof s.values);
    cuda::load_im2col(s.values, map, s.full, {0, first, 0}, {1});
  }
  __syncthreads();
  if (waits) cuda::wait_for_phase(s.full, 0);
  y[threadIdx.x] = s.values[threadIdx.x / 4][threadIdx.x % 4];
  if (!waits) cuda::wait_for_phase(s.full, 0);
}

}  // namespace

TEST_CASE("model: boxes that are read before they have arrived, or whose slot is handed back early, show" *
          doctest::skip(host_cuda::has_thread_sanitizer())) {
  CHECK(wrong_boxes<Slip::none>() == 0);
  CHECK(wrong_boxes<Slip::reads_without_waiting>() >= num_seeds / 2);
  CHECK(wrong_boxes<Slip::frees_a_slot_early>() >= num_seeds / 2);
}

TEST_CASE("model: a barrier with phases that is not initialised, gets other bytes than were announced, or too many arrivals is an error") {
  const Buffer<int> x(numbers(192)), sums(size_t{32});
  for_every_seed([&] {
    CHECK_CONTAINS(complaint_about_boxes<Slip::forgets_to_initialise>(x.get(), sums.get()), "with a barrier that has not been initialised");
    const std::string deadlock = complaint_about_boxes<Slip::announces_too_little>(x.get(), sums.get());
    CHECK_CONTAINS(deadlock, "deadlock: nobody can go on; thread (");
    CHECK_CONTAINS(deadlock, "waits in wait_for_phase at cuda_model_hopper_test.cpp:");
    CHECK_CONTAINS(complaint_about_boxes<Slip::arrives_twice>(x.get(), sums.get()), "but all 1 arrivals of this phase have happened, and only its bytes are missing");
  });
}

TEST_CASE("model: a product of four warps must be fenced, waited for, aligned and shared by all four") {
  const Buffer<int> y(std::vector<int>(128, 0));
  const Grid grid{1, 128, sizeof(Operands)};
  for_every_seed([&] {
    CHECK(complaint(grid, product_of_zeros<Group::right>, y.get()) == "");
    CHECK(y.values() == std::vector<int>(128, 1));
    CHECK(complaint(grid, product_of_zeros<Group::looks_early>, y.get()) == "");
    CHECK(y.values() == std::vector<int>(128, 0));
    CHECK_CONTAINS(complaint(grid, product_of_zeros<Group::never_waits>, y.get()), "products of its warp have not been waited for, the latest at cuda_model_hopper_test.cpp:");
    CHECK_CONTAINS(complaint(grid, product_of_zeros<Group::has_no_fence>, y.get()), "without fence_products()");
    CHECK_CONTAINS(complaint(grid, product_of_zeros<Group::lacks_a_warp>, y.get()), "warp 3 took part in 0 products of four warps, warp 0 in 1");
    CHECK_CONTAINS(complaint(grid, product_of_zeros<Group::is_misplaced>, y.get()), "in a tile that does not begin at a multiple of 1024 bytes");
  });
}

TEST_CASE("model: a store's tile that is overwritten before the store has read it shows" * doctest::skip(host_cuda::has_thread_sanitizer())) {
  CHECK(wrong_stores<Storing::right>() == 0);
  CHECK(wrong_stores<Storing::waits_for_too_few>() == num_seeds);
  CHECK(wrong_stores<Storing::overwrites_at_once>() >= num_seeds / 2);
}

TEST_CASE("model: a store that was not waited for when its thread returns is an error") {
  const Buffer<int> x(numbers(64)), y(size_t{64});
  for_every_seed([&] {
    CHECK_CONTAINS(complaint({1, 32, sizeof(OneTile)}, store_rows<Storing::never_waits>, map_of_row(y.get(), 64), x.get()),
                   "thread (0,0,0): returned, but 2 of its stores of boxes have not been waited for");
  });
}

TEST_CASE("model: a barrier with phases that is overwritten, initialised again, or invalidated while it is used is an error") {
  const Buffer<int> x(numbers(32)), y(size_t{32});
  for_every_seed([&] {
    CHECK(complaint_about_memory<Careless::no>(x.get(), y.get()) == "");
    CHECK(y.values() == numbers(32));
    CHECK_CONTAINS(complaint_about_memory<Careless::overwrites_it>(x.get(), y.get()), "with a barrier whose memory something else was written to");
    CHECK_CONTAINS(complaint_about_memory<Careless::overwrites_it_before_a_copy_lands>(x.get(), y.get()), "a barrier whose memory something else was written to");
    CHECK_CONTAINS(complaint_about_memory<Careless::initialises_it_again>(x.get(), y.get()), "with a barrier that is in use: invalidate_barrier() it first");
    CHECK_CONTAINS(complaint_about_memory<Careless::invalidates_it_too_early>(x.get(), y.get()), "calls invalidate_barrier at cuda_model_hopper_test.cpp:");
    CHECK_CONTAINS(complaint_about_memory<Careless::uses_it_after_invalidating>(x.get(), y.get()), "with a barrier that has not been initialised");
  });
}

TEST_CASE("model: a column of pixels that begins where no filter stands is an error, one that is read too early holds NaN") {
  const Buffer<float> x(std::vector<float>(10 * 4, 2.0f)), y(size_t{32});
  cuda::Im2colLayout l;
  l.data = x.get(), l.rank = 3, l.sizes[0] = 4, l.sizes[1] = 10, l.sizes[2] = 1, l.strides[0] = 1, l.strides[1] = 4, l.strides[2] = 40;
  l.lower[0] = -1, l.upper[0] = -1, l.steps[0] = 2, l.channels = 4, l.pixels = 8;          // a filter of 3 with a padding of 1, stride 2: at -1, 1, 3, 5, 7
  const cuda::TensorMap map = cuda::im2col_map(l);
  const Grid grid{1, 32, sizeof(Pixels)};
  for_every_seed([&] {
    CHECK(complaint(grid, load_pixels, map, -1, true, y.get()) == "");
    const std::vector<float> got = y.values();
    CHECK(got[0] == 2);
    CHECK(got[19] == 2);
    CHECK(got[20] == 0);                         // of an image that is not there
    CHECK_CONTAINS(complaint(grid, load_pixels, map, 0, true, y.get()), "at 0 along dimension 1, but the pixels there are -1 to 8 in steps of 2");
    CHECK_CONTAINS(complaint(grid, load_pixels, map_of_row(reinterpret_cast<const int*>(x.get()), 32), 0, true, y.get()), "with a map made by tiled_map()");
    if (host_cuda::has_thread_sanitizer()) return;
    CHECK(complaint(grid, load_pixels, map, -1, false, y.get()) == "");
    const std::vector<float> early = y.values();
    CHECK(std::any_of(early.begin(), early.end(), [](float value) { return std::isnan(value); }));
  });
}
