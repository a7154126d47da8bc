// The model's product of matrices, in the place of kernels/cuda/blas.cpp: plain loops, queued on the stream as cuBLAS's kernels are. It writes to the stream's
// workspace as they may, so that one which is given back too early is found.
#include <fovea/kernels/cuda/blas.h>

#include <cstring>
#include <vector>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/core/device.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/error.h>
#include <fovea/kernels/cuda/streams.h>

namespace fovea::kernels::cuda {
namespace {

struct Sizes {
  int64_t batch, m, n, k;
};

template <class T>
const T* element(const BlasMatrix& matrix, int64_t i, int64_t row, int64_t column) {
  return static_cast<const T*>(matrix.data) + i * matrix.batch_stride + (matrix.is_transposed ? column * matrix.leading + row : row * matrix.leading + column);
}

// One row of y. The sums run over k in order, whatever the shapes: there is no other order to depend on.
template <class T, class Y>
void multiply_row(const Sizes& s, int64_t i, int64_t row, double alpha, const BlasMatrix& a, const BlasMatrix& b, double beta, Y* y, std::vector<Accumulate<T>>& sums) {
  using A = Accumulate<T>;
  sums.assign(static_cast<size_t>(s.n), A{});
  for (int64_t inner = 0; inner < s.k; ++inner) {
    const A left = widen(*element<T>(a, i, row, inner));
    const T* right = element<T>(b, i, inner, 0);
    const int64_t step = b.is_transposed ? b.leading : 1;
    for (int64_t column = 0; column < s.n; ++column) sums[static_cast<size_t>(column)] += left * widen(right[column * step]);
  }
  for (int64_t column = 0; column < s.n; ++column) {
    const A product = static_cast<A>(alpha) * sums[static_cast<size_t>(column)];
    y[column] = narrow<Y>(beta == 0 ? product : product + static_cast<A>(beta) * widen(y[column]));
  }
}

template <class T, class Y>
void multiply(const Sizes& s, double alpha, const BlasMatrix& a, const BlasMatrix& b, double beta, const BlasOutput& y) {
  std::vector<Accumulate<T>> sums;
  for (int64_t i = 0; i < s.batch; ++i)
    for (int64_t row = 0; row < s.m; ++row) multiply_row<T>(s, i, row, alpha, a, b, beta, static_cast<Y*>(y.data) + i * y.batch_stride + row * y.leading, sums);
}

// What cuBLAS asks of an operand of rows x columns, or, where that is stored column after column, the other way round.
void check_matrix(const char* name, bool is_transposed, int64_t rows, int64_t columns, int64_t leading, int64_t batch_stride) {
  const int64_t length = is_transposed ? rows : columns;
  check<DeviceError>(leading >= length && leading >= 1, "matmul: cuBLAS refuses ", name, ": rows of ", length, " elements cannot begin every ", leading);
  check<DeviceError>(batch_stride >= 0, "matmul: cuBLAS promises nothing for ", name, ", whose matrices lie ", batch_stride, " elements apart");
}

}  // namespace

void gemm_strided_batched(Queue queue, DType dtype, DType y_dtype, int64_t batch, int64_t m, int64_t n, int64_t k, double alpha, const BlasMatrix& a, const BlasMatrix& b,
                          double beta, const BlasOutput& y) {
  constexpr size_t workspace_bytes = 4096;
  const Sizes sizes{batch, m, n, k};
  check_matrix("a", a.is_transposed, m, k, a.leading, a.batch_stride);
  check_matrix("b", b.is_transposed, k, n, b.leading, b.batch_stride);
  check_matrix("y", false, m, n, y.leading, y.batch_stride);
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cuda: asking for the current device");
  void* const workspace = fovea::cuda::detail::scratch_of(stream_of(queue), device, workspace_bytes);
  const cudaError_t result = dispatch_floating(dtype, "matmul", [&](auto zero) {
    using T = decltype(zero);
    const auto run = y_dtype == dtype ? multiply<T, T> : multiply<T, Accumulate<T>>;
    return host_cuda::enqueue_work(stream_of(queue), "gemm", [=] {
      if (workspace) std::memset(workspace, 0xff, workspace_bytes);
      run(sizes, alpha, a, b, beta, y);
    });
  });
  check_cuda(result, "cuda: the product of matrices could not be queued");
}

}  // namespace fovea::kernels::cuda
