// Sorting along an axis, and the k largest or smallest elements in order; values and their int64 positions.
// Stable: of equals the one that came first comes first. A NaN counts as the largest, as in PyTorch: last when ascending, first when descending or among the largest.
// Layout: any strides. Overwrites values and indices. Any dtype. Deterministic. Comparisons: n log n for sort, n log k for topk (a heap of the k best so far).
//
// Note [Sorting without memory]
// Nothing is allocated: what is sorted lies in the memory of `indices`. An element of up to 32 bits becomes one word, its order in the upper half and its position
// in the lower, so that comparing words compares elements and then positions. Of wider elements the positions themselves are sorted, by looking the elements up.
#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>
#include <type_traits>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels {
namespace {

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
  [[maybe_unused]] friend StridedIterator operator+(StridedIterator i, int64_t n) { return i += n; }
  [[maybe_unused]] friend StridedIterator operator+(int64_t n, StridedIterator i) { return i += n; }
  [[maybe_unused]] friend StridedIterator operator-(StridedIterator i, int64_t n) { return i -= n; }
  [[maybe_unused]] friend int64_t operator-(const StridedIterator& a, const StridedIterator& b) { return (a.p_ - b.p_) / a.step_; }
  [[maybe_unused]] friend bool operator==(const StridedIterator& a, const StridedIterator& b) { return a.p_ == b.p_; }
  [[maybe_unused]] friend bool operator!=(const StridedIterator& a, const StridedIterator& b) { return a.p_ != b.p_; }
  [[maybe_unused]] friend bool operator<(const StridedIterator& a, const StridedIterator& b) { return b - a > 0; }
  [[maybe_unused]] friend bool operator>(const StridedIterator& a, const StridedIterator& b) { return b < a; }
  [[maybe_unused]] friend bool operator<=(const StridedIterator& a, const StridedIterator& b) { return !(b < a); }
  [[maybe_unused]] friend bool operator>=(const StridedIterator& a, const StridedIterator& b) { return !(a < b); }

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

// The order of an element as an unsigned number; descending order is its complement.
template <class T>
uint32_t order_of(T value) {
  if constexpr (std::is_same_v<T, int32_t>) {
    return static_cast<uint32_t>(value) ^ 0x80000000u;
  } else if constexpr (std::is_integral_v<T>) {
    return value;
  } else {
    const float number = static_cast<float>(value) + 0.0f;                   // -0 and 0 are equals
    const uint32_t bits = std::bit_cast<uint32_t>(number);
    if (number != number) return std::numeric_limits<uint32_t>::max();
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
}

// The first `kept` of `size` items in order, put where `items` points: item(i) makes the i-th.
template <class Iterator, class Item, class Before>
void keep_first(Iterator items, int64_t size, int64_t kept, const Item& item, const Before& before) {
  for (int64_t i = 0; i < kept; ++i) items[i] = item(i);
  if (kept == size) {
    std::sort(items, items + size, before);
    return;
  }
  std::make_heap(items, items + kept, before);                               // the last of the best on top
  for (int64_t i = kept; i < size; ++i) {
    const int64_t candidate = item(i);
    if (!before(candidate, items[0])) continue;
    std::pop_heap(items, items + kept, before);
    items[kept - 1] = candidate;
    std::push_heap(items, items + kept, before);
  }
  std::sort_heap(items, items + kept, before);
}

template <class T>
struct Line {
  const T* x;
  T* values;
  int64_t* indices;
  int64_t size, kept;                        // elements of x, and how many of them are wanted
  int64_t x_step, values_step, indices_step;
  bool is_descending;

  template <class Iterator>
  void run_on(Iterator items) const {
    if constexpr (sizeof(T) <= 4) {
      const uint32_t flip = is_descending ? ~0u : 0u;
      const auto word = [this, flip](int64_t i) { return static_cast<int64_t>(static_cast<uint64_t>(order_of(x[i * x_step]) ^ flip) << 32 | static_cast<uint64_t>(i)); };
      keep_first(items, size, kept, word, [](int64_t a, int64_t b) { return static_cast<uint64_t>(a) < static_cast<uint64_t>(b); });
      for (int64_t i = 0; i < kept; ++i) items[i] &= 0xffffffff;
    } else {
      const auto before = [this](int64_t a, int64_t b) { return comes_before(x[a * x_step], a, x[b * x_step], b, is_descending); };
      keep_first(items, size, kept, [](int64_t i) { return i; }, before);
    }
    for (int64_t i = 0; i < kept; ++i) values[i * values_step] = x[items[i] * x_step];
  }

  void run() const {
    if (kept == 0) return;
    if (indices_step == 1) run_on(indices);
    else run_on(StridedIterator(indices, indices_step));
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
