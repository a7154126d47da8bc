// What the tests of file formats share: tensors as tests/golden/make_files.py counts them, and exact comparison.
#pragma once

#include <doctest/doctest.h>

#include <cstring>

#include <fovea/tensor/creation.h>
#include <fovea/tensor/elements.h>
#include <fovea/tensor/file.h>

#include "devices.h"

// 0, 1, 2, ... in row-major order, minus 3 where the type has a sign; bool holds true where that is odd.
inline fovea::Tensor counting(const fovea::Shape& shape, fovea::DType dtype) {
  using namespace fovea;
  Tensor x = empty(shape, {dtype, Device::cpu()});
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    T* values = x.mutable_data<T>();
    for (int64_t i = 0; i < x.numel(); ++i) {
      if constexpr (std::is_same_v<T, bool>) values[i] = i % 2 == 1;
      else if constexpr (std::is_same_v<T, uint8_t>) values[i] = static_cast<T>(i);
      else values[i] = static_cast<T>(static_cast<float>(i - 3));
    }
  });
  return testing::on_default_device(x);
}

// The same dtype, shape and bytes; the NaN of one is the NaN of the other.
inline void check_identical(const fovea::Tensor& x, const fovea::Tensor& expected) {
  CHECK(x.dtype() == expected.dtype());
  CHECK(x.shape() == expected.shape());
  REQUIRE(x.nbytes() == expected.nbytes());
  if (x.nbytes() == 0) return;
  const fovea::Tensor bytes = fovea::testing::on_cpu(x), expected_bytes = fovea::testing::on_cpu(expected);
  CHECK(std::memcmp(fovea::bytes_of(bytes).data(), fovea::bytes_of(expected_bytes).data(), static_cast<size_t>(x.nbytes())) == 0);
}
