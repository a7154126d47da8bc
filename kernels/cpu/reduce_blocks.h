// The arithmetic of reductions over contiguous runs of float32, float64 or int64. reduce.cpp brings every layout and dtype into this form.
#pragma once

#include <limits>

#include <fovea/kernels/table.h>

namespace fovea::kernels {

// What a run was reduced to. For logsumexp: `value` is the sum of e^(x - maximum). For a variance: `value` is the sum of squared deviations from `mean` of `count` elements.
template <class A>
struct Partial {
  A value = 0, maximum = 0;
  A count = 0, mean = 0;
};

// Sums are kept in float64 (int64 for integers) from one block to the next; within a block of float32 in float32.
template <class T> struct AccumulatorOf { using type = double; };
template <> struct AccumulatorOf<int64_t> { using type = int64_t; };
template <class T> using Accumulator = typename AccumulatorOf<T>::type;

template <class T>
constexpr T lowest_of() {
  return std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::lowest();
}
template <class T>
constexpr T highest_of() {
  return std::numeric_limits<T>::has_infinity ? std::numeric_limits<T>::infinity() : std::numeric_limits<T>::max();
}

// What reducing nothing gives.
template <class A>
Partial<A> identity_of(Reduce op) {
  switch (op) {
    case Reduce::product:
    case Reduce::all: return {1, 0};
    case Reduce::max: return {lowest_of<A>(), 0};
    case Reduce::min: return {highest_of<A>(), 0};
    case Reduce::logsumexp: return {0, lowest_of<A>()};
    default: return {};
  }
}

template <class T>
struct ReduceBlocks {
  Partial<Accumulator<T>> (*row)(Reduce, const T* x, int64_t n);                // one run; n at most a few thousand
  void (*column)(Reduce, const T* x, T* accumulated, int64_t n);                // accumulated[j] = combined with x[j]; not logsumexp
  // Of squared deviations, for a variance; floating-point types only.
  Partial<Accumulator<T>> (*deviations)(const T* x, int64_t n);                 // of one run
  void (*column_deviations)(const T* x, const T* center, T* sum, T* squares, int64_t n);  // sum[j] += x[j] - center[j], squares[j] += its square
};

template <class T> const ReduceBlocks<T>& reduce_blocks();
template <> const ReduceBlocks<float>& reduce_blocks<float>();
template <> const ReduceBlocks<double>& reduce_blocks<double>();
template <> const ReduceBlocks<int64_t>& reduce_blocks<int64_t>();

}  // namespace fovea::kernels
