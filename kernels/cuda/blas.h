// The one door to cuBLAS: a batch of matrix products. kernels/cuda/blas.cpp asks cuBLAS; the tests' model of CUDA has plain loops in its place.
#pragma once

#include <fovea/kernels/table.h>

namespace fovea::kernels::cuda {

// A batch of matrices in memory, each a matrix of `rows` by `columns` stored row after row, or, if is_transposed, column after column.
struct BlasMatrix {
  const void* data = nullptr;
  bool is_transposed = false;
  int64_t leading = 0;                       // elements from one row (or, transposed, column) to the next; at least the length of one, and at least 1
  int64_t batch_stride = 0;                  // elements from one matrix to the next, not negative; 0: all are the same
};

struct BlasOutput {
  void* data = nullptr;                      // row after row
  int64_t leading = 0, batch_stride = 0;
};

// y[i] = alpha a[i] b[i] + beta y[i] for i < batch, with a [m,k], b [k,n], y [m,n], all of one dtype: float32, float64, float16 or
// bfloat16. Beside a and b of a half type, y may be float32.
// With beta == 0, y is not read. Sums in float32 for the half types, else in the element type; TF32 only where cuda::allow_tf32(). All sizes are at least 1,
// and every size and stride fits into 31 bits, but batch strides.
void gemm_strided_batched(Queue queue, DType dtype, DType y_dtype, int64_t batch, int64_t m, int64_t n, int64_t k, double alpha,
                          const BlasMatrix& a, const BlasMatrix& b, double beta, const BlasOutput& y);

}  // namespace fovea::kernels::cuda
