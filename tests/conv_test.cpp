// The CPU's convolutions against the plain sums, over many shapes; outputs start as NaN and stand between guards.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <fovea/kernels/cpu/conv_functions.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

using namespace fovea;

namespace {

template <class T> struct Wider;
template <> struct Wider<float> { using type = double; };
template <> struct Wider<double> { using type = long double; };

// A contiguous tensor between two guards.
template <class T>
struct Guarded {
  static constexpr int64_t guard = 32;
  std::vector<T> memory;
  Shape shape;

  explicit Guarded(Shape s) : memory(s.numel() + 2 * guard, std::numeric_limits<T>::quiet_NaN()), shape(s) {}
  Guarded(Shape s, unsigned seed) : Guarded(s) {
    std::mt19937 generator(seed);
    std::uniform_real_distribution<double> distribution(-1, 1);
    for (int64_t i = 0; i < s.numel(); ++i) (*this)[i] = static_cast<T>(distribution(generator));
  }
  T& operator[](int64_t i) { return memory[guard + i]; }
  T operator[](int64_t i) const { return memory[guard + i]; }
  View view() {
    View v;
    v.data = memory.data() + guard;
    v.dtype = dtype_of<T>;
    v.shape = shape;
    v.strides = contiguous_strides(shape);
    return v;
  }
  bool guards_are_whole() const {
    bool whole = true;
    for (int64_t i = 0; i < guard; ++i) whole &= std::isnan(memory[i]) && std::isnan(memory[memory.size() - 1 - i]);
    return whole;
  }
};

// Everything a convolution computes.
template <class T>
struct Results {
  Guarded<T> y, dx, dweight, dbias;
  explicit Results(const ConvGeometry& g)
      : y({g.n, g.k, g.out_h(), g.out_w()}), dx({g.n, g.c, g.h, g.w}), dweight({g.k, g.group_c(), g.r, g.s}), dbias({g.k}) {}
};

template <class T>
struct Inputs {
  Guarded<T> x, weight, bias, dy;
  explicit Inputs(const ConvGeometry& g)
      : x({g.n, g.c, g.h, g.w}, 1), weight({g.k, g.group_c(), g.r, g.s}, 2), bias({g.k}, 3), dy({g.n, g.k, g.out_h(), g.out_w()}, 4) {}
};

template <class T>
Results<T> run_kernels(const ConvGeometry& g, Inputs<T>& in) {
  const kernels::KernelTable& table = kernels::cpu_table();
  std::vector<char> memory(table.conv2d_workspace(g, dtype_of<T>) + 64);
  const kernels::Workspace scratch{memory.data(), static_cast<int64_t>(memory.size()) - 64};
  Results<T> out(g);
  table.conv2d_forward(nullptr, g, in.x.view(), in.weight.view(), in.bias.view(), out.y.view(), scratch);
  table.conv2d_backward_data(nullptr, g, in.dy.view(), in.weight.view(), out.dx.view(), scratch);
  table.conv2d_backward_weight(nullptr, g, in.x.view(), in.dy.view(), out.dweight.view(), out.dbias.view(), scratch);
  return out;
}

// Walks over every product of the convolution: f(x index, weight index, y index).
template <class F>
void for_each_product(const ConvGeometry& g, F f) {
  const int64_t p_count = g.out_h(), q_count = g.out_w();
  for (int64_t n = 0; n < g.n; ++n)
    for (int64_t k = 0; k < g.k; ++k)
      for (int64_t p = 0; p < p_count; ++p)
        for (int64_t q = 0; q < q_count; ++q)
          for (int64_t c = 0; c < g.group_c(); ++c)
            for (int64_t r = 0; r < g.r; ++r)
              for (int64_t s = 0; s < g.s; ++s) {
                const int64_t h = p * g.stride_h - g.pad_h + r * g.dilation_h, w = q * g.stride_w - g.pad_w + s * g.dilation_w;
                if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
                const int64_t channel = k / g.group_k() * g.group_c() + c;
                f(((n * g.c + channel) * g.h + h) * g.w + w, ((k * g.group_c() + c) * g.r + r) * g.s + s, ((n * g.k + k) * p_count + p) * q_count + q);
              }
}

template <class T>
double worst_error(const Guarded<T>& got, const std::vector<typename Wider<T>::type>& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = static_cast<double>(std::abs(got[i] - expected[i]));
    worst = error <= worst ? worst : error;            // a NaN becomes the worst
  }
  return worst;
}

