// The functions of kernels/cuda/core/ptx_cluster.h against what they must do, over the model of CUDA and on a GPU of compute capability 9.0 alike: see cuda_ptx_test.cpp.
#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/ptx_cluster.h>

#include "cuda_hopper.h"
#include "device_buffer.h"

using namespace fovea::kernels::cuda;
using namespace fovea::testing;
using fovea::DType;

namespace {

constexpr int lanes = 32;

// ---- who is who ----

struct Identity {
  int rank, blocks;
};
__global__ void identify(Identity* y) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  if (threadIdx.x == 0) y[block] = {rank_in_cluster(), blocks_in_cluster()};
}

// ---- the cluster's barrier, other blocks' shared memory ----

struct Row {
  int values[lanes];
};

// Writes into every block's row what it has for it, and reads every block's row: y[block][lane] = sum over all blocks of x[their block][lane], and so on for `rounds`.
__global__ void sum_over_cluster(const int* x, int rounds, int* y) {
  Row& row = shared<Row>();
  const int lane = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x), blocks = blocks_in_cluster();
  int value = x[block * lanes + lane];
  sync_cluster();
  for (int round = 0; round < rounds; ++round) {
    *in_block(&row.values[lane], (rank_in_cluster() + 1) % blocks) = value;        // into the next block's
    arrive_at_cluster();
    const int own = value * 3;                                                     // something else meanwhile
    wait_for_cluster();
    int sum = 0;
    for (int other = 0; other < blocks; ++other) sum += *in_block(&row.values[lane], other);
    value = sum + own;
    sync_cluster();
  }
  y[block * lanes + lane] = value;
}

// ---- handing over between blocks ----

constexpr int slots = 2;
struct Ring {
  int values[slots][lanes];
  PhasedBarrier full[slots], empty[slots];
};

// A block's first warp sends rounds of numbers into the next block's ring of two slots, its second warp adds up what arrives.
__global__ void hand_around(int rounds, int* sums) {
  Ring& ring = shared<Ring>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes, blocks = blocks_in_cluster(), rank = rank_in_cluster();
  const int next = (rank + 1) % blocks, previous = (rank + blocks - 1) % blocks;
  if (thread == 0) {
    for (int i = 0; i < slots; ++i) init_barrier(ring.full[i], lanes), init_barrier(ring.empty[i], lanes);
    fence_barrier_init();
  }
  sync_cluster();
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int slot = round % slots, parity = round / slots % 2;
    if (thread < lanes) {
      wait_for_phase_across(ring.empty[slot], parity ^ 1);
      *in_block(&ring.values[slot][lane], next) = round * 1000 + rank * 100 + lane;
      arrive_across(*in_block(&ring.full[slot], next));
    } else {
      wait_for_phase_across(ring.full[slot], parity);
      sum += ring.values[slot][(lane + 5) % lanes] * (round + 1);
      arrive_across(*in_block(&ring.empty[slot], previous));
    }
  }
  if (thread >= lanes) sums[static_cast<int>(blockIdx.x) * lanes + lane] = sum;
  sync_cluster();
}

struct alignas(16) Four {
  int values[4];
};
template <class T>
struct Mailbox {
  T values[lanes];
  PhasedBarrier full;
};

// Each block stores its values to the next one. Whose bytes they are, the receiver announces, or (`sender_announces`) one thread of the sender.
template <class T>
__global__ void store_to_next(const T* x, bool sender_announces, T* y) {
  auto& box = shared<Mailbox<T>>();
  const int lane = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x), next = (rank_in_cluster() + 1) % blocks_in_cluster();
  if (lane == 0) {
    init_barrier(box.full, 1);
    fence_barrier_init();
    if (!sender_announces) arrive_expecting(box.full, static_cast<int>(sizeof box.values));
  }
  sync_cluster();
  if (lane == 0 && sender_announces) arrive_expecting_across(*in_block(&box.full, next), static_cast<int>(sizeof box.values));
  store_async(*in_block(&box.values[lane], next), x[block * lanes + lane], *in_block(&box.full, next));
  wait_for_phase_across(box.full, 0);
  y[block * lanes + lane] = box.values[(lane + 7) % lanes];
  sync_cluster();
}

template <class T>
void check_stores() {
  for (const int blocks : {2, 4, 8})
    for (const bool sender_announces : {false, true}) {
      CAPTURE(blocks);
      CAPTURE(sender_announces);
      const size_t count = static_cast<size_t>(blocks * lanes);
      std::vector<T> x(count);
      const std::vector<unsigned char> bytes = random_bytes(count * sizeof(T));
      std::memcpy(x.data(), bytes.data(), bytes.size());
      const Buffer<T> from(x), to(count);
      launch(nullptr, "store_to_next", {static_cast<unsigned>(blocks), lanes, sizeof(Mailbox<T>), static_cast<unsigned>(blocks)}, store_to_next<T>, from.get(),
             sender_announces, to.get());
      const std::vector<T> got = to.values();
      bool is_right = true;
      for (int block = 0; block < blocks; ++block)
        for (int lane = 0; lane < lanes; ++lane) {
          const int source = (block + blocks - 1) % blocks * lanes + (lane + 7) % lanes;
          is_right = is_right && std::memcmp(&got[static_cast<size_t>(block * lanes + lane)], &x[static_cast<size_t>(source)], sizeof(T)) == 0;
        }
      CHECK(is_right);
    }
}

