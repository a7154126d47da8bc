// The CPU's matrix product against a plain one in double precision (long double for float64).
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <fovea/kernels/cpu/gemm.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

using namespace fovea;
using kernels::Scalars;

namespace {

template <class T>
std::vector<T> random_values(int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> distribution(-1, 1);
  std::vector<T> values(count);
  for (T& v : values) v = static_cast<T>(distribution(generator));
  return values;
}

struct Layout {
  bool is_transposed = false;
  int64_t gap = 0;                                   // unused elements between rows
  int64_t step = 1;                                  // distance of neighbours within a row
};

// A batch of matrices [batch, rows, columns] in its own memory.
template <class T>
struct Matrices {
  std::vector<T> memory;
  Shape shape;
  Strides strides;

  Matrices(int64_t batch, int64_t rows, int64_t columns, Layout layout, unsigned seed) : shape{batch, rows, columns} {
    const int64_t lines = layout.is_transposed ? columns : rows, length = layout.is_transposed ? rows : columns;
    const int64_t pitch = length * layout.step + layout.gap;
    memory = random_values<T>(std::max<int64_t>(batch * lines * pitch, 1), seed);
    strides = layout.is_transposed ? Strides{lines * pitch, layout.step, pitch} : Strides{lines * pitch, pitch, layout.step};
  }
  View view() {
    View v;
    v.data = memory.data();
    v.dtype = dtype_of<T>;
    v.shape = shape;
    v.strides = strides;
    return v;
  }
  size_t index(int64_t b, int64_t i, int64_t j) const { return static_cast<size_t>(b * strides[0] + i * strides[1] + j * strides[2]); }
  T& at(int64_t b, int64_t i, int64_t j) { return memory[index(b, i, j)]; }
  T at(int64_t b, int64_t i, int64_t j) const { return memory[index(b, i, j)]; }
};

template <class T> struct Wider;
template <> struct Wider<float> { using type = double; };
template <> struct Wider<double> { using type = long double; };

template <class T>
void run(const MatmulGeometry& g, Scalars scalars, Matrices<T>& a, Matrices<T>& b, std::vector<T>* bias, Matrices<T>& y) {
  const kernels::KernelTable& table = kernels::cpu_table();
  std::vector<char> scratch(table.matmul_workspace(g, dtype_of<T>) + 64);
  View bias_view;
  if (bias) {
    bias_view.data = bias->data();
    bias_view.dtype = dtype_of<T>;
    bias_view.shape = {g.n};
    bias_view.strides = {1};
  }
  table.matmul(nullptr, g, scalars, a.view(), b.view(), bias_view, y.view(), {scratch.data(), static_cast<int64_t>(scratch.size()) - 64});
}

template <class T>
void check_product(MatmulGeometry g, Scalars scalars, Layout of_a, Layout of_b, Layout of_y, bool has_bias) {
  using W = typename Wider<T>::type;
  CAPTURE(g.batch); CAPTURE(g.m); CAPTURE(g.n); CAPTURE(g.k);
  CAPTURE(of_a.is_transposed); CAPTURE(of_b.is_transposed); CAPTURE(of_y.is_transposed);
  Matrices<T> a(g.batch, g.m, g.k, of_a, 1), b(g.batch, g.k, g.n, of_b, 2), y(g.batch, g.m, g.n, of_y, 3);
  std::vector<T> bias = random_values<T>(g.n, 4);
  const T poison = std::numeric_limits<T>::quiet_NaN();
  const Matrices<T> before = y;
  if (scalars.beta == 0) std::fill(y.memory.begin(), y.memory.end(), poison);
  Matrices<T> untouched = y;
  run(g, scalars, a, b, has_bias ? &bias : nullptr, y);
  W worst = 0;
  for (int64_t batch = 0; batch < g.batch; ++batch)
    for (int64_t i = 0; i < g.m; ++i)
      for (int64_t j = 0; j < g.n; ++j) {
        W sum = 0;
        for (int64_t k = 0; k < g.k; ++k) sum += W(a.at(batch, i, k)) * W(b.at(batch, k, j));
        W expected = W(scalars.alpha) * sum + (has_bias ? W(bias[j]) : W(0));
        if (scalars.beta != 0) expected += W(scalars.beta) * W(before.at(batch, i, j));
        const W error = std::abs(W(y.at(batch, i, j)) - expected);
        worst = error <= worst ? worst : error;      // a NaN becomes the worst
        untouched.at(batch, i, j) = y.at(batch, i, j);
      }
  CHECK(worst <= W(std::numeric_limits<T>::epsilon()) * W(4 + g.k));
  // Nothing but the product's elements was written.
  bool same = true;
  for (size_t e = 0; e < y.memory.size(); ++e) same &= y.memory[e] == untouched.memory[e] || (std::isnan(y.memory[e]) && std::isnan(untouched.memory[e]));
  CHECK(same);
}

}  // namespace

TEST_CASE_TEMPLATE("matmul: equals the plain sum for every size of edge", T, float, double) {
  for (int64_t m : {1, 3, 7, 8, 9, 21})
    for (int64_t n : {1, 5, 16, 31, 48, 50, 64, 97})
      for (int64_t k : {1, 17, 192, 200}) check_product<T>({1, m, n, k}, {1, 0}, {}, {}, {}, false);
}

