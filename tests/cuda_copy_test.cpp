// CUDA's copies, fills and ranges against the CPU's: every pair of dtypes, strides, transposes of every element size.
#include <doctest/doctest.h>

#include <algorithm>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity(), not_a_number = std::numeric_limits<double>::quiet_NaN();
const std::vector<DType> all_dtypes = {DType::float32, DType::float64, DType::float16, DType::bfloat16,
                                       DType::int32,   DType::int64,   DType::uint8,   DType::boolean};

Tensor converted(const Tensor& x, DType dtype) {
  Tensor y = empty(x.shape(), dtype);
  cpu().copy(nullptr, x.view(), y.mutable_view());
  return y;
}

// Numbers that conversions treat differently, then ordinary ones.
Tensor numbers(int64_t n, DType dtype) {
  std::vector<double> values = {0.0,   -0.0,  1,    -1,  0.5,  -0.5, 2.5,   255,  256,          -129, 65504,
                                65520, 70000, 1e-8, 3e9, -3e9, 1e19, -1e19, 1e30, not_a_number, inf,  -inf};
  while (static_cast<int64_t>(values.size()) < n) values.push_back(std::fmod(static_cast<double>(values.size()) * 17.37, 251) - 60);
  values.resize(static_cast<size_t>(n));
  return converted(from_vector(values), dtype);
}

// 0, 1, 2, ... as bit patterns, so that every element of a small tensor is another one.
Tensor patterns(int64_t n, DType dtype) {
  Tensor x = empty({n}, dtype);
  auto* bytes = static_cast<unsigned char*>(x.mutable_view().data);
  const int64_t size = size_of(dtype);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t b = 0; b < size; ++b)
      bytes[i * size + b] = dtype == DType::boolean ? i % 3 == 0 : static_cast<unsigned char>((i + b * 29) >> (b % 2 * 8));
  return x;
}

View restrided(View v, const Shape& shape, const Strides& strides, int64_t first) {
  v.data = static_cast<char*>(v.data) + first * size_of(v.dtype);
  v.shape = shape;
  v.strides = strides;
  return v;
}

struct Layout {
  const char* name;
  Shape shape;
  Strides x, y;
  int64_t x_first = 0, y_first = 0;
};

// Up to 12000 elements are reached.
const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {"contiguous", {7, 9, 33}, {297, 33, 1}, {297, 33, 1}},
      {"nothing", {4, 0}, {1, 1}, {1, 1}},
      {"one element", {}, {}, {}},
      {"repeated scalar", {5, 64}, {0, 0}, {64, 1}},
      {"repeated row", {5, 64}, {0, 1}, {64, 1}},
      {"repeated column", {5, 64}, {1, 0}, {64, 1}},
      {"odd address of x", {1000}, {1}, {1}, 1, 0},
      {"odd address of y", {1000}, {1}, {1}, 0, 3},
      {"flipped", {10, 32}, {-32, -1}, {32, 1}, 319, 0},
      {"flipped y", {10, 32}, {32, 1}, {-32, -1}, 0, 319},
      {"every third", {200}, {3}, {2}},
      {"rows with gaps", {12, 32}, {40, 1}, {48, 1}},
      {"rows of no whole packs, with gaps of whole packs", {12, 30}, {40, 1}, {48, 1}},
      {"transposed", {33, 70}, {1, 33}, {70, 1}},
      {"transposed, whole tiles", {64, 96}, {1, 64}, {96, 1}},
      {"transposed at odd addresses", {40, 41}, {1, 40}, {41, 1}, 1, 3},
      {"transposed y", {33, 70}, {70, 1}, {1, 33}},
      {"transposed, with gaps", {20, 30}, {1, 25}, {37, 1}},
      {"transposed, narrow", {3, 700}, {1, 3}, {700, 1}},
      {"many small matrices", {50, 9, 10}, {90, 1, 9}, {90, 10, 1}},
      {"images to channels last", {3, 11, 8, 16}, {1408, 16, 1, 128}, {1408, 128, 16, 1}},
      {"images from channels last", {3, 16, 11, 8}, {1408, 1, 128, 16}, {1408, 88, 8, 1}},
      {"all axes reversed", {8, 9, 10, 11}, {1, 8, 72, 720}, {990, 110, 11, 1}},
      {"rank 8, reversed", {2, 2, 2, 2, 2, 2, 2, 9}, {1, 2, 4, 8, 16, 32, 64, 128}, {576, 288, 144, 72, 36, 18, 9, 1}},
      {"a matrix's transpose, repeated", {4, 16, 24}, {0, 1, 16}, {384, 24, 1}},
  };
  return all;
}

}  // namespace

