// The model of the instructions in kernels/cuda/core/ptx_hopper.h, under the same names and with the same meaning. A misuse ends the kernel with a sentence.
#pragma once

#include <fovea/kernels/half.h>

#include "cuda_runtime.h"

// The line that is reported is the caller's: default arguments are evaluated there.
#define HOST_CUDA_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace host_cuda {

// ---- barriers with phases ----

struct PhasedBarrier {
  uint64_t state;                        // a mark by which the model notices that something else was written here
};
void init_barrier(PhasedBarrier& barrier, int arrivals, HOST_CUDA_SITE);
inline void fence_barrier_init() {}
void arrive(PhasedBarrier& barrier, HOST_CUDA_SITE);
void arrive_expecting(PhasedBarrier& barrier, int bytes, HOST_CUDA_SITE);
void wait_for_phase(PhasedBarrier& barrier, int parity, HOST_CUDA_SITE);
void invalidate_barrier(PhasedBarrier& barrier, HOST_CUDA_SITE);

// ---- copies of boxes ----

// What a TensorMap holds here.
inline constexpr uint32_t tiled_magic = 0x74696c65, im2col_magic = 0x32636f6c;
struct BoxDescription {
  uint32_t magic;
  int rank, element_bytes, swizzle;
  char* data;
  int64_t stride_bytes[4];               // of all dimensions but the innermost
  uint32_t sizes[5];
  uint16_t box[5];                       // in im2col mode: channels and pixels
  int16_t lower[3], upper[3];            // in im2col mode, of width, height and depth
  uint8_t steps[3];
};

inline constexpr int own_block = -1;     // in the place of a mask of blocks
void start_box(void* to, const void* map, PhasedBarrier& barrier, const int* at, int rank, int blocks, Site site);
void start_im2col(void* to, const void* map, PhasedBarrier& barrier, const int* at, const uint16_t* offsets, int rank, int blocks, Site site);
void start_store(const void* map, const void* from, const int* at, int rank, Site site);
void commit_stores();
void land_stores(int groups_under_way);

template <int rank, class Map>
void load_box(void* to, const Map& map, PhasedBarrier& barrier, const int (&at)[rank], HOST_CUDA_SITE) { start_box(to, &map, barrier, at, rank, own_block, {file, line}); }
template <int rank, class Map>
void load_im2col(void* to, const Map& map, PhasedBarrier& barrier, const int (&at)[rank], const uint16_t (&offsets)[rank - 2], HOST_CUDA_SITE) {
  start_im2col(to, &map, barrier, at, offsets, rank, own_block, {file, line});
}
template <int rank, class Map>
void store_box(const Map& map, const void* from, const int (&at)[rank], HOST_CUDA_SITE) { start_store(&map, from, at, rank, {file, line}); }
template <int pending>
void wait_for_stores() { land_stores(pending); }
template <int pending>
void wait_for_stores_to_read() { land_stores(pending); }
inline void fence_async_proxy() {}

// ---- products of a group of four warps ----

enum class Element { float16, bfloat16, tf32 };
void start_product(float* d, int columns, uint64_t a, uint64_t b, Element element, bool accumulates, Site site);
void fence_products(HOST_CUDA_SITE);
void commit_products(HOST_CUDA_SITE);
void land_products(int groups_under_way, Site site);

template <int columns>
void multiply_group(float (&d)[columns / 2], uint64_t a, uint64_t b, fovea::float16, bool accumulates, HOST_CUDA_SITE) {
  start_product(d, columns, a, b, Element::float16, accumulates, {file, line});
}
template <int columns>
void multiply_group(float (&d)[columns / 2], uint64_t a, uint64_t b, fovea::bfloat16, bool accumulates, HOST_CUDA_SITE) {
  start_product(d, columns, a, b, Element::bfloat16, accumulates, {file, line});
}
template <int columns>
void multiply_group_tf32(float (&d)[columns / 2], uint64_t a, uint64_t b, bool accumulates, HOST_CUDA_SITE) {
  start_product(d, columns, a, b, Element::tf32, accumulates, {file, line});
}
template <int pending>
void wait_for_products(HOST_CUDA_SITE) { land_products(pending, {file, line}); }

inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p)) & 0x3ffff; }

// ---- registers ----

void change_registers(int registers, Site site);
template <int registers>
void grow_registers(HOST_CUDA_SITE) { change_registers(registers, {file, line}); }
template <int registers>
void shrink_registers(HOST_CUDA_SITE) { change_registers(registers, {file, line}); }

}  // namespace host_cuda

#undef HOST_CUDA_SITE
