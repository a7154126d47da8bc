// Matrix product: y[b,m,n] = alpha * sum_k a[b,m,k] b[b,k,n] + beta * y[b,m,n] + bias[n], any strides, so that transposed operands need no copy.
// Overwrites y (reads it only when beta != 0). Sums in the element type. Deterministic. Floor: 2 b m n k FLOPs; for small m, reading b once.
#include <fovea/kernels/cpu/gemm.h>

#include <algorithm>

namespace fovea::kernels {
namespace {

template <class T>
struct Matrix {
  const T* data;
  int64_t row, column;                               // strides
};

// Offset of batch element b of a view whose last two axes are the matrix.
int64_t batch_offset(const Shape& shape, const Strides& strides, int64_t b) {
  int64_t offset = 0;
  for (int axis = shape.rank() - 3; axis >= 0; --axis) {
    offset += b % shape[axis] * strides[axis];
    b /= shape[axis];
  }
  return offset;
}

template <class T>
Matrix<T> matrix_of(const ConstView& v, int64_t b) {
  return {v.as<T>() + batch_offset(v.shape, v.strides, b), v.strides.back(1), v.strides.back(0)};
}

template <class T>
class StridedOperands : public GemmOperands<T> {
 public:
  StridedOperands(const ConstView& a, const ConstView& b, const View& y, bool is_swapped, const T* bias)
      : a_(a), b_(b), y_(y), is_swapped_(is_swapped), bias_(bias), m_(y.shape.back(is_swapped ? 0 : 1)) {}

  GemmBlock<T> left(int64_t batch, int64_t i0, int64_t rows, int64_t k0, int64_t depth, T* buffer) const override {
    const Matrix<T> a = is_swapped_ ? transposed(matrix_of<T>(b_, batch)) : matrix_of<T>(a_, batch);
    const T* from = a.data + i0 * a.row + k0 * a.column;
    if (a.column == 1) return left_rows(from, a.row, rows, depth, buffer);
    if (a.row == 1) {
      gemm<T>().transpose(from, a.column, depth, rows, buffer, gemm_depth);
    } else {
      for (int64_t i = 0; i < rows; ++i) copy_row(from + i * a.row, a.column, depth, buffer + i * gemm_depth);
    }
    return {buffer, gemm_depth};
  }

  GemmBlock<T> right(int64_t batch, int64_t j0, int64_t columns, int64_t width, int64_t k0, int64_t depth, T* buffer) const override {
    const Matrix<T> b = is_swapped_ ? transposed(matrix_of<T>(a_, batch)) : matrix_of<T>(b_, batch);
    const T* from = b.data + k0 * b.row + j0 * b.column;
    if (b.column == 1 && columns == width && m_ <= 16) return {from, b.row};      // too few rows to pay for packing
    if (b.row == 1 && b.column != 1) {
      gemm<T>().transpose(from, b.column, columns, depth, buffer, width);
      if (columns < width)
        for (int64_t k = 0; k < depth; ++k) std::fill(buffer + k * width + columns, buffer + (k + 1) * width, T(0));
    } else {
      for (int64_t k = 0; k < depth; ++k) {
        copy_row(from + k * b.row, b.column, columns, buffer + k * width);
        std::fill(buffer + k * width + columns, buffer + (k + 1) * width, T(0));
      }
    }
    return {buffer, width};
  }

  GemmOutput<T> output(int64_t batch) const override {
    T* c = y_.as<T>() + batch_offset(y_.shape, y_.strides, batch);
    return is_swapped_ ? GemmOutput<T>{c, bias_, nullptr} : GemmOutput<T>{c, nullptr, bias_};
  }

 private:
  static Matrix<T> transposed(const Matrix<T>& m) { return {m.data, m.column, m.row}; }
  static void copy_row(const T* from, int64_t stride, int64_t count, T* to) {
    if (stride == 1) {
      std::copy(from, from + count, to);
    } else {
      for (int64_t e = 0; e < count; ++e) to[e] = from[e * stride];
    }
  }

  const ConstView &a_, &b_;
  const View& y_;
  bool is_swapped_;
  const T* bias_;
  int64_t m_;
};

GemmShape gemm_shape(const MatmulGeometry& g, bool is_swapped) {
  GemmShape shape{g.batch, g.m, g.n, g.k, 0, {}};
  if (is_swapped) std::swap(shape.m, shape.n);
  return shape;
}

template <class T>
void scale(const View& y, T beta, int64_t batches) {
  const int64_t m = y.shape.back(1), n = y.shape.back(0);
  parallel_for(batches * m, std::max<int64_t>(1, 16384 / std::max<int64_t>(n, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* p = y.as<T>() + batch_offset(y.shape, y.strides, row / m) + row % m * y.strides.back(1);
      for (int64_t j = 0; j < n; ++j) p[j * y.strides.back(0)] *= beta;
    }
  });
}

template <class T>
void matmul_typed(const MatmulGeometry& g, Scalars alpha_beta, const ConstView& a, const ConstView& b, const ConstView& bias, const View& y, Workspace scratch) {
  // Tiles are written along contiguous memory; a transposed y is the product of the transposed operands.
  const bool is_swapped = y.strides.back(0) != 1 && y.strides.back(1) == 1;
  GemmShape shape = gemm_shape(g, is_swapped);
  shape.row_stride = y.strides.back(is_swapped ? 0 : 1);
  shape.columns.stride_x = y.strides.back(is_swapped ? 1 : 0);
  if (alpha_beta.beta != 0 && alpha_beta.beta != 1) scale<T>(y, static_cast<T>(alpha_beta.beta), g.batch);
  const StridedOperands<T> operands(a, b, y, is_swapped, bias.as<T>());
  gemm<T>().run(shape, static_cast<T>(alpha_beta.alpha), alpha_beta.beta != 0, operands, scratch);
}

int64_t matmul_workspace(const MatmulGeometry& g, DType dtype) {
  return dispatch_real(dtype, "matmul", [&](auto zero) {
    using T = decltype(zero);
    return std::max(gemm<T>().workspace(gemm_shape(g, false)), gemm<T>().workspace(gemm_shape(g, true)));
  });
}

void matmul(Queue, const MatmulGeometry& g, Scalars alpha_beta, const ConstView& a, const ConstView& b, const ConstView& bias, const View& y, Workspace scratch) {
  dispatch_real(y.dtype, "matmul", [&](auto zero) { matmul_typed<decltype(zero)>(g, alpha_beta, a, b, bias, y, scratch); });
}

}  // namespace

void add_matmul(KernelTable& t) {
  t.matmul_workspace = matmul_workspace;
  t.matmul = matmul;
}

}  // namespace fovea::kernels
