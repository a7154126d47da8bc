// Sorting along an axis, and the k largest or smallest elements in order; values and their int64 positions.
// Stable: of equals the one that came first comes first. A NaN counts as the largest, as in PyTorch: last when ascending, first when descending or among the largest.
// Layout: any strides. Overwrites values and indices. Any dtype. Deterministic. Lines have fewer than 2^32 - 1 elements.
//
// Note [Items]
// An element becomes its order, an unsigned number, and its position, so that items all differ and comparing them is all there is to stability: up to 32 bits of
// order share one word with the position, 64 bits stand beside it. Items that only fill up a tile are larger than any other.
//
// Note [Tiles]
// A block sorts a tile in shared memory by a bitonic network (Batcher 1968), several lines at once where they are short. A longer line is cut into tiles. For topk
// each tile hands on its best, as a shorter line of items, until one tile is left. sort merges neighbouring runs until one is left: an item's place in the merged
// run is its place in its own, plus the number of items before it in the other, which a binary search finds.
#include <fovea/kernels/table.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <type_traits>
#include <utility>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/strided.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads = 512;
constexpr int tile = 2048;                   // items of a block

struct NarrowItem {
  uint64_t word;                             // order, then position

  __device__ static NarrowItem of(uint32_t order, uint32_t position) { return {static_cast<uint64_t>(order) << 32 | position}; }
  __device__ static NarrowItem largest() { return {~uint64_t{0}}; }
  __device__ uint32_t position() const { return static_cast<uint32_t>(word); }
  __device__ bool operator<(const NarrowItem& other) const { return word < other.word; }
};

struct WideItem {
  uint64_t order;
  uint32_t at;

  __device__ static WideItem of(uint64_t order, uint32_t position) { return {order, position}; }
  __device__ static WideItem largest() { return {~uint64_t{0}, ~uint32_t{0}}; }
  __device__ uint32_t position() const { return at; }
  __device__ bool operator<(const WideItem& other) const { return order != other.order ? order < other.order : at < other.at; }
};

template <class T> using ItemOf = std::conditional_t<sizeof(T) <= 4, NarrowItem, WideItem>;

// The order of an element as an unsigned number; descending order is its complement.
template <class T>
__device__ auto order_of(T value) {
  using Bits = std::conditional_t<sizeof(T) <= 4, uint32_t, uint64_t>;
  constexpr Bits sign = Bits{1} << (sizeof(Bits) * 8 - 1);
  if constexpr (std::is_integral_v<T>) {
    return std::is_signed_v<T> ? static_cast<Bits>(static_cast<Bits>(value) ^ sign) : static_cast<Bits>(value);
  } else {
    using F = std::conditional_t<sizeof(T) <= 4, float, double>;
    const F number = static_cast<F>(value) + F(0);                           // -0 and 0 are equals
    const Bits bits = std::bit_cast<Bits>(number);
    if (number != number) return std::numeric_limits<Bits>::max();
    return static_cast<Bits>(bits & sign ? ~bits : bits | sign);
  }
}

// The lines along the axis: offsets of each in x, values and indices, and the steps along it.
template <class T>
struct Lines {
  StridedIndex<3> starts;
  int64_t size, kept;                        // elements of x, and how many of them are wanted
  int64_t x_step, values_step, indices_step;
  bool is_descending;
  const T* x;
  T* values;
  int64_t* indices;

  __device__ ItemOf<T> item(int64_t start, int64_t i) const {
    const auto order = order_of(x[start + i * x_step]);
    return ItemOf<T>::of(static_cast<std::remove_const_t<decltype(order)>>(is_descending ? ~order : order), static_cast<uint32_t>(i));
  }
  template <class Offsets>
  __device__ void store(const Offsets& at, int64_t i, const ItemOf<T>& item) const {
    values[at.of[1] + i * values_step] = x[at.of[0] + item.position() * x_step];
    indices[at.of[2] + i * indices_step] = item.position();
  }
};

// A pass over tiles: `length` items a line, `width` (a power of two) of them a tile, of which the first `kept` go on.
struct Pass {
  int64_t length, tiles;
  int width, kept;
};

