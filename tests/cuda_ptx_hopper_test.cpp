// The instructions of kernels/cuda/core/ptx_hopper.h against what they must compute, over the model of CUDA and on a GPU of compute capability 9.0 alike: see
// cuda_ptx_test.cpp.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/ptx_hopper.h>

#include "cuda_hopper.h"
#include "device_buffer.h"
#include "messages.h"

using namespace fovea::kernels::cuda;
using fovea::bfloat16;
using fovea::DType;
using fovea::float16;
using namespace fovea::testing;

namespace {

// ---- mbarrier ----

constexpr int slots = 2, slot_threads = 32;
struct Handover {
  int values[slots][slot_threads];
  PhasedBarrier full[slots], empty[slots];
};

// The first warp writes rounds of numbers into a ring of two slots, the second adds up what its neighbour lanes' numbers are.
__global__ void hand_over(int rounds, int* sums) {
  Handover& h = shared<Handover>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % slot_threads;
  if (thread == 0) {
    for (int i = 0; i < slots; ++i) init_barrier(h.full[i], slot_threads), init_barrier(h.empty[i], slot_threads);
    fence_barrier_init();
  }
  __syncthreads();
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int slot = round % slots, parity = round / slots % 2;
    if (thread < slot_threads) {
      wait_for_phase(h.empty[slot], parity ^ 1);             // of the first phase nobody need wait for the one before it
      h.values[slot][lane] = round * 100 + lane;
      arrive(h.full[slot]);
    } else {
      wait_for_phase(h.full[slot], parity);
      sum += h.values[slot][(lane + 5) % slot_threads] * (round + 1);
      arrive(h.empty[slot]);
    }
  }
  if (thread >= slot_threads) sums[lane] = sum;
  __syncthreads();
  if (thread == 0)
    for (int i = 0; i < slots; ++i) invalidate_barrier(h.full[i]), invalidate_barrier(h.empty[i]);
}

// ---- boxes ----

struct BoxMemory {
  alignas(1024) unsigned char bytes[32768];
  PhasedBarrier barrier;
};
template <int rank>
__global__ void load_a_box(const __grid_constant__ TensorMap map, Position position, int bytes, unsigned char* y) {
  BoxMemory& m = shared<BoxMemory>();
  if (threadIdx.x == 0) {
    init_barrier(m.barrier, 1);
    fence_barrier_init();
    int at[rank];
    for (int i = 0; i < rank; ++i) at[i] = position.at[i];
    arrive_expecting(m.barrier, bytes);
    load_box(m.bytes, map, m.barrier, at);
  }
  __syncthreads();
  wait_for_phase(m.barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) y[i] = m.bytes[i];
}

template <int rank>
__global__ void store_a_box(const __grid_constant__ TensorMap map, Position position, int bytes, const unsigned char* x) {
  BoxMemory& m = shared<BoxMemory>();
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) m.bytes[i] = x[i];
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    int at[rank];
    for (int i = 0; i < rank; ++i) at[i] = position.at[i];
    store_box(map, m.bytes, at);
    commit_stores();
    wait_for_stores<0>();
  }
}

template <int rank>
void check_boxes(DType dtype, Swizzle swizzle) {
  const size_t size = static_cast<size_t>(fovea::size_of(dtype));
  for (int round = 0; round < 6; ++round) {
    TensorOfBytes t = random_tensor(rank, dtype, swizzle);
    const Position p = random_position(t);
    const Buffer<unsigned char> tensor(t.bytes);
    t.layout.data = tensor.get();
    const TensorMap map = tiled_map(t.layout);
    const size_t bytes = static_cast<size_t>(t.box_bytes);
    const Buffer<unsigned char> box(std::vector<unsigned char>(bytes, 0xee));
    launch(nullptr, "load_a_box", {1, 64, sizeof(BoxMemory)}, load_a_box<rank>, map, p, t.box_bytes, box.get());
    const std::vector<unsigned char> got = box.values();
    std::vector<unsigned char> want(bytes, 0);
    for_each_element(t, p, [&](uint32_t in_box, int64_t in_tensor) {
      if (in_tensor >= 0) std::memcpy(&want[in_box], &t.bytes[static_cast<size_t>(in_tensor)], size);
    });
    CHECK(got == want);

    want = random_bytes(bytes);
    const Buffer<unsigned char> source(want);
    launch(nullptr, "store_a_box", {1, 64, sizeof(BoxMemory)}, store_a_box<rank>, map, p, t.box_bytes, source.get());
    for_each_element(t, p, [&](uint32_t in_box, int64_t in_tensor) {
      if (in_tensor >= 0) std::memcpy(&t.bytes[static_cast<size_t>(in_tensor)], &want[in_box], size);
    });
    CHECK(tensor.values() == t.bytes);
  }
}

