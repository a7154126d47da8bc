// unary, binary, ternary: y = f(x, ...), element by element; the formulas stand in unary.cpp and binary.cpp.
// Layout: any strides; operands already broadcast to y's shape. Overwrites y, which may be an operand itself. Computed in float32 (for
// float16 and bfloat16 too), float64 or int64. Operands of another dtype than the one computed in are converted on the way. Deterministic.
// Floor: one read of each operand, one write.
//
// Note [Blocks]
// The arithmetic only exists for contiguous runs. Where an operand is not contiguous, repeats (broadcast) or has another dtype, pieces of
// at most `block` elements are gathered into a buffer in the first-level cache, computed on, and scattered. A repeated scalar is gathered
// once. An operand that runs along another axis than y (a transpose) would be gathered with a cache line for each element: there the loop goes
// tile by tile, and each tile of the operand is turned over as a whole.
#include <fovea/kernels/table.h>

#include <fovea/kernels/cpu/convert.h>
#include <fovea/kernels/cpu/elementwise_blocks.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/cpu/strided.h>
#include <fovea/kernels/cpu/transpose.h>

namespace fovea::kernels {
namespace {

constexpr int64_t grain = 32768;               // elements a thread takes at once; below it nothing runs in parallel
constexpr int64_t block = 512;
constexpr int64_t short_row = 64;              // shorter rows are gathered several at a time
constexpr int64_t stream_bytes = 32 << 20;     // an output as large as this goes past the caches, which saves reading its lines first

// One operand of a loop: where its runs are, and how they become contiguous elements of the type computed with.
struct Operand {
  ConvertRun to_buffer = nullptr, from_buffer = nullptr;
  int64_t bytes = 0, buffer_bytes = 0;         // of an element, in memory and in the buffer
  bool is_flat = false, has_same_type = false;

  Operand() = default;
  Operand(DType stored, DType computed, bool is_flat)
      : to_buffer(convert_run(stored, computed)),
        from_buffer(convert_run(computed, stored)),
        bytes(size_of(stored)),
        buffer_bytes(size_of(computed)),
        is_flat(is_flat),
        has_same_type(stored == computed) {}
};

// What of the loop one thread works on.
template <int N>
class Piece {
 public:
  Piece(const StridedLoop<N>& loop, const Operand (&operands)[N], int64_t begin, int64_t end)
      : loop_(loop), operands_(operands), cursor_(loop.size, loop.rank, begin), position_(begin), end_(end) {
    all_flat_ = true;
    all_rows_direct_ = true;
    for (int k = 0; k < N; ++k) {
      const Operand& o = operands[k];
      all_flat_ = all_flat_ && o.is_flat && o.has_same_type;
      all_rows_direct_ = all_rows_direct_ && o.has_same_type && loop.inner_stride(k) == o.bytes;
    }
  }

  template <class F>
  void run(const F& f) {
    while (position_ < end_) {
      const int64_t n = next_length();
      char* p[N];
      for (int k = 1; k < N; ++k) p[k] = fetch(k, n);
      char* const direct = direct_pointer(0, n);
      p[0] = direct ? direct : buffer_[0];
      f(p, direct != nullptr, n);
      if (!direct) store(n);
      step(n);
    }
  }

 private:
  int64_t row_left() const { return loop_.inner() - cursor_.index[loop_.rank - 1]; }

  int64_t next_length() const {
    const int64_t left = end_ - position_;
    if (all_flat_) return left;
    if (loop_.inner() < short_row) return std::min(left, block);
    const int64_t in_row = std::min(left, row_left());
    return all_rows_direct_ ? in_row : std::min(in_row, block);
  }

  char* current(int k) const { return loop_.base[k] + cursor_.offset(loop_.stride[k], loop_.rank); }

  // The operand's next n elements where they lie, if they lie there one after the other in the type computed with.
  char* direct_pointer(int k, int64_t n) const {
    const Operand& o = operands_[k];
    if (!o.has_same_type) return nullptr;
    if (o.is_flat) return loop_.base[k] + position_ * o.bytes;
    return loop_.inner_stride(k) == o.bytes && n <= row_left() ? current(k) : nullptr;
  }