template <class Item>
struct TileMemory {
  Item items[tile];
};

// Sorts each aligned stretch of `width` items among a block's `tile`.
template <class Item>
__device__ void sort_tile(Item* items, int width) {
  for (int run = 2; run <= width; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < tile / 2; pair += threads) {
        const int low = pair / distance * distance * 2 + pair % distance, high = low + distance;
        const bool is_up = run == width || (low & run) == 0;                 // neighbouring runs turn away from each other, until the last
        const Item a = items[low], b = items[high];
        if ((b < a) == is_up) {
          items[low] = b;
          items[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// in: items [lines, length], or null: the elements of x. out: the best of each tile, [lines, tiles, kept], or null: values and indices.
template <class T>
__global__ __launch_bounds__(threads, 2) void sort_tiles_kernel(Lines<T> lines, Pass pass, const ItemOf<T>* in, ItemOf<T>* out) {
  using Item = ItemOf<T>;
  auto& memory = shared<TileMemory<Item>>();
  const int64_t per_block = tile / pass.width, stretches = lines.starts.numel * pass.tiles;
  for (int64_t first = blockIdx.x * per_block; first < stretches; first += gridDim.x * per_block) {
    for (int k = static_cast<int>(threadIdx.x); k < tile; k += threads) {
      const int64_t stretch = first + k / pass.width, line = stretch / pass.tiles, i = stretch % pass.tiles * pass.width + k % pass.width;
      const bool exists = stretch < stretches && i < pass.length;
      if (!exists) memory.items[k] = Item::largest();
      else if (in) memory.items[k] = in[line * pass.length + i];
      else memory.items[k] = lines.item(lines.starts.offsets(line).of[0], i);
    }
    __syncthreads();
    sort_tile(memory.items, pass.width);
    for (int k = static_cast<int>(threadIdx.x); k < tile; k += threads) {
      const int64_t stretch = first + k / pass.width;
      const int i = k % pass.width;
      if (stretch >= stretches || i >= pass.kept) continue;
      if (out) out[stretch * pass.kept + i] = memory.items[k];
      else lines.store(lines.starts.offsets(stretch), i, memory.items[k]);
    }
    __syncthreads();
  }
}

// Merges neighbouring sorted runs of `run` items in each line of `length`.
template <class Item>
__global__ __launch_bounds__(threads, 2) void merge_runs_kernel(int64_t lines, int64_t length, int64_t run, const Item* in, Item* out) {
  for (int64_t at = global_thread(); at < lines * length; at += global_threads()) {
    const int64_t line = at / length * length, i = at - line, own = i / run;
    const int64_t other_begin = min(length, (own ^ 1) * run), other_end = min(length, other_begin + run);
    const Item item = in[at];
    int64_t low = other_begin, high = other_end;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (in[line + middle] < item) low = middle + 1;
      else high = middle;
    }
    const int64_t pair_begin = own / 2 * 2 * run;
    out[line + pair_begin + (i - own * run) + (low - other_begin)] = item;
  }
}

template <class T>
__global__ __launch_bounds__(threads, 2) void store_items_kernel(Lines<T> lines, const ItemOf<T>* items) {
  for (int64_t at = global_thread(); at < lines.starts.numel * lines.kept; at += global_threads()) {
    const int64_t line = at / lines.kept, i = at - line * lines.kept;
    lines.store(lines.starts.offsets(line), i, items[line * lines.size + i]);
  }
}

// --- the host's side ---

template <class T>
void run_pass(Queue queue, const char* name, const Lines<T>& lines, const Pass& pass, const ItemOf<T>* in, ItemOf<T>* out) {
  const int64_t blocks = ceil_div<int64_t>(lines.starts.numel * pass.tiles, tile / pass.width);
  launch(queue, name, {dim3(static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 16))), dim3(threads), sizeof(TileMemory<ItemOf<T>>)}, sort_tiles_kernel<T>, lines, pass,
         in, out);
}

// From the elements of x, or from items, to values and indices: a line is one tile.
template <class T>
void run_last_pass(Queue queue, const Lines<T>& lines, int64_t length, const ItemOf<T>* items) {
  int width = 1;
  while (width < length) width *= 2;
  run_pass<T>(queue, "sort", lines, {length, 1, width, static_cast<int>(lines.kept)}, items, nullptr);
}

// The passes that leave one tile a line; kept is at most half a tile, so that lines become shorter.
template <class T>
void keep_best(Queue queue, const Lines<T>& lines) {
  using Item = ItemOf<T>;
  const int kept = static_cast<int>(lines.kept);
  const int64_t tiles = ceil_div<int64_t>(lines.size, tile);
  const DeviceScratch scratch(2 * lines.starts.numel * tiles * kept * static_cast<int64_t>(sizeof(Item)), queue);
  Item *to = scratch.as<Item>(), *other = to + lines.starts.numel * tiles * kept;
  const Item* from = nullptr;
  int64_t length = lines.size;
  while (length > tile) {
    const Pass pass{length, ceil_div<int64_t>(length, tile), tile, kept};
    run_pass(queue, "topk_tiles", lines, pass, from, to);
    from = to;
    std::swap(to, other);
    length = pass.tiles * kept;
  }
  run_last_pass(queue, lines, length, from);
}

template <class T>
void merge_all(Queue queue, const Lines<T>& lines) {
  using Item = ItemOf<T>;
  // Whole tiles, so that a run begins where its number says; the items that fill up the last one end up last and are never stored.
  const int64_t tiles = ceil_div<int64_t>(lines.size, tile), length = tiles * tile, count = lines.starts.numel * length;
  const DeviceScratch scratch(2 * count * static_cast<int64_t>(sizeof(Item)), queue);
  Item *from = scratch.as<Item>(), *to = from + count;
  run_pass<T>(queue, "sort_tiles", lines, {lines.size, tiles, tile, tile}, nullptr, from);
  for (int64_t run = tile; run < length; run *= 2) {
    launch(queue, "merge_runs", grid_for(count, threads), merge_runs_kernel<Item>, lines.starts.numel, length, run, from, to);
    std::swap(from, to);
  }
  Lines<T> padded = lines;
  padded.size = length;
  launch(queue, "store_items", grid_for(lines.starts.numel * lines.kept, threads), store_items_kernel<T>, padded, from);
}

int64_t stride_of(const Strides& strides, int axis) { return strides.rank() > 0 ? strides[axis] : 1; }

StridedIndex<3> starts_of(int axis, const Shape& all, const Strides& x, const Strides& values, const Strides& indices) {
  Shape shape = all;
  if (shape.rank() > 0) shape[axis] = 1;
  const Strides* const strides[] = {&x, &values, &indices};
  return {shape, strides};
}

void order_lines(Queue queue, int axis, bool is_descending, const ConstView& x, const View& values, const View& indices) {
  const int64_t size = x.rank() > 0 ? x.shape[axis] : 1, kept = x.rank() > 0 ? values.shape[axis] : values.numel();
  if (x.numel() == 0 || kept == 0) return;
  check<ShapeError>(size < std::numeric_limits<uint32_t>::max(), "sort: an axis of ", size, " elements is too long for cuda; the limit is 2^32 - 2");
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Lines<T> lines{starts_of(axis, x.shape, x.strides, values.strides, indices.strides), size, kept, stride_of(x.strides, axis), stride_of(values.strides, axis),
                         stride_of(indices.strides, axis), is_descending, x.as<T>(), values.as<T>(), indices.as<int64_t>()};
    if (size <= tile) run_last_pass<T>(queue, lines, size, nullptr);
    else if (kept <= tile / 2) keep_best(queue, lines);
    else merge_all(queue, lines);
  });
}

void sort(Queue queue, int axis, bool is_descending, const ConstView& x, const View& values, const View& indices) {
  order_lines(queue, axis, is_descending, x, values, indices);
}

void topk(Queue queue, int axis, bool is_largest, const ConstView& x, const View& values, const View& indices) {
  order_lines(queue, axis, is_largest, x, values, indices);
}

}  // namespace

void add_sort(KernelTable& t) {
  t.sort = sort;
  t.topk = topk;
}

}  // namespace fovea::kernels::cuda
