// The blocked matrix product that matmul, convolution and the recurrent layers share:  c[i,j] = alpha * sum_k a[i,k] b[k,j] (+ c[i,j]) (+ bias).
// Source of the blocking: Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication"; Van Zee & van de Geijn 2015 (BLIS).
//
// A tile of c (8 x 48 floats with AVX-512, 4 x 24 with AVX2) stays in registers while k runs over one block of at most gemm_depth; the right panel (48 wide)
// stays in the L1 cache while all rows of a pass by from L2. Operands hand out their blocks through GemmOperands, so that a convolution
// packs straight from the image and no patch matrix is ever in memory.
//
// Note [The order of a sum]
// An element of c is summed over k in order within a block of gemm_block(k), and block after block into c. Neither the tiling nor the threads change
// that, so results are the same for every thread count.
#pragma once

#include <algorithm>
#include <cstdint>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels {

inline constexpr int64_t gemm_depth = 208;           // most k of one block; 208 x 48 floats are 39 KB of a 48 KB L1
inline constexpr int64_t gemm_slack = 64;            // elements that a packed block may be overrun by

// How much of k one block takes, so that no block is much smaller than the others: each one costs a pass over c.
inline int64_t gemm_block(int64_t k) {
  const int64_t blocks = (k + gemm_depth - 1) / gemm_depth;
  return blocks <= 1 ? gemm_depth : ((k + blocks - 1) / blocks + 7) / 8 * 8;
}

// Left rows: element (i, k) is data[i * pitch + k].   Right panel: element (k, j) is data[k * pitch + j].
template <class T>
struct GemmBlock {
  const T* data;
  int64_t pitch;
};

template <class T>
struct GemmOutput {
  T* c;
  const T* row_bias = nullptr;                       // added to every element of row i
  const T* column_bias = nullptr;                    // added to every element of column j
};

// What a product reads and where it writes, for each of `batch` products.
template <class T>
class GemmOperands {
 public:
  virtual ~GemmOperands() = default;
  // Rows [i0, i0 + rows) and k in [k0, k0 + depth): either where they lie, or packed into buffer with pitch gemm_depth.
  virtual GemmBlock<T> left(int64_t batch, int64_t i0, int64_t rows, int64_t k0, int64_t depth, T* buffer) const = 0;
  // Columns [j0, j0 + columns), with `width` >= columns elements to be readable in each row; what stands beyond `columns` does not matter.
  // Either where they lie, or packed into buffer with pitch `width`. May overrun the packed block by gemm_slack.
  virtual GemmBlock<T> right(int64_t batch, int64_t j0, int64_t columns, int64_t width, int64_t k0, int64_t depth, T* buffer) const = 0;
  virtual GemmOutput<T> output(int64_t batch) const = 0;
};

// Where column j of c lies: j = (image * height + y) * width + x is at image * stride_image + y * stride_y + x * stride_x.
struct GemmColumns {
  int64_t width = INT64_MAX, height = 1;
  int64_t stride_x = 1, stride_y = 0, stride_image = 0;
};

struct GemmShape {
  int64_t batch = 1, m = 0, n = 0, k = 0;
  int64_t row_stride = 0;                            // of c
  GemmColumns columns;
};

template <class T>
struct Gemm {
  // Bytes that run() needs for a product of this shape; depends on num_threads().
  int64_t (*workspace)(const GemmShape&);
  void (*run)(const GemmShape&, T alpha, bool accumulate, const GemmOperands<T>&, Workspace);

  // A right operand [k, n] that is used many times (recurrent weights) can be packed once; b[k, j] = b[k * stride_k + j * stride_n].
  int64_t (*packed_size)(int64_t k, int64_t n);      // in elements
  void (*pack)(const T* b, int64_t stride_k, int64_t stride_n, int64_t k, int64_t n, T* packed);
  // c[i * c_pitch + j] = (accumulate ? c : 0) + bias[j] + sum_k a[i * a_pitch + k] b[k,j], on the calling thread; bias may be null.
  // `packed` starts on a multiple of 64 bytes for the best speed.
  void (*run_packed)(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_pitch, const T* packed, const T* bias, bool accumulate, T* c, int64_t c_pitch);

  // to[j * to_pitch + i] = from[i * from_pitch + j] for i < rows, j < columns
  void (*transpose)(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch);
};

// The version for this processor; T is float or double.
template <class T>
const Gemm<T>& gemm();

// Rows of a left operand that is contiguous along k: where they lie, or copied to buffer when they would all fall onto a few sets of the L1 cache.
template <class T>
GemmBlock<T> left_rows(const T* from, int64_t pitch, int64_t rows, int64_t depth, T* buffer) {
  const bool is_crowded = rows > 8 && pitch * static_cast<int64_t>(sizeof(T)) % 1024 == 0;
  if (!is_crowded) return {from, pitch};
  for (int64_t i = 0; i < rows; ++i) std::copy(from + i * pitch, from + i * pitch + depth, buffer + i * gemm_depth);
  return {buffer, gemm_depth};
}

}  // namespace fovea::kernels
