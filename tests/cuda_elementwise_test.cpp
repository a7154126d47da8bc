// CUDA's elementwise kernels against the CPU's: every operation in every dtype, every layout, mixtures of dtypes, in place, twice.
#include <doctest/doctest.h>
#include <fovea/kernels/cpu/elementwise_blocks.h>

#include <algorithm>
#include <functional>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;
using kernels::Binary;
using kernels::Scalars;
using kernels::Ternary;
using kernels::Unary;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity(), not_a_number = std::numeric_limits<double>::quiet_NaN();
const std::vector<DType> all_dtypes = {DType::float32, DType::float64, DType::float16, DType::bfloat16,
                                       DType::int32,   DType::int64,   DType::uint8,   DType::boolean};
const std::vector<DType> floating = {DType::float32, DType::float64, DType::float16, DType::bfloat16};
constexpr int num_unary = static_cast<int>(Unary::is_finite) + 1, num_binary = static_cast<int>(Binary::greater_equal) + 1;

// `first` are the values that matter, then follow others that are spread over [-8, 8].
Tensor numbers(int64_t n, DType dtype, const std::vector<double>& first, uint32_t seed = 1) {
  std::vector<double> values;
  uint32_t state = seed * 2654435761u + 12345u;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 1664525u + 1013904223u;
    const bool is_special = i < static_cast<int64_t>(first.size());
    values.push_back(is_special ? first[static_cast<size_t>(i)] : static_cast<double>(state >> 8) * 0x1p-20 - 8.0);
  }
  const Tensor wide = from_vector(values);
  Tensor result = empty({n}, dtype);
  cpu().copy(nullptr, wide.view(), result.mutable_view());
  return result;
}

const std::vector<double>& specials() {
  static const std::vector<double> values = {0.0, -0.0, 1,    -1,    2,  -2,  0.5, -0.5, 3,   6,   7,  not_a_number,
                                             inf, -inf, 1e-6, -1e-6, 20, -20, 100, -100, 2.5, 3.5, 255};
  return values;
}

Tensor converted(const Tensor& x, DType dtype) {
  Tensor y = empty(x.shape(), dtype);
  cpu().copy(nullptr, x.view(), y.mutable_view());
  return y;
}

// How far a result of dtype may be from the one computed in float64 and rounded to dtype.
struct Tolerance {
  double relative, absolute;
};
Tolerance tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return {1e-12, 1e-13};
    case DType::float32:
      return {4e-6, 2e-6};
    case DType::float16:
      return {0x1p-9, 2e-6};
    case DType::bfloat16:
      return {0x1p-6, 2e-6};
    default:
      return {0, 0};
  }
}

// What the CPU's kernel makes of inputs; floating-point ones are computed in float64, then rounded.
using Call = std::function<void(const kernels::KernelTable&, const std::vector<View>& inputs, const View& y)>;

Tensor wanted(const Call& call, const std::vector<Tensor>& inputs, const Shape& shape, DType y_dtype) {
  std::vector<Tensor> wide;
  std::vector<View> views;
  for (const Tensor& x : inputs) wide.push_back(is_floating(x.dtype()) ? converted(x, DType::float64) : x);
  for (Tensor& x : wide) views.push_back(x.mutable_view());
  Tensor y = empty(shape, is_floating(y_dtype) ? DType::float64 : y_dtype);
  call(cpu(), views, y.mutable_view());
  return converted(y, y_dtype);
}

