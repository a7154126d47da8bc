// Pooling: kernels against plain loops, operations against PyTorch's values and against differences.
#include <doctest/doctest.h>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/pool.h>
#include <fovea/autograd/shape.h>

#include "devices.h"
#include "tensor_helpers.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Expected {
  std::vector<double> y, dx;
  std::vector<int64_t> indices;
};

Expected reference_pool(const PoolGeometry& g, bool is_max, const std::vector<double>& x, const std::vector<double>& dy) {
  Expected e;
  e.dx.assign(x.size(), 0);
  for (int64_t plane = 0; plane < g.n * g.c; ++plane) {
    for (int64_t oh = 0; oh < g.out_h(); ++oh) {
      for (int64_t ow = 0; ow < g.out_w(); ++ow) {
        const double upstream = dy[e.y.size()];
        double best = -infinity, sum = 0;
        int64_t where = -1, in_padding = 0;
        std::vector<int64_t> inside;
        for (int64_t i = 0; i < g.kernel_h; ++i) {
          for (int64_t j = 0; j < g.kernel_w; ++j) {
            const int64_t h = oh * g.stride_h - g.pad_h + i * g.dilation_h, w = ow * g.stride_w - g.pad_w + j * g.dilation_w;
            if (h < g.h + g.pad_h && w < g.w + g.pad_w) ++in_padding;
            if (h < 0 || w < 0 || h >= g.h || w >= g.w) continue;
            const int64_t at = h * g.w + w;
            const double v = x[static_cast<size_t>(plane * g.h * g.w + at)];
            if (where < 0 || v > best || std::isnan(v)) { best = v; where = at; }
            sum += v;
            inside.push_back(at);
          }
        }
        const double count = static_cast<double>(g.count_include_pad ? in_padding : static_cast<int64_t>(inside.size()));
        e.y.push_back(is_max ? best : sum / count);
        e.indices.push_back(where);
        if (is_max) e.dx[static_cast<size_t>(plane * g.h * g.w + where)] += upstream;
        else for (int64_t at : inside) e.dx[static_cast<size_t>(plane * g.h * g.w + at)] += upstream / count;
      }
    }
  }
  return e;
}

// n, c, h, w, kernel, stride, padding, dilation, ceil_mode, count_include_pad
const PoolGeometry cases[] = {
    {1, 2, 8, 8, 2, 2, 2, 2},
    {2, 3, 56, 57, 2, 2, 2, 2},
    {1, 2, 112, 112, 3, 3, 2, 2, 1, 1},
    {1, 2, 15, 33, 3, 3, 1, 1, 1, 1},
    {1, 1, 7, 40, 3, 3, 2, 2, 1, 1, 1, 1, true},
    {1, 1, 9, 70, 2, 3, 1, 2, 0, 1, 2, 2},
    {1, 1, 20, 41, 3, 2, 3, 3, 1, 1},
    {2, 1, 5, 5, 5, 5, 1, 1, 2, 2},
    {1, 1, 1, 64, 1, 2, 1, 2, 0, 0},
    {1, 1, 10, 36, 4, 4, 2, 2, 1, 1, 1, 1, true},
    {1, 1, 4, 600, 1, 4, 1, 2, 0, 2},
    {0, 3, 8, 8, 2, 2, 2, 2},
};

void check_pool(const PoolGeometry& g, bool is_max, DType dtype, double tolerance) {
  const auto& t = kernels::cpu_table();
  const Tensor x = random_tensor({g.n, g.c, g.h, g.w}, dtype, 3), dy = random_tensor({g.n, g.c, g.out_h(), g.out_w()}, dtype, 4);
  const Expected e = reference_pool(g, is_max, values(x), values(dy));
  Tensor y = poisoned(dy.shape(), dtype), dx = poisoned(x.shape(), dtype), indices = poisoned(dy.shape(), DType::int64);
  if (is_max) {
    t.max_pool(nullptr, g, x.view(), y.mutable_view(), indices.mutable_view());
    CHECK(indices.to_vector<int64_t>() == e.indices);
    t.max_pool_backward(nullptr, nullptr, dy.view(), indices.view(), dx.mutable_view());
    Tensor alone = poisoned(dy.shape(), dtype);
    t.max_pool(nullptr, g, x.view(), alone.mutable_view(), View());
    CHECK(values(alone) == values(y));
  } else {
    t.avg_pool(nullptr, g, x.view(), y.mutable_view());
    t.avg_pool_backward(nullptr, g, dy.view(), dx.mutable_view());
  }
  CHECK(distance(y, e.y) <= (is_max ? 0 : tolerance));
  CHECK(distance(dx, e.dx) < tolerance);
}

}  // namespace

