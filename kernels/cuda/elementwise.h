// The loops of elementwise kernels (unary.cu, binary.cu, elementwise.cu, copy.cu): y = f(x, ...) over views of one shape.
//
// Note [Two loops]
// map_packs is for types known at compile time: a thread takes n neighbours of a row, with one access of up to 16 bytes for each operand that
// lies contiguously, and one read where an operand repeats along the row (broadcast); offsets are worked out once for the n. map_mixed does the
// rest, element by element: operands of other dtypes than the one computed in, and outputs whose rows do not split into packs.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <initializer_list>

#include <fovea/kernels/cuda/convert.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/strided.h>

namespace fovea::kernels::cuda {

// How a row of an operand is read or written: in packs, element by element with a stride, or (inputs) as one element that stands for all.
enum class Access : uint8_t { packed, strided, repeated };

// y and up to three inputs; operand 0 is y.
template <int inputs>
struct Loop {
  StridedIndex<inputs + 1> index;
  void* data[inputs + 1];
  DType dtype[inputs + 1];
  Access access[inputs + 1] = {};

  template <class T> __device__ T* as(int operand) const { return static_cast<T*>(data[operand]); }
};

// Axes in the order in which y lies in memory, outermost first, so that neighbouring threads write to neighbouring addresses.
inline Shape axes_by_stride(const View& y) {
  Shape axes;
  for (int axis = 0; axis < y.rank(); ++axis) axes.push_back(axis);
  if (y.is_contiguous()) return axes;
  int64_t values[max_rank];
  std::copy(axes.begin(), axes.end(), values);
  std::stable_sort(values, values + y.rank(), [&](int64_t a, int64_t b) {
    return std::abs(y.strides[static_cast<int>(a)]) > std::abs(y.strides[static_cast<int>(b)]);
  });
  return Shape(std::span<const int64_t>(values, static_cast<size_t>(y.rank())));
}

inline Shape permuted(const Shape& shape, const Shape& axes) {
  Shape result;
  for (const int64_t axis : axes) result.push_back(shape[static_cast<int>(axis)]);
  return result;
}

template <int inputs>
Loop<inputs> loop_over(const View& y, std::initializer_list<const ConstView*> x) {
  const Shape axes = axes_by_stride(y);
  Strides strides[inputs + 1] = {permuted(y.strides, axes)};
  const Strides* all[inputs + 1] = {&strides[0]};
  for (int k = 1; k <= inputs; ++k) {
    strides[k] = permuted(x.begin()[k - 1]->strides, axes);
    all[k] = &strides[k];
  }
  Loop<inputs> loop = {StridedIndex<inputs + 1>(permuted(y.shape, axes), all), {y.data}, {y.dtype}};
  for (int k = 1; k <= inputs; ++k) {
    loop.data[k] = const_cast<void*>(x.begin()[k - 1]->data);
    loop.dtype[k] = x.begin()[k - 1]->dtype;
  }
  return loop;
}

template <int inputs>
Access access_of(const Loop<inputs>& loop, int operand, int n) {
  const auto& strides = loop.index.strides[operand];
  if (loop.index.rank == 0 || (operand > 0 && strides[0] == 0)) return Access::repeated;
  bool is_packed = strides[0] == 1 && is_aligned(loop.data[operand], static_cast<size_t>(size_of(loop.dtype[operand]) * n));
  for (int axis = 1; axis < loop.index.rank; ++axis) is_packed = is_packed && strides[axis] % n == 0;
  return is_packed ? Access::packed : Access::strided;
}

// Whether y can be written in packs of n; if so, says how each operand is accessed. Where all is one row, it may end with a part of a pack.
template <int inputs>
bool split_into_packs(Loop<inputs>& loop, int n) {
  if (loop.index.rank > 1 && loop.index.sizes[0] % n != 0) return false;
  for (int k = 0; k <= inputs; ++k) loop.access[k] = access_of(loop, k, n);
  return n == 1 || loop.access[0] != Access::strided;
}

template <class T, int n, int inputs>
__device__ inline Pack<T, n> load_elements(const Loop<inputs>& loop, int operand, int64_t offset, int count) {
  const T* from = loop.template as<const T>(operand) + offset;
  const Access access = loop.access[operand];
  if (access == Access::packed && count == n) return load_pack<T, n>(from, 0);
  Pack<T, n> pack = {};
  const int64_t stride = loop.index.strides[operand][0];
  if (access == Access::repeated) {
    const T value = *from;
#pragma unroll
    for (int j = 0; j < n; ++j) pack[j] = value;
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (j < count) pack[j] = from[j * stride];
  }
  return pack;
}

template <class T, int n, int inputs>
__device__ inline void store_elements(const Loop<inputs>& loop, int64_t offset, int count, const Pack<T, n>& pack) {
  T* to = loop.template as<T>(0) + offset;
  if (loop.access[0] == Access::packed && count == n) return store_pack(to, 0, pack);
  const int64_t stride = loop.index.strides[0][0];
#pragma unroll
  for (int j = 0; j < n; ++j)
    if (j < count) to[j * stride] = pack[j];
}

inline constexpr int map_threads = 256;

// First is the type of the first input, In of the others.
template <class First, class In, class Out, int n, int inputs, class F>
__global__ void __launch_bounds__(map_threads) map_packs(Loop<inputs> loop, F f) {
  const int64_t numel = loop.index.numel;
  for (int64_t first = global_thread() * n; first < numel; first += global_threads() * n) {
    const int count = numel - first < n ? static_cast<int>(numel - first) : n;
    const auto at = loop.index.offsets(first);
    const Pack<First, n> a = load_elements<First, n>(loop, 1, at.of[1], count);
    [[maybe_unused]] Pack<In, n> b = {}, c = {};
    if constexpr (inputs > 1) b = load_elements<In, n>(loop, 2, at.of[2], count);
    if constexpr (inputs > 2) c = load_elements<In, n>(loop, 3, at.of[3], count);
    Pack<Out, n> result;
#pragma unroll
    for (int j = 0; j < n; ++j) {
      if constexpr (inputs == 1) result[j] = convert<Out>(f(to_compute(a[j])));
      if constexpr (inputs == 2) result[j] = convert<Out>(f(to_compute(a[j]), to_compute(b[j])));
      if constexpr (inputs == 3) result[j] = convert<Out>(f(to_compute(a[j]), to_compute(b[j]), to_compute(c[j])));
    }
    store_elements(loop, at.of[0], count, result);
  }
}

// First is what the first input is converted to, C what the others are.
template <class First, class C, int inputs, class F>
__global__ void __launch_bounds__(map_threads) map_mixed(Loop<inputs> loop, F f) {
  for (int64_t i = global_thread(); i < loop.index.numel; i += global_threads()) {
    const auto at = loop.index.offsets(i);
    const First a = load_as<First>(loop.dtype[1], loop.data[1], at.of[1]);
    [[maybe_unused]] C b{}, c{};
    if constexpr (inputs > 1) b = load_as<C>(loop.dtype[2], loop.data[2], at.of[2]);
    if constexpr (inputs > 2) c = load_as<C>(loop.dtype[3], loop.data[3], at.of[3]);
    if constexpr (inputs == 1) store_as(loop.dtype[0], loop.data[0], at.of[0], f(a));
    if constexpr (inputs == 2) store_as(loop.dtype[0], loop.data[0], at.of[0], f(a, b));
    if constexpr (inputs == 3) store_as(loop.dtype[0], loop.data[0], at.of[0], f(a, b, c));
  }
}

// As many elements as 16 bytes hold of the widest type, but at most `most`.
template <class First, class In, class Out>
constexpr int pack_of(int most) {
  const size_t widest = std::max({sizeof(First), sizeof(In), sizeof(Out)});
  return std::min(static_cast<int>(16 / widest), most);
}

// Arithmetic on integers is done in int64, which makes long code: four at a time are enough.
template <class T> inline constexpr int most_elements = std::is_integral_v<T> ? 4 : 8;

// y = f(first, others...): by map_packs where memory holds First, In and Out and y splits into packs, else by map_mixed, which converts the first
// input to MixedFirst and the others to what In is computed in.
template <class First, class MixedFirst, class In, class Out, int inputs, class F>
void map(Queue queue, const char* name, Loop<inputs>& loop, const F& f) {
  constexpr int n = pack_of<First, In, Out>(most_elements<In>);
  bool is_plain = loop.dtype[0] == dtype_of<Out> && loop.dtype[1] == dtype_of<First>;
  for (int k = 2; k <= inputs; ++k) is_plain = is_plain && loop.dtype[k] == dtype_of<In>;
  if (is_plain && split_into_packs(loop, n))
    launch(queue, name, grid_for(ceil_div<int64_t>(loop.index.numel, n), map_threads), map_packs<First, In, Out, n, inputs, F>, loop, f);
  else
    launch(queue, name, grid_for(loop.index.numel, map_threads), map_mixed<MixedFirst, Compute<In>, inputs, F>, loop, f);
}

}  // namespace fovea::kernels::cuda
