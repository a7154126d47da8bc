// The model of CUDA that kernels are tested on (tests/host_cuda): mistakes with clusters of blocks that are planted here are caught. See cuda_model_test.cpp.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/ptx_cluster.h>

#include "cuda_model.h"

namespace cuda = fovea::kernels::cuda;
using fovea::kernels::cuda::shared;
using namespace fovea::testing;

namespace {

// ---- the cluster's barrier, and other blocks' shared memory ----

enum class Slip {
  none, begins_at_once, reads_at_once, asks_for_a_block_too_many, maps_global_memory, arrives_twice, waits_without_arriving, leaves_without_waiting
};

struct Exchanged {
  int values[32];
};

// Each block takes what the next one of its cluster has, and adds it to its own.
template <Slip slip>
__global__ void add_neighbour(const int* x, int* y) {
  Exchanged& s = shared<Exchanged>();
  const int thread = static_cast<int>(threadIdx.x), blocks = cuda::blocks_in_cluster(), i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int next = slip == Slip::asks_for_a_block_too_many ? blocks : (cuda::rank_in_cluster() + 1) % blocks;
  if (slip == Slip::waits_without_arriving) cuda::wait_for_cluster();
  if (slip == Slip::arrives_twice) cuda::arrive_at_cluster();
  if (slip != Slip::begins_at_once) cuda::sync_cluster();
  s.values[thread] = x[i];
  if (slip != Slip::begins_at_once && slip != Slip::reads_at_once) cuda::sync_cluster();
  const int other = slip == Slip::maps_global_memory ? *cuda::in_block(&x[thread], next) : *cuda::in_block(&s.values[thread], next);
  y[i] = s.values[thread] + other;
  cuda::arrive_at_cluster();
  if (slip != Slip::leaves_without_waiting) cuda::wait_for_cluster();
}

// The same without a barrier before the end.
__global__ void add_neighbour_and_leave(const int* x, int* y) {
  Exchanged& s = shared<Exchanged>();
  const int thread = static_cast<int>(threadIdx.x), blocks = cuda::blocks_in_cluster(), i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  s.values[thread] = x[i];
  cuda::sync_cluster();
  y[i] = s.values[thread] + *cuda::in_block(&s.values[thread], (cuda::rank_in_cluster() + 1) % blocks);
}

const Grid four_clusters{16, 32, sizeof(Exchanged), 4};

bool is_sum_of_neighbours(const std::vector<int>& y) {
  for (int i = 0; i < 16 * 32; ++i) {
    const int block = i / 32, next = block / 4 * 4 + (block + 1) % 4;
    if (y[static_cast<size_t>(i)] != i + 1 + next * 32 + i % 32 + 1) return false;
  }
  return true;
}

// What the model says under each seed; a wrong sum that it says nothing about counts as "wrong".
template <class Kernel>
std::vector<std::string> findings(Kernel kernel) {
  const Buffer<int> x(numbers(16 * 32)), y(size_t{16 * 32});
  std::vector<std::string> all;
  for_every_seed([&] {
    std::string said = complaint(four_clusters, kernel, x.get(), y.get());
    if (said.empty() && !is_sum_of_neighbours(y.values())) said = "wrong";
    all.push_back(said);
  });
  return all;
}
int count_of(const std::vector<std::string>& findings, const std::string& part) {
  int count = 0;
  for (const std::string& f : findings) count += contains(f, part);
  return count;
}

// ---- barriers with phases of other blocks ----

enum class Handing { right, no_first_barrier, arrives_as_if_it_were_its_own, waits_at_another_blocks, announces_to_the_wrong_block, reports_elsewhere, stores_beside };

struct Handed {
  int values[32];
  cuda::PhasedBarrier full;
};

// Each block's threads store a number each to the next block, and take what has come from the one before.
template <Handing handing>
__global__ void hand_on(int* y) {
  Handed& s = shared<Handed>();
  const int thread = static_cast<int>(threadIdx.x), blocks = cuda::blocks_in_cluster(), next = (cuda::rank_in_cluster() + 1) % blocks;
  if (thread == 0) {
    cuda::init_barrier(s.full, 1);
    cuda::fence_barrier_init();
    if (handing != Handing::announces_to_the_wrong_block || cuda::rank_in_cluster() > 0) cuda::arrive_expecting(s.full, sizeof s.values);
  }
  if (handing != Handing::no_first_barrier) cuda::sync_cluster();
  cuda::PhasedBarrier& there = *cuda::in_block(&s.full, next);
  if (handing == Handing::announces_to_the_wrong_block && thread == 0 && cuda::rank_in_cluster() == 0) cuda::arrive_expecting_across(there, sizeof s.values);
  if (handing == Handing::arrives_as_if_it_were_its_own) cuda::arrive(there);
  int* const place = handing == Handing::stores_beside ? &s.values[0] + 1024 : cuda::in_block(&s.values[thread], next);
  cuda::store_async(*place, 100 * cuda::rank_in_cluster() + thread, handing == Handing::reports_elsewhere ? s.full : there);
  if (handing == Handing::waits_at_another_blocks) cuda::wait_for_phase_across(there, 0);
  cuda::wait_for_phase_across(s.full, 0);
  y[blockIdx.x * 32 + threadIdx.x] = s.values[(thread + 1) % 32];
  cuda::sync_cluster();
}

template <Handing handing>
std::string complaint_about_handing(int* y) { return complaint({8, 32, sizeof(Handed), 4}, hand_on<handing>, y); }

// ---- copies to several blocks ----

enum class Multicast { right, has_no_barrier_before, leaves_before_it_lands, goes_to_a_block_too_many, only_the_sender_announces };
struct Tile {
  alignas(128) int values[32];
  cuda::PhasedBarrier full;
};

// The first block of a cluster of two brings a row to both.
template <Multicast multicast>
__global__ void bring_to_both(cuda::TensorMap map, int* y) {
  Tile& s = shared<Tile>();
  const int rank = cuda::rank_in_cluster();
  if (threadIdx.x == 0) {
    cuda::init_barrier(s.full, 1);
    cuda::fence_barrier_init();
    cuda::arrive_expecting(s.full, multicast == Multicast::only_the_sender_announces && rank > 0 ? 0 : 128);
  }
  if (multicast != Multicast::has_no_barrier_before) cuda::sync_cluster();
  if (threadIdx.x == 0 && rank == 0) cuda::load_box_to_blocks(s.values, map, s.full, {0}, multicast == Multicast::goes_to_a_block_too_many ? 7 : 3);
  if (multicast == Multicast::leaves_before_it_lands && rank == 1) {
    cuda::sync_cluster();
    return;
  }
  cuda::wait_for_phase(s.full, 0);
  y[blockIdx.x * 32 + threadIdx.x] = s.values[threadIdx.x];
  cuda::sync_cluster();
}

template <Multicast multicast>
std::string complaint_about_multicast(const int* x, int* y) {
  cuda::TiledLayout l;
  l.data = x, l.dtype = fovea::DType::int32, l.rank = 1, l.sizes[0] = 32, l.strides[0] = 1, l.box[0] = 32;
  return complaint({2, 32, sizeof(Tile), 2}, bring_to_both<multicast>, cuda::tiled_map(l), y);
}

}  // namespace