TEST_CASE("copy: every pair of dtypes converts as the CPU does, contiguous and strided") {
  for (const DType from : all_dtypes)
    for (const DType to : all_dtypes) {
      CAPTURE(from);
      CAPTURE(to);
      const Tensor x = numbers(2 * 1037, from);
      const DeviceTensor device_x(x);
      for (const int64_t n : {0, 1, 22, 1037}) {
        CAPTURE(n);
        Tensor part = empty({n}, from), want = empty({n}, to);
        cpu().copy(nullptr, restrided(Tensor(x).mutable_view(), {n}, {1}, 0), part.mutable_view());
        cpu().copy(nullptr, part.view(), want.mutable_view());
        const DeviceTensor got = DeviceTensor::poisoned({n}, to);
        testing::cuda().copy(nullptr, device_x.view({n}, {1}), got.view());
        CHECK(difference(got.to_host(), want, 0, 0) == "");
      }
      Tensor want = converted(numbers(1037, DType::float64), to);
      const DeviceTensor got(want);
      cpu().copy(nullptr, restrided(Tensor(x).mutable_view(), {11, 31}, {62, 2}, 0), restrided(want.mutable_view(), {11, 31}, {3, 33}, 0));
      testing::cuda().copy(nullptr, device_x.view({11, 31}, {62, 2}), got.view({11, 31}, {3, 33}));
      CHECK(difference(got.to_host(), want, 0, 0) == "");
    }
}

// Of the half type: a number on either side of the middle between each two neighbours, and the middle itself, which goes to the even one.
template <class Half>
std::vector<float> numbers_between() {
  std::vector<float> all;
  for (uint32_t bits = 0; bits < 0xffff; ++bits) {
    Half low, high;
    low.bits = static_cast<uint16_t>(bits), high.bits = static_cast<uint16_t>(bits + 1);
    const double from = static_cast<float>(low), to = static_cast<float>(high);
    if (!std::isfinite(from) || std::isnan(to)) continue;
    const double beyond = std::is_same_v<Half, float16> ? 65536 : 0x1p128;            // what stands in the place of infinity in rounding
    const float middle = static_cast<float>((from + (std::isinf(to) ? std::copysign(beyond, from) : to)) / 2);
    for (const float value : {std::nextafter(middle, -INFINITY), middle, std::nextafter(middle, INFINITY)}) all.push_back(value);
  }
  return all;
}

template <class Half>
void check_all_of_half(DType dtype) {
  Tensor halves = empty({1 << 16}, dtype), wide = empty({1 << 16}, DType::float32);
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) static_cast<Half*>(halves.mutable_view().data)[bits].bits = static_cast<uint16_t>(bits);
  cpu().copy(nullptr, halves.view(), wide.mutable_view());
  const DeviceTensor device_halves(halves), got_wide = DeviceTensor::poisoned({1 << 16}, DType::float32);
  testing::cuda().copy(nullptr, device_halves.view(), got_wide.view());
  CHECK(difference(got_wide.to_host(), wide, 0, 0) == "");

  const Tensor numbers = from_vector(numbers_between<Half>());
  Tensor narrow = empty(numbers.shape(), dtype);
  cpu().copy(nullptr, numbers.view(), narrow.mutable_view());
  const DeviceTensor device_numbers(numbers), got_narrow = DeviceTensor::poisoned(numbers.shape(), dtype);
  testing::cuda().copy(nullptr, device_numbers.view(), got_narrow.view());
  CHECK(same_bits(got_narrow.to_host(), narrow));
}

TEST_CASE("copy: half types round by the device's instructions as half.h does, at every number that rounding turns at") {
  check_all_of_half<float16>(DType::float16);
  check_all_of_half<bfloat16>(DType::bfloat16);
}

