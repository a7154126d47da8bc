// The model of the instructions in kernels/cuda/core/ptx.h, under the same names and with the same meaning; ptx.h there documents them. A misuse ends the kernel with
// a sentence.
#pragma once

#include <fovea/kernels/half.h>

#include "cuda_runtime.h"

// The line that is reported is the caller's: default arguments are evaluated there.
#define HOST_CUDA_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace host_cuda {

void start_copy(void* to, const void* from, int bytes, bool is_there, Site site);
void land_copies(int groups_under_way);
enum class MatrixOrder { plain, transposed };
void load_matrices(uint32_t* registers, int matrices, MatrixOrder order, const void* row, Site site);

template <int bytes>
void copy_async(void* to, const void* from, bool is_there, HOST_CUDA_SITE) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  start_copy(to, from, bytes, is_there, {file, line});
}
void commit_copies();
template <int pending>
void wait_for_copies() { land_copies(pending); }

inline void load_matrix_x4(uint32_t (&r)[4], const void* row, HOST_CUDA_SITE) { load_matrices(r, 4, MatrixOrder::plain, row, {file, line}); }
inline void load_matrix_x2(uint32_t (&r)[2], const void* row, HOST_CUDA_SITE) { load_matrices(r, 2, MatrixOrder::plain, row, {file, line}); }
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row, HOST_CUDA_SITE) { load_matrices(r, 4, MatrixOrder::transposed, row, {file, line}); }
inline void load_matrix_x2_transposed(uint32_t (&r)[2], const void* row, HOST_CUDA_SITE) { load_matrices(r, 2, MatrixOrder::transposed, row, {file, line}); }

void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], fovea::float16, HOST_CUDA_SITE);
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], fovea::bfloat16, HOST_CUDA_SITE);
void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], HOST_CUDA_SITE);
uint32_t to_tf32(float value);

}  // namespace host_cuda

#undef HOST_CUDA_SITE