TEST_CASE("pooling kernels agree with plain loops" * of_the_cpu()) {
  for (PoolGeometry g : cases) {
    for (const DType dtype : {DType::float32, DType::float64}) {
      const double tolerance = dtype == DType::float32 ? 4e-6 : 1e-14;
      CAPTURE(g.h); CAPTURE(g.w); CAPTURE(g.kernel_h); CAPTURE(g.kernel_w); CAPTURE(g.stride_w); CAPTURE(name_of(dtype));
      check_pool(g, true, dtype, tolerance);
      g.dilation_h = g.dilation_w = 1;
      for (const bool count_include_pad : {true, false}) {
        g.count_include_pad = count_include_pad;
        check_pool(g, false, dtype, tolerance);
      }
    }
  }
}

TEST_CASE("max pooling hands on a NaN, and points into a window of -infinity" * of_the_cpu()) {
  PoolGeometry g{1, 1, 6, 40, 3, 3, 1, 1, 1, 1};
  Tensor x = full({1, 1, 6, 40}, -infinity);
  x.mutable_data<float>()[2 * 40 + 20] = static_cast<float>(quiet_nan());
  Tensor y = poisoned({1, 1, 6, 40}, DType::float32), indices = poisoned(y.shape(), DType::int64);
  kernels::cpu_table().max_pool(nullptr, g, x.view(), y.mutable_view(), indices.mutable_view());
  for (int64_t h = 0; h < 6; ++h) {
    for (int64_t w = 0; w < 40; ++w) {
      const bool sees_nan = std::abs(h - 2) <= 1 && std::abs(w - 20) <= 1;
      const int64_t at = h * 40 + w, first = std::max<int64_t>(h - 1, 0) * 40 + std::max<int64_t>(w - 1, 0);
      CHECK(std::isnan(y.data<float>()[at]) == sees_nan);
      CHECK(indices.data<int64_t>()[at] == (sees_nan ? 2 * 40 + 20 : first));
    }
  }
}

TEST_CASE("adaptive pooling kernels agree with plain loops, windows overlapping or not" * of_the_cpu()) {
  const auto& t = kernels::cpu_table();
  for (const AdaptivePoolGeometry& g : {AdaptivePoolGeometry{2, 3, 7, 9, 3, 4}, AdaptivePoolGeometry{1, 2, 14, 14, 1, 1}, AdaptivePoolGeometry{1, 1, 3, 3, 5, 7}, AdaptivePoolGeometry{2, 1, 2, 50, 3, 150},
                                        AdaptivePoolGeometry{0, 2, 4, 4, 2, 2}}) {
    for (const DType dtype : {DType::float32, DType::float64}) {
      const Tensor x = random_tensor({g.n, g.c, g.h, g.w}, dtype, 3), dy = random_tensor({g.n, g.c, g.out_h, g.out_w}, dtype, 4);
      Tensor mean = poisoned(dy.shape(), dtype), max = poisoned(dy.shape(), dtype), indices = poisoned(dy.shape(), DType::int64);
      Tensor dx_mean = poisoned(x.shape(), dtype), dx_max = poisoned(x.shape(), dtype);
      t.adaptive_avg_pool(nullptr, g, x.view(), mean.mutable_view());
      t.adaptive_avg_pool_backward(nullptr, g, dy.view(), dx_mean.mutable_view());
      t.adaptive_max_pool(nullptr, g, x.view(), max.mutable_view(), indices.mutable_view());
      t.max_pool_backward(nullptr, nullptr, dy.view(), indices.view(), dx_max.mutable_view());
      const auto in = values(x), upstream = values(dy);
      std::vector<double> y_mean, y_max, gradient_mean(in.size(), 0), gradient_max(in.size(), 0);
      for (int64_t plane = 0; plane < g.n * g.c; ++plane) {
        for (int64_t i = 0; i < g.out_h; ++i) {
          for (int64_t j = 0; j < g.out_w; ++j) {
            const int64_t h0 = i * g.h / g.out_h, h1 = ((i + 1) * g.h + g.out_h - 1) / g.out_h, w0 = j * g.w / g.out_w, w1 = ((j + 1) * g.w + g.out_w - 1) / g.out_w;
            double sum = 0, best = -infinity;
            size_t where = 0;
            const double share = upstream[y_mean.size()] / static_cast<double>((h1 - h0) * (w1 - w0));
            for (int64_t h = h0; h < h1; ++h) {
              for (int64_t w = w0; w < w1; ++w) {
                const size_t at = static_cast<size_t>((plane * g.h + h) * g.w + w);
                sum += in[at];
                gradient_mean[at] += share;
                if (in[at] > best) { best = in[at]; where = at; }
              }
            }
            gradient_max[where] += upstream[y_mean.size()];
            y_mean.push_back(sum / static_cast<double>((h1 - h0) * (w1 - w0)));
            y_max.push_back(best);
          }
        }
      }
      const double tolerance = dtype == DType::float32 ? 1e-6 : 1e-14;
      CHECK(distance(mean, y_mean) < tolerance);
      CHECK(distance(max, y_max) == 0);
      CHECK(distance(dx_mean, gradient_mean) < tolerance);
      CHECK(distance(dx_max, gradient_max) < tolerance);
    }
  }
}