template <class T>
void check_convolution(const ConvGeometry& g) {
  using W = typename Wider<T>::type;
  CAPTURE(g.n); CAPTURE(g.c); CAPTURE(g.h); CAPTURE(g.w); CAPTURE(g.k); CAPTURE(g.r); CAPTURE(g.s); CAPTURE(g.stride_h); CAPTURE(g.stride_w);
  CAPTURE(g.pad_h); CAPTURE(g.pad_w); CAPTURE(g.dilation_h); CAPTURE(g.dilation_w); CAPTURE(g.groups);
  Inputs<T> in(g);
  const Results<T> out = run_kernels(g, in);
  std::vector<W> y(out.y.shape.numel()), dx(out.dx.shape.numel()), dweight(out.dweight.shape.numel()), dbias(g.k);
  const int64_t pixels = g.out_h() * g.out_w();
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] = in.bias[i / pixels % g.k];
    dbias[i / pixels % g.k] += in.dy[i];
  }
  for_each_product(g, [&](int64_t i_x, int64_t i_weight, int64_t i_y) {
    y[i_y] += W(in.x[i_x]) * W(in.weight[i_weight]);
    dx[i_x] += W(in.dy[i_y]) * W(in.weight[i_weight]);
    dweight[i_weight] += W(in.x[i_x]) * W(in.dy[i_y]);
  });
  const double eps = std::numeric_limits<T>::epsilon();
  CHECK(worst_error(out.y, y) <= eps * (4.0 + g.group_c() * g.r * g.s));
  CHECK(worst_error(out.dx, dx) <= eps * (4.0 + g.group_k() * g.r * g.s));
  CHECK(worst_error(out.dweight, dweight) <= eps * (4.0 + g.n * pixels));
  CHECK(worst_error(out.dbias, dbias) <= eps * (4.0 + g.n * pixels));
  CHECK(out.y.guards_are_whole());
  CHECK(out.dx.guards_are_whole());
  CHECK(out.dweight.guards_are_whole());
  CHECK(out.dbias.guards_are_whole());
}

ConvGeometry square(int64_t n, int64_t c, int64_t size, int64_t k, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation = 1, int64_t groups = 1) {
  return {n, c, size, size, k, kernel, kernel, stride, stride, pad, pad, dilation, dilation, groups};
}

}  // namespace

TEST_CASE_TEMPLATE("conv2d: equals the plain sums for kernels, strides, paddings and dilations", T, float, double) {
  for (int64_t kernel : {1, 2, 3, 5})
    for (int64_t stride : {1, 2, 3})
      for (int64_t pad : {0, 1, 2, 4})
        for (int64_t dilation : {1, 2}) {
          const ConvGeometry g = square(2, 3, 11, 5, kernel, stride, pad, dilation);
          if (g.out_h() > 0) check_convolution<T>(g);
        }
}

TEST_CASE_TEMPLATE("conv2d: axes may differ in everything", T, float, double) {
  check_convolution<T>({2, 3, 9, 14, 4, 3, 1, 1, 2, 1, 0, 1, 1, 1});
  check_convolution<T>({1, 2, 14, 9, 9, 2, 5, 3, 1, 0, 3, 2, 1, 1});
  check_convolution<T>({3, 4, 1, 40, 6, 1, 5, 1, 2, 0, 2, 1, 3, 1});        // 1-D
  check_convolution<T>({1, 5, 30, 3, 2, 7, 3, 2, 1, 3, 1, 1, 1, 1});
  check_convolution<T>({2, 2, 10, 13, 3, 3, 3, 4, 5, 1, 1, 1, 1, 1});       // stride beyond the kernel: some of x is never seen
  check_convolution<T>({2, 2, 12, 12, 3, 3, 3, 2, 2, 1, 1, 2, 2, 1});       // dilation a multiple of the stride
  check_convolution<T>({2, 2, 13, 13, 3, 3, 3, 4, 6, 3, 2, 2, 3, 1});
}

TEST_CASE_TEMPLATE("conv2d: groups and depthwise", T, float, double) {
  check_convolution<T>(square(2, 4, 9, 6, 3, 1, 1, 1, 2));
  check_convolution<T>(square(2, 12, 9, 6, 3, 2, 1, 1, 3));
  for (int64_t kernel : {1, 3, 5, 4})
    for (int64_t stride : {1, 2, 3})
      for (int64_t pad : {0, 1, 3}) check_convolution<T>(square(2, 5, 12, 5, kernel, stride, pad, 1, 5));
  for (int64_t groups : {1, 5})                                             // pixels that no output sees
    for (int64_t kernel : {1, 2}) check_convolution<T>(square(2, 5, 11, 5, kernel, 3 - kernel + 1, 1, 1, groups));
  check_convolution<T>(square(2, 4, 37, 4, 3, 1, 1, 1, 4));
  check_convolution<T>(square(2, 4, 37, 4, 3, 2, 1, 1, 4));
  check_convolution<T>(square(1, 3, 10, 6, 3, 1, 1, 2, 3));                 // two outputs a channel, dilated
  check_convolution<T>({1, 6, 1, 50, 6, 1, 9, 1, 1, 0, 4, 1, 1, 6});        // 1-D depthwise
}