TEST_CASE("model: blocks of a cluster exchange the right sums under every schedule") {
  for (const std::string& said : findings(add_neighbour<Slip::none>)) CHECK(said == "");
}

TEST_CASE("model: a cluster's barrier that is left out before, between or after the exchange shows" * doctest::skip(host_cuda::has_thread_sanitizer())) {
  const std::vector<std::string> begins = findings(add_neighbour<Slip::begins_at_once>), reads = findings(add_neighbour<Slip::reads_at_once>),
                                 leaves = findings(add_neighbour_and_leave);
  CHECK(count_of(begins, "which has not begun") + count_of(begins, "wrong") == num_seeds);
  CHECK(count_of(begins, "bytes of shared memory of block (") >= num_seeds / 2);
  CHECK(count_of(reads, "wrong") >= num_seeds / 2);
  CHECK(count_of(leaves, "which has ended") >= num_seeds / 2);
  CHECK(count_of(leaves, "wrong") == 0);
}

TEST_CASE("model: a rank outside of the cluster, another address than its own shared memory, and a barrier that is used out of turn are errors") {
  for (const std::string& said : findings(add_neighbour<Slip::asks_for_a_block_too_many>)) CHECK_CONTAINS(said, "calls in_block at cuda_model_cluster_test.cpp:");
  for (const std::string& said : findings(add_neighbour<Slip::asks_for_a_block_too_many>)) CHECK_CONTAINS(said, "with block 4 of a cluster of 4");
  for (const std::string& said : findings(add_neighbour<Slip::maps_global_memory>)) CHECK_CONTAINS(said, "it takes an address of its own shared memory");
  for (const std::string& said : findings(add_neighbour<Slip::arrives_twice>)) CHECK_CONTAINS(said, "but has not waited since it called it last");
  for (const std::string& said : findings(add_neighbour<Slip::waits_without_arriving>)) CHECK_CONTAINS(said, "calls wait_for_cluster at cuda_model_cluster_test.cpp:");
  for (const std::string& said : findings(add_neighbour<Slip::leaves_without_waiting>)) CHECK_CONTAINS(said, "has arrived at its cluster's barrier and not waited there");
}

