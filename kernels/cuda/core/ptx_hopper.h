// Instructions that sm_90 added: barriers with phases (mbarrier), copies of boxes of a tensor by the tensor memory accelerator (cp.async.bulk.tensor), products of a
// group of four warps (wgmma) and the redistribution of registers (setmaxnreg). Source: PTX ISA 8.x, the sections of these names. ptx_cluster.h has clusters.
//
// Barriers and copies want sm_90, wgmma and setmaxnreg sm_90a: a kernel that uses them stands in a file that is compiled for that only, or its body in
//     #if defined(FOVEA_HOST_CUDA) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Where there is no GPU, tests/host_cuda/ptx_hopper.cpp models the same functions; tests/cuda_ptx_hopper_test.cpp compares the two.
#pragma once

#include <fovea/kernels/cuda/core/device.h>
#include <fovea/kernels/cuda/core/tensor_map.h>
#include <fovea/kernels/half.h>

#ifdef FOVEA_HOST_CUDA
#include <ptx_hopper.h>
#else
#include <fovea/kernels/cuda/core/ptx.h>
#endif

namespace fovea::kernels::cuda {

#ifdef FOVEA_HOST_CUDA

using host_cuda::PhasedBarrier;
using host_cuda::arrive;
using host_cuda::arrive_expecting;
using host_cuda::commit_products;
using host_cuda::commit_stores;
using host_cuda::fence_async_proxy;
using host_cuda::fence_barrier_init;
using host_cuda::fence_products;
using host_cuda::grow_registers;
using host_cuda::init_barrier;
using host_cuda::invalidate_barrier;
using host_cuda::load_box;
using host_cuda::load_im2col;
using host_cuda::multiply_group;
using host_cuda::multiply_group_tf32;
using host_cuda::shared_address;
using host_cuda::shrink_registers;
using host_cuda::store_box;
using host_cuda::wait_for_phase;
using host_cuda::wait_for_products;
using host_cuda::wait_for_stores;
using host_cuda::wait_for_stores_to_read;

#else

// ---- barriers with phases, in shared memory ----

// A phase is complete when as many threads have arrived as init_barrier was told, and as many bytes as were announced; the next begins at once. Phases count from 0.
struct PhasedBarrier {
  uint64_t state;
};

// One thread; fence_barrier_init() and __syncthreads() must follow before others use the barrier.
__device__ inline void init_barrier(PhasedBarrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// Makes init_barrier visible to copies as well.
__device__ inline void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(PhasedBarrier& barrier) {
  asm volatile("{\n.reg .b64 ignored;\nmbarrier.arrive.shared::cta.b64 ignored, [%0];\n}" ::"r"(shared_address(&barrier)) : "memory");
}
// Arrives, and announces that copies will bring `bytes` in this phase.
__device__ inline void arrive_expecting(PhasedBarrier& barrier, int bytes) {
  asm volatile("{\n.reg .b64 ignored;\nmbarrier.arrive.expect_tx.shared::cta.b64 ignored, [%0], %1;\n}" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}
// Waits until the phase with this parity (0 for the first) is complete: until the current phase has the other one.
__device__ inline void wait_for_phase(PhasedBarrier& barrier, int parity) {
  uint32_t is_complete = 0;
  while (!is_complete)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(is_complete)
                 : "r"(shared_address(&barrier)), "r"(parity)
                 : "memory");
}
// One thread, after all have used it: the memory may serve for something else.
__device__ inline void invalidate_barrier(PhasedBarrier& barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// ---- copies of boxes; one thread starts each ----

// From the tensor of `map`, with the box's first element at `at` (innermost dimension first; may lie outside), to shared memory at a multiple of 128 bytes (1024 where
// wgmma reads it with a swizzle). Elements outside of the tensor become zeros, and count among the bytes that arrive at the barrier: all of the box, always.
template <int rank>
__device__ inline void load_box(void* to, const TensorMap& map, PhasedBarrier& barrier, const int (&at)[rank]) {
  static_assert(rank >= 1 && rank <= 5);
  if constexpr (rank == 1)
    asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3}], [%2];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)), "r"(at[0])
                 : "memory");
  else if constexpr (rank == 2)
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1])
                 : "memory");
  else if constexpr (rank == 3)
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2])
                 : "memory");
  else if constexpr (rank == 4)
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
                 : "memory");
  else if constexpr (rank == 5)
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
                 : "memory");
}

// From the tensor of a map that im2col_map() made: the channels from at[0] on of a column of pixels, the first of which has its filter at at[1] (at[2], at[3]) of image
// at[rank - 1]; it must be one of the positions that the layout describes, or of an image beyond the last. `offsets` is the element of the filter times its dilation,
// along width, height and depth. All of the box arrives, always; what lies outside of the tensor is zero.
template <int rank>
__device__ inline void load_im2col(void* to, const TensorMap& map, PhasedBarrier& barrier, const int (&at)[rank], const uint16_t (&offsets)[rank - 2]) {
  static_assert(rank >= 3 && rank <= 5);
  if constexpr (rank == 3)
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2], {%6};"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "h"(offsets[0])
                 : "memory");
  else if constexpr (rank == 4)
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "h"(offsets[0]), "h"(offsets[1])
                 : "memory");
  else if constexpr (rank == 5)
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2], {%8, %9, %10};"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "h"(offsets[0]),
                 "h"(offsets[1]), "h"(offsets[2])
                 : "memory");
}

