// reduce: sum, mean, product, max, min, sum of squares, logsumexp, any, all over any axes; variance: squared deviations from the mean, over any axes.
// Layout: any strides; y has x's rank with reduced axes of size 1. Overwrites y. float16, bfloat16 and float32 are added in float32 within
// blocks of `row_block` elements (or `flush_rows` rows) and in float64 between blocks; integers in int64. Deterministic: blocks and their
// order depend on the shape alone, never on the number of threads. Floor: one read of x.
//
// Note [Rows and columns]
// Where x's innermost axis is reduced, each output is a fold over contiguous runs ("rows"). Where it is kept, rows of x are folded into a
// row of accumulators ("columns"), so memory is still read in order. Rows of a few elements are not worth a call each: they too are folded by column, the
// k-th elements of many rows gathered at a time. A fold too long for one thread is cut into fixed pieces whose results
// are joined in order.
//
// Note [Variances]
// E[x^2] - E[x]^2 loses everything when the mean is large beside the deviation. A block of a row gives its mean and the squared deviations from it while it is in the
// cache, in two passes; blocks are combined by Chan, Golub & LeVeque 1979, eq. 2.1, in float64. Columns are read twice, once for their means.
#include <fovea/kernels/table.h>

#include <cmath>
#include <optional>

#include <fovea/kernels/cpu/convert.h>
#include <fovea/kernels/cpu/elementwise_blocks.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/cpu/reduce_blocks.h>
#include <fovea/kernels/cpu/strided.h>
#include <fovea/kernels/cpu/wrapped.h>

namespace fovea::kernels {
namespace {

constexpr int64_t grain = 32768;               // elements that make a piece of work
constexpr int64_t row_block = 4096;
constexpr int64_t gather_block = 1024;
constexpr int64_t short_row = 32;
constexpr int64_t column_tile = 512;
constexpr int64_t flush_rows = 128;
constexpr int64_t max_pieces = 512, max_column_pieces = 32;

// Axes of one kind, outermost first: how x and y are stepped through along them.
struct Axes {
  int rank = 0;
  int64_t size[max_rank] = {}, x_stride[max_rank] = {}, y_stride[max_rank] = {};
  int64_t total = 1;

  void add(int64_t n, int64_t x, int64_t y) {
    size[rank] = n;
    x_stride[rank] = x;
    y_stride[rank] = y;
    ++rank;
    total *= n;
  }
  // With no axis at all, one step that goes nowhere.
  void finish() {
    if (rank == 0) add(1, 0, 0);
  }
};

double add(double a, double b) { return a + b; }
double multiply(double a, double b) { return a * b; }
int64_t add(int64_t a, int64_t b) { return wrapped_add(a, b); }
int64_t multiply(int64_t a, int64_t b) { return wrapped_multiply(a, b); }

template <class A>
Partial<A> combine(Reduce op, const Partial<A>& a, const Partial<A>& b) {
  switch (op) {
    case Reduce::product: return {multiply(a.value, b.value), 0};
    case Reduce::max: return a.value > b.value || a.value != a.value ? a : b;
    case Reduce::min: return a.value < b.value || a.value != a.value ? a : b;
    case Reduce::any: return {a.value != 0 || b.value != 0 ? A(1) : A(0), 0};
    case Reduce::all: return {a.value != 0 && b.value != 0 ? A(1) : A(0), 0};
    case Reduce::logsumexp: {
      const double m1 = static_cast<double>(a.maximum), m2 = static_cast<double>(b.maximum);
      if (std::isnan(m1) || std::isnan(m2)) return std::isnan(m1) ? a : b;
      if (std::isinf(m1) || std::isinf(m2)) return m1 > m2 ? a : b;
      const double m = std::max(m1, m2);
      return {static_cast<A>(static_cast<double>(a.value) * std::exp(m1 - m) + static_cast<double>(b.value) * std::exp(m2 - m)),
              static_cast<A>(m)};
    }
    default:
      return {add(a.value, b.value), 0};
  }
}

// Rounding may have made a little less than nothing of a sum of squares; NaN stays.
template <class A>
A without_sign(A squares) { return squares < 0 ? A(0) : squares; }

// Two results of squared deviations as one.
template <class A>
Partial<A> combine_deviations(const Partial<A>& a, const Partial<A>& b) {
  if (a.count == 0 || b.count == 0) return a.count == 0 ? b : a;
  const A count = a.count + b.count, delta = b.mean - a.mean;
  return {a.value + b.value + delta * delta * (a.count * (b.count / count)), 0, count, a.mean + delta * (b.count / count)};
}

// With a correction it is a variance, and op is `mean`, which its first pass over columns finds.
template <class T>
class Reduction {
 public:
  using A = Accumulator<T>;

