// Batch, group, layer and instance norm: kernels against double precision, operations against PyTorch's values and against differences.
#include <doctest/doctest.h>

#include "tensor_helpers.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

struct Reference {
  std::vector<double> y, mean, invstd, dx, dgamma, dbeta;
};

// Everything in double; statistic s of element (n, c, i) is the sample's and group's, or the channel's where is_batch.
Reference reference_norm(const NormGeometry& g, bool is_batch, bool has_relu, const Tensor& x_, const Tensor& gamma_, const Tensor& beta_, const Tensor& dy_) {
  const auto x = values(x_), gamma = values(gamma_), beta = values(beta_), dy = values(dy_);
  const int64_t stats = is_batch ? g.channels : g.n * g.groups;
  const auto stat = [&](int64_t n, int64_t c) { return is_batch ? c : n * g.groups + c / (g.channels / g.groups); };
  const auto each = [&](auto f) {
    for (int64_t n = 0; n < g.n; ++n)
      for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t i = 0; i < g.spatial; ++i) f((n * g.channels + c) * g.spatial + i, c, stat(n, c));
  };
  Reference r;
  r.mean.assign(stats, 0);
  r.invstd.assign(stats, 0);
  std::vector<double> count(stats, 0), sum_g(stats, 0), sum_gx(stats, 0);
  each([&](int64_t at, int64_t, int64_t s) { r.mean[s] += x[at]; ++count[s]; });
  for (int64_t s = 0; s < stats; ++s) r.mean[s] /= count[s];
  each([&](int64_t at, int64_t, int64_t s) { r.invstd[s] += (x[at] - r.mean[s]) * (x[at] - r.mean[s]); });
  for (int64_t s = 0; s < stats; ++s) r.invstd[s] = 1 / std::sqrt(r.invstd[s] / count[s] + g.eps);
  r.y.assign(x.size(), 0);
  r.dx = r.y;
  r.dgamma.assign(g.channels, 0);
  r.dbeta = r.dgamma;
  std::vector<double> upstream(x.size());
  each([&](int64_t at, int64_t c, int64_t s) {
    const double normal = (x[at] - r.mean[s]) * r.invstd[s], y = normal * gamma[c] + beta[c];
    r.y[at] = has_relu ? std::max(y, 0.0) : y;
    upstream[at] = has_relu && y <= 0 ? 0 : dy[at];
    r.dgamma[c] += upstream[at] * normal;
    r.dbeta[c] += upstream[at];
    sum_g[s] += upstream[at] * gamma[c];
    sum_gx[s] += upstream[at] * gamma[c] * normal;
  });
  each([&](int64_t at, int64_t c, int64_t s) {
    const double normal = (x[at] - r.mean[s]) * r.invstd[s];
    r.dx[at] = r.invstd[s] * (upstream[at] * gamma[c] - sum_g[s] / count[s] - normal * sum_gx[s] / count[s]);
  });
  return r;
}

struct Outputs {
  Tensor y, mean, invstd, dx, dgamma, dbeta;
};

Outputs run_kernels(const NormGeometry& g, bool is_batch, bool has_relu, const Tensor& x, const Tensor& gamma, const Tensor& beta, const Tensor& dy) {
  const auto& t = kernels::cpu_table();
  const DType dtype = x.dtype();
  const Shape stats = is_batch ? Shape{g.channels} : Shape{g.n, g.groups};
  Outputs o{poisoned(x.shape(), dtype), poisoned(stats, dtype), poisoned(stats, dtype), poisoned(x.shape(), dtype), poisoned({g.channels}, dtype), poisoned({g.channels}, dtype)};
  if (is_batch) {
    t.batch_norm_train(nullptr, g, has_relu, x.view(), gamma.view(), beta.view(), o.y.mutable_view(), o.mean.mutable_view(), o.invstd.mutable_view());
    t.batch_norm_backward(nullptr, g, has_relu, dy.view(), x.view(), o.y.view(), gamma.view(), o.mean.view(), o.invstd.view(), o.dx.mutable_view(),
                          o.dgamma.mutable_view(), o.dbeta.mutable_view());
  } else {
    t.group_norm(nullptr, g, x.view(), gamma.view(), beta.view(), o.y.mutable_view(), o.mean.mutable_view(), o.invstd.mutable_view());
    t.group_norm_backward(nullptr, g, dy.view(), x.view(), gamma.view(), o.mean.view(), o.invstd.view(), o.dx.mutable_view(), o.dgamma.mutable_view(),
                          o.dbeta.mutable_view());
  }
  return o;
}

const NormGeometry batch_cases[] = {
    {2, 3, 35, 1}, {4, 5, 1, 1}, {1, 2, 40000, 1}, {3, 1, 9000, 1}, {8, 16, 49, 1}, {2, 70, 4, 1}, {300, 130, 1, 1}, {5, 9, 17, 1},
};
const NormGeometry group_cases[] = {{2, 6, 35, 3}, {3, 4, 1, 2}, {2, 4, 5000, 1}, {2, 5, 7, 5}, {4, 12, 16, 4}, {3, 140, 1, 1}, {2, 9000, 1, 1}};

}  // namespace