  char* fetch(int k, int64_t n) {
    if (char* direct = direct_pointer(k, n)) return direct;
    const Operand& o = operands_[k];
    if (o.is_flat) {
      o.to_buffer(loop_.base[k] + position_ * o.bytes, o.bytes, buffer_[k], o.buffer_bytes, n);
    } else if (n <= row_left()) {
      char* const source = current(k);
      const bool is_repeated = loop_.inner_stride(k) == 0;
      if (is_repeated && repeated_[k] == source && repeated_count_[k] >= n) return buffer_[k];
      o.to_buffer(source, loop_.inner_stride(k), buffer_[k], o.buffer_bytes, n);
      repeated_[k] = is_repeated ? source : nullptr;
      repeated_count_[k] = n;
    } else {
      for_rows(k, n, [&](char* source, char* buffer, int64_t count) {
        o.to_buffer(source, loop_.inner_stride(k), buffer, o.buffer_bytes, count);
      });
    }
    return buffer_[k];
  }

  void store(int64_t n) {
    const Operand& o = operands_[0];
    if (o.is_flat) {
      o.from_buffer(buffer_[0], o.buffer_bytes, loop_.base[0] + position_ * o.bytes, o.bytes, n);
    } else {
      for_rows(0, n, [&](char* target, char* buffer, int64_t count) {
        o.from_buffer(buffer, o.buffer_bytes, target, loop_.inner_stride(0), count);
      });
    }
  }

  // Calls f(memory, place in the buffer, count) for the rows that the next n elements are made of.
  template <class F>
  void for_rows(int k, int64_t n, const F& f) {
    Cursor cursor = cursor_;
    char* buffer = buffer_[k];
    while (n > 0) {
      const int64_t count = std::min(n, loop_.inner() - cursor.index[loop_.rank - 1]);
      f(loop_.base[k] + cursor.offset(loop_.stride[k], loop_.rank), buffer, count);
      cursor.advance(loop_.size, loop_.rank, count);
      buffer += count * operands_[k].buffer_bytes;
      n -= count;
    }
  }

  void step(int64_t n) {
    position_ += n;
    while (n > 0) {
      const int64_t count = std::min(n, row_left());
      cursor_.advance(loop_.size, loop_.rank, count);
      n -= count;
    }
  }