TEST_CASE_TEMPLATE("conv2d: many channels and pixels, over block edges", T, float, double) {
  check_convolution<T>(square(3, 40, 7, 50, 3, 1, 1));
  check_convolution<T>(square(2, 33, 14, 70, 1, 1, 0));
  check_convolution<T>(square(2, 20, 15, 17, 1, 2, 0));
  check_convolution<T>(square(1, 3, 60, 10, 7, 2, 3));
  check_convolution<T>(square(1, 8, 56, 12, 3, 1, 1));
}

TEST_CASE_TEMPLATE("conv2d: 3x3 kernels with many channels, which are computed by minimal filtering", T, float, double) {
  REQUIRE(kernels::winograd_pays(square(2, 16, 9, 16, 3, 1, 1)));
  REQUIRE(!kernels::winograd_pays(square(2, 16, 9, 16, 3, 2, 1)));
  for (int64_t pad : {0, 1, 2})
    for (int64_t size : {7, 8, 21}) check_convolution<T>(square(3, 17, size, 33, 3, 1, pad));
  check_convolution<T>({2, 16, 5, 37, 19, 3, 3, 1, 1, 2, 0, 1, 1, 1});     // rows of tiles longer than a vector, odd ends, paddings that differ
  check_convolution<T>({2, 18, 40, 3, 16, 3, 3, 1, 1, 0, 2, 1, 1, 1});     // tiles in columns of two
  check_convolution<T>(square(2, 16, 31, 16, 3, 1, 1));                    // more tiles than one block of the gradient's sum
  check_convolution<T>(square(5, 192, 6, 176, 3, 1, 1));                   // weights so many that panels share them
}

TEST_CASE_TEMPLATE("conv2d: empty batches and images without gradient", T, float, double) {
  check_convolution<T>(square(0, 3, 5, 4, 3, 1, 1));
  check_convolution<T>(square(2, 3, 5, 0, 3, 1, 1));
  check_convolution<T>(square(1, 1, 1, 1, 1, 1, 0));
  check_convolution<T>(square(1, 2, 1, 3, 3, 1, 1));
}

TEST_CASE_TEMPLATE("conv2d: results do not depend on the number of threads", T, float, double) {
  const int threads_before = num_threads();
  for (const ConvGeometry& g : {square(3, 20, 23, 40, 3, 1, 1), square(2, 16, 30, 24, 3, 2, 1), square(4, 24, 28, 24, 3, 1, 1, 1, 24), square(2, 64, 9, 8, 3, 1, 1), square(3, 192, 11, 192, 3, 1, 1)}) {
    Inputs<T> in(g);
    set_num_threads(1);
    const Results<T> one = run_kernels(g, in);
    set_num_threads(5);
    const Results<T> many = run_kernels(g, in);
    const auto same = [](const Guarded<T>& a, const Guarded<T>& b) {
      bool equal = true;
      for (int64_t i = 0; i < a.shape.numel(); ++i) equal &= a[i] == b[i];
      return equal;
    };
    CHECK(same(one.y, many.y));
    CHECK(same(one.dx, many.dx));
    CHECK(same(one.dweight, many.dweight));
    CHECK(same(one.dbias, many.dbias));
  }
  set_num_threads(threads_before);
}

TEST_CASE("conv2d: fewer threads than the workspace was made for") {
  const int threads_before = num_threads();
  const ConvGeometry g = square(2, 16, 40, 16, 3, 1, 1);
  Inputs<float> in(g);
  const kernels::KernelTable& table = kernels::cpu_table();
  set_num_threads(16);
  const int64_t bytes = table.conv2d_workspace(g, DType::float32);
  const Results<float> expected = run_kernels(g, in);
  for (int threads : {1, 3, 40}) {
    set_num_threads(threads);
    Guarded<float> scratch({bytes / 4});
    Results<float> out(g);
    table.conv2d_forward(nullptr, g, in.x.view(), in.weight.view(), in.bias.view(), out.y.view(), {scratch.view().data, bytes});
    CHECK(scratch.guards_are_whole());
    bool equal = true;
    for (int64_t i = 0; i < out.y.shape.numel(); ++i) equal &= out.y[i] == expected.y[i];
    CHECK(equal);
  }
  set_num_threads(threads_before);
}
