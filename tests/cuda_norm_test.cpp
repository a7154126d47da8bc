// Batch, group and layer norm of CUDA's table against the CPU's in float64, forward and backward.
#include <cstdint>
#include <memory>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

constexpr DType floating[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16};

Tensor sample(const Shape& shape, DType dtype, double center, double spread, uint32_t state) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = center + spread * (static_cast<double>((state = state * 1664525u + 1013904223u) >> 8) / 0x1p23 - 1);
  Tensor y = empty(shape, dtype);
  cpu().copy(nullptr, from_vector(values, shape).view(), y.mutable_view());
  return y;
}

Tensor to_dtype(const Tensor& x, DType dtype) {
  Tensor y = empty(x.shape(), dtype);
  cpu().copy(nullptr, x.view(), y.mutable_view());
  return y;
}

DType statistics_of(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }
double relative(DType dtype) { return dtype == DType::float64 ? 1e-11 : dtype == DType::float32 ? 1e-5 : dtype == DType::float16 ? 0x1p-10 : 0x1p-7; }
double absolute(DType dtype) { return dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1e-5 : dtype == DType::float16 ? 2e-3 : 1e-2; }

// A tensor on the device and as the CPU sees it, in float64; or an argument that is not there.
struct Input {
  Tensor host, wide;
  std::unique_ptr<DeviceTensor> device;

  Input() = default;
  Input(const Tensor& x, int64_t offset) : host(x), wide(to_dtype(x, DType::float64)), device(std::make_unique<DeviceTensor>(x, offset)) {}
  ConstView on_device() const { return device ? ConstView(device->view()) : absent(); }
  ConstView on_cpu() const { return device ? wide.view() : absent(); }
};

// An output: what the CPU makes of it in float64, and two runs on the device.
struct Output {
  DType dtype = DType::float32;
  Tensor want;
  std::unique_ptr<DeviceTensor> first, second;

  Output() = default;
  Output(const Shape& shape, DType of, int64_t offset) : dtype(of), want(empty(shape, DType::float64)) {
    first = std::make_unique<DeviceTensor>(DeviceTensor::poisoned(shape, of, offset));
    second = std::make_unique<DeviceTensor>(DeviceTensor::poisoned(shape, of, offset));
  }
  View on_cpu() { return first ? want.mutable_view() : View{}; }
  View run(bool is_second) const { return !first ? View{} : is_second ? second->view() : first->view(); }
  void check(double scale = 1) const {
    if (!first) return;
    const Tensor got = first->to_host();
    CHECK(difference(got, want, relative(dtype), scale * absolute(dtype)) == "");
    CHECK(same_bits(got, second->to_host()));
  }
};

enum class Kind : uint8_t { batch, batch_relu, group, layer };

struct Case {
  Kind kind;
  NormGeometry g;
  DType dtype;
  bool has_parameters = true;
  int64_t offset = 0;                        // of every tensor, in elements
  double center = 0.5, spread = 2;

  bool has_relu() const { return kind == Kind::batch_relu; }
  Shape statistics() const { return kind == Kind::group ? Shape{g.n, g.groups} : kind == Kind::layer ? Shape{g.n, 1} : Shape{g.channels}; }
  Shape parameters() const { return {kind == Kind::layer ? g.spatial : g.channels}; }
  Shape shape() const { return {g.n, g.channels, g.spatial}; }

  void forward(const kernels::KernelTable& t, const ConstView& x, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean, const View& invstd) const {
    if (kind == Kind::group) t.group_norm(nullptr, g, x, gamma, beta, y, mean, invstd);
    else if (kind == Kind::layer) t.layer_norm(nullptr, g, x, gamma, beta, y, mean, invstd);
    else t.batch_norm_train(nullptr, g, has_relu(), x, gamma, beta, y, mean, invstd);
  }
  void backward(const kernels::KernelTable& t, const ConstView& dy, const ConstView& x, const ConstView& y, const ConstView& gamma, const ConstView& mean,
                const ConstView& invstd, const View& dx, const View& dgamma, const View& dbeta) const {
    if (kind == Kind::group) t.group_norm_backward(nullptr, g, dy, x, gamma, mean, invstd, dx, dgamma, dbeta);
    else if (kind == Kind::layer) t.layer_norm_backward(nullptr, g, dy, x, gamma, mean, invstd, dx, dgamma, dbeta);
    else t.batch_norm_backward(nullptr, g, has_relu(), dy, x, has_relu() ? y : absent(), gamma, mean, invstd, dx, dgamma, dbeta);
  }