  Reduction(Reduce op, const ConstView& x, const View& y, std::optional<double> correction = {})
      : op_(op),
        correction_(correction),
        x_bytes_(size_of(x.dtype)),
        is_direct_type_(x.dtype == dtype_of<T>),
        blocks_(reduce_blocks<T>()),
        to_buffer_(convert_run(x.dtype, dtype_of<T>)),
        from_double_(convert_run(DType::float64, y.dtype)),
        from_int64_(convert_run(DType::int64, y.dtype)) {
    StridedLoop<2> loop;
    Strides y_strides = y.strides;
    for (int i = 0; i < y.rank(); ++i)
      if (y.shape[i] == 1) y_strides[i] = 0;   // reduced (or of size one, which the loop drops)
    loop.set(0, x);
    loop.set(1, y.data, y.dtype, y_strides);
    loop.collapse(x.shape);
    for (int i = 0; i < loop.rank; ++i) (loop.stride[1][i] == 0 ? reduced_ : kept_).add(loop.size[i], loop.stride[0][i], loop.stride[1][i]);
    const bool inner_is_kept = loop.stride[1][loop.rank - 1] != 0;
    const bool has_short_rows = !inner_is_kept && reduced_.total < short_row;
    kept_.finish();
    is_by_column_ = (inner_is_kept || has_short_rows) && op != Reduce::logsumexp && kept_.size[kept_.rank - 1] >= 8 && reduced_.total > 1;
    reduced_.finish();
    x_ = loop.base[0];
    y_ = loop.base[1];
  }

  void run() const { is_by_column_ ? run_columns() : run_rows(); }

 private:
  // What a mean or a variance is divided by.
  double divisor() const { return correction_ ? std::max(0.0, static_cast<double>(reduced_.total) - *correction_) : static_cast<double>(reduced_.total); }

  Partial<A> of_run(const T* run, int64_t n) const {
    if (correction_) return blocks_.deviations(run, n);
    return blocks_.row(op_, run, n);
  }
  Partial<A> joined(const Partial<A>& a, const Partial<A>& b) const { return correction_ ? combine_deviations(a, b) : combine(op_, a, b); }

  void store(char* y, const Partial<A>& p) const {
    if (op_ == Reduce::mean || op_ == Reduce::logsumexp || std::is_same_v<A, double>) {
      double value = static_cast<double>(p.value);
      if (correction_) value = without_sign(value);
      if (op_ == Reduce::mean) value /= divisor();
      if (op_ == Reduce::logsumexp)
        value = static_cast<double>(p.maximum) + (std::isinf(static_cast<double>(p.maximum)) ? 0.0 : std::log(value));
      from_double_(&value, 0, y, 0, 1);
    } else {
      from_int64_(&p.value, 0, y, 0, 1);
    }
  }

  // --- rows ---

  // Elements [begin, end) of the reduced axes, for the output whose first element of x is `x`.
  Partial<A> fold(const char* x, int64_t begin, int64_t end) const {
    const Axes& r = reduced_;
    const int64_t inner = r.size[r.rank - 1], stride = r.x_stride[r.rank - 1];
    const bool is_direct = is_direct_type_ && stride == x_bytes_ && (inner >= 16 || r.rank == 1);
    if (is_direct && r.rank == 1 && end - begin <= row_block)
      return of_run(reinterpret_cast<const T*>(x + begin * stride), end - begin);
    Partial<A> result = identity_of<A>(op_);
    Cursor cursor(r.size, r.rank, begin);
    alignas(64) T buffer[gather_block];
    int64_t filled = 0;
    while (begin < end) {
      const int64_t left = std::min(end - begin, inner - cursor.index[r.rank - 1]);
      const int64_t n = std::min(left, is_direct ? row_block : gather_block - filled);
      const char* source = x + cursor.offset(r.x_stride, r.rank);
      if (is_direct) {
        result = joined(result, of_run(reinterpret_cast<const T*>(source), n));
      } else {
        to_buffer_(source, stride, buffer + filled, sizeof(T), n);
        filled += n;
        if (filled == gather_block || begin + n == end) {
          result = joined(result, of_run(buffer, filled));
          filled = 0;
        }
      }
      cursor.advance(r.size, r.rank, n);
      begin += n;
    }
    return result;
  }

  void run_rows() const {
    const int64_t length = reduced_.total;
    if (length >= 4 * grain && kept_.total < 64) {
      for (int64_t i = 0; i < kept_.total; ++i) run_long_row(i);
      return;
    }
    parallel_for(kept_.total, std::max<int64_t>(1, grain / std::max<int64_t>(length, 1)), [&](int64_t begin, int64_t end) {
      Cursor cursor(kept_.size, kept_.rank, begin);
      for (; begin < end; ++begin) {
        store(y_ + cursor.offset(kept_.y_stride, kept_.rank), fold(x_ + cursor.offset(kept_.x_stride, kept_.rank), 0, length));
        cursor.advance(kept_.size, kept_.rank, 1);
      }
    });
  }