// From shared memory (a multiple of 128 bytes) to the tensor; elements outside of it are not written. What threads wrote to shared memory needs fence_async_proxy()
// by its writers and a barrier before.
template <int rank>
__device__ inline void store_box(const TensorMap& map, const void* from, const int (&at)[rank]) {
  static_assert(rank >= 1 && rank <= 5);
  if constexpr (rank == 1)
    asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%0, {%2}], [%1];"
                 ::"l"(&map), "r"(shared_address(from)), "r"(at[0])
                 : "memory");
  else if constexpr (rank == 2)
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];"
                 ::"l"(&map), "r"(shared_address(from)), "r"(at[0]), "r"(at[1])
                 : "memory");
  else if constexpr (rank == 3)
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
                 ::"l"(&map), "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2])
                 : "memory");
  else if constexpr (rank == 4)
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
                 ::"l"(&map), "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
                 : "memory");
  else if constexpr (rank == 5)
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];"
                 ::"l"(&map), "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
                 : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most the `pending` latest groups of this thread's stores are under way.
template <int pending>
__device__ inline void wait_for_stores() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory"); }
// The same, but only until shared memory has been read and may be written again. A thread must do one or the other before it returns.
template <int pending>
__device__ inline void wait_for_stores_to_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory"); }

// What this thread wrote to shared memory becomes visible to copies and to wgmma.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- products of four warps (threads 128 i to 128 i + 127); all of their lanes call these together ----

// Before the first product, and before products after registers of d were read or written.
__device__ inline void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the `pending` latest groups of products are under way. d may not be looked at before.
template <int pending>
__device__ inline void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory"); }

// A row of d's asm operands can only be written out, which these do for 8 registers at a time.
#define FOVEA_SUMS_8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define FOVEA_SUMS_32(i) FOVEA_SUMS_8(i), FOVEA_SUMS_8(i + 8), FOVEA_SUMS_8(i + 16), FOVEA_SUMS_8(i + 24)
// Their names within the instruction, and the instruction: its shape, its types and its flags stand in a text, which no template can put together.
#define FOVEA_NAMES_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FOVEA_NAMES_64 FOVEA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FOVEA_NAMES_96 FOVEA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FOVEA_NAMES_128 FOVEA_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FOVEA_MULTIPLY(shape, names, a_name, b_name, flag_name, tail, ...)                                                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " flag_name ", 0;\nwgmma.mma_async.sync.aligned." shape " {" names "}, " a_name ", " b_name ", p, 1, 1" tail ";\n}" \
               : __VA_ARGS__                                                                                                                \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulates)))
#define FOVEA_MULTIPLY_GROUP(depth, types, tail)                                                                                            \
  static_assert(columns == 64 || columns == 128 || columns == 256);                                                                         \
  if constexpr (columns == 64)                                                                                                              \
    FOVEA_MULTIPLY("m64n64" depth types, FOVEA_NAMES_32, "%32", "%33", "%34", tail, FOVEA_SUMS_32(0));                                      \
  else if constexpr (columns == 128)                                                                                                        \
    FOVEA_MULTIPLY("m64n128" depth types, FOVEA_NAMES_64, "%64", "%65", "%66", tail, FOVEA_SUMS_32(0), FOVEA_SUMS_32(32));                  \
  else                                                                                                                                      \
    FOVEA_MULTIPLY("m64n256" depth types, FOVEA_NAMES_128, "%128", "%129", "%130", tail, FOVEA_SUMS_32(0), FOVEA_SUMS_32(32), FOVEA_SUMS_32(64), FOVEA_SUMS_32(96))

// d = a b, or (where it accumulates) d += a b, with a [64,k], b [k,columns] and d [64,columns]; columns is 64, 128 or 256, and k 16 (8 for TF32). Starts only. a and b
// lie in shared memory and are given by group_operand(). Of thread 32 w + l of the four warps, with g = l / 4 and t = l % 4, d[4 j] and d[4 j + 1] are columns
// 8 j + 2 t and + 1 of row 16 w + g, d[4 j + 2] and d[4 j + 3] those of row 16 w + g + 8.
template <int columns>
__device__ inline void multiply_group(float (&d)[columns / 2], uint64_t a, uint64_t b, float16, bool accumulates) {
  FOVEA_MULTIPLY_GROUP("k16", ".f32.f16.f16", ", 0, 0");
}
template <int columns>
__device__ inline void multiply_group(float (&d)[columns / 2], uint64_t a, uint64_t b, bfloat16, bool accumulates) {
  FOVEA_MULTIPLY_GROUP("k16", ".f32.bf16.bf16", ", 0, 0");
}
template <int columns>
__device__ inline void multiply_group_tf32(float (&d)[columns / 2], uint64_t a, uint64_t b, bool accumulates) {
  FOVEA_MULTIPLY_GROUP("k8", ".f32.tf32.tf32", "");
}
#undef FOVEA_MULTIPLY_GROUP
#undef FOVEA_MULTIPLY
#undef FOVEA_NAMES_128
#undef FOVEA_NAMES_96
#undef FOVEA_NAMES_64
#undef FOVEA_NAMES_32
#undef FOVEA_SUMS_32
#undef FOVEA_SUMS_8

// ---- registers ----

// The number that each thread of these four warps may use from here on: a multiple of 8 from 24 to 256. Growing waits until others have shrunk.
template <int registers>
__device__ inline void grow_registers() {
  static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ inline void shrink_registers() {
  static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

#endif

// An operand of multiply_group, as its "matrix descriptor": rows of a (or columns of b) of 128 bytes each, one after the other, swizzled by 128 bytes, the first at a
// multiple of 1024 bytes. The next 32 bytes of each row, k elements on, begin at `tile` + 32 bytes.
__device__ inline uint64_t group_operand(const void* tile) {
  constexpr uint64_t eight_rows = 1024 >> 4, swizzle_128_bytes = 1;
  return ((shared_address(tile) & 0x3ffffu) >> 4) | uint64_t{1} << 16 | eight_rows << 32 | swizzle_128_bytes << 62;
}

}  // namespace fovea::kernels::cuda
