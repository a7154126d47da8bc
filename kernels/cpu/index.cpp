// Indexing along an axis: gather y[..i..] = x[..index[..i..]..], scatter_add y[..index[..i..]..] += source[..i..], and the same with one index for the whole axis
// (index_select, index_add), plus the search for a value out of range. Indices are int64 and were checked.
// Layout: any strides. gather and index_select overwrite y and move any dtype; scatter_add and index_add accumulate into y in its own dtype (not the 16-bit floats).
// Deterministic: contributions to an element come in the order of the axis, since a thread owns whole lines along it. Floor: one read of index and x, one write.
#include <algorithm>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels {
namespace {

constexpr int64_t grain = 4096;                        // elements
constexpr int64_t line_block = 64;                     // neighbouring lines that one task accumulates

// A view of rank 0 seen as one element of rank 1.
template <class V>
V with_an_axis(V v) {
  if (v.rank() > 0) return v;
  v.shape.push_back(1);
  v.strides.push_back(1);
  return v;
}

int64_t tasks_grain(int64_t elements_per_task) { return std::max<int64_t>(1, grain / std::max<int64_t>(elements_per_task, 1)); }

// The positions of a shape over some of its axes, counted in row-major order.
struct Positions {
  int axes[max_rank] = {};
  int rank = 0;
  Shape shape;

  Positions(const Shape& all, int skip_a, int skip_b) : shape(all) {
    for (int i = 0; i < all.rank(); ++i)
      if (i != skip_a && i != skip_b) axes[rank++] = i;
  }
  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[axes[i]];
    return n;
  }
  // Offsets of position i in views of the given strides.
  void locate(int64_t i, std::initializer_list<const Strides*> strides, std::initializer_list<int64_t*> offsets) const {
    for (int64_t* offset : offsets) *offset = 0;
    for (int k = rank - 1; k >= 0; --k) {
      const int64_t coordinate = i % shape[axes[k]];
      i /= shape[axes[k]];
      auto offset = offsets.begin();
      for (const Strides* s : strides) **offset++ += coordinate * (*s)[axes[k]];
    }
  }
};

// --- gather ---

template <class T>
void gather_as(int axis, const ConstView& x, const ConstView& index, const View& y) {
  const int last = y.rank() - 1;
  const Positions rows(y.shape, last, axis == last ? -1 : axis);
  const int64_t length = y.shape[last], steps = axis == last ? 1 : y.shape[axis];
  const int64_t x_step = axis == last ? 0 : x.strides[last], x_jump = x.strides[axis], i_step = index.strides[last], y_step = y.strides[last];
  parallel_for(rows.count() * steps, tasks_grain(length), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t from = 0, at = 0, to = 0;
      rows.locate(task / steps, {&x.strides, &index.strides, &y.strides}, {&from, &at, &to});
      if (axis != last) {
        at += task % steps * index.strides[axis];
        to += task % steps * y.strides[axis];
      }
      const T* source = x.as<T>() + from;
      const int64_t* where = index.as<int64_t>() + at;
      T* target = y.as<T>() + to;
      if (i_step == 0 && x_step == 1 && y_step == 1) {                       // one index for the row: a row of x
        std::copy_n(source + *where * x_jump, length, target);
      } else {
        for (int64_t j = 0; j < length; ++j) target[j * y_step] = source[where[j * i_step] * x_jump + j * x_step];
      }
    }
  });
}

void gather(Queue, int axis, const ConstView& x_, const ConstView& index_, const View& y_) {
  const ConstView x = with_an_axis(x_), index = with_an_axis(index_);
  const View y = with_an_axis(y_);
  if (y.numel() == 0) return;
  switch (size_of(y.dtype)) {
    case 1: return gather_as<uint8_t>(axis, x, index, y);
    case 2: return gather_as<uint16_t>(axis, x, index, y);
    case 4: return gather_as<uint32_t>(axis, x, index, y);
    default: return gather_as<uint64_t>(axis, x, index, y);
  }
}

// --- scatter_add ---