// ---- copies to several blocks ----

struct BoxMemory {
  alignas(1024) unsigned char bytes[32768];
  PhasedBarrier barrier;
};

// Block `sender` of a cluster brings a box to the blocks of the mask; the others' memory stays as it is.
template <int rank>
__global__ void load_to_blocks(const __grid_constant__ TensorMap map, Position position, int bytes, int sender, int mask, unsigned char* y) {
  BoxMemory& m = shared<BoxMemory>();
  const bool receives = mask >> rank_in_cluster() & 1;
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) m.bytes[i] = 0xee;
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    init_barrier(m.barrier, 1);
    fence_barrier_init();
    if (receives) arrive_expecting(m.barrier, bytes);
  }
  sync_cluster();
  if (threadIdx.x == 0 && rank_in_cluster() == sender) {
    int at[rank];
    for (int i = 0; i < rank; ++i) at[i] = position.at[i];
    load_box_to_blocks(m.bytes, map, m.barrier, at, static_cast<uint16_t>(mask));
  }
  if (receives) wait_for_phase_across(m.barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) y[static_cast<int>(blockIdx.x) * bytes + i] = m.bytes[i];
  sync_cluster();
}

template <int rank>
void check_boxes(DType dtype, Swizzle swizzle, int blocks) {
  for (int round = 0; round < 3; ++round) {
    TensorOfBytes t = random_tensor(rank, dtype, swizzle);
    const Position p = random_position(t);
    const Buffer<unsigned char> tensor(t.bytes);
    t.layout.data = tensor.get();
    const size_t bytes = static_cast<size_t>(t.box_bytes), size = static_cast<size_t>(fovea::size_of(dtype));
    const int sender = random_below(blocks), mask = 1 + random_below((1 << blocks) - 1);
    const Buffer<unsigned char> y(bytes * static_cast<size_t>(blocks));
    launch(nullptr, "load_to_blocks", {static_cast<unsigned>(blocks), 64, sizeof(BoxMemory), static_cast<unsigned>(blocks)}, load_to_blocks<rank>, tiled_map(t.layout), p,
           t.box_bytes, sender, mask, y.get());
    const std::vector<unsigned char> got = y.values();
    std::vector<unsigned char> box(bytes, 0), want;
    for_each_element(t, p, [&](uint32_t in_box, int64_t in_tensor) {
      if (in_tensor >= 0) std::memcpy(&box[in_box], &t.bytes[static_cast<size_t>(in_tensor)], size);
    });
    const std::vector<unsigned char> untouched(bytes, 0xee);
    for (int block = 0; block < blocks; ++block) {
      const std::vector<unsigned char>& part = mask >> block & 1 ? box : untouched;
      want.insert(want.end(), part.begin(), part.end());
    }
    CAPTURE(mask);
    CHECK(got == want);
  }
}

// The same with a column of pixels, of which each block of the cluster brings every other block an equal part: the use that convolutions have for it.
template <int rank>
__global__ void share_columns(const __grid_constant__ TensorMap map, const Column* columns, int bytes, unsigned char* y) {
  BoxMemory& m = shared<BoxMemory>();
  const int blocks = blocks_in_cluster(), mine = rank_in_cluster();
  if (threadIdx.x == 0) {
    init_barrier(m.barrier, 1);
    fence_barrier_init();
    arrive_expecting(m.barrier, blocks * bytes);
  }
  sync_cluster();
  if (threadIdx.x == 0) {
    int at[rank];
    uint16_t offsets[rank - 2];
    for (int i = 0; i < rank; ++i) at[i] = columns[mine].at.at[i];
    for (int i = 0; i < rank - 2; ++i) offsets[i] = static_cast<uint16_t>(columns[mine].offsets.at[i]);
    load_im2col_to_blocks(m.bytes + mine * 8192, map, m.barrier, at, offsets, static_cast<uint16_t>((1 << blocks) - 1));
  }
  wait_for_phase_across(m.barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < blocks * bytes; i += static_cast<int>(blockDim.x))
    y[static_cast<int>(blockIdx.x) * blocks * bytes + i] = m.bytes[i / bytes * 8192 + i % bytes];
  sync_cluster();
}