// ---- columns of pixels (im2col) ----

template <int rank>
__global__ void load_a_column(const __grid_constant__ TensorMap map, Position position, Position moved, int bytes, unsigned char* y) {
  BoxMemory& m = shared<BoxMemory>();
  if (threadIdx.x == 0) {
    init_barrier(m.barrier, 1);
    fence_barrier_init();
    int at[rank];
    uint16_t offsets[rank - 2];
    for (int i = 0; i < rank; ++i) at[i] = position.at[i];
    for (int i = 0; i < rank - 2; ++i) offsets[i] = static_cast<uint16_t>(moved.at[i]);
    arrive_expecting(m.barrier, bytes);
    load_im2col(m.bytes, map, m.barrier, at, offsets);
  }
  __syncthreads();
  wait_for_phase(m.barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) y[i] = m.bytes[i];
}

template <int rank>
void check_columns(DType dtype, Swizzle swizzle) {
  for (int round = 0; round < 8; ++round) {
    const Convolution c = random_convolution(rank, dtype, swizzle);
    const Column column = random_column(c);
    const Buffer<unsigned char> x(c.bytes);
    Im2colLayout layout = c.layout;
    layout.data = x.get();
    const std::vector<unsigned char> want = expected_column(c, column);
    const Buffer<unsigned char> y(std::vector<unsigned char>(want.size(), 0xee));
    launch(nullptr, "load_a_column", {1, 64, sizeof(BoxMemory)}, load_a_column<rank>, im2col_map(layout), column.at, column.offsets, static_cast<int>(want.size()), y.get());
    CHECK(y.values() == want);
  }
}

// ---- wgmma ----

template <class T> inline constexpr DType dtype_of = std::is_same_v<T, float> ? DType::float32 : std::is_same_v<T, float16> ? DType::float16 : DType::bfloat16;

constexpr int stages = 2;
template <int columns>
struct ProductMemory {
  alignas(1024) unsigned char a[stages][64 * 128];
  alignas(1024) unsigned char b[stages][columns * 128];
  PhasedBarrier full[stages], empty[stages];
};

template <class T, int columns>
__device__ inline void multiply_tile(float (&d)[columns / 2], const unsigned char* a, const unsigned char* b, bool accumulates) {
  for (int slice = 0; slice < 4; ++slice) {
    const uint64_t left = group_operand(a + 32 * slice), right = group_operand(b + 32 * slice);
    if constexpr (std::is_same_v<T, float>) multiply_group_tf32<columns>(d, left, right, accumulates || slice > 0);
    else multiply_group<columns>(d, left, right, T{}, accumulates || slice > 0);
  }
}

// d [64,columns] = a [64,k] times the transposed b [columns,k], k in tiles of 128 bytes: four warps load tiles, four others compute.
template <class T, int columns>
__global__ void __launch_bounds__(256, 1) multiply_by_group(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, int tiles, float* y) {
  auto& m = shared<ProductMemory<columns>>();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < stages; ++i) init_barrier(m.full[i], 1), init_barrier(m.empty[i], 128);
    fence_barrier_init();
  }
  __syncthreads();
  constexpr int tile_elements = 128 / static_cast<int>(sizeof(T));
  if (thread >= 128) {
    shrink_registers<40>();
    for (int tile = 0; tile < tiles && thread == 128; ++tile) {
      const int stage = tile % stages;
      wait_for_phase(m.empty[stage], tile / stages % 2 ^ 1);
      arrive_expecting(m.full[stage], (64 + columns) * 128);
      load_box(m.a[stage], a, m.full[stage], {tile * tile_elements, 0});
      load_box(m.b[stage], b, m.full[stage], {tile * tile_elements, 0});
    }
    return;
  }
  grow_registers<232>();
  float d[columns / 2];
  for (float& sum : d) sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % stages;
    wait_for_phase(m.full[stage], tile / stages % 2);
    fence_products();
    multiply_tile<T, columns>(d, m.a[stage], m.b[stage], tile > 0);
    commit_products();
    wait_for_products<0>();
    arrive(m.empty[stage]);
  }
  const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
  for (int i = 0; i < columns / 2; ++i) y[(row + i / 2 % 2 * 8) * columns + i / 4 * 8 + column + i % 2] = d[i];
}