Tensor on_device(const Call& call, const std::vector<Tensor>& inputs, const Shape& shape, DType y_dtype, int64_t offset = 0) {
  std::vector<DeviceTensor> memory;
  std::vector<View> views;
  for (const Tensor& x : inputs) memory.emplace_back(x, offset);
  for (const DeviceTensor& x : memory) views.push_back(x.view());
  const DeviceTensor y = DeviceTensor::poisoned(shape, y_dtype, offset);
  call(testing::cuda(), views, y.view());
  return y.to_host();
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

// The sizes that matter: nothing, one, less than a pack, a pack and a rest, more than a block.
const std::vector<int64_t> sizes = {0, 1, 3, 37, 4099};

// Both tables on contiguous inputs of every size; an operation that the CPU refuses must be refused with the same sentence.
void check_contiguous(const std::string& name, const Call& call, const std::vector<std::vector<double>>& first,
                      const std::vector<DType>& input_dtypes, DType y_dtype, double slack = 1) {
  CAPTURE(name);
  CAPTURE(y_dtype);
  for (const int64_t n : sizes) {
    CAPTURE(n);
    std::vector<Tensor> inputs;
    for (size_t k = 0; k < first.size(); ++k) inputs.push_back(numbers(n, input_dtypes[k], first[k], static_cast<uint32_t>(k + 1)));
    Tensor want;
    const std::string refusal = error_of([&] { want = wanted(call, inputs, {n}, y_dtype); });
    if (!refusal.empty()) {
      CHECK(error_of([&] { on_device(call, inputs, {n}, y_dtype); }) == refusal);
      continue;
    }
    const Tolerance t = tolerance_of(y_dtype);
    const Tensor got = on_device(call, inputs, {n}, y_dtype);
    const std::string report = difference(got, want, t.relative, t.absolute * slack);
    CHECK(report == "");
    if (n == 37) CHECK(difference(on_device(call, inputs, {n}, y_dtype, 1), got, 0, 0) == "");  // an odd address changes nothing
  }
}

// Every pair of special values.
std::vector<std::vector<double>> pairs(const std::vector<double>& values) {
  std::vector<std::vector<double>> result(2);
  for (double a : values)
    for (double b : values) {
      result[0].push_back(a);
      result[1].push_back(b);
    }
  return result;
}

}  // namespace

TEST_CASE("unary: every operation in every dtype agrees with the CPU's, or is refused as there") {
  for (int op = 0; op < num_unary; ++op) {
    for (const DType dtype : all_dtypes) {
      CAPTURE(dtype);
      const bool is_test = kernels::yields_bool(static_cast<Unary>(op));
      for (const Scalars s : {Scalars{0.5, 2.0}, Scalars{-1, 20}, Scalars{3, 4}}) {
        const bool needs_scalars = op >= static_cast<int>(Unary::softplus) && !is_test;
        if (!needs_scalars && s.alpha != 0.5) continue;
        const Call call = [=](const kernels::KernelTable& t, const std::vector<View>& x, const View& y) {
          t.unary(nullptr, static_cast<Unary>(op), s, x[0], y);
        };
        check_contiguous("unary " + std::to_string(op), call, {specials()}, {dtype}, is_test ? DType::boolean : dtype);
      }
    }
  }
}

TEST_CASE("binary: every operation in every dtype agrees with the CPU's, or is refused as there") {
  const std::vector<std::vector<double>> first = pairs({0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, 7, not_a_number, inf, -inf, 6});
  for (int op = 0; op < num_binary; ++op)
    for (const DType dtype : all_dtypes) {
      CAPTURE(dtype);
      const Call call = [=](const kernels::KernelTable& t, const std::vector<View>& x, const View& y) {
        t.binary(nullptr, static_cast<Binary>(op), {0.5, 2.0}, x[0], x[1], y);
      };
      const double slack = op == static_cast<int>(Binary::gelu_tanh_backward) ? 10 : 1;  // far below zero 1 + tanh cancels
      check_contiguous("binary " + std::to_string(op), call, first, {dtype, dtype},
                       kernels::yields_bool(static_cast<Binary>(op)) ? DType::boolean : dtype, slack);
    }
}

