// Batch, group, layer and instance norm: kernels against double precision, operations against PyTorch's values and against differences.
#include <doctest/doctest.h>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/norm.h>
#include <fovea/autograd/shape.h>

#include "devices.h"
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
    t.batch_norm_train(nullptr, g, has_relu, x.view(), {}, gamma.view(), beta.view(), o.y.mutable_view(), o.mean.mutable_view(), o.invstd.mutable_view(), {});
    t.batch_norm_backward(nullptr, g, has_relu, dy.view(), x.view(), o.y.view(), gamma.view(), o.mean.view(), o.invstd.view(), o.dx.mutable_view(), {},
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

TEST_CASE("normalisation kernels agree with double precision, at every size and dtype" * of_the_cpu()) {
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

TEST_CASE("batch norm: the variance survives a mean a thousand deviations away" * of_the_cpu()) {
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

TEST_CASE("normalisation kernels do not depend on the number of threads" * of_the_cpu()) {
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

TEST_CASE("normalisation kernels of nothing do nothing, and a NaN stays in its channel" * of_the_cpu()) {
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

// --- operations ---

namespace {

Tensor pattern(const Shape& shape, int64_t step, int64_t modulus, int64_t shift) {
  return filled<double>(shape, [&](int64_t i) { return static_cast<double>(i * step % modulus - shift) / 2; });
}

constexpr DType f64 = DType::float64;

}  // namespace

TEST_CASE("batch_norm, layer_norm and group_norm give PyTorch's values and running statistics") {
  const Tensor x = pattern({2, 3, 4}, 7, 11, 3), w = tensor({1.5, -0.5, 2.0}, f64), b = tensor({0.1, 0.2, -0.3}, f64);
  const Tensor mean = tensor({0.5, -1, 2}, f64), var = tensor({1, 2, 0.5}, f64);
  CHECK(distance(batch_norm(x, w, b, mean, var, false, 0.1, 1e-3),
                 {-2.898501124, 2.348875843,   -0.649625281,  4.597751686,  -0.6836625884, 0.02326748231, -1.213860142, -0.5069300708, -8.7768088,  1.112801467, -4.5384044, -10.18961027,
                  2.348875843,  -0.649625281,  4.597751686,   1.599250562,  0.02326748231, -1.213860142,  -0.5069300708, 0.2,          1.112801467, -4.5384044,  -10.18961027, -0.3}) < 1e-8);
  CHECK(distance(batch_norm(x, w, b, mean, var, true, 0.1, 1e-3),
                 {-2.507478111, 0.6668430677, -1.147054749, 2.02726643,   0.005494564789, 0.6970694455, -0.5131865958, 0.178388285,  -2.173719575, 2.198292766, -0.3,         -2.798292766,
                  0.6668430677, -1.147054749, 2.02726643,   0.2133686135, 0.6970694455,   -0.5131865958, 0.178388285,  0.8699631657, 2.198292766,  -0.3,        -2.798292766, 1.573719575}) < 1e-8);
  CHECK(distance(mean, {0.5875, -0.80625, 1.85}) < 1e-9);
  CHECK(distance(var, {1.2125, 2.038839286, 0.7428571429}) < 1e-9);
  CHECK(distance(layer_norm(x, {3, 4}, {}, {}, 1e-3),
                 {-1.376904889, 0.7260043958,  -0.4756580525, 1.627251232,  0.4255887838, -0.7760736645, 1.32683562,     0.1251731717, -1.076489277, 1.026420008,   -0.1752424404, -1.376904889,
                  0.5955576622, -0.7038408735, 1.570106564,   0.2707080283, -1.028690507, 1.24525693,    -0.05414160566, -1.353540141, 0.9204072961, -0.3789912396, -1.678389775,  0.5955576622}) < 1e-8);
  const std::vector<double> by_channel = {-1.869324881, 0.8877299522, -0.6877299522, 2.069324881,   0.1000319846, 0.8997761075,  -0.4997761075, 0.2999680154,
                                          -1.745496398, 2.751603506,  0.1818321326,  -2.387939241,  0.3999040461, -1.999328322,  2.199328322,   -0.1999040461,
                                          0.5613740994, -0.5629008766, 0.07954196685, 0.7219848103, 1.787939241,  -0.7818321326, -3.351603506,  1.145496398};
  CHECK(distance(group_norm(x, 3, w, b, 1e-3), by_channel) < 1e-8);
  CHECK(distance(instance_norm(x, w, b, 1e-3), by_channel) < 1e-8);
  CHECK(distance(group_norm(pattern({2, 4, 4}, 5, 13, 4), 2, {}, {}, 1e-5),
                 {-1.588931727,  -0.291844603, 1.005242521, -1.070096878, 0.2269902468, 1.524077371,  -0.5512620279, 0.7458250966, -1.192077448,  0.1324530498, 1.456983548,
                  -0.662265249,  0.662265249,  -1.456983548, -0.1324530498, 1.192077448, -1.192077448, 0.1324530498, 1.456983548,  -0.662265249,  0.662265249,  -1.456983548,
                  -0.1324530498, 1.192077448,  -0.7458250966, 0.5512620279, -1.524077371, -0.2269902468, 1.070096878, -1.005242521, 0.291844603,  1.588931727}) < 1e-8);
}

TEST_CASE("gradients of the normalisations are the limits of differences, first and second") {
  using Inputs = const std::vector<Tensor>&;
  const Tensor mean = random_tensor({4}, DType::float64, 8), var = full({4}, 1.7, f64);
  const struct { const char* name; TensorFunction f; Shape x, parameter; } operations[] = {
      {"batch_norm", [](Inputs i) { return batch_norm(i[0], i[1], i[2], {}, {}, true); }, {3, 4, 2, 2}, {4}},
      {"batch_norm of rows", [](Inputs i) { return batch_norm(i[0], i[1], i[2], {}, {}, true); }, {5, 4}, {4}},
      {"batch_norm_relu", [](Inputs i) { return batch_norm_relu(i[0], i[1], i[2], {}, {}, true); }, {3, 4, 5}, {4}},
      {"batch_norm, fixed statistics", [&](Inputs i) { return batch_norm(i[0], i[1], i[2], mean, var, false); }, {2, 4, 3}, {4}},
      {"batch_norm_relu, fixed statistics", [&](Inputs i) { return batch_norm_relu(i[0], i[1], i[2], mean, var, false); }, {2, 4, 3}, {4}},
      {"layer_norm", [](Inputs i) { return layer_norm(i[0], {2, 3}, i[1], i[2]); }, {4, 2, 3}, {2, 3}},
      {"group_norm", [](Inputs i) { return group_norm(i[0], 2, i[1], i[2]); }, {2, 4, 3}, {4}},
      {"group_norm of rows", [](Inputs i) { return group_norm(i[0], 2, i[1], i[2]); }, {2, 8}, {8}},
      {"instance_norm", [](Inputs i) { return instance_norm(i[0], i[1], i[2]); }, {2, 4, 3}, {4}},
      {"batch_norm, channels-last", [](Inputs i) { return batch_norm(channels_last(i[0]), i[1], i[2], {}, {}, true); }, {3, 4, 2, 2}, {4}},
      {"batch_norm_add_relu", [](Inputs i) { return batch_norm_add_relu(i[0], square(i[0]), i[1], i[2], {}, {}, true); }, {3, 4, 5}, {4}},
      {"batch_norm_add_relu, fixed statistics", [&](Inputs i) { return batch_norm_add_relu(i[0], i[0], i[1], i[2], mean, var, false); }, {2, 4, 3}, {4}},
      {"batch_norm of a transposed view", [](Inputs i) { return batch_norm(transpose(i[0], 0, 1), i[1], i[2], {}, {}, true); }, {4, 3, 2}, {4}},
  };
  for (const auto& op : operations) {
    CAPTURE(op.name);
    const std::vector<Tensor> inputs = {random_leaf(op.x, 3), random_leaf(op.parameter, 4), random_leaf(op.parameter, 5)};
    CHECK(gradcheck(op.f, inputs) == "");
    CHECK(gradgradcheck(op.f, inputs) == "");
  }
  CHECK(gradcheck([](Inputs i) { return batch_norm(i[0], {}, {}, {}, {}, true); }, {random_leaf({4, 3}, 6)}) == "");
  CHECK(gradgradcheck([](Inputs i) { return layer_norm(i[0], {3}); }, {random_leaf({4, 3}, 6)}) == "");
}

TEST_CASE("batch_norm_relu is relu of batch_norm, with the same gradients") {
  const auto run = [](bool is_fused) {
    Tensor x = random_tensor({3, 4, 20}, DType::float32, 3), w = random_tensor({4}, DType::float32, 4), b = random_tensor({4}, DType::float32, 5);
    for (Tensor* t : {&x, &w, &b}) t->set_requires_grad();
    const Tensor y = is_fused ? batch_norm_relu(x, w, b, {}, {}, true) : relu(batch_norm(x, w, b, {}, {}, true));
    y.backward(random_tensor({3, 4, 20}, DType::float32, 6));
    return std::vector<Tensor>{y, x.grad(), w.grad(), b.grad()};
  };
  const auto fused = run(true), separate = run(false);
  for (size_t i = 0; i < fused.size(); ++i) CHECK(distance(fused[i], separate[i]) < 1e-6);
}

TEST_CASE("batch_norm_add_relu is relu of batch_norm plus a residual, in either layout and for one residual of another layout") {
  for (const bool is_training : {true, false}) {
    const auto run = [&](bool is_fused, bool x_is_last, bool residual_is_last) {
      Tensor x = random_tensor({3, 4, 5, 2}, DType::float32, 3), w = random_tensor({4}, DType::float32, 4), b = random_tensor({4}, DType::float32, 5);
      Tensor r = random_tensor({3, 4, 5, 2}, DType::float32, 7);
      for (Tensor* t : {&x, &w, &b, &r}) t->set_requires_grad();
      const Tensor mean = full({4}, 0.1), var = full({4}, 1.3), in = x_is_last ? channels_last(x) : x, residual = residual_is_last ? channels_last(r) : r;
      const Tensor y = is_fused ? batch_norm_add_relu(in, residual, w, b, mean, var, is_training) : relu(batch_norm(in, w, b, mean, var, is_training) + residual);
      CHECK(is_channels_last(y) == (x_is_last || (residual_is_last && !is_fused)));
      y.backward(random_tensor({3, 4, 5, 2}, DType::float32, 6));
      return std::vector<Tensor>{contiguous(y), contiguous(x.grad()), w.grad(), b.grad(), contiguous(r.grad()), mean, var};
    };
    const auto separate = run(false, false, false);
    for (const bool x_is_last : {false, true})
      for (const bool residual_is_last : {false, true}) {
        const auto fused = run(true, x_is_last, residual_is_last);
        for (size_t i = 0; i < fused.size(); ++i) CHECK(distance(fused[i], separate[i]) < 2e-6);
      }
  }
}

TEST_CASE("batch_norm: a later batch does not disturb an earlier one's backward pass") {
  Tensor x = random_tensor({3, 2, 4}, DType::float64, 3), w = ones({2}, f64);
  x.set_requires_grad();
  w.set_requires_grad();
  const Tensor mean = zeros({2}, f64), var = ones({2}, f64);
  const Tensor y = batch_norm(x, w, {}, mean, var, false);
  batch_norm(x.detach(), w.detach(), {}, mean, var, true);
  y.backward(ones_like(y));
  CHECK(distance(x.grad(), std::vector<double>(24, 1 / std::sqrt(1 + 1e-5))) < 1e-12);
}

TEST_CASE("normalisations refuse what does not fit, and leave the running statistics alone") {
  const Tensor x = random_tensor({1, 3}, DType::float64), mean = zeros({3}, f64), var = ones({3}, f64);
  CHECK(error_of<ValueError>([&] { batch_norm(x, {}, {}, mean, var, true); }).find("more than one value") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { batch_norm(x, ones({2}, f64), {}, mean, var, true); }) == "batch_norm: weight must be [3] for x [1,3], got [2]");
  CHECK(error_of<DTypeError>([&] { batch_norm(x, ones({3}), {}, mean, var, true); }).find("weight is float32 but x is float64") != std::string::npos);
  CHECK(error_of<ValueError>([&] { batch_norm(x, {}, {}, {}, {}, false); }).find("running_mean") != std::string::npos);
  const Tensor rows = ones({2, 3}, f64);
  CHECK(error_of<ValueError>([&] { batch_norm(rows, {}, {}, mean, var, true, std::nullopt); }).find("without a momentum") != std::string::npos);
  CHECK(error_of<DTypeError>([&] { batch_norm(rows, {}, {}, mean, var, true, 0.1, 1e-5, ones({})); }) == "batch_norm: batches must be int64, got float32; convert with to(x, DType::int64)");
  CHECK(error_of<ShapeError>([&] { batch_norm(rows, {}, {}, mean, var, true, 0.1, 1e-5, ones({3}, DType::int64)); }) == "batch_norm: batches must be one number, got [3]");
  CHECK(error_of<ShapeError>([&] { batch_norm_add_relu(ones({2, 3}), ones({1, 3}), {}, {}, {}, {}, true); }) ==
        "batch_norm_add_relu: residual must have x's shape [2,3], got [1,3]");
  CHECK(error_of<ValueError>([&] { batch_norm_add_relu(ones({2, 3}), {}, {}, {}, {}, {}, true); }).find("residual is an undefined tensor") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { group_norm(x, 2); }).find("do not divide") != std::string::npos);
  CHECK(error_of<ShapeError>([&] { layer_norm(x, {4}); }) == "layer_norm: the last axes of x [1,3] must be [4]");
  CHECK(error_of<DTypeError>([&] { layer_norm(zeros({2, 3}, DType::int64), {3}); }).find("int64") != std::string::npos);
  CHECK(values(mean) == std::vector<double>{0, 0, 0});
  CHECK(values(var) == std::vector<double>{1, 1, 1});
}

TEST_CASE("batch_norm: a batch is counted without channels too, and not by a call that fails") {
  for (const std::optional<double> momentum : {std::optional<double>(), std::optional<double>(0.1)}) {
    const Tensor batches = zeros({}, DType::int64);
    batch_norm(ones({4, 0, 2, 2}), {}, {}, ones({0}), ones({0}), true, momentum, 1e-5, batches);
    CHECK(batches.item<int64_t>() == 1);
    CHECK_THROWS_AS(batch_norm(ones({4, 3}), {}, {}, ones({2}), ones({2}), true, momentum, 1e-5, batches), ShapeError);
    CHECK(batches.item<int64_t>() == 1);
  }
}

TEST_CASE("normalisations of empty tensors and on meta give the right shapes") {
  const Tensor mean = zeros({3}), var = ones({3});
  Tensor x = zeros({0, 3, 4});
  x.set_requires_grad();
  const Tensor y = batch_norm(x, ones({3}), zeros({3}), mean, var, true);
  CHECK(y.shape() == Shape{0, 3, 4});
  y.backward(zeros({0, 3, 4}));
  CHECK(x.grad().shape() == x.shape());
  CHECK(values(mean) == std::vector<double>{0, 0, 0});
  CHECK(layer_norm(zeros({2, 0}), {0}).shape() == Shape{2, 0});
  CHECK(group_norm(zeros({0, 4, 2}), 2).shape() == Shape{0, 4, 2});
  const TensorOptions meta(DType::float32, Device::meta());
  CHECK(batch_norm(empty({2, 3, 4, 4}, meta), empty({3}, meta), empty({3}, meta), empty({3}, meta), empty({3}, meta), true).shape() == Shape{2, 3, 4, 4});
  CHECK(group_norm(empty({2, 4, 5}, meta), 2).is_meta());
}
