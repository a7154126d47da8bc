// copy: y = x for any strides and any pair of dtypes; fill: y = value; arange: y[i] = start + i * step (in float64, then converted).
// Layout: any strides. Overwrites y. Deterministic. Floor: one read of x, one write of y.
// Where x and y run along different axes (a transpose) the copy goes tile by tile, so that every cache line is used while it is there.
#include <fovea/kernels/table.h>

#include <cstring>

#include <fovea/kernels/cpu/convert.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/cpu/strided.h>
#include <fovea/kernels/cpu/transpose.h>

namespace fovea::kernels {
namespace {

constexpr int64_t grain_bytes = 1 << 18;       // a piece of work for one thread
constexpr int64_t stream_bytes =
    8 << 20;  // a transpose as large as this writes past the caches: four times faster, as no line is read to be overwritten

// The axis, other than the innermost one, along which x lies contiguously while y does so along the innermost; -1 if the copy is no
// transpose.
int transposed_axis(const StridedLoop<2>& loop, int64_t x_bytes, int64_t y_bytes) {
  if (loop.inner_stride(0) != y_bytes || std::abs(loop.inner_stride(1)) <= x_bytes || loop.inner() < 4) return -1;
  for (int i = 0; i < loop.rank - 1; ++i)
    if (loop.stride[1][i] == x_bytes && loop.size[i] >= 4) return i;
  return -1;
}

void copy_transposed(StridedLoop<2> loop, int axis, int64_t bytes) {
  const TransposeTile transpose = transpose_tile_of(bytes);
  const int last = loop.rank - 1;
  const int64_t rows = loop.size[axis], columns = loop.size[last];
  const int64_t y_row = loop.stride[0][axis], x_column = loop.stride[1][last];
  const bool streams = loop.total * bytes >= stream_bytes;
  loop.size[axis] = 1;                         // the axes that are left number the matrices
  loop.size[last] = 1;
  const int64_t matrices = loop.total / (rows * columns);
  const int64_t tile_rows = std::max<int64_t>(1, (rows + transpose_tile - 1) / transpose_tile);
  const int64_t tile_columns = std::max<int64_t>(1, (columns + transpose_tile - 1) / transpose_tile);
  const int64_t grain = std::max<int64_t>(1, grain_bytes / (transpose_tile * transpose_tile * bytes));
  parallel_for(matrices * tile_rows * tile_columns, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t r = t % tile_rows * transpose_tile, c = t / tile_rows % tile_columns * transpose_tile;
      const Cursor cursor(loop.size, loop.rank, t / (tile_rows * tile_columns));
      const char* x = loop.base[1] + cursor.offset(loop.stride[1], loop.rank) + r * bytes + c * x_column;
      char* y = loop.base[0] + cursor.offset(loop.stride[0], loop.rank) + r * y_row + c * bytes;
      transpose(streams, x, x_column, y, y_row, std::min(transpose_tile, rows - r), std::min(transpose_tile, columns - c));
    }
  });
}

void copy(Queue, const ConstView& x, const View& y) {
  const int64_t n = y.numel();
  if (n == 0) return;
  const int64_t x_bytes = size_of(x.dtype), y_bytes = size_of(y.dtype);
  const ConvertRun convert = convert_run(x.dtype, y.dtype);
  if (n * y_bytes <= grain_bytes && x.is_contiguous() && y.is_contiguous()) return convert(x.data, x_bytes, y.data, y_bytes, n);
  StridedLoop<2> loop;
  loop.set(0, y);
  loop.set(1, x);
  loop.collapse(y.shape);
  const int axis = x.dtype == y.dtype ? transposed_axis(loop, x_bytes, y_bytes) : -1;
  if (axis >= 0) return copy_transposed(loop, axis, x_bytes);
  parallel_for(loop.total, grain_bytes / y_bytes, [&](int64_t begin, int64_t end) {
    for_each_run(loop, begin, end,
                 [&](const std::array<char*, 2>& p, int64_t run) { convert(p[1], loop.inner_stride(1), p[0], loop.inner_stride(0), run); });
  });
}

void fill(Queue, double value, const View& y) {
  const int64_t n = y.numel();
  if (n == 0) return;
  const int64_t bytes = size_of(y.dtype);
  uint64_t element = 0;                        // the value in y's dtype, wide enough for any
  convert_run(DType::float64, y.dtype)(&value, 0, &element, bytes, 1);
  const ConvertRun convert = convert_run(y.dtype, y.dtype);
  if (n * bytes <= grain_bytes && y.is_contiguous()) return convert(&element, 0, y.data, bytes, n);
  StridedLoop<1> loop;
  loop.set(0, y);
  loop.collapse(y.shape);
  parallel_for(n, grain_bytes / bytes, [&](int64_t begin, int64_t end) {
    for_each_run(loop, begin, end,
                 [&](const std::array<char*, 1>& p, int64_t run) { convert(&element, 0, p[0], loop.inner_stride(0), run); });
  });
}

void arange(Queue, double start, double step, const View& y) {
  const ConvertRun convert = convert_run(DType::float64, y.dtype);
  const int64_t bytes = size_of(y.dtype), y_stride = y.numel() > 0 ? y.strides[0] * bytes : 0;
  constexpr int64_t block = 512;
  double values[block];
  for (int64_t begin = 0; begin < y.numel(); begin += block) {
    const int64_t n = std::min(block, y.numel() - begin);
    for (int64_t i = 0; i < n; ++i) values[i] = start + static_cast<double>(begin + i) * step;
    convert(values, sizeof(double), y.as<char>() + begin * y_stride, y_stride, n);
  }
}

}  // namespace

void add_copy(KernelTable& t) {
  t.copy = copy;
  t.fill = fill;
  t.arange = arange;
}

}  // namespace fovea::kernels