TensorMap map_of_rows(const void* data, DType dtype, int rows, int k) {
  TiledLayout l;
  l.data = data, l.dtype = dtype, l.rank = 2, l.swizzle = Swizzle::rows_of_128_bytes;
  l.sizes[0] = k, l.sizes[1] = rows, l.strides[0] = 1, l.strides[1] = k;
  l.box[0] = static_cast<int>(128 / fovea::size_of(dtype)), l.box[1] = rows;
  return tiled_map(l);
}

// Elements of small integers, whose sums are exact; or of random numbers (for TF32 with low bits that nobody may look at).
template <class T>
std::vector<T> random_elements(int n, bool is_exact) {
  std::normal_distribution<float> normal;
  std::vector<T> v;
  for (int i = 0; i < n; ++i) v.push_back(T(is_exact ? static_cast<float>(random_below(17) - 8) : normal(generator)));
  return v;
}
template <class T>
double seen(T v) {
  if constexpr (std::is_same_v<T, float>) return std::bit_cast<float>(std::bit_cast<uint32_t>(v) & 0xffffe000u);
  else return static_cast<float>(v);
}

template <class T, int columns>
void check_product() {
  for (const bool is_exact : {true, false}) {
    CAPTURE(is_exact);
    const int tiles = 5, k = tiles * static_cast<int>(128 / sizeof(T));
    const std::vector<T> a = random_elements<T>(64 * k, is_exact), b = random_elements<T>(columns * k, is_exact);
    const Buffer<T> left(a), right(b);
    const Buffer<float> y(std::vector<float>(64 * columns, NAN));
    launch(nullptr, "multiply_by_group", {1, 256, sizeof(ProductMemory<columns>)}, multiply_by_group<T, columns>, map_of_rows(left.get(), dtype_of<T>, 64, k),
           map_of_rows(right.get(), dtype_of<T>, columns, k), tiles, y.get());
    const std::vector<float> got = y.values();
    int wrong = 0;
    for (int i = 0; i < 64 * columns; ++i) {
      double value = 0, magnitude = 0;
      for (int j = 0; j < k; ++j) {
        const double product = seen(a[static_cast<size_t>(i / columns * k + j)]) * seen(b[static_cast<size_t>(i % columns * k + j)]);
        value += product, magnitude += std::abs(product);
      }
      const float g = got[static_cast<size_t>(i)];
      wrong += is_exact ? g != static_cast<float>(value) : !(std::abs(g - value) <= 4e-6 * magnitude);
    }
    CHECK(wrong == 0);
  }
}

}  // namespace

TEST_CASE("mbarrier: two warps hand numbers over through a ring of two slots") {
  if (!has_hopper()) return;
  for (const int rounds : {1, 2, 3, 9}) {
    const Buffer<int> sums(std::vector<int>(slot_threads, -1));
    launch(nullptr, "hand_over", {1, 2 * slot_threads, sizeof(Handover)}, hand_over, rounds, sums.get());
    std::vector<int> want(slot_threads, 0);
    for (int lane = 0; lane < slot_threads; ++lane)
      for (int round = 0; round < rounds; ++round) want[static_cast<size_t>(lane)] += (round * 100 + (lane + 5) % slot_threads) * (round + 1);
    CHECK(sums.values() == want);
  }
}