TEST_CASE("pooling kernels do not depend on the number of threads" * of_the_cpu()) {
  const PoolGeometry g{4, 8, 30, 30, 3, 3, 2, 2, 1, 1};
  const Tensor x = random_tensor({4, 8, 30, 30}, DType::float32);
  const auto run = [&](int threads) {
    Threads scope(threads);
    Tensor y = poisoned({4, 8, 15, 15}, DType::float32), dx = poisoned(x.shape(), DType::float32);
    kernels::cpu_table().avg_pool(nullptr, g, x.view(), y.mutable_view());
    kernels::cpu_table().avg_pool_backward(nullptr, g, y.view(), dx.mutable_view());
    return values(dx);
  };
  CHECK(run(1) == run(4));
}

// --- operations ---

namespace {

Tensor pattern(const Shape& shape) {
  return filled<double>(shape, [](int64_t i) { return static_cast<double>(i * 11 % 17 - 6) / 2; });
}

}  // namespace

TEST_CASE("pooling operations give PyTorch's values") {
  const Tensor x = pattern({1, 1, 5, 7});
  CHECK(distance(max_pool2d(x, 3, {.stride = 2, .padding = 1}), {2.5, 5, 5, 4.5, 3, 4.5, 4, 5, 3.5, 4.5, 4, 4}) == 0);
  CHECK(distance(max_pool2d(x, 2, {.stride = 1, .padding = 1, .dilation = 2}),
                 {-1.5, 4, 1, 4, 3.5, 0.5, 3.5, 3, 0, 5, 2.5, 5, 5, -0.5, -1, 4.5, 1.5, 4.5, 4, 1, 4, 3.5, 0.5, 3.5, 3, 0, 5, 0, -1, 4.5, 1.5, 4.5, 4, 1, 4}) == 0);
  CHECK(distance(max_pool2d(x, 2, {.stride = 2, .ceil_mode = true}), {2.5, 5, 3.5, 4.5, 3, 4.5, 4, 5, 3.5, 0.5, 3, -3}) == 0);
  CHECK(distance(avg_pool2d(x, 3, {.stride = 2, .padding = 1}),
                 {-0.0555555556, 1.16666667, 0.944444444, 0.833333333, 0.166666667, 0.944444444, 0.611111111, 1.5, 0.277777778, 0.722222222, 0.5, 0.222222222}) < 1e-8);
  const std::vector<double> clipped = {-0.125, 1.75, 1.41666667, 1.875, 0.25, 0.944444444, 0.611111111, 2.25, 0.625, 1.08333333, 0.75, 0.5};
  CHECK(distance(avg_pool2d(x, 3, {.stride = 2, .padding = 1, .ceil_mode = true, .count_include_pad = false}), clipped) < 1e-8);
  CHECK(distance(adaptive_avg_pool2d(x, {3, 4}), clipped) < 1e-8);
  CHECK(values(max_pool1d(select(x, 1, 0), 3, {.stride = 2})) == values(max_pool2d(x, {1, 3}, {.stride = {1, 2}})));
  CHECK(values(avg_pool1d(select(select(x, 0, 0), 0, 0), 2)) == values(avg_pool2d(select(x, 0, 0), {1, 2})));
  const Tensor even = pattern({2, 3, 6, 8});                                  // windows of one size: the same as plain pooling
  CHECK(values(adaptive_avg_pool2d(even, {3, 4})) == values(avg_pool2d(even, 2)));
  CHECK(values(adaptive_max_pool2d(even, {2, 2})) == values(max_pool2d(even, {3, 4})));
  CHECK(distance(global_avg_pool(x), values(adaptive_avg_pool2d(x, 1))) < 1e-12);
  CHECK(values(global_max_pool(x)) == std::vector<double>{5});
  CHECK(max_pool2d_with_indices(x, {5, 7}).indices.item<int64_t>() == 3);
}

