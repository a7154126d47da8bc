// CUDA's random numbers and dropout against the CPU's: one seed gives one set of numbers on both.
#include <doctest/doctest.h>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;
using kernels::Distribution;
using kernels::PhiloxKey;
using kernels::Scalars;

namespace {

const std::vector<DType> all_dtypes = {DType::float32, DType::float64, DType::float16, DType::bfloat16,
                                       DType::int32,   DType::int64,   DType::uint8,   DType::boolean};
const std::vector<PhiloxKey> keys = {{0, 0}, {1, 7}, {0x123456789abcdef0, 0xfffffffe}, {~uint64_t{0}, ~uint64_t{0} - 1}};
const std::vector<int64_t> sizes = {0, 1, 2, 3, 6, 1029, 4096};

Tensor drawn_by_cpu(Distribution distribution, Scalars s, PhiloxKey key, int64_t n, DType dtype) {
  Tensor y = empty({n}, dtype);
  cpu().random(nullptr, distribution, s, key, y.mutable_view());
  return y;
}
Tensor drawn_by_cuda(Distribution distribution, Scalars s, PhiloxKey key, int64_t n, DType dtype, int64_t offset = 0) {
  const DeviceTensor y = DeviceTensor::poisoned({n}, dtype, offset);
  testing::cuda().random(nullptr, distribution, s, key, y.view());
  return y.to_host();
}

struct Draw {
  Distribution distribution;
  Scalars scalars;
};

}  // namespace

TEST_CASE("random: uniform, bernoulli and integers are the CPU's bits, in every dtype, for every seed, offset and size") {
  const std::vector<Draw> draws = {
      {Distribution::uniform, {0, 1}},           {Distribution::uniform, {-3.1, 7.7}},       {Distribution::uniform, {0, 100}},
      {Distribution::bernoulli, {0.3, 0}},       {Distribution::bernoulli, {0, 0}},          {Distribution::bernoulli, {1, 0}},
      {Distribution::integers, {0, 10}},         {Distribution::integers, {-5, 250}},        {Distribution::integers, {-3e9, 1.2e9}},
      {Distribution::integers, {-1e12, 3.5e13}}, {Distribution::integers, {-0x1p62, 0x1p62}}};
  for (const Draw& d : draws)
    for (const DType dtype : all_dtypes)
      for (const PhiloxKey key : keys)
        for (const int64_t n : sizes) {
          CAPTURE(static_cast<int>(d.distribution));
          CAPTURE(d.scalars.alpha);
          CAPTURE(dtype);
          CAPTURE(n);
          CHECK(same_bits(drawn_by_cuda(d.distribution, d.scalars, key, n, dtype), drawn_by_cpu(d.distribution, d.scalars, key, n, dtype)));
        }
}

TEST_CASE("random: normal numbers are the CPU's within rounding") {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    const double relative = dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1e-6 : dtype == DType::float16 ? 0x1p-9 : 0x1p-6;
    const double absolute = dtype == DType::float64 ? 1e-13 : 5e-6;
    for (const PhiloxKey key : keys)
      for (const int64_t n : sizes) {
        CAPTURE(dtype);
        CAPTURE(n);
        const Tensor want = drawn_by_cpu(Distribution::normal, {0.5, 2}, key, n, dtype);
        CHECK(difference(drawn_by_cuda(Distribution::normal, {0.5, 2}, key, n, dtype), want, relative, absolute) == "");
      }
  }
}

TEST_CASE("random: an odd address or another size changes no number") {
  for (const Draw& d : {Draw{Distribution::uniform, {0, 1}}, {Distribution::normal, {0, 1}}, {Distribution::integers, {0, 1e15}}})
    for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16, DType::int64}) {
      CAPTURE(dtype);
      const Tensor all = drawn_by_cuda(d.distribution, d.scalars, {9, 4}, 1029, dtype);
      CHECK(same_bits(drawn_by_cuda(d.distribution, d.scalars, {9, 4}, 1029, dtype, 1), all));
      const Tensor some = drawn_by_cuda(d.distribution, d.scalars, {9, 4}, 501, dtype);
      CHECK(std::memcmp(some.view().data, all.view().data, static_cast<size_t>(501 * size_of(dtype))) == 0);
    }
}

TEST_CASE("dropout: drops what the CPU drops, NaN too, and scales the rest alike") {
  for (const DType dtype : all_dtypes)
    for (const double p : {0.0, 0.1, 0.5, 0.9, 1.0})
      for (const int64_t n : sizes) {
        CAPTURE(dtype);
        CAPTURE(p);
        CAPTURE(n);
        Tensor x = empty({n}, dtype), want = empty({n}, dtype);
        cpu().arange(nullptr, -3, 0.37, x.mutable_view());
        if (n > 10 && dtype == DType::float32) x.mutable_data<float>()[5] = std::numeric_limits<float>::quiet_NaN();
        cpu().dropout(nullptr, p, {3, 11}, x.view(), want.mutable_view());
        for (const int64_t offset : {0, 1}) {
          const DeviceTensor device_x(x, offset), got = DeviceTensor::poisoned({n}, dtype, offset);
          testing::cuda().dropout(nullptr, p, {3, 11}, device_x.view(), got.view());
          CHECK(difference(got.to_host(), want, 0, 0) == "");
        }
      }
}

TEST_CASE("bernoulli and dropout: a probability equal to an element's number leaves it, the next larger one takes it") {
  const PhiloxKey key = {5, 3};
  const Tensor numbers = drawn_by_cuda(Distribution::uniform, {0, 1}, key, 100, DType::float32), ones = full({100}, 1);
  const DeviceTensor device_ones(ones);
  for (const int64_t i : {0, 7, 42, 99}) {
    const double number = numbers.to_vector<double>()[static_cast<size_t>(i)];
    for (const bool is_taken : {false, true}) {
      const double p = is_taken ? std::nextafter(number, 1.0) : number;
      CHECK((drawn_by_cuda(Distribution::bernoulli, {p, 0}, key, 100, DType::float32).to_vector<double>()[static_cast<size_t>(i)] == 1) == is_taken);
      const DeviceTensor y = DeviceTensor::poisoned({100}, DType::float32);
      testing::cuda().dropout(nullptr, p, key, device_ones.view(), y.view());
      CHECK((y.to_host().to_vector<double>()[static_cast<size_t>(i)] == 0) == is_taken);
    }
  }
}