  void run_long_row(int64_t i) const {
    const Cursor cursor(kept_.size, kept_.rank, i);
    const char* x = x_ + cursor.offset(kept_.x_stride, kept_.rank);
    const int64_t length = reduced_.total, piece = std::max(2 * grain, (length + max_pieces - 1) / max_pieces);
    Partial<A> partials[max_pieces];
    parallel_for(length, piece, [&](int64_t begin, int64_t end) { partials[begin / piece] = fold(x, begin, end); });
    Partial<A> result = identity_of<A>(op_);
    for (int64_t k = 0; k * piece < length; ++k) result = joined(result, partials[k]);
    store(y_ + cursor.offset(kept_.y_stride, kept_.rank), result);
  }

  // --- columns ---

  // Folds rows [begin, end) of the reduced axes into result[0, width); x points at the first of the columns.
  void fold_columns(const char* x, int64_t width, int64_t begin, int64_t end, A* result) const {
    const A identity = identity_of<A>(op_).value;
    std::fill(result, result + width, identity);
    alignas(64) T accumulated[column_tile];
    for_some_rows(
        x, width, begin, end, [&] { std::fill(accumulated, accumulated + width, static_cast<T>(identity)); },
        [&](const T* row) { blocks_.column(op_, row, accumulated, width); }, [&] { join(accumulated, result, width); });
  }

  // The same of deviations from centers [width], and of their squares.
  void fold_deviations(const char* x, int64_t width, int64_t begin, int64_t end, const T* centers, A* deviations, A* squares) const {
    std::fill(deviations, deviations + width, A(0));
    std::fill(squares, squares + width, A(0));
    alignas(64) T some[column_tile], some_squares[column_tile];
    const auto clear = [&] {
      std::fill(some, some + width, T(0));
      std::fill(some_squares, some_squares + width, T(0));
    };
    const auto add_all = [&] {
      join(some, deviations, width);
      join(some_squares, squares, width);
    };
    for_some_rows(x, width, begin, end, clear, [&](const T* row) { blocks_.column_deviations(row, centers, some, some_squares, width); }, add_all);
  }

  // Takes rows [begin, end) in groups: start(), then use(row) for each row of a group, as T [width], then finish().
  template <class Start, class Use, class Finish>
  void for_some_rows(const char* x, int64_t width, int64_t begin, int64_t end, const Start& start, const Use& use, const Finish& finish) const {
    const Axes& r = reduced_;
    const int64_t stride = kept_.x_stride[kept_.rank - 1];
    const bool is_direct = is_direct_type_ && stride == x_bytes_;
    alignas(64) T buffer[column_tile];
    Cursor cursor(r.size, r.rank, begin);
    while (begin < end) {
      const int64_t rows = std::min(flush_rows, end - begin);
      start();
      for (int64_t k = 0; k < rows; ++k) {
        const char* source = x + cursor.offset(r.x_stride, r.rank);
        if (!is_direct) to_buffer_(source, stride, buffer, sizeof(T), width);
        use(is_direct ? reinterpret_cast<const T*>(source) : buffer);
        cursor.advance(r.size, r.rank, 1);
      }
      finish();
      begin += rows;
    }
  }

  template <class From>
  void join(const From* partial, A* result, int64_t width) const {
    const Reduce op = op_;
    if (op == Reduce::sum || op == Reduce::mean || op == Reduce::sum_squares) {
      for (int64_t j = 0; j < width; ++j) result[j] = combine<A>(Reduce::sum, {result[j], 0}, {static_cast<A>(partial[j]), 0}).value;
    } else {
      for (int64_t j = 0; j < width; ++j) result[j] = combine<A>(op, {result[j], 0}, {static_cast<A>(partial[j]), 0}).value;
    }
  }

  void store_columns(char* y, A* result, int64_t width) const {
    const int64_t stride = kept_.y_stride[kept_.rank - 1];
    if constexpr (std::is_same_v<A, double>) {
      if (op_ == Reduce::mean)
        for (int64_t j = 0; j < width; ++j) result[j] /= divisor();
      from_double_(result, sizeof(A), y, stride, width);
    } else if (op_ == Reduce::mean) {
      for (int64_t j = 0; j < width; ++j) store(y + j * stride, {result[j], 0});
    } else {
      from_int64_(result, sizeof(A), y, stride, width);
    }
  }