TEST_CASE("normalisation kernels agree with double precision, at every size and dtype") {
  for (const bool is_batch : {true, false}) {
    for (NormGeometry g : is_batch ? std::vector<NormGeometry>(std::begin(batch_cases), std::end(batch_cases)) : std::vector<NormGeometry>(std::begin(group_cases), std::end(group_cases))) {
      for (const bool has_relu : {false, true}) {
        if (has_relu && !is_batch) continue;
        for (const DType dtype : {DType::float32, DType::float64}) {
          CAPTURE(g.n); CAPTURE(g.channels); CAPTURE(g.spatial); CAPTURE(is_batch); CAPTURE(has_relu); CAPTURE(name_of(dtype));
          const Tensor x = random_tensor({g.n, g.channels, g.spatial}, dtype, 3), dy = random_tensor(x.shape(), dtype, 4);
          const Tensor gamma = random_tensor({g.channels}, dtype, 5), beta = random_tensor({g.channels}, dtype, 6);
          const Reference r = reference_norm(g, is_batch, has_relu, x, gamma, beta, dy);
          const Outputs o = run_kernels(g, is_batch, has_relu, x, gamma, beta, dy);
          const double tolerance = dtype == DType::float32 ? 2e-5 : 1e-12, count = static_cast<double>(g.n * g.spatial);
          CHECK(distance(o.mean, r.mean) < tolerance);
          CHECK(distance(o.invstd, r.invstd) < tolerance);
          CHECK(distance(o.y, r.y) < tolerance);
          CHECK(distance(o.dx, r.dx) < 4 * tolerance);
          CHECK(distance(o.dgamma, r.dgamma) < tolerance * std::sqrt(count));
          CHECK(distance(o.dbeta, r.dbeta) < tolerance * std::sqrt(count));
        }
      }
    }
  }
}

TEST_CASE("batch norm: the variance survives a mean a thousand deviations away") {
  for (const NormGeometry g : {NormGeometry{4, 3, 3136}, NormGeometry{512, 3, 1}}) {
    const Tensor noise = random_tensor({g.n, g.channels, g.spatial}, DType::float64, 9);
    Tensor x = empty(noise.shape());
    for (int64_t i = 0; i < x.numel(); ++i) x.mutable_data<float>()[i] = static_cast<float>(1000 + noise.data<double>()[i]);
    const Tensor ones_ = ones({g.channels}), zeros_ = zeros({g.channels});
    const Reference r = reference_norm(g, true, false, x, ones_, zeros_, x);
    const Outputs o = run_kernels(g, true, false, x, ones_, zeros_, x);
    CHECK(distance(o.invstd, r.invstd) < 1e-5);
    CHECK(distance(o.y, r.y) < 1e-4);
  }
}

TEST_CASE("normalisation kernels do not depend on the number of threads") {
  for (const bool is_batch : {true, false}) {
    const NormGeometry g = is_batch ? NormGeometry{3, 2, 30000, 1} : NormGeometry{3, 6, 5000, 2};
    const Tensor x = random_tensor({g.n, g.channels, g.spatial}, DType::float32, 3), gamma = random_tensor({g.channels}, DType::float32, 5);
    const auto run = [&](int threads) {
      Threads scope(threads);
      return run_kernels(g, is_batch, is_batch, x, gamma, gamma, x);
    };
    const Outputs one = run(1), four = run(4);
    CHECK(values(one.y) == values(four.y));
    CHECK(values(one.dx) == values(four.dx));
    CHECK(values(one.dgamma) == values(four.dgamma));
    CHECK(values(one.invstd) == values(four.invstd));
  }
}

TEST_CASE("normalisation kernels of nothing do nothing, and a NaN stays in its channel") {
  for (const NormGeometry g : {NormGeometry{0, 3, 4}, NormGeometry{2, 3, 0}, NormGeometry{2, 0, 4}, NormGeometry{0, 3, 1}}) {
    for (const bool is_batch : {true, false}) {
      const Tensor x = empty({g.n, g.channels, g.spatial}), affine = ones({g.channels});
      const Outputs o = run_kernels(g, is_batch, true, x, affine, affine, x);
      for (double v : values(o.dgamma)) CHECK(v == 0);
      for (double v : values(o.dbeta)) CHECK(v == 0);
    }
  }
  Tensor x = random_tensor({2, 2, 50}, DType::float32);
  x.mutable_data<float>()[7] = static_cast<float>(quiet_nan());
  const Outputs o = run_kernels({2, 2, 50}, true, true, x, ones({2}), zeros({2}), x);
  for (int64_t i = 0; i < 200; ++i) CHECK(std::isnan(values(o.y)[static_cast<size_t>(i)]) == (i / 50 % 2 == 0));
}