  void run() const {
    CAPTURE(static_cast<int>(kind));
    CAPTURE(str(shape(), " groups ", g.groups, " ", name_of(dtype), " offset ", offset, has_parameters ? "" : " without parameters"));
    const Input x(sample(shape(), dtype, center, spread, 1), offset), dy(sample(shape(), dtype, 0.1, 1, 2), offset);
    Input gamma, beta;
    if (has_parameters) {
      gamma = Input(sample(parameters(), dtype, 1, 0.5, 3), offset);
      beta = Input(sample(parameters(), dtype, 0, 0.5, 4), offset);
    }
    Output y(shape(), dtype, offset), mean(statistics(), statistics_of(dtype), 0), invstd(statistics(), statistics_of(dtype), 0);
    forward(cpu(), x.on_cpu(), gamma.on_cpu(), beta.on_cpu(), y.on_cpu(), mean.on_cpu(), invstd.on_cpu());
    for (const bool again : {false, true}) forward(testing::cuda(), x.on_device(), gamma.on_device(), beta.on_device(), y.run(again), mean.run(again), invstd.run(again));
    y.check();
    mean.check();
    invstd.check();

    // From the device's own y and statistics, so that a rounding of the forward pass does not move elements across the ReLU's edge.
    const Input saved_y(y.first->to_host(), offset), saved_mean(mean.first->to_host(), 0), saved_invstd(invstd.first->to_host(), 0);
    Output dx(shape(), dtype, offset), dgamma, dbeta;
    if (has_parameters) {
      dgamma = Output(parameters(), dtype, offset);
      dbeta = Output(parameters(), dtype, 0);
    }
    backward(cpu(), dy.on_cpu(), x.on_cpu(), saved_y.on_cpu(), gamma.on_cpu(), saved_mean.on_cpu(), saved_invstd.on_cpu(), dx.on_cpu(), dgamma.on_cpu(), dbeta.on_cpu());
    for (const bool again : {false, true})
      backward(testing::cuda(), dy.on_device(), x.on_device(), saved_y.on_device(), gamma.on_device(), saved_mean.on_device(), saved_invstd.on_device(), dx.run(again),
               dgamma.run(again), dbeta.run(again));
    const double terms = std::sqrt(static_cast<double>(std::max<int64_t>(g.numel(), 1)));                    // the parameters' gradients are sums of so many at most
    dx.check(2);
    dgamma.check(terms);
    dbeta.check(terms);
  }
};

NormGeometry geometry(int64_t n, int64_t channels, int64_t spatial, int64_t groups = 1) { return {.n = n, .channels = channels, .spatial = spatial, .groups = groups}; }

}  // namespace

TEST_CASE("cuda batch norm: planes, rows of features, few channels split over blocks, and odd sizes") {
  for (const DType dtype : floating)
    for (const Kind kind : {Kind::batch, Kind::batch_relu})
      for (const NormGeometry& g : {geometry(2, 3, 16), geometry(3, 5, 7), geometry(4, 1, 49), geometry(33, 70, 1), geometry(2, 1, 1), geometry(2, 2, 6000), geometry(3, 9, 64),
                                    geometry(700, 3, 1), geometry(1, 2, 9)}) {
        Case{kind, g, dtype}.run();
        if (g.n == 3) Case{kind, g, dtype, false, 1}.run();
      }
  Case{Kind::batch_relu, geometry(3, 2, 20000), DType::float32}.run();
}

TEST_CASE("cuda batch norm: nothing at all") {
  for (const NormGeometry& g : {geometry(0, 3, 4), geometry(0, 3, 1), geometry(3, 0, 4), geometry(3, 2, 0)})
    for (const Kind kind : {Kind::batch, Kind::batch_relu}) Case{kind, g, DType::float32}.run();
}

TEST_CASE("cuda batch norm: a mean that is large beside the deviation costs no digits but x's own") {
  for (const DType dtype : {DType::float32, DType::float64})
    for (const NormGeometry& g : {geometry(2, 2, 9000), geometry(500, 3, 1), geometry(4, 3, 64)}) {
      const Tensor x = sample({g.n, g.channels, g.spatial}, dtype, 1000, 1, 5), wide = to_dtype(x, DType::float64);
      Tensor y = empty(wide.shape(), DType::float64), mean = empty({g.channels}, DType::float64), want = empty({g.channels}, DType::float64);
      cpu().batch_norm_train(nullptr, g, false, wide.view(), absent(), absent(), y.mutable_view(), mean.mutable_view(), want.mutable_view());
      const DeviceTensor device(x), got_y = DeviceTensor::poisoned(x.shape(), dtype), got_mean = DeviceTensor::poisoned({g.channels}, dtype),
                         got = DeviceTensor::poisoned({g.channels}, dtype);
      testing::cuda().batch_norm_train(nullptr, g, false, device.view(), absent(), absent(), got_y.view(), got_mean.view(), got.view());
      CHECK(difference(got.to_host(), want, dtype == DType::float32 ? 1e-5 : 1e-11, 0) == "");
      CHECK(difference(got_mean.to_host(), mean, dtype == DType::float32 ? 1e-7 : 1e-14, 0) == "");
    }
}