  void run_columns() const {
    Axes outer = kept_;                        // the kept axes but the innermost, which is cut into tiles
    const int last = kept_.rank - 1;
    const int64_t columns = kept_.size[last], tiles_per_row = (columns + column_tile - 1) / column_tile;
    outer.size[last] = tiles_per_row;
    outer.x_stride[last] *= column_tile;
    outer.y_stride[last] *= column_tile;
    const int64_t tiles = kept_.total / columns * tiles_per_row, length = reduced_.total;
    const auto width_of = [&](const Cursor& c) { return std::min(column_tile, columns - c.index[last] * column_tile); };
    const int64_t widest = std::min(column_tile, columns);
    if (tiles < 8 && length * widest >= 4 * grain) {
      for (int64_t t = 0; t < tiles; ++t) {
        const Cursor cursor(outer.size, outer.rank, t);
        run_long_columns(x_ + cursor.offset(outer.x_stride, outer.rank), y_ + cursor.offset(outer.y_stride, outer.rank), width_of(cursor));
      }
      return;
    }
    parallel_for(tiles, std::max<int64_t>(1, grain / (length * widest)), [&](int64_t begin, int64_t end) {
      A result[column_tile];
      for (; begin < end; ++begin) {
        const Cursor cursor(outer.size, outer.rank, begin);
        const int64_t width = width_of(cursor);
        const char* x = x_ + cursor.offset(outer.x_stride, outer.rank);
        fold_columns(x, width, 0, length, result);
        if (correction_) {
          T centers[column_tile];
          A squares[column_tile];
          find_centers(result, width, centers);
          fold_deviations(x, width, 0, length, centers, result, squares);
          take_back(result, squares, width);
        }
        store_columns(y_ + cursor.offset(outer.y_stride, outer.rank), result, width);
      }
    });
  }

  void run_long_columns(const char* x, char* y, int64_t width) const {
    const int64_t length = reduced_.total;
    const int64_t piece = std::max((length + max_column_pieces - 1) / max_column_pieces, std::max<int64_t>(1, grain / width));
    A partials[max_column_pieces][column_tile];
    parallel_for(length, piece, [&](int64_t begin, int64_t end) { fold_columns(x, width, begin, end, partials[begin / piece]); });
    for (int64_t k = 1; k * piece < length; ++k) join(partials[k], partials[0], width);
    if (correction_) {
      T centers[column_tile];
      A squares[max_column_pieces][column_tile];
      find_centers(partials[0], width, centers);
      parallel_for(length, piece, [&](int64_t begin, int64_t end) { fold_deviations(x, width, begin, end, centers, partials[begin / piece], squares[begin / piece]); });
      for (int64_t k = 1; k * piece < length; ++k) {
        join(partials[k], partials[0], width);
        join(squares[k], squares[0], width);
      }
      take_back(partials[0], squares[0], width);
    }
    store_columns(y, partials[0], width);
  }

  // Of columns' sums: their means, nearly.
  void find_centers(const A* sums, int64_t width, T* centers) const {
    for (int64_t j = 0; j < width; ++j) centers[j] = static_cast<T>(sums[j] / static_cast<A>(reduced_.total));
  }
  // Leaves squared deviations from the mean, where those from the centers are given and the sums say how far off these are.
  void take_back(A* sums, const A* squares, int64_t width) const {
    for (int64_t j = 0; j < width; ++j) sums[j] = without_sign(squares[j] - sums[j] * sums[j] / static_cast<A>(reduced_.total));
  }

  Reduce op_;
  std::optional<double> correction_;
  int64_t x_bytes_;
  bool is_direct_type_, is_by_column_ = false;
  const ReduceBlocks<T>& blocks_;
  ConvertRun to_buffer_, from_double_, from_int64_;
  Axes kept_, reduced_;
  const char* x_ = nullptr;
  char* y_ = nullptr;
};

void fill_with_identity(Reduce op, const View& y) {
  const double value = op == Reduce::mean       ? std::nan("")
                       : op == Reduce::logsumexp ? lowest_of<double>()
                                                 : identity_of<double>(op).value;
  cpu_table().fill(nullptr, value, y);
}

void reduce(Queue, Reduce op, const ConstView& x, const View& y) {
  if (y.numel() == 0) return;
  if (x.numel() == 0) return fill_with_identity(op, y);
  switch (compute_dtype(x.dtype)) {
    case DType::float32: return Reduction<float>(op, x, y).run();
    case DType::float64: return Reduction<double>(op, x, y).run();
    default: return Reduction<int64_t>(op, x, y).run();
  }
}

void variance(Queue, double correction, const ConstView& x, const View& y) {
  if (y.numel() == 0) return;
  if (x.numel() == 0) return fill_with_identity(Reduce::mean, y);
  if (compute_dtype(x.dtype) == DType::float64) Reduction<double>(Reduce::mean, x, y, correction).run();
  else Reduction<float>(Reduce::mean, x, y, correction).run();
}

}  // namespace

void add_reduce(KernelTable& t) {
  t.reduce = reduce;
  t.variance = variance;
}

}  // namespace fovea::kernels
