// Batch, group and layer norm of CUDA's table against the CPU's in float64, forward and backward.
#include <fovea/kernels/cuda/core/launch.h>

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

// [n, channels, spatial] to [n, spatial, channels], or back.
Tensor turned(const Tensor& x) {
  const int64_t n = x.size(0), rows = x.size(1), columns = x.size(2);
  Tensor y = empty({n, columns, rows}, x.dtype());
  View target = y.mutable_view();
  target.shape = x.shape();
  target.strides = {rows * columns, 1, rows};
  cpu().copy(nullptr, x.view(), target);
  return y;
}

enum class Layout : uint8_t { contiguous, channels_last };

// Device memory of a tensor [n, channels, spatial] (or of any, contiguous) that lies one way or the other.
struct Placed {
  Shape shape;
  Layout layout;
  DeviceTensor memory;

  Placed(const Tensor& x, int64_t offset, Layout where) : shape(x.shape()), layout(where), memory(where == Layout::channels_last ? turned(x) : x, offset) {}
  static Placed poisoned(const Shape& shape, DType dtype, int64_t offset, Layout where) {
    Tensor x = empty(shape, dtype);
    std::memset(x.mutable_view().data, 0xff, static_cast<size_t>(x.nbytes()));
    return Placed(x, offset, where);
  }
  View view() const { return layout == Layout::channels_last ? memory.view(shape, {shape[1] * shape[2], 1, shape[1]}) : memory.view(); }
  Tensor to_host() const { return layout == Layout::channels_last ? turned(memory.to_host()) : memory.to_host(); }
};

// A tensor on the device and as the CPU sees it, contiguous and in float64; or an argument that is not there.
struct Input {
  Tensor host, wide;
  std::unique_ptr<Placed> device;

  Input() = default;
  Input(const Tensor& x, int64_t offset, Layout layout = Layout::contiguous)
      : host(x), wide(to_dtype(x, DType::float64)), device(std::make_unique<Placed>(x, offset, layout)) {}
  ConstView on_device() const { return device ? ConstView(device->view()) : absent(); }
  ConstView on_cpu() const { return device ? wide.view() : absent(); }
};

// An output: what the CPU makes of it in float64, and two runs on the device.
struct Output {
  DType dtype = DType::float32;
  Tensor want;
  std::unique_ptr<Placed> first, second;