TEST_CASE("tensor memory accelerator: boxes of 1 to 5 dimensions come and go, and what lies outside of the tensor is zero or not written") {
  if (!has_hopper()) return;
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    check_boxes<1>(dtype, Swizzle::none);
    check_boxes<2>(dtype, Swizzle::none);
    check_boxes<3>(dtype, Swizzle::none);
    check_boxes<4>(dtype, Swizzle::none);
    check_boxes<5>(dtype, Swizzle::none);
    for (const Swizzle swizzle : {Swizzle::rows_of_32_bytes, Swizzle::rows_of_64_bytes, Swizzle::rows_of_128_bytes}) {
      check_boxes<2>(dtype, swizzle);
      check_boxes<4>(dtype, swizzle);
    }
  }
}

TEST_CASE("tensor memory accelerator: columns of pixels are the rows of a convolution's matrix, in 1 to 3 directions, with padding, strides and dilation") {
  if (!has_hopper()) return;
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
    check_columns<3>(dtype, Swizzle::none);
    check_columns<4>(dtype, Swizzle::none);
    check_columns<5>(dtype, Swizzle::none);
    for (const Swizzle swizzle : {Swizzle::rows_of_32_bytes, Swizzle::rows_of_64_bytes, Swizzle::rows_of_128_bytes}) check_columns<4>(dtype, swizzle);
  }
  check_columns<4>(DType::float64, Swizzle::none);
}

TEST_CASE("tensor memory accelerator: a layout in im2col mode that hardware can't do is an error that says why") {
  Im2colLayout l;
  l.dtype = DType::float16, l.channels = 8, l.pixels = 16;
  for (int i = 0; i < 4; ++i) l.sizes[i] = 8, l.strides[i] = i == 0 ? 1 : l.strides[i - 1] * 8;
  std::vector<TensorMap> made;                   // kept: g++ 12 does not align a result that nobody wants
  const auto said = [&] { return error_of([&] { made.push_back(im2col_map(l)); }); };
  CHECK(said() == "");
  l.upper[0] = -8;
  CHECK(said() == "im2col_map: there is no place for the filter along dimension 1: it could stand at 0 to -1");
  l.upper[0] = 200;
  CHECK(said() == "im2col_map: 200 as a corner of dimension 1 is not one of -128 to 127");
  l.upper[0] = 0, l.steps[1] = 9;
  CHECK(said() == "im2col_map: a step is 1 to 8, got 9 along dimension 2");
  l.steps[1] = 1, l.rank = 2;
  CHECK(said() == "im2col_map: a tensor has 3 to 5 dimensions, got 2");
  l.rank = 4, l.pixels = 2000;
  CHECK(said() == "im2col_map: a copy brings 1 to 1024 pixels, got 2000");
  CHECK(made.size() == 1);
}

TEST_CASE("tensor memory accelerator: a layout that hardware can't do is an error that says why") {
  TiledLayout l;
  l.rank = 2, l.sizes[0] = 8, l.sizes[1] = 4, l.strides[0] = 1, l.strides[1] = 10, l.box[0] = 8, l.box[1] = 4;
  CHECK_THROWS_WITH_AS(tiled_map(l), "tiled_map: the stride of dimension 1 is 40 bytes; it must be a multiple of 16 below 2^40", fovea::ShapeError);
  l.strides[1] = 12, l.box[0] = 7;
  CHECK_THROWS_WITH_AS(tiled_map(l), "tiled_map: the box has 28 bytes along the innermost dimension; they must be a multiple of 16", fovea::ShapeError);
  l.box[0] = 8, l.swizzle = Swizzle::rows_of_128_bytes;
  CHECK_THROWS_WITH_AS(tiled_map(l), "tiled_map: with a swizzle of 128 bytes the box must have as many along the innermost dimension, got 32", fovea::ShapeError);
}

TEST_CASE("wgmma: products of four warps, fed by a ring of boxes: exact for small integers and close for random numbers") {
  if (!has_hopper()) return;
  check_product<float16, 64>();
  check_product<float16, 128>();
  check_product<float16, 256>();
  check_product<bfloat16, 64>();
  check_product<bfloat16, 128>();
  check_product<bfloat16, 256>();
  check_product<float, 64>();
  check_product<float, 128>();
  check_product<float, 256>();
}