  const StridedLoop<N>& loop_;
  const Operand (&operands_)[N];
  Cursor cursor_;
  int64_t position_, end_;
  bool all_flat_, all_rows_direct_;
  const char* repeated_[N] = {};
  int64_t repeated_count_[N] = {};
  alignas(64) char buffer_[N][block * 8];
};

// An operand that lies contiguously along `axis` while y does so along the innermost one.
template <int N>
bool is_turned(const StridedLoop<N>& loop, const Operand (&operands)[N], int k, int axis) {
  return loop.stride[k][axis] == operands[k].bytes && std::abs(loop.inner_stride(k)) > operands[k].bytes;
}

// The axis along which operands are turned, long enough for tiles; -1 if there is none, or if a dtype has to be converted on the way.
template <int N>
int turned_axis(const StridedLoop<N>& loop, const Operand (&operands)[N]) {
  constexpr int64_t least = 16;
  if (loop.rank < 2 || loop.inner() < least || loop.inner_stride(0) != operands[0].bytes) return -1;
  for (const Operand& o : operands)
    if (!o.has_same_type) return -1;
  for (int axis = loop.rank - 2; axis >= 0; --axis)
    for (int k = 1; k < N; ++k)
      if (loop.size[axis] >= least && is_turned(loop, operands, k, axis)) return axis;
  return -1;
}

// Tiles of rows (along `axis`) and columns (along the innermost axis), in each of which the turned operands are brought into y's order.
template <int N, class F>
void run_tiles(StridedLoop<N> loop, const Operand (&operands)[N], int axis, const F& f) {
  constexpr int64_t tile = transpose_tile;
  const int last = loop.rank - 1;
  const int64_t rows = loop.size[axis], columns = loop.size[last], tile_rows = (rows + tile - 1) / tile, tile_columns = (columns + tile - 1) / tile;
  const int64_t matrices = loop.total / (rows * columns);
  loop.size[axis] = 1;                         // the axes that are left number the matrices
  loop.size[last] = 1;
  TransposeTile turn[N] = {};
  for (int k = 1; k < N; ++k)
    if (is_turned(loop, operands, k, axis)) turn[k] = transpose_tile_of(operands[k].bytes);
  parallel_for(matrices * tile_rows * tile_columns, grain / (tile * tile), [&](int64_t begin, int64_t end) {
    alignas(64) char buffer[N - 1][tile * tile * 8];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t c = t % tile_columns * tile, r = t / tile_columns % tile_rows * tile, height = std::min(tile, rows - r), width = std::min(tile, columns - c);
      const Cursor cursor(loop.size, loop.rank, t / (tile_rows * tile_columns));
      char* corner[N];
      for (int k = 0; k < N; ++k) {
        corner[k] = loop.base[k] + cursor.offset(loop.stride[k], loop.rank) + r * loop.stride[k][axis] + c * loop.stride[k][last];
        if (turn[k]) turn[k](false, corner[k], loop.stride[k][last], buffer[k - 1], tile * operands[k].bytes, height, width);
      }
      for (int64_t row = 0; row < height; ++row) {
        char* p[N] = {corner[0] + row * loop.stride[0][axis]};
        for (int k = 1; k < N; ++k) {
          char* const source = corner[k] + row * loop.stride[k][axis];
          p[k] = turn[k] ? buffer[k - 1] + row * tile * operands[k].bytes : loop.inner_stride(k) == operands[k].bytes ? source : buffer[k - 1];
          if (p[k] == buffer[k - 1] && !turn[k]) operands[k].to_buffer(source, loop.inner_stride(k), p[k], operands[k].bytes, width);
        }
        f(p, false, width);
      }
    }
  });
}

// Calls f(pointers, is_final, n) on contiguous runs of the computed types; views[0] is the output, and final where a long run of it is written in place.
template <int N, class F>
void for_blocks(const ConstView* const (&views)[N], const DType (&computed)[N], const F& f) {
  const Shape& shape = views[0]->shape;
  StridedLoop<N> loop;
  for (int k = 0; k < N; ++k) loop.set(k, *views[k]);
  loop.collapse(shape);
  Operand operands[N];
  for (int k = 0; k < N; ++k) operands[k] = Operand(views[k]->dtype, computed[k], loop.is_flat(k, size_of(views[k]->dtype)));
  const int axis = turned_axis(loop, operands);
  if (axis >= 0) return run_tiles(loop, operands, axis, f);
  parallel_for(loop.total, grain, [&](int64_t begin, int64_t end) { Piece<N>(loop, operands, begin, end).run(f); });
}

// Small, contiguous and of one type: nothing to prepare.
bool is_plain(const ConstView& v, DType computed, int64_t n) { return v.dtype == computed && v.is_contiguous() && v.numel() == n; }

template <class... In>
bool is_streamed(const View& y, int64_t n, const In&... in) { return n * size_of(y.dtype) >= stream_bytes && ((in.data != y.data) && ...); }

void unary(Queue, Unary op, Scalars s, const ConstView& x, const View& y) {
  const int64_t n = y.numel();
  if (n == 0) return;
  const DType computed = compute_dtype(yields_bool(op) ? x.dtype : y.dtype), result = yields_bool(op) ? DType::boolean : computed;
  const UnaryBlock f = unary_blocks().of(computed);
  if (n <= grain && is_plain(x, computed, n) && is_plain(y, result, n)) return f(op, s, false, x.data, y.data, n);
  const ConstView out = y;
  const bool streams = is_streamed(y, n, x);
  for_blocks<2>({&out, &x}, {result, computed},
                [=](char* const* p, bool is_final, int64_t count) { f(op, s, streams && is_final, p[1], p[0], count); });
}

void binary(Queue, Binary op, Scalars s, const ConstView& a, const ConstView& b, const View& y) {
  const int64_t n = y.numel();
  if (n == 0) return;
  const DType computed = compute_dtype(yields_bool(op) ? a.dtype : y.dtype), result = yields_bool(op) ? DType::boolean : computed;
  const BinaryBlock f = binary_blocks().of(computed);
  if (n <= grain && is_plain(a, computed, n) && is_plain(b, computed, n) && is_plain(y, result, n))
    return f(op, s, false, a.data, b.data, y.data, n);
  const ConstView out = y;
  const bool streams = is_streamed(y, n, a, b);
  for_blocks<3>({&out, &a, &b}, {result, computed, computed},
                [=](char* const* p, bool is_final, int64_t count) { f(op, s, streams && is_final, p[1], p[2], p[0], count); });
}

void ternary(Queue, Ternary op, Scalars s, const ConstView& a, const ConstView& b, const ConstView& c, const View& y) {
  if (y.numel() == 0) return;
  const DType computed = compute_dtype(y.dtype), first = op == Ternary::where ? DType::boolean : computed;
  const TernaryBlock f = ternary_blocks().of(computed);
  const ConstView out = y;
  const bool streams = is_streamed(y, y.numel(), a, b, c);
  for_blocks<4>({&out, &a, &b, &c}, {computed, first, computed, computed},
                [=](char* const* p, bool is_final, int64_t count) { f(op, s, streams && is_final, p[1], p[2], p[3], p[0], count); });
}

}  // namespace

void add_elementwise(KernelTable& t) {
  t.unary = unary;
  t.binary = binary;
  t.ternary = ternary;
}

}  // namespace fovea::kernels