TEST_CASE("ternary: every operation in every dtype agrees with the CPU's, or is refused as there") {
  const std::vector<double> choice = {1, 0, 1, 1, 0, 0, 1, 0, 1};
  for (const Ternary op : {Ternary::where, Ternary::add_product, Ternary::add_quotient, Ternary::lerp})
    for (const DType dtype : all_dtypes) {
      CAPTURE(dtype);
      const Call call = [=](const kernels::KernelTable& t, const std::vector<View>& x, const View& y) {
        t.ternary(nullptr, op, {2.0, 0}, x[0], x[1], x[2], y);
      };
      const DType first = op == Ternary::where ? DType::boolean : dtype;
      const std::vector<double> b = {1, not_a_number, inf, 3, -0.0, 5, 2, 2, 2}, c = {0.25, 0.5, 1, 2, 3, not_a_number, 0, 1, 0.75};
      check_contiguous("ternary " + std::to_string(static_cast<int>(op)), call, {op == Ternary::where ? choice : specials(), b, c},
                       {first, dtype, dtype}, dtype);
    }
}

TEST_CASE("integers wrap, and their extremes are the CPU's") {
  const std::vector<int64_t> extremes = {0, 1, -1, 2, 3, 7, INT64_MAX, INT64_MIN, INT64_MAX - 1, INT32_MAX, INT32_MIN, 255, 256, 1 << 20};
  std::vector<int64_t> left, right;
  for (const int64_t u : extremes)
    for (const int64_t v : extremes) {
      left.push_back(u);
      right.push_back(v);
    }
  const Tensor a = from_vector(left), b = from_vector(right);
  for (const DType dtype : {DType::int64, DType::int32, DType::uint8, DType::boolean}) {
    CAPTURE(dtype);
    const std::vector<Tensor> two = {converted(a, dtype), converted(b, dtype)};
    for (const Binary op : {Binary::add, Binary::subtract, Binary::multiply, Binary::divide, Binary::power, Binary::maximum,
                            Binary::minimum, Binary::remainder}) {
      CAPTURE(static_cast<int>(op));
      const Call call = [=](const kernels::KernelTable& t, const std::vector<View>& x, const View& y) {
        t.binary(nullptr, op, {}, x[0], x[1], y);
      };
      CHECK(same_bits(on_device(call, two, a.shape(), dtype), wanted(call, two, a.shape(), dtype)));
    }
    for (const Unary op : {Unary::negative, Unary::absolute, Unary::square, Unary::clamp, Unary::add_scalar, Unary::mul_scalar,
                           Unary::rsub_scalar, Unary::pow_scalar})
      for (const Scalars s : {Scalars{-3.7, 1e30}, Scalars{-1e30, 300}, Scalars{5, 6}}) {
        CAPTURE(static_cast<int>(op));
        const Call call = [=](const kernels::KernelTable& t, const std::vector<View>& x, const View& y) {
          t.unary(nullptr, op, s, x[0], y);
        };
        CHECK(same_bits(on_device(call, {two[0]}, a.shape(), dtype), wanted(call, {two[0]}, a.shape(), dtype)));
      }
  }
}