TEST_CASE_TEMPLATE("matmul: operands and result may be transposed, padded and strided", T, float, double) {
  for (int64_t m : {5, 33})
    for (int64_t n : {6, 130})
      for (int64_t k : {19, 225})
        for (int layouts = 0; layouts < 27; ++layouts) {
          const Layout choices[3] = {{false, 3, 1}, {true, 1, 1}, {false, 0, 2}};
          check_product<T>({2, m, n, k}, {1, 0}, choices[layouts % 3], choices[layouts / 3 % 3], choices[layouts / 9], layouts % 2 == 0);
        }
}

TEST_CASE_TEMPLATE("matmul: alpha, beta and bias", T, float, double) {
  for (double beta : {0.0, 1.0, -0.5})
    for (bool has_bias : {false, true})
      for (bool is_transposed : {false, true}) check_product<T>({3, 20, 70, 260}, {0.25, beta}, {}, {}, {is_transposed, 1, 1}, has_bias);
}

TEST_CASE_TEMPLATE("matmul: a sum over nothing is zero, or the bias", T, float, double) {
  check_product<T>({1, 4, 50, 0}, {1, 0}, {}, {}, {}, false);
  check_product<T>({2, 4, 5, 0}, {1, 0}, {}, {}, {}, true);
  check_product<T>({2, 4, 5, 0}, {1, 1}, {}, {}, {}, false);
  check_product<T>({0, 4, 5, 3}, {1, 0}, {}, {}, {}, false);
  check_product<T>({2, 0, 5, 3}, {1, 0}, {}, {}, {}, false);
  check_product<T>({2, 4, 0, 3}, {1, 0}, {}, {}, {}, false);
}

TEST_CASE_TEMPLATE("matmul: large products", T, float, double) {
  check_product<T>({1, 257, 1100, 400}, {1, 0}, {}, {}, {}, false);
  check_product<T>({1, 1100, 130, 70}, {1, 0}, {false, 0, 1}, {true, 0, 1}, {}, true);
  check_product<T>({1, 256, 128, 512}, {1, 0}, {false, 0, 1}, {true, 0, 1}, {}, false);
}

TEST_CASE_TEMPLATE("matmul: the result does not depend on the number of threads", T, float, double) {
  const int threads_before = num_threads();
  for (const MatmulGeometry& g : {MatmulGeometry{1, 300, 500, 700}, MatmulGeometry{1, 700, 100, 300}, MatmulGeometry{5, 70, 80, 90}}) {
    Matrices<T> a(g.batch, g.m, g.k, {}, 1), b(g.batch, g.k, g.n, {}, 2), one(g.batch, g.m, g.n, {}, 3), many = one;
    set_num_threads(1);
    run<T>(g, {1, 0}, a, b, nullptr, one);
    set_num_threads(5);
    run<T>(g, {1, 0}, a, b, nullptr, many);
    CHECK(one.memory == many.memory);
  }
  set_num_threads(threads_before);
}

TEST_CASE_TEMPLATE("matmul: a broadcast batch reads the same matrix again", T, float, double) {
  const MatmulGeometry g{4, 6, 50, 20};
  Matrices<T> a(g.batch, g.m, g.k, {}, 1), b(1, g.k, g.n, {}, 2), y(g.batch, g.m, g.n, {}, 3);
  b.shape[0] = 4;
  b.strides[0] = 0;
  run<T>(g, {1, 0}, a, b, nullptr, y);
  for (int64_t batch = 0; batch < 4; ++batch) {
    double sum = 0;
    for (int64_t k = 0; k < g.k; ++k) sum += double(a.at(batch, 5, k)) * double(b.at(0, k, 49));
    CHECK(double(y.at(batch, 5, 49)) == doctest::Approx(sum).epsilon(1e-5));
  }
}

TEST_CASE_TEMPLATE("gemm: a right operand packed once gives the same product", T, float, double) {
  for (int64_t m : {1, 8, 19})
    for (int64_t n : {10, 64, 200})
      for (int64_t k : {5, 192, 300})
        for (bool is_transposed : {false, true}) {
          Matrices<T> a(1, m, k, {false, 3, 1}, 1), b(1, k, n, {is_transposed, 1, 1}, 2), c(1, m, n, {false, 2, 1}, 3);
          const std::vector<T> bias = random_values<T>(n, 4);
          const Matrices<T> before = c;
          std::vector<T> packed(kernels::gemm<T>().packed_size(k, n));
          kernels::gemm<T>().pack(b.memory.data(), b.strides[1], b.strides[2], k, n, packed.data());
          kernels::gemm<T>().run_packed(m, n, k, a.memory.data(), a.strides[1], packed.data(), bias.data(), true, c.memory.data(), c.strides[1]);
          double worst = 0;
          for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < n; ++j) {
              double sum = double(bias[j]) + double(before.at(0, i, j));
              for (int64_t e = 0; e < k; ++e) sum += double(a.at(0, i, e)) * double(b.at(0, e, j));
              worst = std::max(worst, std::abs(double(c.at(0, i, j)) - sum));
            }
          CHECK(worst <= std::numeric_limits<T>::epsilon() * (4.0 + k));
        }
}
