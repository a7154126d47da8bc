// arg_reduce: the position of the largest or smallest element along an axis (the first of equals; NaN wins); cumsum: running sums along an
// axis. Layout: any strides. Overwrites y. Running sums are kept in float64 (int64 for integers). Deterministic: an axis is always walked
// in order by one thread. Floor: one read of x, one write of y. Where the axis is not x's innermost, neighbouring outputs are worked on
// together, so memory is read in order.
#include <fovea/kernels/table.h>

#include <fovea/kernels/cpu/convert.h>
#include <fovea/kernels/cpu/elementwise_blocks.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/cpu/reduce_blocks.h>
#include <fovea/kernels/cpu/strided.h>

namespace fovea::kernels {
namespace {

constexpr int64_t grain = 32768, tile = 512;

// Everything but one axis of x and y, and how to step along that axis.
struct AlongAxis {
  StridedLoop<2> rest;                         // operand 0: y, 1: x
  int64_t length, x_step, y_step;              // bytes

  AlongAxis(int axis, const ConstView& x, const View& y) : length(x.shape[axis]) {
    x_step = x.strides[axis] * size_of(x.dtype);
    y_step = y.strides[axis] * size_of(y.dtype);
    Shape shape = x.shape;
    shape[axis] = 1;
    rest.set(0, y);
    rest.set(1, x);
    rest.collapse(shape);
  }
  bool is_by_column(int64_t x_bytes) const {
    return rest.inner() >= 8 && std::abs(rest.inner_stride(1)) < std::max(std::abs(x_step), 2 * x_bytes);
  }

  // Calls rows(y, x) for each line along the axis, or columns(y, x, n) for n neighbouring lines.
  template <class Rows, class Columns>
  void run(int64_t x_bytes, const Rows& rows, const Columns& columns) const {
    const bool by_column = is_by_column(x_bytes);
    parallel_for(rest.total, std::max<int64_t>(1, grain / std::max<int64_t>(length, 1)), [&](int64_t begin, int64_t end) {
      for_each_run(rest, begin, end, [&](const std::array<char*, 2>& p, int64_t n) {
        for (int64_t i = 0; i < n; i += by_column ? tile : 1) {
          char* y = p[0] + i * rest.inner_stride(0);
          const char* x = p[1] + i * rest.inner_stride(1);
          by_column ? columns(y, x, std::min(tile, n - i)) : rows(y, x);
        }
      });
    });
  }
};

template <class T>
bool is_better(ArgReduce op, T candidate, T best) {
  if constexpr (!std::is_integral_v<T>) {
    if (best != best) return false;
    if (candidate != candidate) return true;
  }
  return op == ArgReduce::argmax ? candidate > best : candidate < best;
}

template <class T>
void arg_reduce_of(ArgReduce op, int axis, const ConstView& x, const View& y) {
  const AlongAxis along(axis, x, y);
  const int64_t x_bytes = size_of(x.dtype);
  const ConvertRun to_buffer = convert_run(x.dtype, dtype_of<T>);
  const bool is_direct_type = x.dtype == dtype_of<T>;
  const auto row = reduce_blocks<T>().row;

  const auto rows = [&](char* out, const char* line) {
    alignas(64) T buffer[tile];
    T best{};
    int64_t position = 0;
    for (int64_t i = 0; i < along.length; i += tile) {
      const int64_t n = std::min(tile, along.length - i);
      const char* source = line + i * along.x_step;
      const bool is_direct = is_direct_type && along.x_step == x_bytes;
      if (!is_direct) to_buffer(source, along.x_step, buffer, sizeof(T), n);
      const T* values = is_direct ? reinterpret_cast<const T*>(source) : buffer;
      const T candidate = static_cast<T>(row(op == ArgReduce::argmax ? Reduce::max : Reduce::min, values, n).value);
      if (i > 0 && !is_better(op, candidate, best)) continue;
      best = candidate;
      for (position = i; position < i + n - 1; ++position) {
        const T value = values[position - i];
        if (value == candidate || value != value) break;      // a NaN is the best there is, wherever it stands
      }
    }
    *reinterpret_cast<int64_t*>(out) = position;
  };

  const auto columns = [&](char* out, const char* first, int64_t width) {
    alignas(64) T buffer[tile], best[tile];
    int64_t position[tile] = {};
    const int64_t stride = along.rest.inner_stride(1);
    to_buffer(first, stride, best, sizeof(T), width);
    for (int64_t i = 1; i < along.length; ++i) {
      to_buffer(first + i * along.x_step, stride, buffer, sizeof(T), width);
      for (int64_t j = 0; j < width; ++j) {
        const bool better = is_better(op, buffer[j], best[j]);
        best[j] = better ? buffer[j] : best[j];
        position[j] = better ? i : position[j];
      }
    }
    for (int64_t j = 0; j < width; ++j) *reinterpret_cast<int64_t*>(out + j * along.rest.inner_stride(0)) = position[j];
  };
  along.run(x_bytes, rows, columns);
}

void arg_reduce(Queue, ArgReduce op, int axis, const ConstView& x, const View& y) {
  if (y.numel() == 0 || x.numel() == 0) return;
  switch (compute_dtype(x.dtype)) {
    case DType::float32: return arg_reduce_of<float>(op, axis, x, y);
    case DType::float64: return arg_reduce_of<double>(op, axis, x, y);
    default: return arg_reduce_of<int64_t>(op, axis, x, y);
  }
}

double plus(double a, double b) { return a + b; }
int64_t plus(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b)); }

template <class A>
void cumsum_of(int axis, bool is_reversed, const ConstView& x, const View& y) {
  const AlongAxis along(axis, x, y);
  const ConvertRun read = convert_run(x.dtype, dtype_of<A>), write = convert_run(dtype_of<A>, y.dtype);
  const int64_t last = along.length - 1;

  const auto rows = [&](char* out, const char* line) {
    A values[tile];
    A sum = 0;
    const int64_t x_step = is_reversed ? -along.x_step : along.x_step, y_step = is_reversed ? -along.y_step : along.y_step;
    const char* source = is_reversed ? line + last * along.x_step : line;
    char* target = is_reversed ? out + last * along.y_step : out;
    for (int64_t i = 0; i < along.length; i += tile) {
      const int64_t n = std::min(tile, along.length - i);
      read(source + i * x_step, x_step, values, sizeof(A), n);
      for (int64_t j = 0; j < n; ++j) values[j] = sum = plus(sum, values[j]);
      write(values, sizeof(A), target + i * y_step, y_step, n);
    }
  };

  const auto columns = [&](char* out, const char* first, int64_t width) {
    A sums[tile] = {}, values[tile];
    for (int64_t i = 0; i < along.length; ++i) {
      const int64_t at = is_reversed ? last - i : i;
      read(first + at * along.x_step, along.rest.inner_stride(1), values, sizeof(A), width);
      for (int64_t j = 0; j < width; ++j) sums[j] = plus(sums[j], values[j]);
      write(sums, sizeof(A), out + at * along.y_step, along.rest.inner_stride(0), width);
    }
  };
  along.run(size_of(x.dtype), rows, columns);
}

void cumsum(Queue, int axis, bool is_reversed, const ConstView& x, const View& y) {
  if (y.numel() == 0) return;
  if (is_floating(x.dtype) || is_floating(y.dtype)) cumsum_of<double>(axis, is_reversed, x, y);
  else cumsum_of<int64_t>(axis, is_reversed, x, y);
}

}  // namespace

void add_scan(KernelTable& t) {
  t.arg_reduce = arg_reduce;
  t.cumsum = cumsum;
}

}  // namespace fovea::kernels