namespace {

struct Layout {
  const char* name;
  Shape shape;
  Strides a, b, y;
  int64_t first = 0;  // of every operand, in elements
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {"contiguous", {6, 70}, {70, 1}, {70, 1}, {70, 1}},
      {"one element", {}, {}, {}, {}},
      {"one element of rank 3", {1, 1, 1}, {5, 3, 1}, {0, 0, 0}, {1, 1, 1}},
      {"nothing", {3, 0, 2}, {2, 2, 1}, {0, 0, 0}, {0, 2, 1}},
      {"row vector", {9, 101}, {101, 1}, {0, 1}, {101, 1}},
      {"row vector in packs", {9, 128}, {128, 1}, {0, 1}, {128, 1}},
      {"column vector", {9, 101}, {101, 1}, {1, 0}, {101, 1}},
      {"column vector in packs", {9, 128}, {128, 1}, {1, 0}, {128, 1}},
      {"scalar", {9, 1001}, {1001, 1}, {0, 0}, {1001, 1}},
      {"short rows", {300, 3}, {3, 1}, {0, 1}, {3, 1}},
      {"transposed operand", {33, 64}, {1, 33}, {64, 1}, {64, 1}},
      {"transposed output", {33, 64}, {64, 1}, {64, 1}, {1, 33}},
      {"transposed everywhere", {40, 64}, {1, 40}, {1, 40}, {1, 40}},
      {"flipped", {12, 32}, {-32, -1}, {-32, 1}, {-32, 1}, 11 * 32 + 31},
      {"flipped output", {12, 32}, {32, 1}, {32, 1}, {-32, -1}, 11 * 32 + 31},
      {"channels", {2, 5, 8, 4}, {160, 32, 4, 1}, {0, 1, 0, 0}, {160, 32, 4, 1}},
      {"channels last", {2, 5, 70, 1}, {350, 1, 5, 5}, {0, 1, 0, 0}, {350, 70, 1, 1}},
      {"every second", {40, 30}, {120, 2}, {60, 2}, {60, 2}},
      {"rows with gaps", {40, 32}, {48, 1}, {33, 1}, {48, 1}},
      {"rows of no whole packs, with gaps of whole packs", {40, 30}, {48, 1}, {32, 1}, {48, 1}},
      {"rank 6, permuted", {2, 3, 2, 5, 2, 4}, {1, 2, 6, 12, 60, 120}, {240, 80, 40, 8, 4, 1}, {240, 80, 40, 8, 4, 1}},
      {"rank 8", {2, 3, 2, 2, 2, 2, 2, 2}, {1, 2, 6, 12, 24, 48, 96, 192}, {0, 64, 0, 16, 8, 0, 2, 1}, {192, 64, 32, 16, 8, 4, 2, 1}},
      {"unaligned", {6, 64}, {64, 1}, {64, 1}, {64, 1}, 1},
  };
  return all;
}

// Memory that holds every element that a layout of up to 22000 elements reaches.
Tensor memory(DType dtype, uint32_t seed) { return numbers(22000, dtype, {}, seed); }

View restrided(View v, const Shape& shape, const Strides& strides, int64_t first) {
  v.data = static_cast<char*>(v.data) + first * size_of(v.dtype);
  v.shape = shape;
  v.strides = strides;
  return v;
}

}  // namespace

TEST_CASE("binary and unary: every layout gives the CPU's bits, and nothing beside the output is touched") {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::uint8}) {
    Tensor a = memory(dtype, 1), b = memory(dtype, 2), before = memory(dtype, 3);
    const DeviceTensor device_a(a), device_b(b);
    for (const Layout& l : layouts()) {
      CAPTURE(l.name);
      CAPTURE(dtype);
      // A flipped operand starts at its last element; one that isn't flipped starts at the beginning.
      const auto start = [&](const Strides& strides) {
        return l.first == 1 || std::any_of(strides.begin(), strides.end(), [](int64_t s) { return s < 0; }) ? l.first : 0;
      };
      Tensor want = converted(before, dtype);
      const DeviceTensor got(before);
      const View want_y = restrided(want.mutable_view(), l.shape, l.y, start(l.y)), got_y = got.view(l.shape, l.y, start(l.y));
      const View want_a = restrided(a.mutable_view(), l.shape, l.a, start(l.a)),
                 want_b = restrided(b.mutable_view(), l.shape, l.b, start(l.b));
      cpu().binary(nullptr, Binary::subtract, {}, want_a, want_b, want_y);
      testing::cuda().binary(nullptr, Binary::subtract, {}, device_a.view(l.shape, l.a, start(l.a)),
                             device_b.view(l.shape, l.b, start(l.b)), got_y);
      CHECK(same_bits(got.to_host(), want));
      cpu().unary(nullptr, Unary::absolute, {}, want_b, want_y);
      testing::cuda().unary(nullptr, Unary::absolute, {}, device_b.view(l.shape, l.b, start(l.b)), got_y);
      CHECK(same_bits(got.to_host(), want));
    }
  }
}