TEST_CASE("copy: every layout moves the bits that the CPU moves, and touches nothing beside them") {
  for (const DType dtype : {DType::uint8, DType::boolean, DType::float16, DType::float32, DType::float64}) {
    Tensor x = patterns(12000, dtype);
    const DeviceTensor device_x(x);
    for (const Layout& l : layouts()) {
      CAPTURE(l.name);
      CAPTURE(dtype);
      Tensor want = converted(zeros({12000}), dtype);
      const DeviceTensor got(want);
      cpu().copy(nullptr, restrided(x.mutable_view(), l.shape, l.x, l.x_first), restrided(want.mutable_view(), l.shape, l.y, l.y_first));
      testing::cuda().copy(nullptr, device_x.view(l.shape, l.x, l.x_first), got.view(l.shape, l.y, l.y_first));
      CHECK(same_bits(got.to_host(), want));
    }
  }
}

TEST_CASE("copy: strided conversions agree with the CPU's in every layout") {
  for (const auto& [from, to] : {std::pair{DType::float32, DType::bfloat16},
                                 {DType::uint8, DType::float32},
                                 {DType::float64, DType::float32},
                                 {DType::int64, DType::int32}}) {
    Tensor x = numbers(12000, from);
    const DeviceTensor device_x(x);
    for (const Layout& l : layouts()) {
      CAPTURE(l.name);
      CAPTURE(from);
      Tensor want = converted(zeros({12000}), to);
      const DeviceTensor got(want);
      cpu().copy(nullptr, restrided(x.mutable_view(), l.shape, l.x, l.x_first), restrided(want.mutable_view(), l.shape, l.y, l.y_first));
      testing::cuda().copy(nullptr, device_x.view(l.shape, l.x, l.x_first), got.view(l.shape, l.y, l.y_first));
      CHECK(difference(got.to_host(), want, 0, 0) == "");
    }
  }
}

TEST_CASE("fill: every dtype and layout holds the value as the CPU converts it") {
  for (const DType dtype : all_dtypes)
    for (const double value : {0.0, 1.0, -2.75, 300.0, 1e30, not_a_number, -inf}) {
      CAPTURE(dtype);
      CAPTURE(value);
      for (const int64_t n : {0, 1, 5, 2051}) {
        Tensor want = empty({n}, dtype);
        const DeviceTensor got = DeviceTensor::poisoned({n}, dtype);
        cpu().fill(nullptr, value, want.mutable_view());
        testing::cuda().fill(nullptr, value, got.view());
        CHECK(difference(got.to_host(), want, 0, 0) == "");
      }
    }
  for (const DType dtype : {DType::uint8, DType::float16, DType::float32, DType::float64})
    for (const Layout& l : layouts()) {
      if (std::find(l.y.begin(), l.y.end(), 0) != l.y.end()) continue;
      CAPTURE(l.name);
      Tensor want = patterns(12000, dtype);
      const DeviceTensor got(want);
      cpu().fill(nullptr, 77, restrided(want.mutable_view(), l.shape, l.y, l.y_first));
      testing::cuda().fill(nullptr, 77, got.view(l.shape, l.y, l.y_first));
      CHECK(same_bits(got.to_host(), want));
    }
}

TEST_CASE("arange: the CPU's bits in every dtype, with gaps and backwards") {
  for (const DType dtype : all_dtypes)
    for (const auto& [start, step] : {std::pair{0.0, 1.0}, {0.1, 0.3}, {-1000.0, 0.7}, {5.0, -1.5}}) {
      CAPTURE(dtype);
      for (const int64_t n : {0, 1, 1029})
        for (const int64_t stride : {1, 3, -2}) {
          const int64_t first = stride < 0 ? 2 * 1029 : 0;
          Tensor want = converted(zeros({3 * 1029}), dtype);
          const DeviceTensor got(want);
          cpu().arange(nullptr, start, step, restrided(want.mutable_view(), {n}, {stride}, first));
          testing::cuda().arange(nullptr, start, step, got.view({n}, {stride}, first));
          CHECK(same_bits(got.to_host(), want));
        }
    }
}
