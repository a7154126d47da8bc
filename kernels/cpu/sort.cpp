// Sorting along an axis, and the k largest or smallest elements in order; values and their int64 positions.
// Stable: of equals the one that came first comes first. A NaN counts as the largest, as in PyTorch: last when ascending, first when descending or among the largest.
// Layout: any strides. Overwrites values and indices. Any dtype. Deterministic. Nothing is allocated: short lines are sorted on the stack, of long ones the positions
// are sorted where they are to stand. Comparisons: n log n for sort, n log k for topk (a heap of the k best so far).
#include <algorithm>
#include <iterator>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels {
namespace {

constexpr int64_t short_line = 256;

// Elements of an axis, `step` apart.
class StridedIterator {
 public:
  using iterator_category = std::random_access_iterator_tag;
  using value_type = int64_t;
  using difference_type = int64_t;
  using pointer = int64_t*;
  using reference = int64_t&;

  StridedIterator() = default;
  StridedIterator(int64_t* p, int64_t step) : p_(p), step_(step) {}
  reference operator*() const { return *p_; }
  reference operator[](int64_t n) const { return p_[n * step_]; }
  StridedIterator& operator++() { return *this += 1; }
  StridedIterator& operator--() { return *this -= 1; }
  StridedIterator operator++(int) { StridedIterator before = *this; *this += 1; return before; }
  StridedIterator operator--(int) { StridedIterator before = *this; *this -= 1; return before; }
  StridedIterator& operator+=(int64_t n) { p_ += n * step_; return *this; }
  StridedIterator& operator-=(int64_t n) { p_ -= n * step_; return *this; }
  friend StridedIterator operator+(StridedIterator i, int64_t n) { return i += n; }
  friend StridedIterator operator+(int64_t n, StridedIterator i) { return i += n; }
  friend StridedIterator operator-(StridedIterator i, int64_t n) { return i -= n; }
  friend int64_t operator-(const StridedIterator& a, const StridedIterator& b) { return (a.p_ - b.p_) / a.step_; }
  friend bool operator==(const StridedIterator& a, const StridedIterator& b) { return a.p_ == b.p_; }
  friend bool operator!=(const StridedIterator& a, const StridedIterator& b) { return a.p_ != b.p_; }
  friend bool operator<(const StridedIterator& a, const StridedIterator& b) { return b - a > 0; }
  friend bool operator>(const StridedIterator& a, const StridedIterator& b) { return b < a; }
  friend bool operator<=(const StridedIterator& a, const StridedIterator& b) { return !(b < a); }
  friend bool operator>=(const StridedIterator& a, const StridedIterator& b) { return !(a < b); }

 private:
  int64_t* p_ = nullptr;
  int64_t step_ = 1;
};

// Does a come before b? NaN is larger than everything; of equals the earlier position comes first, which makes any sort stable.
template <class T>
bool comes_before(T a, int64_t a_position, T b, int64_t b_position, bool is_descending) {
  const bool a_is_nan = a != a, b_is_nan = b != b;
  const bool a_is_larger = a > b || (a_is_nan && !b_is_nan), b_is_larger = b > a || (b_is_nan && !a_is_nan);
  if (a_is_larger || b_is_larger) return is_descending ? a_is_larger : b_is_larger;
  return a_position < b_position;
}

template <class T>
struct Line {
  const T* x;
  T* values;
  int64_t* indices;
  int64_t size, kept;                        // elements of x, and how many of them are wanted
  int64_t x_step, values_step, indices_step;
  bool is_descending;

  void sort_on_stack() const {
    struct Item { T value; int64_t position; };
    Item items[short_line];
    for (int64_t i = 0; i < size; ++i) items[i] = {x[i * x_step], i};
    std::sort(items, items + size, [this](const Item& a, const Item& b) { return comes_before(a.value, a.position, b.value, b.position, is_descending); });
    for (int64_t i = 0; i < kept; ++i) {
      values[i * values_step] = items[i].value;
      indices[i * indices_step] = items[i].position;
    }
  }

  template <class Iterator>
  void sort_positions(Iterator positions) const {
    const auto before = [this](int64_t a, int64_t b) { return comes_before(x[a * x_step], a, x[b * x_step], b, is_descending); };
    for (int64_t i = 0; i < kept; ++i) positions[i] = i;
    if (kept == size) {
      std::sort(positions, positions + size, before);
    } else {                                 // a heap with the last of the best on top
      std::make_heap(positions, positions + kept, before);
      for (int64_t i = kept; i < size; ++i) {
        if (!before(i, positions[0])) continue;
        std::pop_heap(positions, positions + kept, before);
        positions[kept - 1] = i;
        std::push_heap(positions, positions + kept, before);
      }
      std::sort_heap(positions, positions + kept, before);
    }
    for (int64_t i = 0; i < kept; ++i) values[i * values_step] = x[positions[i] * x_step];
  }

  void run() const {
    if (kept == 0) return;
    if (size <= short_line) sort_on_stack();
    else if (indices_step == 1) sort_positions(indices);
    else sort_positions(StridedIterator(indices, indices_step));
  }
};

int64_t stride_of(const Strides& strides, int axis) { return strides.rank() > 0 ? strides[axis] : 1; }

// The offset of line i: a position over all axes but `axis`.
int64_t line_offset(const Shape& shape, const Strides& strides, int axis, int64_t i) {
  int64_t offset = 0;
  for (int k = shape.rank() - 1; k >= 0; --k) {
    if (k == axis) continue;
    offset += i % shape[k] * strides[k];
    i /= shape[k];
  }
  return offset;
}

void order_lines(int axis, bool is_descending, const ConstView& x, const View& values, const View& indices) {
  const int64_t size = x.rank() > 0 ? x.shape[axis] : 1, kept = x.rank() > 0 ? values.shape[axis] : values.numel();
  if (x.numel() == 0 || kept == 0) return;
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(x.numel() / size, std::max<int64_t>(1, 2048 / size), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Line<T> line{x.as<T>() + line_offset(x.shape, x.strides, axis, i), values.as<T>() + line_offset(x.shape, values.strides, axis, i),
                           indices.as<int64_t>() + line_offset(x.shape, indices.strides, axis, i), size, kept, stride_of(x.strides, axis),
                           stride_of(values.strides, axis), stride_of(indices.strides, axis), is_descending};
        line.run();
      }
    });
  });
}

void sort(Queue, int axis, bool is_descending, const ConstView& x, const View& values, const View& indices) { order_lines(axis, is_descending, x, values, indices); }

void topk(Queue, int axis, bool is_largest, const ConstView& x, const View& values, const View& indices) { order_lines(axis, is_largest, x, values, indices); }

}  // namespace

void add_sort(KernelTable& t) {
  t.sort = sort;
  t.topk = topk;
}

}  // namespace fovea::kernels