TEST_CASE("binary: any mixture of dtypes is converted as on the CPU") {
  const Tensor a = numbers(150, DType::float64, {0.5, 300, -7, 0, 1e10, not_a_number, inf, -3.5}),
               b = numbers(150, DType::float64, {1, 2, 3.25, -4, 5, 1, 1, -3.5}, 2);
  for (const DType a_dtype : all_dtypes)
    for (const DType b_dtype : all_dtypes)
      for (const DType y_dtype : all_dtypes) {
        CAPTURE(a_dtype);
        CAPTURE(b_dtype);
        CAPTURE(y_dtype);
        Tensor host_a = converted(a, a_dtype), host_b = converted(b, b_dtype), want = empty(a.shape(), y_dtype);
        for (const Binary op : {Binary::maximum, Binary::greater}) {
          cpu().binary(nullptr, op, {}, host_a.view(), host_b.view(), want.mutable_view());
          const DeviceTensor got = DeviceTensor::poisoned(a.shape(), y_dtype);
          testing::cuda().binary(nullptr, op, {}, DeviceTensor(host_a).view(), DeviceTensor(host_b).view(), got.view());
          CHECK(difference(got.to_host(), want, 0, 0) == "");
        }
      }
}

TEST_CASE("where: the condition may be of any dtype and repeat, the branches too") {
  for (const DType condition : all_dtypes)
    for (const DType branch : {DType::float32, DType::int64, DType::bfloat16}) {
      CAPTURE(condition);
      CAPTURE(branch);
      Tensor c = converted(numbers(12, DType::float64, {0, 0.5, 1, 0, -0.25, 0, 0, 2, 3, 0, 1, 0}), condition);
      Tensor yes = numbers(12 * 16, DType::float32, {}, 2), no = numbers(16, branch, {}, 3), want = empty({12, 16});
      cpu().ternary(nullptr, Ternary::where, {}, restrided(c.mutable_view(), {12, 16}, {1, 0}, 0),
                    restrided(yes.mutable_view(), {12, 16}, {16, 1}, 0), restrided(no.mutable_view(), {12, 16}, {0, 1}, 0),
                    want.mutable_view());
      const DeviceTensor got = DeviceTensor::poisoned({12, 16}, DType::float32), device_c(c), device_yes(yes), device_no(no);
      testing::cuda().ternary(nullptr, Ternary::where, {}, device_c.view({12, 16}, {1, 0}), device_yes.view({12, 16}, {16, 1}),
                              device_no.view({12, 16}, {0, 1}), got.view());
      CHECK(difference(got.to_host(), want, 0, 0) == "");
    }
}

TEST_CASE("elementwise: the output may be an operand") {
  for (const DType dtype : floating) {
    Tensor a = numbers(1003, dtype, specials()), b = numbers(1003, dtype, {}, 2);
    const DeviceTensor device_a(a), device_b(b);
    cpu().binary(nullptr, Binary::multiply, {}, a.view(), b.view(), a.mutable_view());
    testing::cuda().binary(nullptr, Binary::multiply, {}, device_a.view(), device_b.view(), device_a.view());
    CHECK(difference(device_a.to_host(), a, 0, 0) == "");
    cpu().unary(nullptr, Unary::relu, {}, a.view(), a.mutable_view());
    testing::cuda().unary(nullptr, Unary::relu, {}, device_a.view(), device_a.view());
    CHECK(difference(device_a.to_host(), a, 0, 0) == "");
  }
}

TEST_CASE("elementwise: two runs over many blocks give the same bits") {
  const Tensor x = numbers(150001, DType::float32, specials());
  const Call call = [](const kernels::KernelTable& t, const std::vector<View>& in, const View& y) {
    t.unary(nullptr, Unary::gelu, {}, in[0], y);
  };
  const Tensor once = on_device(call, {x}, x.shape(), DType::float32);
  CHECK(same_bits(once, on_device(call, {x}, x.shape(), DType::float32)));
  CHECK(difference(once, wanted(call, {x}, x.shape(), DType::float32), 4e-6, 2e-6) == "");
}