// Lines along `axis`, line_block neighbours in the last axis at a time, so that rows are walked in memory order.
template <class T>
void scatter_add_as(int axis, const ConstView& index, const ConstView& source, const View& y) {
  const int last = index.rank() - 1;
  const Positions lines(index.shape, axis, last);
  const int64_t steps = index.shape[axis], width = axis == last ? 1 : index.shape[last], blocks = (width + line_block - 1) / line_block;
  const int64_t y_step = axis == last ? 0 : y.strides[last], i_step = axis == last ? 0 : index.strides[last], s_step = axis == last ? 0 : source.strides[last];
  parallel_for(lines.count() * blocks, tasks_grain(steps * std::min(width, line_block)), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * line_block, count = std::min(line_block, width - first);
      int64_t at = 0, from = 0, to = 0;
      lines.locate(task / blocks, {&index.strides, &source.strides, &y.strides}, {&at, &from, &to});
      const int64_t* where = index.as<int64_t>() + at + first * i_step;
      const T* in = source.as<T>() + from + first * s_step;
      T* out = y.as<T>() + to + first * y_step;
      for (int64_t k = 0; k < steps; ++k, where += index.strides[axis], in += source.strides[axis]) {
        if (i_step == 0) {                                                   // one index for the row
          T* row = out + *where * y.strides[axis];
          for (int64_t j = 0; j < count; ++j) row[j * y_step] = static_cast<T>(row[j * y_step] + in[j * s_step]);
        } else {
          for (int64_t j = 0; j < count; ++j) {
            T& target = out[where[j * i_step] * y.strides[axis] + j * y_step];
            target = static_cast<T>(target + in[j * s_step]);
          }
        }
      }
    }
  });
}

void scatter_add(Queue, int axis, const ConstView& index_, const ConstView& source_, const View& y_) {
  const ConstView index = with_an_axis(index_), source = with_an_axis(source_);
  const View y = with_an_axis(y_);
  if (index.numel() == 0) return;
  switch (y.dtype) {
    case DType::float32: return scatter_add_as<float>(axis, index, source, y);
    case DType::float64: return scatter_add_as<double>(axis, index, source, y);
    case DType::int32: return scatter_add_as<int32_t>(axis, index, source, y);
    case DType::int64: return scatter_add_as<int64_t>(axis, index, source, y);
    case DType::uint8: return scatter_add_as<uint8_t>(axis, index, source, y);
    case DType::boolean: return scatter_add_as<bool>(axis, index, source, y);
    default: fail<DTypeError>("scatter_add: cannot accumulate in ", name_of(y.dtype), "; convert with to(x, DType::float32)");
  }
}

// --- one index for the whole axis: the same, with an index that repeats over the other axes ---

ConstView repeated_index(const ConstView& index, int axis, const Shape& shape) {
  ConstView v = index;
  v.shape = shape;
  v.strides = Strides::filled(shape.rank(), 0);
  if (shape.rank() > 0) v.strides[axis] = index.rank() > 0 ? index.strides[0] : 0;
  return v;
}

void index_select(Queue queue, int axis, const ConstView& x, const ConstView& index, const View& y) {
  gather(queue, axis, x, repeated_index(index, axis, y.shape), y);
}

void index_add(Queue queue, int axis, const ConstView& index, const ConstView& source, const View& y) {
  scatter_add(queue, axis, repeated_index(index, axis, source.shape), source, y);
}

void check_range(Queue, const RangeCheck& check, const ConstView& values_, const ConstView& lengths) {
  const ConstView values = with_an_axis(values_);
  if (values.numel() == 0) return;
  const int last = values.rank() - 1;
  const Positions rows(values.shape, last, -1);
  const int64_t columns = values.shape[last], step = values.strides[last], count = rows.count();
  for (int64_t row = 0; row < count; ++row) {
    int64_t at = 0;
    rows.locate(row, {&values.strides}, {&at});
    const int64_t* value = values.as<int64_t>() + at;
    const int64_t length = lengths ? std::min(lengths.as<int64_t>()[row], columns) : columns;
    bool are_allowed = true;
    for (int64_t j = 0; j < length; ++j) are_allowed &= check.allows(value[j * step]);
    for (int64_t j = 0; !are_allowed && j < length; ++j)
      if (!check.allows(value[j * step])) fail<IndexError>(sentence_of(check, row * columns + j, value[j * step], values_.shape));
  }
}

}  // namespace

void add_index(KernelTable& t) {
  t.gather = gather;
  t.scatter_add = scatter_add;
  t.index_select = index_select;
  t.index_add = index_add;
  t.check_range = check_range;
}

}  // namespace fovea::kernels