TEST_CASE("model: stores to another block report to a barrier there, which must be ready, and must be that block's") {
  const Buffer<int> y(size_t{256});
  int early = 0;
  for_every_seed([&] {
    CHECK(complaint_about_handing<Handing::right>(y.get()) == "");
    const std::vector<int> got = y.values();
    CHECK(got[0] == 301);                        // the first block of a cluster has what the last sent
    CHECK(got[32 * 5 + 31] == 0);
    const std::string said = complaint_about_handing<Handing::no_first_barrier>(y.get());
    early += contains(said, "with a barrier that has not been initialised") || contains(said, "which has not begun");
    CHECK_CONTAINS(complaint_about_handing<Handing::arrives_as_if_it_were_its_own>(y.get()), "; a block can only do that with its own");
    CHECK_CONTAINS(complaint_about_handing<Handing::waits_at_another_blocks>(y.get()), "; a block can only do that with its own");
    CHECK_CONTAINS(complaint_about_handing<Handing::reports_elsewhere>(y.get()), "with a barrier that lies in another block than what it stores to");
    CHECK_CONTAINS(complaint_about_handing<Handing::stores_beside>(y.get()), "which is not shared memory of its cluster");
    CHECK_CONTAINS(complaint_about_handing<Handing::announces_to_the_wrong_block>(y.get()), "arrivals of this phase have happened");
  });
  CHECK(early >= num_seeds / 2);
}

TEST_CASE("model: a copy to several blocks needs their barriers, their announcements, and that they are there when it lands") {
  const Buffer<int> x(numbers(32)), y(size_t{64});
  int early = 0, left = 0;
  for_every_seed([&] {
    CHECK(complaint_about_multicast<Multicast::right>(x.get(), y.get()) == "");
    std::vector<int> twice = numbers(32);
    twice.insert(twice.end(), twice.begin(), twice.begin() + 32);
    CHECK(y.values() == twice);
    CHECK_CONTAINS(complaint_about_multicast<Multicast::goes_to_a_block_too_many>(x.get(), y.get()), "for blocks 0x00000007 of a cluster of 2");
    if (host_cuda::has_thread_sanitizer()) return;         // it reports the others
    early += !complaint_about_multicast<Multicast::has_no_barrier_before>(x.get(), y.get()).empty();
    left += contains(complaint_about_multicast<Multicast::leaves_before_it_lands>(x.get(), y.get()), "1 copies into its shared memory are under way");
    CHECK_CONTAINS(complaint_about_multicast<Multicast::only_the_sender_announces>(x.get(), y.get()), "128 bytes have arrived that nobody had announced");
  });
  if (host_cuda::has_thread_sanitizer()) return;
  CHECK(early >= num_seeds / 4);
  CHECK(left >= 2);
}

TEST_CASE("launch: clusters that a device can't have are errors that say why") {
  const Buffer<int> x(numbers(512)), y(size_t{512});
  const auto said = [&](Grid grid) { return error_of([&] { launch(nullptr, "exchange", grid, add_neighbour<Slip::none>, x.get(), y.get()); }); };
  CHECK(said({6, 32, sizeof(Exchanged), 4}) == "cuda: kernel exchange (6x1x1 blocks of 32x1x1 threads in clusters of 4x1x1, 128 bytes of shared memory) cannot be launched: "
                                               "its blocks are not a multiple of the cluster's along each dimension");
  CHECK_CONTAINS(said({34, 32, sizeof(Exchanged), 17}), "cannot be launched: a cluster has 1 to 16 blocks");
  CHECK_CONTAINS(said({4, 32, sizeof(Exchanged), 0}), "cannot be launched: a cluster has 1 to 16 blocks");
  CHECK(complaint({16, 32, sizeof(Exchanged), 16}, add_neighbour<Slip::none>, x.get(), y.get()) == "");
}