template <int rank>
void check_columns(DType dtype, int blocks) {
  for (int round = 0; round < 4; ++round) {
    Convolution c = random_convolution(rank, dtype, Swizzle::rows_of_32_bytes);
    const Buffer<unsigned char> x(c.bytes);
    c.layout.data = x.get();
    std::vector<Column> columns;
    std::vector<unsigned char> part, want;
    for (int block = 0; block < blocks; ++block) {
      columns.push_back(random_column(c));
      const std::vector<unsigned char> column = expected_column(c, columns.back());
      part.insert(part.end(), column.begin(), column.end());
    }
    for (int block = 0; block < blocks; ++block) want.insert(want.end(), part.begin(), part.end());
    const Buffer<Column> on_device(columns);
    const Buffer<unsigned char> y(want.size());
    launch(nullptr, "share_columns", {static_cast<unsigned>(blocks), 64, sizeof(BoxMemory), static_cast<unsigned>(blocks)}, share_columns<rank>, im2col_map(c.layout),
           on_device.get(), static_cast<int>(part.size()) / blocks, y.get());
    CHECK(y.values() == want);
  }
}

}  // namespace

TEST_CASE("cluster: every block knows its rank, the x dimension first, and how many there are") {
  if (!has_hopper()) return;
  const dim3 grid(4, 6, 2);
  for (const dim3 cluster : {dim3(1), dim3(2), dim3(2, 2), dim3(1, 3, 2), dim3(4, 2, 1)}) {
    const Buffer<Identity> y(size_t{48});
    launch(nullptr, "identify", {grid, 32, 0, cluster}, identify, y.get());
    const std::vector<Identity> got = y.values();
    for (unsigned block = 0; block < 48; ++block) {
      const unsigned x = block % 4 % cluster.x, row = block / 4 % 6 % cluster.y, plane = block / 24 % cluster.z;
      CHECK(got[block].rank == static_cast<int>(x + cluster.x * (row + cluster.y * plane)));
      CHECK(got[block].blocks == static_cast<int>(cluster.x * cluster.y * cluster.z));
    }
  }
}

TEST_CASE("cluster: blocks write to and read from each other's shared memory, between barriers") {
  if (!has_hopper()) return;
  for (const int blocks : {1, 2, 3, 4, 8, 16}) {
    CAPTURE(blocks);
    const int clusters = 3, rounds = 4, count = clusters * blocks * lanes;
    std::vector<int> x(static_cast<size_t>(count));
    for (int& value : x) value = random_below(100);
    const Buffer<int> from(x), to(x.size());
    launch(nullptr, "sum_over_cluster", {static_cast<unsigned>(clusters * blocks), lanes, sizeof(Row), static_cast<unsigned>(blocks)}, sum_over_cluster, from.get(), rounds,
           to.get());
    for (int round = 0; round < rounds; ++round) {
      const std::vector<int> before = x;
      for (int i = 0; i < count; ++i) {
        int sum = 0;
        for (int other = 0; other < blocks; ++other) sum += before[static_cast<size_t>((i / lanes / blocks * blocks + other) * lanes + i % lanes)];
        x[static_cast<size_t>(i)] = sum + before[static_cast<size_t>(i)] * 3;
      }
    }
    CHECK(to.values() == x);
  }
}

TEST_CASE("cluster: blocks hand numbers around through rings, with barriers of each other's") {
  if (!has_hopper()) return;
  for (const int blocks : {1, 2, 5, 8})
    for (const int rounds : {1, 2, 3, 9}) {
      CAPTURE(blocks);
      CAPTURE(rounds);
      const Buffer<int> sums(static_cast<size_t>(blocks * lanes));
      launch(nullptr, "hand_around", {static_cast<unsigned>(blocks), 2 * lanes, sizeof(Ring), static_cast<unsigned>(blocks)}, hand_around, rounds, sums.get());
      std::vector<int> want;
      for (int i = 0; i < blocks * lanes; ++i) {
        const int sender = (i / lanes + blocks - 1) % blocks;
        int sum = 0;
        for (int round = 0; round < rounds; ++round) sum += (round * 1000 + sender * 100 + (i + 5) % lanes) * (round + 1);
        want.push_back(sum);
      }
      CHECK(sums.values() == want);
    }
}

TEST_CASE("cluster: stores of 4, 8 and 16 bytes to another block count at its barrier") {
  if (!has_hopper()) return;
  check_stores<int>();
  check_stores<int64_t>();
  check_stores<Four>();
}

TEST_CASE("cluster: a box goes to the blocks of a mask, and to no other") {
  if (!has_hopper()) return;
  for (const DType dtype : {DType::float32, DType::float16}) {
    check_boxes<1>(dtype, Swizzle::none, 2);
    check_boxes<2>(dtype, Swizzle::rows_of_128_bytes, 4);
    check_boxes<3>(dtype, Swizzle::none, 3);
    check_boxes<4>(dtype, Swizzle::rows_of_64_bytes, 2);
    check_boxes<5>(dtype, Swizzle::none, 8);
  }
}

TEST_CASE("cluster: each block brings a part of the columns that all of them need") {
  if (!has_hopper()) return;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    check_columns<3>(dtype, 2);
    check_columns<4>(dtype, 4);
    check_columns<5>(dtype, 3);
  }
}