TEST_CASE("gradients of pooling are the limits of differences, first and second") {
  using Inputs = const std::vector<Tensor>&;
  const TensorFunction functions[] = {
      [](Inputs i) { return square(max_pool2d(i[0], 3, {.stride = 2, .padding = 1})); },
      [](Inputs i) { return square(max_pool2d(i[0], 2, {.stride = 1, .dilation = 2, .ceil_mode = true})); },
      [](Inputs i) { return square(avg_pool2d(i[0], 3, {.stride = 2, .padding = 1, .ceil_mode = true})); },
      [](Inputs i) { return square(avg_pool2d(i[0], 2)); },
      [](Inputs i) { return square(avg_pool2d(i[0], 3, {.stride = 1, .padding = 1, .count_include_pad = false})); },
      [](Inputs i) { return square(adaptive_avg_pool2d(i[0], {2, 3})); },
      [](Inputs i) { return square(adaptive_max_pool2d(i[0], {2, 3})); },
      [](Inputs i) { return square(global_avg_pool(i[0])); },
      [](Inputs i) { return square(max_pool2d(transpose(i[0], 2, 3), 2)); },
      [](Inputs i) { return square(avg_pool1d(reshape(i[0], {2, 4, 15}), 3, {.stride = 1})); },
  };
  for (const TensorFunction& f : functions) {
    CHECK(gradcheck(f, {random_leaf({2, 2, 5, 6}, 3)}) == "");
    CHECK(gradgradcheck(f, {random_leaf({2, 2, 5, 6}, 3)}) == "");
  }
}

TEST_CASE("pooling refuses windows that do not fit, and takes empty batches and meta") {
  const Tensor x = zeros({1, 2, 4, 4});
  CHECK(error_of<ShapeError>([&] { max_pool2d(x, 5); }).find("max_pool2d: a kernel of 5 ") != std::string::npos);
  CHECK(error_of<ValueError>([&] { max_pool2d(x, 2, {.padding = 2}); }).find("half of the kernel") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { max_pool2d(zeros({1, 1, 1, 1}), 2, {.padding = 1, .dilation = 2}); }).find("does not fit") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { avg_pool2d(zeros({4, 4}), 2); }).find("got [4,4]") != std::string::npos);
  CHECK(error_of<DTypeError>([&] { avg_pool2d(zeros({1, 1, 4, 4}, DType::int64), 2); }).find("int64") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { adaptive_avg_pool2d(zeros({1, 1, 0, 4}), 2); }).find("no positions") != std::string::npos);
  Tensor none = zeros({0, 2, 4, 4});
  none.set_requires_grad();
  for (const Tensor& y : {max_pool2d(none, 2), avg_pool2d(none, 2), adaptive_avg_pool2d(none, 2), adaptive_max_pool2d(none, 2)}) {
    CHECK(y.shape() == Shape{0, 2, 2, 2});
    y.backward(zeros_like(y));
    CHECK(none.grad().shape() == none.shape());
  }
  const Tensor meta = empty({2, 3, 8, 8}, Device::meta());
  CHECK(max_pool2d(meta, 3, {.stride = 2, .padding = 1}).shape() == Shape{2, 3, 4, 4});
  CHECK(global_max_pool(meta).shape() == Shape{2, 3});
}
