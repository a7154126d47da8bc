// Instructions of sm_80 that CUDA C++ has no word for, one function each: copies from global to shared memory that run beside the computation (cp.async), and the
// tensor cores (ldmatrix, mma.sync). Source: PTX ISA 8.x, sections "cp.async", "ldmatrix", "mma" and "Matrix Fragments".
// Where there is no GPU, tests/host_cuda/ptx.cpp models the same functions; tests/cuda_ptx_test.cpp compares the two.
//
// A ring of tiles, the use that these copies are for:
//     for each tile that fits into the ring: copy_async<16>(...) ...; commit_copies();        // a group a tile, also where a tile is not there: groups are counted
//     for each tile:
//       wait_for_copies<stages - 2>();            // this thread's copies of the tile have landed,
//       __syncthreads();                          // everybody's have, and nobody still reads the slot that is filled next
//       ... start the copies of the tile stages - 1 ahead; commit_copies(); compute ...
#pragma once

#include <fovea/kernels/cuda/core/device.h>
#include <fovea/kernels/half.h>

#ifdef FOVEA_HOST_CUDA
#include <ptx.h>
#endif

namespace fovea::kernels::cuda {

#ifdef FOVEA_HOST_CUDA

using host_cuda::commit_copies;
using host_cuda::copy_async;
using host_cuda::load_matrix_x2;
using host_cuda::load_matrix_x2_transposed;
using host_cuda::load_matrix_x4;
using host_cuda::load_matrix_x4_transposed;
using host_cuda::multiply;
using host_cuda::multiply_tf32;
using host_cuda::to_tf32;
using host_cuda::wait_for_copies;

#else

// An address in shared memory as the instructions take it.
__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- copies that run beside the computation ----

// Starts a copy of 4, 8 or 16 bytes from global to shared memory; both addresses are multiples of `bytes`. Where not is_there, zeros are written and `from` is not
// read. Copies of 16 bytes pass by the L1 cache. Nothing may be read from, or written to, the destination before the copy has been waited for.
template <int bytes>
__device__ inline void copy_async(void* to, const void* from, bool is_there) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const uint32_t bytes_read = is_there ? bytes : 0;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes_read) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "n"(bytes), "r"(bytes_read) : "memory");
}

// What this thread has started since the last commit becomes a group; a group may be empty.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the `pending` latest of this thread's groups are still under way. The others' data is visible to this thread only: a barrier must follow.
template <int pending>
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }

// ---- tiles of 8x8 elements of 16 bits, from shared memory into the registers of a warp ----

// All 32 lanes call these together. Lane 8 m + i brings the address of row i of matrix m: 16 bytes in a row, a multiple of 16. Lane l then holds, in r[m], the elements
// (l / 4, l % 4 * 2) in the low half and (l / 4, l % 4 * 2 + 1) in the high half; transposed, those of the transposed matrix. With two matrices, the addresses that
// lanes 16 to 31 bring are not used.
__device__ inline void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
__device__ inline void load_matrix_x2_transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

// ---- products on tensor cores; all 32 lanes call these together ----

// d += a b with a [16,16], b [16,8] and d [16,8]; the last argument says what the 16-bit elements are. Sums are float32. With g = lane / 4 and t = lane % 4:
//   a[0], a[1]: rows g and g + 8, columns 2 t and 2 t + 1;  a[2], a[3]: the same of columns + 8         (load_matrix_x4 of a's four 8x8 tiles in that order)
//   b[0]: rows 2 t and 2 t + 1 of column g;  b[1]: of rows + 8                                          (load_matrix_x2_transposed where b is stored by rows,
//   d[0], d[1]: row g, columns 2 t and 2 t + 1;  d[2], d[3]: of row g + 8                                load_matrix_x2 where it is stored by columns)
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b with a [16,8], b [8,8] and d [16,8]. Elements are float32 numbers of which only the upper 19 bits count; to_tf32 rounds, where cutting off is not enough.
//   a[0], a[1]: rows g and g + 8 of column t;  a[2], a[3]: of column t + 4
//   b[0], b[1]: rows t and t + 4 of column g;  d: as above
__device__ inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// To the nearest number of TF32 (8 bits of exponent, 10 of mantissa), ties away from zero, as the bits of a float32.
__device__ inline uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

#endif

}  // namespace fovea::kernels::cuda
