// Matrix product: y[b,m,n] = alpha * sum_k a[b,m,k] b[b,k,n] + beta * y[b,m,n] + bias[n], any strides. By cuBLAS (kernels/cuda/blas.h).
// Operands are used as they lie where rows or columns are contiguous; others are copied first. Batch axes that no single stride covers (operands broadcast along
// different axes) take a call for each index of the shorter ones. A bias is laid out in y before the product is added.
// Overwrites y (reads it only when beta != 0), which may be float32 beside operands of a half type. Sums in float32 for float32 and the half types, in float64 for float64. Deterministic. Floor: 2 b m n k FLOPs.
#include <fovea/kernels/cuda/blas.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/nvtx.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace fovea::kernels::cuda {
namespace {

constexpr int64_t most = std::numeric_limits<int32_t>::max();

// The entries of this device's table that a product needs around it.
const KernelTable& own_table() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cuda: asking for the current device");
  return cuda_table(device);
}

// Do rows (or columns, with the strides exchanged) lie one after the other, each in one piece?
bool lies_in_rows(int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  return (column_stride == 1 || columns == 1) && (rows == 1 || (row_stride >= columns && row_stride <= most));
}

// The last two axes of a view.
struct Layout {
  bool fits = false, is_transposed = false;
  int64_t leading = 1;
};

Layout layout_of(const ConstView& v) {
  const int64_t rows = v.shape.back(1), columns = v.shape.back(0), row = v.strides.back(1), column = v.strides.back(0);
  if (lies_in_rows(rows, columns, row, column)) return {true, false, rows == 1 ? columns : row};
  if (lies_in_rows(columns, rows, column, row)) return {true, true, columns == 1 ? rows : column};
  return {};
}

View contiguous_view(void* data, DType dtype, const Shape& shape) {
  View v;
  v.data = data;
  v.dtype = dtype;
  v.shape = shape;
  v.strides = contiguous_strides(shape);
  return v;
}

// A view that cuBLAS can take, and the memory of its copy if it is one. Axes that are broadcast stay so: only what is there is copied.
struct Operand {
  ConstView view;
  std::unique_ptr<DeviceScratch> copy;
};

Operand operand_of(Queue queue, const ConstView& v) {
  if (layout_of(v).fits) return {v, nullptr};
  ConstView stored = v;
  for (int axis = 0; axis < v.rank() - 2; ++axis)
    if (v.strides[axis] == 0) stored.shape[axis] = 1;
  auto memory = std::make_unique<DeviceScratch>(stored.numel() * size_of(v.dtype), queue);
  const View target = contiguous_view(memory->data(), v.dtype, stored.shape);
  own_table().copy(queue, stored, target);
  ConstView result = target;
  for (int axis = 0; axis < v.rank() - 2; ++axis) {
    if (stored.shape[axis] != v.shape[axis]) result.strides[axis] = 0;
    result.shape[axis] = v.shape[axis];
  }
  return {result, std::move(memory)};
}

// Batch axes of the three views, with those that all walk through in one stride merged.
struct BatchAxis {
  int64_t size, a, b, y;                               // strides
};

std::vector<BatchAxis> batch_axes(const ConstView& a, const ConstView& b, const ConstView& y) {
  std::vector<BatchAxis> axes;                         // outermost first
  for (int i = 0; i < y.rank() - 2; ++i) {
    if (y.shape[i] == 1) continue;
    const BatchAxis next{y.shape[i], a.strides[i], b.strides[i], y.strides[i]};
    if (!axes.empty()) {
      BatchAxis& last = axes.back();
      if (last.a == next.a * next.size && last.b == next.b * next.size && last.y == next.y * next.size) {
        last = {last.size * next.size, next.a, next.b, next.y};
        continue;
      }
    }
    axes.push_back(next);
  }
  return axes;
}

const char* at(const void* data, int64_t elements, DType dtype) { return static_cast<const char*>(data) + elements * size_of(dtype); }