  Output() = default;
  Output(const Shape& shape, DType of, int64_t offset, Layout layout = Layout::contiguous) : dtype(of), want(empty(shape, DType::float64)) {
    first = std::make_unique<Placed>(Placed::poisoned(shape, of, offset, layout));
    second = std::make_unique<Placed>(Placed::poisoned(shape, of, offset, layout));
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

enum class Kind : uint8_t { batch, batch_relu, batch_add, batch_add_relu, group, layer };

struct Case {
  Kind kind;
  NormGeometry g;
  DType dtype;
  bool has_parameters = true;
  int64_t offset = 0;                        // of every tensor, in elements
  Layout layout = Layout::contiguous;
  double center = 0.5, spread = 2;

  bool has_relu() const { return kind == Kind::batch_relu || kind == Kind::batch_add_relu; }
  bool has_residual() const { return kind == Kind::batch_add || kind == Kind::batch_add_relu; }
  Shape statistics() const { return kind == Kind::group ? Shape{g.n, g.groups} : kind == Kind::layer ? Shape{g.n, 1} : Shape{g.channels}; }
  Shape parameters() const { return {kind == Kind::layer ? g.spatial : g.channels}; }
  Shape shape() const { return {g.n, g.channels, g.spatial}; }

  void forward(const kernels::KernelTable& t, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean,
               const View& invstd) const {
    if (kind == Kind::group) t.group_norm(nullptr, g, x, gamma, beta, y, mean, invstd);
    else if (kind == Kind::layer) t.layer_norm(nullptr, g, x, gamma, beta, y, mean, invstd);
    else t.batch_norm_train(nullptr, g, has_relu(), x, residual, gamma, beta, y, mean, invstd, {});
  }
  void backward(const kernels::KernelTable& t, const ConstView& dy, const ConstView& x, const ConstView& y, const ConstView& gamma, const ConstView& mean,
                const ConstView& invstd, const View& dx, const View& dresidual, const View& dgamma, const View& dbeta) const {
    if (kind == Kind::group) t.group_norm_backward(nullptr, g, dy, x, gamma, mean, invstd, dx, dgamma, dbeta);
    else if (kind == Kind::layer) t.layer_norm_backward(nullptr, g, dy, x, gamma, mean, invstd, dx, dgamma, dbeta);
    else t.batch_norm_backward(nullptr, g, has_relu(), dy, x, has_relu() ? y : absent(), gamma, mean, invstd, dx, dresidual, dgamma, dbeta);
  }

  void run() const {
    CAPTURE(static_cast<int>(kind));
    CAPTURE(str(shape(), " groups ", g.groups, " ", name_of(dtype), " offset ", offset, has_parameters ? "" : " without parameters",
                layout == Layout::channels_last ? " channels-last" : ""));
    const DType wide = statistics_of(dtype);
    const Input x(sample(shape(), dtype, center, spread, 1), offset, layout), dy(sample(shape(), dtype, 0.1, 1, 2), offset, layout);
    const Input residual = has_residual() ? Input(sample(shape(), dtype, 0, 2, 5), offset, layout) : Input();
    const Input gamma = has_parameters ? Input(sample(parameters(), wide, 1, 0.5, 3), offset) : Input();
    const Input beta = has_parameters ? Input(sample(parameters(), wide, 0, 0.5, 4), offset) : Input();
    Output y(shape(), dtype, offset, layout), mean(statistics(), wide, 0), invstd(statistics(), wide, 0);
    forward(cpu(), x.on_cpu(), residual.on_cpu(), gamma.on_cpu(), beta.on_cpu(), y.on_cpu(), mean.on_cpu(), invstd.on_cpu());
    for (const bool again : {false, true})
      forward(testing::cuda(), x.on_device(), residual.on_device(), gamma.on_device(), beta.on_device(), y.run(again), mean.run(again), invstd.run(again));
    y.check();
    mean.check();
    invstd.check();

    // From the device's own y and statistics, so that a rounding of the forward pass does not move elements across the ReLU's edge.
    const Input saved_y(y.first->to_host(), offset, layout), saved_mean(mean.first->to_host(), 0), saved_invstd(invstd.first->to_host(), 0);
    Output dx(shape(), dtype, offset, layout), dresidual = has_residual() ? Output(shape(), dtype, offset, layout) : Output();
    Output dgamma = has_parameters ? Output(parameters(), wide, offset) : Output(), dbeta = has_parameters ? Output(parameters(), wide, 0) : Output();
    backward(cpu(), dy.on_cpu(), x.on_cpu(), saved_y.on_cpu(), gamma.on_cpu(), saved_mean.on_cpu(), saved_invstd.on_cpu(), dx.on_cpu(), dresidual.on_cpu(), dgamma.on_cpu(),
             dbeta.on_cpu());
    for (const bool again : {false, true})
      backward(testing::cuda(), dy.on_device(), x.on_device(), saved_y.on_device(), gamma.on_device(), saved_mean.on_device(), saved_invstd.on_device(), dx.run(again),
               dresidual.run(again), dgamma.run(again), dbeta.run(again));
    const double terms = std::sqrt(static_cast<double>(std::max<int64_t>(g.numel(), 1)));                    // the parameters' gradients are sums of so many at most
    dx.check(2);
    dresidual.check();
    dgamma.check(terms);
    dbeta.check(terms);
  }
};

NormGeometry geometry(int64_t n, int64_t channels, int64_t spatial, int64_t groups = 1) { return {.n = n, .channels = channels, .spatial = spatial, .groups = groups}; }

}  // namespace

TEST_CASE("cuda batch norm: planes, rows of features, few channels split over blocks, and odd sizes") {
  for (const DType dtype : floating)
    for (const Kind kind : {Kind::batch, Kind::batch_relu, Kind::batch_add, Kind::batch_add_relu})
      for (const NormGeometry& g : {geometry(2, 3, 16), geometry(2, 3, 12), geometry(3, 5, 7), geometry(4, 1, 49), geometry(33, 70, 1), geometry(2, 1, 1), geometry(2, 2, 6000), geometry(3, 9, 64),
                                    geometry(700, 3, 1), geometry(1, 2, 9)}) {
        Case{kind, g, dtype}.run();
        if (g.n == 3) Case{kind, g, dtype, false, 1}.run();
      }
  Case{Kind::batch_relu, geometry(3, 2, 20000), DType::float32}.run();
}

TEST_CASE("cuda batch norm, channels-last: the same numbers as contiguous, by one kernel or by three") {
  for (const DType dtype : floating)
    for (const Kind kind : {Kind::batch, Kind::batch_relu, Kind::batch_add, Kind::batch_add_relu})
      for (const NormGeometry& g : {geometry(2, 8, 9), geometry(2, 3, 7), geometry(3, 12, 25), geometry(1, 70, 6), geometry(2, 300, 3), geometry(5, 16, 250), geometry(4, 2, 900)}) {
        Case{kind, g, dtype, true, 0, Layout::channels_last}.run();
        if (g.n == 3) Case{kind, g, dtype, false, 1, Layout::channels_last}.run();
      }
}

TEST_CASE("cuda batch norm moves the running statistics as the CPU does, one channel by one thread, and counts the batch once") {
  for (const DType dtype : floating)
    for (const Layout layout : {Layout::contiguous, Layout::channels_last})
      for (const NormGeometry& g : {geometry(2, 3, 12), geometry(33, 70, 1), geometry(2, 2, 6000), geometry(5, 16, 250), geometry(2, 300, 3), geometry(0, 3, 4)})
        for (const bool is_cumulative : {false, true}) {
          CAPTURE(str(Shape{g.n, g.channels, g.spatial}, " ", name_of(dtype), layout == Layout::channels_last ? " channels-last" : "", is_cumulative ? " cumulative" : ""));
          const DType wide = statistics_of(dtype);
          const Shape shape{g.n, g.channels, g.spatial}, channels{g.channels};
          const Input x(sample(shape, dtype, 3, 2, 1), 0, layout);
          const Tensor before = sample({g.channels, 2}, wide, 1, 0.5, 2), batches = from_vector(std::vector<int64_t>{4});
          Tensor host = to_dtype(before, DType::float64), host_batches = to_dtype(batches, DType::int64);
          const DeviceTensor device(before), device_batches(batches);
          // Mean and variance lie in each other's gaps.
          const auto strided = [&](View v, int64_t first) {
            v.data = static_cast<char*>(v.data) + first * size_of(v.dtype);
            v.shape = channels;
            v.strides = {2};
            return v;
          };
          const auto update = [&](const View& statistics, const View& count) { return kernels::RunningUpdate{strided(statistics, 0), strided(statistics, 1), 0.3, is_cumulative, count}; };
          Output y(shape, dtype, 0, layout), mean(channels, wide, 0), invstd(channels, wide, 0);
          cpu().batch_norm_train(nullptr, g, false, x.on_cpu(), absent(), absent(), absent(), y.on_cpu(), mean.on_cpu(), invstd.on_cpu(), update(host.mutable_view(), host_batches.mutable_view()));
          testing::cuda().batch_norm_train(nullptr, g, false, x.on_device(), absent(), absent(), absent(), y.run(false), mean.run(false), invstd.run(false),
                                           update(device.view(), device_batches.view()));
          CHECK(difference(device.to_host(), host, relative(wide), absolute(wide)) == "");
          CHECK(device_batches.to_host().to_vector<int64_t>()[0] == 5);
          CHECK(host_batches.to_vector<int64_t>()[0] == 5);
          if (g.n > 0) CHECK(difference(host, to_dtype(before, DType::float64), 0, 1e-3) != "");
          else CHECK(same_bits(device.to_host(), before));
        }
}

TEST_CASE("cuda batch norm: nothing at all") {
  for (const NormGeometry& g : {geometry(0, 3, 4), geometry(0, 3, 1), geometry(3, 0, 4), geometry(3, 2, 0)})
    for (const Kind kind : {Kind::batch, Kind::batch_relu, Kind::batch_add_relu})
      for (const Layout layout : {Layout::contiguous, Layout::channels_last}) Case{kind, g, DType::float32, true, 0, layout}.run();
}

TEST_CASE("cuda batch norm: which kernels run") {
  const auto kernels_of = [](const NormGeometry& g, Layout layout) {
    const Input x(sample({g.n, g.channels, g.spatial}, DType::float32, 0, 1, 1), 0, layout);
    const Output y({g.n, g.channels, g.spatial}, DType::float32, 0, layout), mean({g.channels}, DType::float32, 0), invstd({g.channels}, DType::float32, 0);
    testing::cuda().batch_norm_train(nullptr, g, true, x.on_device(), absent(), absent(), absent(), y.run(false), mean.run(false), invstd.run(false), {});
    return std::string(kernels::cuda::last_kernel());
  };
  CHECK(kernels_of(geometry(2, 8, 9), Layout::contiguous) == "batch_norm");
  CHECK(kernels_of(geometry(2, 8, 9), Layout::channels_last) == "batch_norm_columns");                 // one kernel: a block sees all of its channels' rows
  CHECK(kernels_of(geometry(18, 8, 1), Layout::contiguous) == "batch_norm_columns");
  CHECK(kernels_of(geometry(5, 8, 900), Layout::channels_last) == "batch_norm_columns_apply");
  CHECK(kernels_of(geometry(5, 1, 9), Layout::channels_last) == "batch_norm");                         // one channel: contiguous as well
}

TEST_CASE("cuda batch norm: a mean that is large beside the deviation costs no digits but x's own") {
  for (const DType dtype : {DType::float32, DType::float64})
    for (const Layout layout : {Layout::contiguous, Layout::channels_last})
      for (const NormGeometry& g : {geometry(2, 2, 9000), geometry(500, 3, 1), geometry(4, 3, 64)}) {
        const Input x(sample({g.n, g.channels, g.spatial}, dtype, 1000, 1, 5), 0, layout);
        Output y({g.n, g.channels, g.spatial}, dtype, 0, layout), mean({g.channels}, dtype, 0), invstd({g.channels}, dtype, 0);
        cpu().batch_norm_train(nullptr, g, false, x.on_cpu(), absent(), absent(), absent(), y.on_cpu(), mean.on_cpu(), invstd.on_cpu(), {});
        testing::cuda().batch_norm_train(nullptr, g, false, x.on_device(), absent(), absent(), absent(), y.run(false), mean.run(false), invstd.run(false), {});
        CHECK(difference(invstd.first->to_host(), invstd.want, dtype == DType::float32 ? 1e-5 : 1e-11, 0) == "");
        CHECK(difference(mean.first->to_host(), mean.want, dtype == DType::float32 ? 1e-7 : 1e-14, 0) == "");
      }
}

TEST_CASE("cuda batch norm: any schedule gives the same bits") {
  for (const Layout layout : {Layout::contiguous, Layout::channels_last})
    for (const NormGeometry& g : {geometry(3, 8, 1500), geometry(4, 24, 9)}) {
      const Case c{Kind::batch_add_relu, g, DType::float32, true, 0, layout};
      for (int i = 0; i < 3; ++i) c.run();   // each compares two runs, and every run has an order of threads and blocks of its own over the model
    }
}

TEST_CASE("cuda batch norm with known statistics") {
  for (const DType dtype : floating)
    for (const NormGeometry& g : {geometry(2, 3, 16), geometry(3, 5, 7), geometry(33, 70, 1), geometry(1, 2, 5000), geometry(0, 3, 4), geometry(1, 1, 1), geometry(2, 16, 10)})
      for (const Layout layout : {Layout::contiguous, Layout::channels_last})
        for (const bool has_relu : {false, true})
          for (const bool has_parameters : {false, true}) {
            CAPTURE(str(Shape{g.n, g.channels, g.spatial}, " ", name_of(dtype)));
            const Shape shape{g.n, g.channels, g.spatial}, channels{g.channels};
            const DType wide = statistics_of(dtype);
            const Input x(sample(shape, dtype, 0.5, 2, 1), 0, layout), mean(sample(channels, wide, 0, 1, 2), 0), variance(sample(channels, wide, 1, 0.9, 3), 0);
            const Input residual = has_relu == has_parameters ? Input(sample(shape, dtype, 0, 1, 6), 0, layout) : Input();
            const Input gamma = has_parameters ? Input(sample(channels, wide, 1, 0.5, 4), 0) : Input(), beta = has_parameters ? Input(sample(channels, wide, 0, 1, 5), 0) : Input();
            Output y(shape, dtype, 0, layout);
            cpu().batch_norm_eval(nullptr, g, has_relu, x.on_cpu(), residual.on_cpu(), gamma.on_cpu(), beta.on_cpu(), mean.on_cpu(), variance.on_cpu(), y.on_cpu());
            for (const bool again : {false, true})
              testing::cuda().batch_norm_eval(nullptr, g, has_relu, x.on_device(), residual.on_device(), gamma.on_device(), beta.on_device(), mean.on_device(),
                                              variance.on_device(), y.run(again));
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
  testing::cuda().batch_norm_train(nullptr, geometry(2, 3, 5), true, device.view(), absent(), absent(), absent(), y.view(), mean.view(), invstd.view(), {});
  const std::vector<float> got = y.to_host().to_vector<float>();
  for (size_t i = 0; i < got.size(); ++i) CHECK(std::isnan(got[i]) == (i / 5 % 3 == 1));

  const DeviceTensor half(sample({2, 3, 5}, DType::float16, 0, 1, 1)), half_y = DeviceTensor::poisoned({2, 3, 5}, DType::float16), narrow = DeviceTensor::poisoned({3}, DType::float16);
  CHECK_THROWS_WITH_AS(testing::cuda().batch_norm_train(nullptr, geometry(2, 3, 5), false, half.view(), absent(), absent(), absent(), half_y.view(), narrow.view(), narrow.view(), {}),
                       doctest::Contains("batch_norm: statistics and parameters beside float16 values are float32, got float16"), DTypeError);
}