TEST_CASE("cuda batch norm with known statistics") {
  for (const DType dtype : floating)
    for (const NormGeometry& g : {geometry(2, 3, 16), geometry(3, 5, 7), geometry(33, 70, 1), geometry(1, 2, 5000), geometry(0, 3, 4), geometry(1, 1, 1)})
      for (const bool has_relu : {false, true})
        for (const bool has_parameters : {false, true}) {
          CAPTURE(str(Shape{g.n, g.channels, g.spatial}, " ", name_of(dtype)));
          const Input x(sample({g.n, g.channels, g.spatial}, dtype, 0.5, 2, 1), 0), mean(sample({g.channels}, statistics_of(dtype), 0, 1, 2), 0),
              variance(sample({g.channels}, statistics_of(dtype), 1, 0.9, 3), 0);
          const Input gamma = has_parameters ? Input(sample({g.channels}, dtype, 1, 0.5, 4), 0) : Input(), beta = has_parameters ? Input(sample({g.channels}, dtype, 0, 1, 5), 0) : Input();
          Output y({g.n, g.channels, g.spatial}, dtype, 0);
          cpu().batch_norm_eval(nullptr, g, has_relu, x.on_cpu(), gamma.on_cpu(), beta.on_cpu(), mean.on_cpu(), variance.on_cpu(), y.on_cpu());
          for (const bool again : {false, true})
            testing::cuda().batch_norm_eval(nullptr, g, has_relu, x.on_device(), gamma.on_device(), beta.on_device(), mean.on_device(), variance.on_device(), y.run(again));
          y.check();
        }
}

TEST_CASE("cuda group norm: groups of channels, each channel by itself, one group, one position") {
  for (const DType dtype : floating)
    for (const NormGeometry& g : {geometry(2, 6, 16, 3), geometry(3, 4, 7, 2), geometry(2, 5, 9, 5), geometry(3, 8, 4, 1), geometry(40, 12, 1, 3), geometry(1, 2, 9000, 1),
                                  geometry(2, 1, 1, 1), geometry(70, 6, 8, 2)}) {
      Case{Kind::group, g, dtype}.run();
      if (g.n == 3) Case{Kind::group, g, dtype, false, 1}.run();
    }
  for (const NormGeometry& g : {geometry(0, 4, 3, 2), geometry(2, 4, 0, 2)}) Case{Kind::group, g, DType::float32}.run();
}

TEST_CASE("cuda layer norm: short and long rows, many and few") {
  for (const DType dtype : floating)
    for (const NormGeometry& g : {geometry(5, 1, 8), geometry(300, 1, 24), geometry(3, 1, 100), geometry(3, 1, 1), geometry(2, 1, 9000), geometry(1500, 1, 3)}) {
      Case{Kind::layer, g, dtype}.run();
      if (g.n == 3) Case{Kind::layer, g, dtype, false, 1}.run();
    }
  Case{Kind::layer, geometry(0, 1, 5), DType::float32}.run();
}

TEST_CASE("cuda norms: NaN spreads over its channel and no further; statistics of another dtype are an error") {
  Tensor x = sample({2, 3, 5}, DType::float32, 0, 1, 1);
  x.mutable_data<float>()[7] = NAN;          // of channel 1
  const DeviceTensor device(x), y = DeviceTensor::poisoned({2, 3, 5}, DType::float32), mean = DeviceTensor::poisoned({3}, DType::float32),
                     invstd = DeviceTensor::poisoned({3}, DType::float32);
  testing::cuda().batch_norm_train(nullptr, geometry(2, 3, 5), true, device.view(), absent(), absent(), y.view(), mean.view(), invstd.view());
  const std::vector<float> got = y.to_host().to_vector<float>();
  for (size_t i = 0; i < got.size(); ++i) CHECK(std::isnan(got[i]) == (i / 5 % 3 == 1));

  const DeviceTensor half(sample({2, 3, 5}, DType::float16, 0, 1, 1)), half_y = DeviceTensor::poisoned({2, 3, 5}, DType::float16), narrow = DeviceTensor::poisoned({3}, DType::float16);
  CHECK_THROWS_WITH_AS(testing::cuda().batch_norm_train(nullptr, geometry(2, 3, 5), false, half.view(), absent(), absent(), half_y.view(), narrow.view(), narrow.view()),
                       doctest::Contains("batch_norm: the statistics of float16 values are float32, got float16"), DTypeError);
}