// a, b and y lie as cuBLAS wants them, y row after row.
void multiply(Queue queue, Scalars scale, const ConstView& a, const ConstView& b, const View& y) {
  const int64_t m = y.shape.back(1), n = y.shape.back(0), k = a.shape.back(0);
  check<DeviceError>(m <= most && n <= most && k <= most, "matmul: cuBLAS takes sizes below 2^31, got m = ", m, ", n = ", n, ", k = ", k);
  std::vector<BatchAxis> axes = batch_axes(a, b, y);
  BatchAxis together{1, 0, 0, 0};                      // the axis that goes into one call: the longest of those that all walk forwards, as cuBLAS promises nothing else
  const auto length = [](const BatchAxis& axis) { return axis.a >= 0 && axis.b >= 0 && axis.y >= 0 ? axis.size : 0; };
  const auto longest = std::max_element(axes.begin(), axes.end(), [&](const BatchAxis& p, const BatchAxis& q) { return length(p) < length(q); });
  if (longest != axes.end() && length(*longest) > 0) {
    together = *longest;
    axes.erase(longest);
  }
  const Layout in_a = layout_of(a), in_b = layout_of(b), in_y = layout_of(y);
  int64_t calls = 1;
  for (const BatchAxis& axis : axes) calls *= axis.size;
  for (int64_t call = 0; call < calls; ++call) {
    int64_t offset_a = 0, offset_b = 0, offset_y = 0, left = call;
    for (const BatchAxis& axis : axes) {
      const int64_t i = left % axis.size;
      left /= axis.size;
      offset_a += i * axis.a, offset_b += i * axis.b, offset_y += i * axis.y;
    }
    constexpr int64_t most_together = 32768;           // matrices in one call
    for (int64_t first = 0; first < together.size; first += most_together) {
      const int64_t count = std::min(most_together, together.size - first);
      const BlasMatrix from_a{at(a.data, offset_a + first * together.a, a.dtype), in_a.is_transposed, in_a.leading, together.a};
      const BlasMatrix from_b{at(b.data, offset_b + first * together.b, b.dtype), in_b.is_transposed, in_b.leading, together.b};
      void* to = const_cast<char*>(at(y.data, offset_y + first * together.y, y.dtype));
      const fovea::cuda::Range range("gemm");
      gemm_strided_batched(queue, a.dtype, y.dtype, count, m, n, k, scale.alpha, from_a, from_b, scale.beta, {to, in_y.leading, together.y});
    }
  }
}

ConstView transposed(ConstView v) {
  const int last = v.rank() - 1;
  std::swap(v.shape[last], v.shape[last - 1]);
  std::swap(v.strides[last], v.strides[last - 1]);
  return v;
}

View transposed(View v) {
  const int last = v.rank() - 1;
  std::swap(v.shape[last], v.shape[last - 1]);
  std::swap(v.strides[last], v.strides[last - 1]);
  return v;
}

bool lies_in_rows(const View& y) { return lies_in_rows(y.shape.back(1), y.shape.back(0), y.strides.back(1), y.strides.back(0)); }

void multiply_into(Queue queue, Scalars scale, const ConstView& a, const ConstView& b, const View& y) {
  if (lies_in_rows(y)) return multiply(queue, scale, a, b, y);
  if (lies_in_rows(transposed(y))) return multiply(queue, scale, transposed(b), transposed(a), transposed(y));
  const DeviceScratch memory(y.numel() * size_of(y.dtype), queue);
  const View whole = contiguous_view(memory.data(), y.dtype, y.shape);
  if (scale.beta != 0) own_table().copy(queue, y, whole);
  multiply(queue, scale, a, b, whole);
  own_table().copy(queue, whole, y);
}

// The bias seen with y's shape.
ConstView spread(const ConstView& bias, const View& y) {
  ConstView v = bias;
  v.shape = y.shape;
  v.strides = Strides::filled(y.rank(), 0);
  v.strides[y.rank() - 1] = bias.stride(0);
  return v;
}

int64_t matmul_workspace(const MatmulGeometry&, DType) { return 0; }       // whether copies are needed only the strides can tell

void matmul(Queue queue, const MatmulGeometry& g, Scalars scale, const ConstView& a, const ConstView& b, const ConstView& bias, const View& y, Workspace) {
  check<DTypeError>(is_floating(y.dtype), "matmul: takes floating-point tensors, got ", y.dtype, "; convert with to(x, DType::float32)");
  if (y.numel() == 0) return;
  const KernelTable& table = own_table();
  if (bias && scale.beta == 0) {
    table.copy(queue, spread(bias, y), y);
    scale.beta = 1;
  } else if (bias) {
    if (scale.beta != 1) table.unary(queue, Unary::mul_scalar, {scale.beta, 0}, y, y);
    table.binary(queue, Binary::add, {}, y, spread(bias, y), y);
    scale.beta = 1;
  }
  if (g.k == 0) {                                      // an empty sum
    if (scale.beta == 0) table.fill(queue, 0, y);
    else if (scale.beta != 1) table.unary(queue, Unary::mul_scalar, {scale.beta, 0}, y, y);
    return;
  }
  const Operand left = operand_of(queue, a), right = operand_of(queue, b);
  multiply_into(queue, scale, left.view, right.view, y);
}

}  // namespace

void add_matmul(KernelTable& t) {
  t.computes_half.add(Family::matmul);
  t.matmul_workspace = matmul_workspace;
  t.matmul = matmul;
}

}  // namespace fovea::kernels::cuda
