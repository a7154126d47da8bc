// CUDA's convolutions against the CPU's, in all three directions, and the choice of their kernels.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <fovea/autograd/backward.h>
#include <fovea/autograd/conv.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/cuda/conv_functions.h>
#include <fovea/kernels/cuda/conv_plan.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/launch_log.h>
#include <fovea/kernels/cuda/runtime.h>

#include "cuda_kernels.h"
#include "cuda_layouts.h"
#include "cuda_tf32.h"

using namespace fovea;
using namespace fovea::testing;
using kernels::Workspace;
using kernels::cuda::choose_conv_kernel;
using kernels::cuda::ConvKernel;
using kernels::cuda::ConvPass;

namespace {

// Numbers in (-1, 1), rounded to the dtype.
Tensor numbers(const Shape& shape, DType dtype, uint32_t seed) {
  Tensor wide = empty(shape, DType::float64), result = empty(shape, dtype);
  uint32_t state = seed * 2654435761u + 12345u;
  for (int64_t i = 0; i < wide.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    wide.mutable_data<double>()[i] = static_cast<double>(static_cast<int32_t>(state)) * 0x1p-31;
  }
  for (int64_t i = 0; i < wide.numel(); ++i) wide.mutable_data<double>()[i] = static_cast<float>(wide.data<double>()[i]);
  cpu().copy(nullptr, wide.view(), result.mutable_view());
  return result;
}

Tensor as_double(const Tensor& x) {
  Tensor y = empty(x.shape(), DType::float64);
  cpu().copy(nullptr, x.view(), y.mutable_view());
  return y;
}

Shape shape_of_x(const ConvGeometry& g) { return {g.n, g.c, g.h, g.w}; }
Shape shape_of_weight(const ConvGeometry& g) { return {g.k, g.group_c(), g.r, g.s}; }
Shape shape_of_y(const ConvGeometry& g) { return {g.n, g.k, g.out_h(), g.out_w()}; }

struct Inputs {
  Tensor x, weight, bias, dy;
  Inputs(const ConvGeometry& g, DType dtype)
      : x(numbers(shape_of_x(g), dtype, 1)), weight(numbers(shape_of_weight(g), dtype, 2)), bias(numbers({g.k}, dtype, 3)), dy(numbers(shape_of_y(g), dtype, 4)) {}
};

struct Results {
  Tensor y, dx, dweight, dbias;
};

Results on_cpu(const ConvGeometry& g, const Inputs& in) {
  const Tensor x = as_double(in.x), weight = as_double(in.weight), bias = as_double(in.bias), dy = as_double(in.dy);
  Results r{empty(shape_of_y(g), DType::float64), empty(shape_of_x(g), DType::float64), empty(shape_of_weight(g), DType::float64), empty({g.k}, DType::float64)};
  std::vector<double> scratch(static_cast<size_t>(cpu().conv2d_workspace(g, DType::float64)) / 8 + 64);
  const Workspace workspace{scratch.data(), static_cast<int64_t>(scratch.size()) * 8};
  cpu().conv2d_forward(nullptr, g, x.view(), weight.view(), bias.view(), r.y.mutable_view(), workspace);
  cpu().conv2d_backward_data(nullptr, g, dy.view(), weight.view(), r.dx.mutable_view(), workspace);
  cpu().conv2d_backward_weight(nullptr, g, x.view(), dy.view(), r.dweight.mutable_view(), r.dbias.mutable_view(), workspace);
  return r;
}

struct Names {
  std::string forward, data, weight;           // the kernels that ran
};

struct Layouts {
  Layout x = Layout::planar, y = Layout::planar, weight = Layout::planar;         // of gradients as of what they belong to
};

// offset: elements by which everything is shifted from where packs may be read.
Results on_device(const ConvGeometry& g, const Inputs& in, DType dtype, int64_t offset = 0, Names* names = nullptr, Layouts layouts = {}) {
  const LaidTensor x(in.x, layouts.x, offset), weight(in.weight, layouts.weight, offset), dy(in.dy, layouts.y, offset);
  const LaidTensor y(shape_of_y(g), dtype, layouts.y, offset), dx(shape_of_x(g), dtype, layouts.x, offset), dweight(shape_of_weight(g), dtype, layouts.weight, offset);
  const DeviceTensor bias(in.bias, offset), dbias = DeviceTensor::poisoned({g.k}, dtype, offset);
  const int64_t bytes = testing::cuda().conv2d_workspace(g, dtype);
  const DeviceTensor scratch = DeviceTensor::poisoned({bytes}, DType::uint8);
  const Workspace workspace{scratch.view().data, bytes};
  Names seen;
  testing::cuda().conv2d_forward(nullptr, g, x.view(), weight.view(), bias.view(), y.view(), workspace);
  seen.forward = kernels::cuda::last_kernel();
  testing::cuda().conv2d_backward_data(nullptr, g, dy.view(), weight.view(), dx.view(), workspace);
  seen.data = kernels::cuda::last_kernel();
  testing::cuda().conv2d_backward_weight(nullptr, g, x.view(), dy.view(), dweight.view(), View(), workspace);
  seen.weight = kernels::cuda::last_kernel();
  testing::cuda().conv2d_backward_weight(nullptr, g, x.view(), dy.view(), View(), dbias.view(), workspace);
  if (names) *names = seen;
  scratch.to_host();
  return {y.to_host(), dx.to_host(), dweight.to_host(), dbias.to_host()};
}

// An arithmetic: a dtype, and whether float32 is rounded to TF32.
struct Mode {
  DType dtype;
  bool has_tf32 = false;
  const char* name() const { return has_tf32 ? "TF32" : name_of(dtype); }
};
const std::vector<Mode> plain_modes = {{DType::float64}, {DType::float32}};
const std::vector<Mode> tensor_modes = {{DType::float16}, {DType::bfloat16}, {DType::float32, true}};
const std::vector<Mode> all_modes = {{DType::float64}, {DType::float32}, {DType::float16}, {DType::bfloat16}, {DType::float32, true}};

// The error that rounding the result makes, in units of it.
double relative_tolerance(DType dtype) { return dtype == DType::bfloat16 ? 0x1p-8 : dtype == DType::float16 ? 0x1p-11 : 0; }

// The rounding errors of a sum of `terms` products of numbers below one. Those of TF32's products, and of sums in the half types' float32, are independent of each
// other and grow with the root.
double tolerance(const Mode& mode, int64_t terms) {
  const double n = static_cast<double>(terms);
  if (mode.has_tf32) return 0x1p-10 * (1 + std::sqrt(n));
  if (mode.dtype == DType::float64) return 0x1p-52 * (8 + n);
  return mode.dtype == DType::float32 ? 0x1p-23 * (8 + n) : 0x1p-21 * (1 + std::sqrt(n));
}

void compare(const ConvGeometry& g, const Results& got, const Results& want, const Mode& mode) {
  const int64_t window = g.r * g.s, pixels = g.n * g.out_h() * g.out_w();
  const double relative = relative_tolerance(mode.dtype);
  CHECK(difference(as_double(got.y), want.y, relative, tolerance(mode, g.group_c() * window)) == "");
  CHECK(difference(as_double(got.dx), want.dx, relative, tolerance(mode, g.group_k() * window)) == "");
  CHECK(difference(as_double(got.dweight), want.dweight, relative, tolerance(mode, pixels)) == "");
  CHECK(difference(as_double(got.dbias), want.dbias, relative, tolerance({mode.dtype}, pixels)) == "");
}

void check_geometry(const ConvGeometry& g, const std::vector<Mode>& modes = all_modes, Layouts layouts = {}) {
  INFO("n ", g.n, " c ", g.c, " h ", g.h, " w ", g.w, " k ", g.k, " r ", g.r, " s ", g.s, " stride ", g.stride_h, ",", g.stride_w, " pad ", g.pad_h, ",", g.pad_w, " dilation ", g.dilation_h,
       ",", g.dilation_w, " groups ", g.groups);
  for (const Mode& mode : modes) {
    INFO(std::string(mode.name()));
    const Tf32Scope scope(mode.has_tf32);
    const Inputs in(g, mode.dtype);
    compare(g, on_device(g, in, mode.dtype, 0, nullptr, layouts), on_cpu(g, in), mode);
  }
}

}  // namespace

TEST_CASE("every stride, padding, dilation and kernel gives what the CPU gives") {
  const std::vector<ConvGeometry> cases = {
      {.n = 1, .c = 1, .h = 1, .w = 1, .k = 1},
      {.n = 2, .c = 3, .h = 5, .w = 7, .k = 4, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1},
      {.n = 2, .c = 5, .h = 8, .w = 8, .k = 7},
      {.n = 1, .c = 4, .h = 9, .w = 10, .k = 6, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1},
      {.n = 2, .c = 3, .h = 17, .w = 15, .k = 5, .r = 7, .s = 7, .stride_h = 2, .stride_w = 2, .pad_h = 3, .pad_w = 3},
      {.n = 2, .c = 2, .h = 10, .w = 11, .k = 3, .r = 2, .s = 2, .stride_h = 3, .stride_w = 3},                                      // pixels that no window sees
      {.n = 1, .c = 2, .h = 12, .w = 13, .k = 3, .r = 3, .s = 3, .pad_h = 2, .pad_w = 2, .dilation_h = 2, .dilation_w = 2},
      {.n = 1, .c = 2, .h = 13, .w = 12, .k = 3, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 2, .pad_w = 2, .dilation_h = 2, .dilation_w = 2},
      {.n = 1, .c = 2, .h = 17, .w = 19, .k = 3, .r = 3, .s = 4, .stride_h = 4, .stride_w = 6, .pad_h = 3, .pad_w = 1, .dilation_h = 6, .dilation_w = 4},
      {.n = 2, .c = 3, .h = 1, .w = 20, .k = 4, .r = 1, .s = 5, .stride_w = 2, .pad_w = 2},
      {.n = 2, .c = 3, .h = 6, .w = 4, .k = 4, .r = 5, .s = 1, .stride_h = 1, .pad_h = 4},
      {.n = 1, .c = 3, .h = 3, .w = 3, .k = 2, .r = 3, .s = 3, .pad_h = 5, .pad_w = 7},                                              // windows that see padding alone
      {.n = 3, .c = 2, .h = 4, .w = 4, .k = 3, .r = 4, .s = 4},                                                                      // one window
      {.n = 1, .c = 2, .h = 3, .w = 2, .k = 3, .stride_h = 5, .stride_w = 7},                                                        // stride beyond the image
  };
  for (const ConvGeometry& g : cases) check_geometry(g);
}

TEST_CASE("groups give what the CPU gives") {
  const std::vector<ConvGeometry> cases = {
      {.n = 2, .c = 4, .h = 6, .w = 7, .k = 6, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 2},
      {.n = 1, .c = 12, .h = 9, .w = 9, .k = 24, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1, .groups = 4},
      {.n = 2, .c = 40, .h = 4, .w = 5, .k = 80, .groups = 2},
      {.n = 1, .c = 32, .h = 6, .w = 5, .k = 32, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 8},
      {.n = 1, .c = 16, .h = 7, .w = 6, .k = 16, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1, .groups = 2},
  };
  for (const ConvGeometry& g : cases) check_geometry(g);
}

TEST_CASE("depthwise convolutions give what the CPU gives") {
  const std::vector<ConvGeometry> cases = {
      {.n = 2, .c = 5, .h = 9, .w = 11, .k = 5, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 5},
      {.n = 1, .c = 3, .h = 12, .w = 10, .k = 3, .r = 5, .s = 5, .pad_h = 2, .pad_w = 2, .groups = 3},
      {.n = 1, .c = 3, .h = 9, .w = 17, .k = 3, .r = 7, .s = 7, .pad_h = 3, .pad_w = 3, .groups = 3},
      {.n = 2, .c = 4, .h = 9, .w = 9, .k = 12, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 4},                                 // three of y for each of x
      {.n = 2, .c = 3, .h = 11, .w = 12, .k = 3, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1, .groups = 3},
      {.n = 1, .c = 2, .h = 14, .w = 13, .k = 4, .r = 3, .s = 2, .stride_h = 3, .stride_w = 1, .pad_h = 2, .pad_w = 1, .dilation_h = 2, .dilation_w = 3, .groups = 2},
      {.n = 1, .c = 2, .h = 12, .w = 20, .k = 2, .r = 2, .s = 9, .pad_h = 0, .pad_w = 4, .groups = 2},
      {.n = 1, .c = 2, .h = 3, .w = 3, .k = 2, .r = 3, .s = 3, .pad_h = 4, .pad_w = 4, .groups = 2},
      {.n = 5, .c = 2, .h = 32, .w = 33, .k = 2, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 2},                                // a sum in several parts
  };
  for (const ConvGeometry& g : cases) check_geometry(g);
}

TEST_CASE("depthwise convolutions of tensors that lie channels-last are computed where they lie, and give what the CPU gives") {
  const std::vector<ConvGeometry> cases = {
      {.n = 2, .c = 16, .h = 9, .w = 11, .k = 16, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 16},
      {.n = 1, .c = 5, .h = 9, .w = 11, .k = 5, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 5},                                 // channels that fill no pack
      {.n = 1, .c = 72, .h = 5, .w = 6, .k = 72, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 72},                               // more than one block's channels
      {.n = 1, .c = 8, .h = 12, .w = 10, .k = 8, .r = 5, .s = 5, .pad_h = 2, .pad_w = 2, .groups = 8},
      {.n = 1, .c = 8, .h = 9, .w = 17, .k = 8, .r = 7, .s = 7, .pad_h = 3, .pad_w = 3, .groups = 8},
      {.n = 2, .c = 8, .h = 11, .w = 12, .k = 8, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1, .groups = 8},
      {.n = 1, .c = 8, .h = 14, .w = 13, .k = 8, .r = 3, .s = 2, .stride_h = 3, .stride_w = 1, .pad_h = 2, .pad_w = 1, .dilation_h = 2, .dilation_w = 3, .groups = 8},
      {.n = 1, .c = 8, .h = 12, .w = 20, .k = 8, .r = 2, .s = 9, .pad_h = 0, .pad_w = 4, .groups = 8},
      {.n = 1, .c = 8, .h = 3, .w = 3, .k = 8, .r = 3, .s = 3, .pad_h = 4, .pad_w = 4, .groups = 8},
      {.n = 1, .c = 8, .h = 1, .w = 9, .k = 8, .r = 1, .s = 3, .stride_w = 2, .pad_w = 1, .groups = 8},
      {.n = 5, .c = 8, .h = 32, .w = 33, .k = 8, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 8},                                // several blocks, and a sum in several parts
      {.n = 0, .c = 8, .h = 5, .w = 6, .k = 8, .r = 3, .s = 3, .groups = 8},
  };
  const Layouts last{Layout::channels_last, Layout::channels_last, Layout::planar};
  for (const ConvGeometry& g : cases)
    for (const Mode& mode : {Mode{DType::float64}, Mode{DType::float32}, Mode{DType::float16}, Mode{DType::bfloat16}})
      for (const int64_t offset : {0, 1}) {                                      // the second is not aligned to packs
        INFO(std::string(mode.name()), " c ", g.c, " h ", g.h, " w ", g.w, " r ", g.r, " s ", g.s, " stride ", g.stride_h, ",", g.stride_w, " offset ", offset);
        const Inputs in(g, mode.dtype);
        Names names;
        compare(g, on_device(g, in, mode.dtype, offset, &names, last), on_cpu(g, in), mode);
        if (g.n == 0) continue;
        CHECK(names.forward == "conv2d_forward_depthwise_last");
        CHECK(names.data == "conv2d_backward_data_depthwise_last");
      }
}

TEST_CASE("a depthwise convolution with more channels of y than of x, and one of very many taps, are computed in planes wherever they lie") {
  const Layouts last{Layout::channels_last, Layout::channels_last, Layout::planar};
  const ConvGeometry more{.n = 2, .c = 4, .h = 6, .w = 5, .k = 8, .r = 3, .s = 3, .groups = 4}, large{.n = 1, .c = 2, .h = 20, .w = 21, .k = 2, .r = 14, .s = 15, .groups = 2};
  for (const ConvGeometry& g : {more, large}) check_geometry(g, {{DType::float32}, {DType::float16}}, last);
}

TEST_CASE("small groups of half types are multiplied beside each other, and give what the CPU gives") {
  const auto grouped = [](int64_t groups, int64_t c, int64_t k, ConvGeometry g) {
    g.c = groups * c, g.k = groups * k, g.groups = groups;
    return g;
  };
  const ConvGeometry square{.n = 2, .h = 9, .w = 11, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};
  std::vector<ConvGeometry> cases;
  for (const int64_t c : {4, 8, 16, 32})
    for (const int64_t k : {4, 8, 16, 32}) cases.push_back(grouped(2, c, k, square));
  const std::vector<ConvGeometry> others = {
      grouped(10, 4, 4, square),                                                                                                   // a block whose groups are not all there
      grouped(5, 8, 8, square),
      grouped(8, 4, 4, {.n = 1, .h = 21, .w = 37, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}),                                          // several tiles
      grouped(4, 8, 8, {.n = 3, .h = 20, .w = 7, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}),                                           // narrow tiles
      grouped(4, 8, 4, {.n = 2, .h = 15, .w = 18, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1}),
      grouped(2, 16, 16, {.n = 1, .h = 12, .w = 13, .r = 3, .s = 2, .stride_h = 2, .pad_h = 2, .pad_w = 3, .dilation_h = 2, .dilation_w = 3}),
      grouped(4, 8, 16, {.n = 2, .h = 33, .w = 35, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1}),           // several tiles of each phase
      grouped(2, 8, 8, {.n = 1, .h = 9, .w = 14, .r = 5, .s = 2, .stride_h = 3, .pad_h = 1, .pad_w = 1, .dilation_w = 2}),           // three phases
      grouped(2, 4, 8, {.n = 2, .h = 9, .w = 14, .r = 2, .s = 3, .stride_w = 4, .pad_h = 3, .pad_w = 2}),                            // four, one of which has no taps
      grouped(2, 32, 16, {.n = 1, .h = 5, .w = 6, .stride_h = 2, .stride_w = 2}),                                                    // three of four have none
      grouped(2, 4, 4, {.n = 1, .h = 1, .w = 5, .r = 1, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1}),                          // the only phase down has none
      grouped(2, 8, 8, {.n = 1, .h = 9, .w = 9, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 2, .pad_w = 2, .dilation_h = 2, .dilation_w = 2}),
      grouped(2, 8, 8, {.n = 1, .h = 13, .w = 14, .r = 3, .s = 3, .stride_h = 3, .stride_w = 2, .pad_h = 1, .pad_w = 1}),            // more phases than a block makes
      grouped(4, 4, 8, {.n = 2, .h = 6, .w = 5}),                                                                                    // one tap
      grouped(4, 4, 4, {.n = 1, .h = 8, .w = 9, .r = 2, .s = 5, .pad_h = 3, .pad_w = 1}),                                            // windows that see padding alone
      grouped(4, 4, 4, {.n = 0, .h = 8, .w = 9, .r = 3, .s = 3}),
  };
  cases.insert(cases.end(), others.begin(), others.end());
  const Layouts planar, last{Layout::channels_last, Layout::channels_last, Layout::channels_last}, mixed{Layout::channels_last, Layout::planar, Layout::planar};
  for (const ConvGeometry& g : cases)
    for (const Mode& mode : {Mode{DType::float16}, Mode{DType::bfloat16}}) {
      INFO(std::string(mode.name()), " groups ", g.groups, " c ", g.group_c(), " k ", g.group_k(), " h ", g.h, " w ", g.w, " r ", g.r, " s ", g.s, " stride ", g.stride_h, ",", g.stride_w);
      const Inputs in(g, mode.dtype);
      const Results want = on_cpu(g, in);
      Results first;
      for (const Layouts& layouts : {planar, last, mixed})
        for (const int64_t offset : {0, 1}) {
          Names names;
          const Results got = on_device(g, in, mode.dtype, offset, &names, layouts);
          compare(g, got, want, mode);
          if (g.n == 0) continue;
          CHECK(names.forward == "conv2d_forward_tensor_grouped");
          CHECK((names.data == "conv2d_backward_data_tensor_grouped") == (g.stride_h * g.stride_w <= 4));
          const bool is_weight = choose_conv_kernel(g, mode.dtype, ConvPass::backward_weight).kernel == ConvKernel::tensor_grouped;
          CHECK(is_weight == (g.group_c() == g.group_k() && g.c % 8 == 0));
          if (!first.y) first = got;
          CHECK(same_bits(first.y, got.y));                                      // how tensors lie changes no bit
          CHECK(same_bits(first.dx, got.dx));
          CHECK(same_bits(first.dweight, got.dweight));
        }
    }
}

TEST_CASE("the weight gradient of small groups: more taps than a block has, several chunks of channels, images in slices, many parts") {
  const std::vector<ConvGeometry> cases = {
      {.n = 2, .c = 80, .h = 9, .w = 7, .k = 80, .r = 5, .s = 5, .pad_h = 2, .pad_w = 2, .groups = 20},
      {.n = 1, .c = 48, .h = 11, .w = 30, .k = 48, .r = 7, .s = 4, .stride_h = 2, .stride_w = 3, .pad_h = 3, .pad_w = 2, .groups = 6},
      {.n = 3, .c = 64, .h = 6, .w = 5, .k = 64, .r = 1, .s = 2, .pad_w = 1, .groups = 4},
      {.n = 2, .c = 96, .h = 7, .w = 7, .k = 96, .stride_h = 2, .stride_w = 2, .groups = 3},
      {.n = 130, .c = 8, .h = 3, .w = 4, .k = 8, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 2},
      {.n = 3, .c = 16, .h = 220, .w = 1600, .k = 16, .stride_h = 60, .stride_w = 200, .pad_w = 1, .groups = 4},
  };
  const auto on_device = [](const ConvGeometry& g, const Tensor& x, const Tensor& dy, Layout layout) {
    const LaidTensor x_there(x, layout, 0), dy_there(dy, layout, 0), dweight(shape_of_weight(g), x.dtype(), Layout::planar, 0);
    const DeviceTensor scratch = DeviceTensor::poisoned({testing::cuda().conv2d_workspace(g, x.dtype())}, DType::uint8);
    testing::cuda().conv2d_backward_weight(nullptr, g, x_there.view(), dy_there.view(), dweight.view(), View(), {scratch.view().data, scratch.view().numel()});
    return dweight.to_host();
  };
  for (const ConvGeometry& g : cases)
    for (const DType dtype : {DType::float16, DType::bfloat16}) {
      if (g.h * g.w > 100000 && dtype == DType::bfloat16) continue;              // the large one takes its time
      INFO(std::string(name_of(dtype)), " c ", g.c, " groups ", g.groups, " r ", g.r, " s ", g.s);
      const Tensor x = numbers(shape_of_x(g), dtype, 1), dy = numbers(shape_of_y(g), dtype, 2);
      std::vector<std::string> names;
      kernels::cuda::log_launches(&names);
      const Tensor planar = on_device(g, x, dy, Layout::planar);
      kernels::cuda::log_launches(nullptr);
      const int64_t per_slice = choose_conv_kernel(g, dtype, ConvPass::backward_weight).layout.images_per_slice;
      CHECK(std::count(names.begin(), names.end(), "conv2d_backward_weight_tensor_grouped") == (g.n + per_slice - 1) / per_slice);
      CHECK(same_bits(planar, on_device(g, x, dy, Layout::channels_last)));      // where nothing is copied, all images go in one launch
      Tensor want = empty(shape_of_weight(g), DType::float64);
      std::vector<double> scratch(static_cast<size_t>(cpu().conv2d_workspace(g, DType::float64)) / 8 + 64);
      cpu().conv2d_backward_weight(nullptr, g, as_double(x).view(), as_double(dy).view(), want.mutable_view(), View(), {scratch.data(), static_cast<int64_t>(scratch.size()) * 8});
      CHECK(difference(as_double(planar), want, relative_tolerance(dtype), tolerance({dtype}, g.n * g.out_h() * g.out_w())) == "");
    }
}

TEST_CASE("the weight gradient of small groups: a NaN or an infinity in x reaches the weights of its group whose windows see it, and no others") {
  // A tile reaches beyond y's last column: there the first taps of a window would see x's last columns. And groups lie beside each other in one multiplication.
  const ConvGeometry g{.n = 1, .c = 16, .h = 25, .w = 39, .k = 16, .r = 3, .s = 3, .groups = 4};
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    REQUIRE(g.out_w() % choose_conv_kernel(g, dtype, ConvPass::backward_weight).tile_w != 0);
    Inputs in(g, dtype);
    Tensor x = as_double(in.x);
    x.mutable_data<double>()[(5 * g.h + 12) * g.w + g.w - 1] = std::numeric_limits<double>::quiet_NaN();
    x.mutable_data<double>()[(11 * g.h + 7) * g.w + g.w - 2] = std::numeric_limits<double>::infinity();
    cpu().copy(nullptr, x.view(), in.x.mutable_view());
    compare(g, on_device(g, in, dtype), on_cpu(g, in), {dtype});
  }
}

TEST_CASE("small groups of float32 are computed out of patches, and give what the CPU gives") {
  const auto grouped = [](int64_t groups, int64_t c, int64_t k, ConvGeometry g) {
    g.c = groups * c, g.k = groups * k, g.groups = groups;
    return g;
  };
  const ConvGeometry square{.n = 2, .h = 16, .w = 20, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};
  const std::vector<ConvGeometry> cases = {
      grouped(3, 4, 4, square),
      grouped(2, 8, 8, square),
      grouped(2, 16, 16, square),
      grouped(2, 3, 7, square),
      grouped(2, 13, 2, square),
      grouped(3, 4, 4, {.n = 1, .h = 21, .w = 37, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}),                  // several tiles, rows that are no whole packs
      grouped(2, 4, 8, {.n = 1, .h = 12, .w = 13, .r = 5, .s = 3, .pad_h = 3, .pad_w = 0}),
      grouped(2, 4, 4, {.n = 1, .h = 13, .w = 14, .r = 3, .s = 3, .pad_h = 3, .pad_w = 1, .dilation_h = 2}),
      grouped(2, 5, 4, {.n = 1, .h = 14, .w = 15, .r = 2, .s = 4, .pad_h = 2, .pad_w = 5, .dilation_w = 3}),
      grouped(2, 4, 4, {.n = 2, .h = 40, .w = 41, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1}),
      grouped(2, 8, 3, {.n = 1, .h = 37, .w = 72, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1}),
      grouped(2, 16, 5, {.n = 1, .h = 34, .w = 36, .r = 2, .s = 5, .stride_h = 2, .stride_w = 2, .pad_w = 3, .dilation_w = 2}),       // taps that meet one phase alone
      grouped(2, 13, 4, {.n = 2, .h = 41, .w = 18, .r = 4, .s = 3, .stride_h = 2, .pad_h = 2, .pad_w = 1, .dilation_h = 3}),
      grouped(3, 4, 7, {.n = 1, .h = 15, .w = 33, .r = 3, .s = 3, .stride_w = 2, .pad_h = 0, .pad_w = 4}),
      grouped(2, 4, 4, {.n = 1, .h = 40, .w = 40, .stride_h = 2, .stride_w = 2}),                              // phases without taps
      grouped(2, 4, 4, {.n = 1, .h = 60, .w = 61, .r = 3, .s = 3, .stride_h = 3, .stride_w = 3}),              // more phases than a block makes
      grouped(2, 4, 4, {.n = 1, .h = 3, .w = 70, .r = 1, .s = 1}),
      grouped(2, 4, 4, {.n = 0, .h = 16, .w = 16, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}),
  };
  const Layouts last{Layout::channels_last, Layout::channels_last, Layout::planar};
  for (const ConvGeometry& g : cases) {
    INFO("groups ", g.groups, " c ", g.group_c(), " k ", g.group_k(), " h ", g.h, " w ", g.w, " r ", g.r, " s ", g.s, " stride ", g.stride_h, ",", g.stride_w);
    const Inputs in(g, DType::float32);
    const Results want = on_cpu(g, in), first = on_device(g, in, DType::float32);
    compare(g, first, want, {DType::float32});
    for (const int64_t offset : {0, 1}) {
      Names names;
      const Results got = on_device(g, in, DType::float32, offset, &names), got_last = on_device(g, in, DType::float32, offset, nullptr, last);
      for (const Results* results : {&got, &got_last}) {
        CHECK(same_bits(first.y, results->y));
        CHECK(same_bits(first.dx, results->dx));
      }
      if (g.n == 0) continue;
      const bool has_small_patch = g.stride_h * g.stride_w == 1 || (g.group_c() == 4 && g.stride_h <= 2);
      CHECK((names.forward == "conv2d_forward_direct") == has_small_patch);
      CHECK((names.data == "conv2d_backward_data_direct") == (g.stride_h <= 2 && g.stride_w <= 2));
    }
  }
}

TEST_CASE("the weight gradient of small groups of float32 is computed out of patches, and gives what the CPU gives") {
  const auto grouped = [](int64_t groups, int64_t c, int64_t k, ConvGeometry g) {
    g.c = groups * c, g.k = groups * k, g.groups = groups, g.r = g.s = 3;
    return g;
  };
  const ConvGeometry square{.n = 2, .h = 16, .w = 16, .pad_h = 1, .pad_w = 1};
  const std::vector<ConvGeometry> cases = {
      grouped(3, 4, 4, square),
      grouped(2, 8, 8, square),
      grouped(2, 16, 16, square),                                                                     // four blocks a group
      grouped(2, 3, 7, square),                                                                       // channels that fill no thread
      grouped(2, 13, 2, square),
      grouped(2, 9, 11, {.n = 5, .h = 15, .w = 14}),                                                  // blocks that are not full; no padding, many parts
      grouped(2, 4, 4, {.n = 3, .h = 30, .w = 61, .pad_h = 2, .pad_w = 1}),                           // several tiles, rows that are no whole packs
      grouped(2, 2, 1, {.n = 1, .h = 48, .w = 60, .pad_h = 1, .pad_w = 1}),
      grouped(2, 4, 4, {.n = 2, .h = 31, .w = 29, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1}),
      grouped(2, 8, 6, {.n = 2, .h = 34, .w = 32, .stride_h = 2, .stride_w = 2, .pad_h = 0, .pad_w = 3}),
  };
  const Layouts last{Layout::channels_last, Layout::channels_last, Layout::channels_last};
  for (const ConvGeometry& g : cases) {
    INFO("groups ", g.groups, " c ", g.group_c(), " k ", g.group_k(), " h ", g.h, " w ", g.w, " stride ", g.stride_h);
    CHECK(choose_conv_kernel(g, DType::float32, ConvPass::backward_weight).name == std::string("conv2d_backward_weight_direct"));
    Inputs in(g, DType::float32);
    Results want = on_cpu(g, in), first = on_device(g, in, DType::float32);
    compare(g, first, want, {DType::float32});
    CHECK(same_bits(first.dweight, on_device(g, in, DType::float32, 1).dweight));
    CHECK(same_bits(first.dweight, on_device(g, in, DType::float32, 0, nullptr, last).dweight));
    // What is not a number at x's right edge reaches the taps that see it, and no others: not those of windows beyond the last column.
    float* const x = in.x.mutable_data<float>();
    x[(g.h / 2 + 1) * g.w - 1] = std::numeric_limits<float>::quiet_NaN();
    x[(g.c * g.h - 1) * g.w - 2] = std::numeric_limits<float>::infinity();
    compare(g, on_device(g, in, DType::float32), on_cpu(g, in), {DType::float32});
  }
}

TEST_CASE("each tile is taken where the plan says so, and gives what the CPU gives") {
  struct Case {
    ConvGeometry g;
    const char *forward, *data, *weight;
  };
  const std::vector<Case> cases = {
      {{.n = 1, .c = 8, .h = 132, .w = 256, .k = 127}, "conv2d_forward_wide", "conv2d_backward_data_grouped", "conv2d_add_parts"},
      {{.n = 1, .c = 121, .h = 132, .w = 256, .k = 6}, "conv2d_forward_grouped", "conv2d_backward_data_wide", "conv2d_add_parts"},
      {{.n = 1, .c = 8, .h = 264, .w = 256, .k = 61}, "conv2d_forward_broad", "conv2d_backward_data_grouped", "conv2d_add_parts"},
      {{.n = 1, .c = 63, .h = 264, .w = 256, .k = 8}, "conv2d_forward_grouped", "conv2d_backward_data_broad", "conv2d_add_parts"},
      {{.n = 1, .c = 28, .h = 130, .w = 132, .k = 61}, "conv2d_forward_medium", "conv2d_backward_data_narrow", "conv2d_add_parts"},
      {{.n = 1, .c = 60, .h = 131, .w = 132, .k = 28}, "conv2d_forward_narrow", "conv2d_backward_data_medium", "conv2d_add_parts"},
      {{.n = 1, .c = 9, .h = 9, .w = 14, .k = 70, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}, "conv2d_forward_grouped", "conv2d_add_pixel_parts", "conv2d_backward_weight_wide"},
      {{.n = 1, .c = 40, .h = 13, .w = 14, .k = 33, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}, "conv2d_add_pixel_parts", "conv2d_add_pixel_parts", "conv2d_backward_weight_broad"},
      {{.n = 3, .c = 8, .h = 11, .w = 12, .k = 8, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}, "conv2d_forward_grouped", "conv2d_backward_data_grouped", "conv2d_backward_weight_grouped"},
      {{.n = 1, .c = 520, .h = 5, .w = 5, .k = 504, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}, "conv2d_add_pixel_parts", "conv2d_add_pixel_parts", "conv2d_backward_weight_wide"},
      {{.n = 2, .c = 3, .h = 8, .w = 8, .k = 3, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 3}, "conv2d_forward_depthwise", "conv2d_backward_data_depthwise",
       "conv2d_backward_weight_depthwise"},
  };
  for (const Case& c : cases) {
    Names names;
    const Inputs in(c.g, DType::float32);
    const Results got = on_device(c.g, in, DType::float32, 0, &names);
    CHECK(names.forward == std::string(c.forward));
    CHECK(names.data == std::string(c.data));
    CHECK(names.weight == c.weight);
    compare(c.g, got, on_cpu(c.g, in), {DType::float32});
  }
}

namespace {

// y and dx of float32 or float64 with weights that are packed first, or read as they lie, whatever the plan says.
template <class T>
void check_weights(const ConvGeometry& g, const Inputs& in, const Results& want, int64_t offset, bool is_packed) {
  const DeviceTensor x(in.x, offset), weight(in.weight, offset), bias(in.bias, offset), dy(in.dy, offset);
  const DeviceTensor y = DeviceTensor::poisoned(shape_of_y(g), dtype_of<T>, offset), dx = DeviceTensor::poisoned(shape_of_x(g), dtype_of<T>, offset);
  const auto plan_of = [&](ConvPass pass) {
    kernels::cuda::ConvPlan plan = choose_conv_kernel(g, dtype_of<T>, pass);
    plan.layout.weight_row = plan.layout.weight_bytes = 0;
    if (is_packed) plan_packed_weights(g, dtype_of<T>, pass, plan);
    return plan;
  };
  const kernels::cuda::ConvPlan forward = plan_of(ConvPass::forward), data = plan_of(ConvPass::backward_data);
  const DeviceTensor scratch = DeviceTensor::poisoned({std::max(forward.layout.bytes(), data.layout.bytes())}, DType::uint8);
  const Workspace workspace{scratch.view().data, scratch.view().numel()};
  kernels::cuda::plain_forward<T>(nullptr, g, forward, x.view().template as<T>(), weight.view().template as<T>(), bias.view().template as<T>(), y.view().template as<T>(), workspace);
  kernels::cuda::plain_backward_data<T>(nullptr, g, data, dy.view().template as<T>(), weight.view().template as<T>(), dx.view().template as<T>(), workspace);
  CHECK(difference(as_double(y.to_host()), want.y, 0, tolerance({dtype_of<T>}, g.group_c() * g.r * g.s)) == "");
  CHECK(difference(as_double(dx.to_host()), want.dx, 0, tolerance({dtype_of<T>}, g.group_k() * g.r * g.s)) == "");
}

}  // namespace

TEST_CASE("float32 and float64: how operands are copied changes no result, whatever the number of channels and the size of planes") {
  const std::vector<ConvGeometry> cases = {
      {.n = 2, .c = 16, .h = 6, .w = 8, .k = 24},                                                              // 16 bytes of pixels at once
      {.n = 2, .c = 16, .h = 5, .w = 7, .k = 24},                                                              // planes are no whole packs
      {.n = 3, .c = 13, .h = 4, .w = 4, .k = 19},                                                              // stages that are not filled
      {.n = 2, .c = 16, .h = 9, .w = 8, .k = 32, .r = 3, .s = 2, .stride_h = 2, .pad_h = 1, .pad_w = 1},       // stages of one tap each, and phases that have none
      {.n = 2, .c = 24, .h = 8, .w = 9, .k = 16, .r = 3, .s = 5, .stride_w = 3, .pad_h = 1, .pad_w = 4, .dilation_h = 2, .dilation_w = 2},
      {.n = 1, .c = 12, .h = 20, .w = 21, .k = 12, .r = 2, .s = 2, .stride_h = 5, .stride_w = 4},              // more phases than one launch has
      {.n = 2, .c = 32, .h = 5, .w = 6, .k = 48, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1, .groups = 2},
      {.n = 1, .c = 304, .h = 5, .w = 7, .k = 297, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1},      // sums in parts, in every direction
  };
  for (const ConvGeometry& g : cases)
    for (const Mode& mode : plain_modes) {
      const Inputs in(g, mode.dtype);
      const Results want = on_cpu(g, in), aligned = on_device(g, in, mode.dtype), shifted = on_device(g, in, mode.dtype, 1);
      compare(g, aligned, want, mode);
      CHECK(same_bits(aligned.y, shifted.y));
      CHECK(same_bits(aligned.dx, shifted.dx));
      CHECK(same_bits(aligned.dweight, shifted.dweight));
      for (const int64_t offset : {0, 1})
        for (const bool is_packed : {false, true}) {
          INFO("offset ", offset, is_packed ? ", packed weights" : ", weights as they lie");
          if (mode.dtype == DType::float32) check_weights<float>(g, in, want, offset, is_packed);
          else check_weights<double>(g, in, want, offset, is_packed);
        }
    }
}

TEST_CASE("small products of float32 read their weights as they lie; larger ones pack them first") {
  const ConvGeometry small{.n = 2, .c = 16, .h = 9, .w = 9, .k = 32, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};
  const ConvGeometry wide_row{.n = 64, .c = 64, .h = 20, .w = 20, .k = 64, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};
  const ConvGeometry resnet{.n = 256, .c = 128, .h = 28, .w = 28, .k = 128, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};
  const ConvGeometry few_pixels{.n = 1, .c = 512, .h = 7, .w = 7, .k = 512, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};         // every weight is read once
  for (const ConvPass pass : {ConvPass::forward, ConvPass::backward_data}) {
    for (const ConvGeometry& g : {small, few_pixels}) CHECK(choose_conv_kernel(g, DType::float32, pass).layout.weight_bytes == 0);
    for (const ConvGeometry& g : {wide_row, resnet}) CHECK(choose_conv_kernel(g, DType::float32, pass).layout.weight_bytes > 0);
  }
  std::vector<std::string> names;
  kernels::cuda::log_launches(&names);
  on_device(small, Inputs(small, DType::float32), DType::float32);
  kernels::cuda::log_launches(nullptr);
  CHECK(std::count(names.begin(), names.end(), "conv2d_pack_weights") == 0);
}

TEST_CASE("tensor cores: each tile is taken where the plan says so, and gives what the CPU gives") {
  struct Case {
    ConvGeometry g;
    const char *forward, *data;
    ConvKernel weight;
  };
  const std::vector<Case> cases = {
      {{.n = 1, .c = 8, .h = 182, .w = 185, .k = 128}, "conv2d_forward_tensor_pointwise_wide", "conv2d_backward_data_tensor_pointwise_slim", ConvKernel::tensor_small},
      {{.n = 1, .c = 100, .h = 181, .w = 185, .k = 9, .r = 1, .s = 2, .pad_w = 1}, "conv2d_forward_tensor_slim", "conv2d_backward_data_tensor_wide", ConvKernel::tensor_slim},
      {{.n = 1, .c = 34, .h = 182, .w = 185, .k = 35}, "conv2d_forward_tensor_pointwise_medium", "conv2d_backward_data_tensor_pointwise_medium", ConvKernel::tensor_small},
      {{.n = 1, .c = 20, .h = 182, .w = 185, .k = 24, .r = 2, .s = 1}, "conv2d_forward_tensor_narrow", "conv2d_backward_data_tensor_narrow", ConvKernel::tensor_small},
      {{.n = 2, .c = 36, .h = 9, .w = 11, .k = 70, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1}, "conv2d_forward_tensor_small", "conv2d_backward_data_tensor_small", ConvKernel::tensor_wide},
      {{.n = 2, .c = 20, .h = 13, .w = 9, .k = 24, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1}, "conv2d_forward_tensor_small",
       "conv2d_backward_data_tensor_small", ConvKernel::tensor_small},
  };
  for (const Case& c : cases)
    for (const Mode& mode : tensor_modes) {
      INFO(std::string(mode.name()), " ", std::string(c.forward));
      const Tf32Scope scope(mode.has_tf32);
      const Inputs in(c.g, mode.dtype);
      Names names;
      const Results got = on_device(c.g, in, mode.dtype, 0, &names);
      CHECK(names.forward == std::string(c.forward));
      CHECK(names.data == std::string(c.data));
      CHECK(names.weight == "conv2d_add_tensor_parts");
      CHECK(static_cast<int>(choose_conv_kernel(c.g, mode.dtype, ConvPass::backward_weight, {mode.has_tf32}).kernel) == static_cast<int>(c.weight));
      compare(c.g, got, on_cpu(c.g, in), mode);
    }
}

TEST_CASE("tensor cores: up to four channels of a half type are not padded to eight") {
  for (const int64_t channels : {1, 2, 3, 4}) {
    const ConvGeometry g{.n = 2, .c = channels, .h = 15, .w = 17, .k = 20, .r = 5, .s = 4, .stride_h = 2, .stride_w = 1, .pad_h = 2, .pad_w = 3, .dilation_w = 2};
    for (const DType dtype : {DType::float16, DType::bfloat16}) {
      Names names;
      const Inputs in(g, dtype);
      const Results got = on_device(g, in, dtype, 0, &names);
      CHECK(names.forward == "conv2d_forward_tensor_few_channels_small");
      compare(g, got, on_cpu(g, in), {dtype});
      ConvGeometry back = g;                       // the same few channels on the side of y
      std::swap(back.c, back.k);
      const Inputs swapped(back, dtype);
      const Results of_swapped = on_device(back, swapped, dtype, 0, &names);
      CHECK(names.data == "conv2d_backward_data_tensor_few_channels_small");
      compare(back, of_swapped, on_cpu(back, swapped), {dtype});
    }
  }
}

TEST_CASE("float32 is rounded to TF32 only where that is allowed") {
  const ConvGeometry g{.n = 1, .c = 8, .h = 6, .w = 6, .k = 40, .r = 3, .s = 3};
  Names names;
  {
    const Tf32Scope scope(true);
    on_device(g, Inputs(g, DType::float32), DType::float32, 0, &names);
    CHECK(names.forward == "conv2d_forward_tensor_small");
  }
  on_device(g, Inputs(g, DType::float32), DType::float32, 0, &names);
  CHECK(names.forward == "conv2d_forward_grouped");
}

TEST_CASE("tensors that lie channels-last give what the CPU gives, in every combination") {
  const std::vector<ConvGeometry> cases = {
      {.n = 2, .c = 16, .h = 7, .w = 6, .k = 24, .r = 3, .s = 3, .stride_h = 2, .stride_w = 1, .pad_h = 1, .pad_w = 1},                // read as they lie
      {.n = 2, .c = 5, .h = 7, .w = 6, .k = 11, .r = 3, .s = 2, .pad_h = 1, .pad_w = 1},                                               // padded first
      {.n = 2, .c = 16, .h = 5, .w = 6, .k = 16, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 2},
      {.n = 2, .c = 6, .h = 7, .w = 6, .k = 6, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 6},
      {.n = 3, .c = 4, .h = 5, .w = 6, .k = 8},
      {.n = 3, .c = 8, .h = 1, .w = 1, .k = 16},
  };
  const auto one = Layout::planar, other = Layout::channels_last;
  for (const ConvGeometry& g : cases)
    for (const Layouts& layouts : {Layouts{other, other, other}, Layouts{other, one, one}, Layouts{one, other, one}, Layouts{one, one, other}}) check_geometry(g, all_modes, layouts);
}

TEST_CASE("how tensors lie changes no bit of what tensor cores compute") {
  const std::vector<ConvGeometry> cases = {
      {.n = 3, .c = 16, .h = 9, .w = 8, .k = 24, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1},
      {.n = 3, .c = 6, .h = 9, .w = 8, .k = 10, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2},
  };
  for (const ConvGeometry& g : cases)
    for (const Mode& mode : tensor_modes) {
      const Tf32Scope scope(mode.has_tf32);
      const Inputs in(g, mode.dtype);
      const Results planar = on_device(g, in, mode.dtype);
      for (const int64_t offset : {0, 1}) {
        const Results last = on_device(g, in, mode.dtype, offset, nullptr, {Layout::channels_last, Layout::channels_last, Layout::channels_last});
        CHECK(same_bits(planar.y, last.y));
        CHECK(same_bits(planar.dx, last.dx));
        CHECK(same_bits(planar.dweight, last.dweight));
      }
    }
}

TEST_CASE("all phases of a strided data gradient go in one launch, unless there are very many of them") {
  ConvGeometry g{.n = 2, .c = 16, .h = 9, .w = 11, .k = 8, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1};
  for (const auto& [stride, launches] : {std::pair{2, 1}, std::pair{4, 1}, std::pair{5, 2}})
    for (const Mode& mode : {Mode{DType::float32}, Mode{DType::float16}, Mode{DType::float32, true}}) {
      const int64_t steps = stride;
      INFO(std::string(mode.name()), " stride ", steps);
      const Tf32Scope scope(mode.has_tf32);
      g.stride_h = g.stride_w = steps;
      const Inputs in(g, mode.dtype);
      std::vector<std::string> names;
      kernels::cuda::log_launches(&names);
      const Results got = on_device(g, in, mode.dtype);
      kernels::cuda::log_launches(nullptr);
      const std::string name = choose_conv_kernel(g, mode.dtype, ConvPass::backward_data, {mode.has_tf32}).name;
      CHECK(std::count(names.begin(), names.end(), name) == launches);
      compare(g, got, on_cpu(g, in), mode);
    }
}

TEST_CASE("tensor cores: images that are too large to be copied at once are copied in slices") {
  const ConvGeometry g{.n = 5, .c = 1, .h = 1000, .w = 1040, .k = 2, .stride_h = 60, .stride_w = 50};
  REQUIRE(choose_conv_kernel(g, DType::float16, ConvPass::forward).layout.images_per_slice == 3);
  const Inputs in(g, DType::float16);
  compare(g, on_device(g, in, DType::float16), on_cpu(g, in), {DType::float16});
}

TEST_CASE("two runs give the same bits, and so does memory that is not aligned to packs") {
  const std::vector<ConvGeometry> cases = {
      {.n = 2, .c = 20, .h = 16, .w = 16, .k = 36, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1},
      {.n = 2, .c = 3, .h = 30, .w = 31, .k = 12, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2},
      {.n = 4, .c = 4, .h = 20, .w = 20, .k = 4, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 4},
  };
  for (const ConvGeometry& g : cases)
    for (const Mode& mode : {Mode{DType::float32}, Mode{DType::float16}, Mode{DType::bfloat16}, Mode{DType::float32, true}}) {
      const Tf32Scope scope(mode.has_tf32);
      const Inputs in(g, mode.dtype);
      const Results first = on_device(g, in, mode.dtype);
      for (const int64_t offset : {0, 1}) {
        const Results again = on_device(g, in, mode.dtype, offset);
        CHECK(same_bits(first.y, again.y));
        CHECK(same_bits(first.dx, again.dx));
        CHECK(same_bits(first.dweight, again.dweight));
        CHECK(same_bits(first.dbias, again.dbias));
      }
    }
}

TEST_CASE("a NaN and an infinity reach the outputs whose windows see them, and no others") {
  const ConvGeometry g{.n = 2, .c = 3, .h = 9, .w = 9, .k = 4, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1};
  ConvGeometry grouped = g, small_groups = g;
  grouped.c = 8, grouped.groups = 2;
  small_groups.c = 16, small_groups.k = 16, small_groups.groups = 4, small_groups.stride_h = small_groups.stride_w = 1;
  ConvGeometry larger = small_groups;                       // for float32's kernel of small groups
  larger.h = larger.w = 14;
  for (const ConvGeometry& geometry : {g, grouped, small_groups, larger})
    for (const Mode& mode : all_modes) {
      INFO(std::string(mode.name()));
      const Tf32Scope scope(mode.has_tf32);
      Inputs in(geometry, mode.dtype);
      Tensor x = as_double(in.x);
      x.mutable_data<double>()[4 * 9 + 4] = std::numeric_limits<double>::quiet_NaN();
      x.mutable_data<double>()[3 * 81 + 20] = std::numeric_limits<double>::infinity();
      cpu().copy(nullptr, x.view(), in.x.mutable_view());
      compare(geometry, on_device(geometry, in, mode.dtype), on_cpu(geometry, in), mode);
    }
}

TEST_CASE("a batch of no images has no output, and gradients of zero") {
  const ConvGeometry g{.n = 0, .c = 3, .h = 9, .w = 9, .k = 4, .r = 3, .s = 3};
  for (const ConvGeometry& geometry : {g, ConvGeometry{.n = 0, .c = 3, .h = 9, .w = 9, .k = 3, .r = 3, .s = 3, .groups = 3}})
    for (const Mode& mode : all_modes) {
      const Tf32Scope scope(mode.has_tf32);
      const Results got = on_device(geometry, Inputs(geometry, mode.dtype), mode.dtype);
      CHECK(got.y.numel() == 0);
      CHECK(difference(as_double(got.dweight), zeros(shape_of_weight(geometry), DType::float64), 0, 0) == "");
      CHECK(difference(as_double(got.dbias), zeros({geometry.k}, DType::float64), 0, 0) == "");
    }
}

TEST_CASE("a forward convolution needs no bias") {
  const ConvGeometry g{.n = 1, .c = 3, .h = 6, .w = 6, .k = 4, .r = 3, .s = 3};
  const Inputs in(g, DType::float64);
  Tensor want = empty(shape_of_y(g), DType::float64);
  std::vector<double> scratch(static_cast<size_t>(cpu().conv2d_workspace(g, DType::float64)) / 8 + 64);
  cpu().conv2d_forward(nullptr, g, in.x.view(), in.weight.view(), absent(), want.mutable_view(), {scratch.data(), static_cast<int64_t>(scratch.size()) * 8});
  const DeviceTensor x(in.x), weight(in.weight), y = DeviceTensor::poisoned(shape_of_y(g), DType::float64);
  const DeviceTensor device_scratch = DeviceTensor::poisoned({testing::cuda().conv2d_workspace(g, DType::float64)}, DType::uint8);
  testing::cuda().conv2d_forward(nullptr, g, x.view(), weight.view(), absent(), y.view(), {device_scratch.view().data, device_scratch.view().numel()});
  CHECK(difference(y.to_host(), want, 0, tolerance({DType::float64}, 27)) == "");
}

TEST_CASE("the operation keeps tensors channels-last on CUDA, gradients too, with the values that contiguous ones have") {
  for (const int64_t groups : {1, 2, 8})
    for (const Mode& mode : {Mode{DType::float32}, Mode{DType::bfloat16}}) {
      INFO(std::string(mode.name()), ", ", groups, " groups");
      const ConvGeometry g{.n = 2, .c = 8, .h = 6, .w = 5, .k = 16, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = groups};
      const Inputs in(g, mode.dtype);
      const auto last = [](const Tensor& x) { return permute(contiguous(permute(x, {0, 2, 3, 1})), {0, 3, 1, 2}); };
      std::vector<Tensor> results;
      for (const bool is_last : {false, true}) {
        const Tensor on = to(in.x, Device::cuda(0)), dy = to(in.dy, Device::cuda(0));
        Tensor x = (is_last ? last(on) : on).detach(), weight = to(in.weight, Device::cuda(0));
        weight.set_requires_grad();
        x.set_requires_grad();
        const Tensor y = conv2d(x, weight, {}, {.padding = 1, .groups = groups});
        CHECK(y.dtype() == mode.dtype);
        CHECK(y.is_contiguous() == !is_last);
        const std::vector<Tensor> gradients = grad({sum(y * (is_last ? last(dy) : dy))}, {x, weight});
        for (const Tensor& result : {y, gradients[0], gradients[1]}) results.push_back(to(contiguous(result.detach()), Device::cpu()));
      }
      for (size_t i = 0; i < 3; ++i) CHECK(same_bits(results[i], results[i + 3]));
    }
}

TEST_CASE("weights of small groups that are too many for 31-bit numbers once they are packed are refused before anything is launched") {
  const int64_t groups = int64_t{1} << 26;
  const ConvGeometry g{.n = 1, .c = 4 * groups, .h = 1, .w = 1, .k = 4 * groups, .groups = groups};
  const DeviceTensor memory = DeviceTensor::poisoned({8}, DType::float16);
  const auto view_of = [&](const Shape& shape) {           // as large as it says, over memory that nobody gets to read
    View view = memory.view();
    view.shape = shape;
    view.strides = contiguous_strides(shape);
    return view;
  };
  const View x = view_of(shape_of_x(g)), y = view_of(shape_of_y(g)), weight = view_of(shape_of_weight(g));
  const std::string pieces = "2147483648 pieces of four weights are too many for the CUDA kernels, which take fewer than 2^31",
                    padded = "2147483648 padded weights are too many for the CUDA kernels, which take fewer than 2^31";
  CHECK_THROWS_WITH_AS(testing::cuda().conv2d_forward(nullptr, g, x, weight, absent(), y, {}), ("conv2d: " + pieces).c_str(), ShapeError);
  CHECK_THROWS_WITH_AS(testing::cuda().conv2d_backward_data(nullptr, g, y, weight, x, {}), ("conv2d_backward_data: " + pieces).c_str(), ShapeError);
  CHECK_THROWS_WITH_AS(testing::cuda().conv2d_backward_weight(nullptr, g, x, y, weight, View(), {}), ("conv2d_backward_weight: " + padded).c_str(), ShapeError);
}

TEST_CASE("a dtype that is not for convolutions is refused by name") {
  const ConvGeometry g{.n = 1, .c = 1, .h = 3, .w = 3, .k = 1};
  CHECK_THROWS_WITH_AS(testing::cuda().conv2d_workspace(g, DType::int32), "conv2d: takes a floating-point dtype, got int32; convert with to(x, DType::float32)", DTypeError);
}

TEST_CASE("a tensor that lies neither way is refused") {
  const ConvGeometry g{.n = 1, .c = 2, .h = 3, .w = 4, .k = 8};
  const DeviceTensor x(numbers({1, 2, 4, 3}, DType::float16, 1)), weight(numbers(shape_of_weight(g), DType::float16, 2)), y = DeviceTensor::poisoned(shape_of_y(g), DType::float16);
  const DeviceTensor scratch = DeviceTensor::poisoned({testing::cuda().conv2d_workspace(g, DType::float16)}, DType::uint8);
  const View turned = x.view({1, 2, 3, 4}, {24, 12, 1, 3});
  CHECK_THROWS_WITH_AS(testing::cuda().conv2d_forward(nullptr, g, turned, weight.view(), absent(), y.view(), {scratch.view().data, scratch.view().numel()}),
                       "conv2d: x [1,2,3,4] must be contiguous or channels-last, got strides [24,12,1,3]", ShapeError);
}

TEST_CASE("the plan: which kernel a shape gets, and into how many parts its sum is cut") {
  struct Row {
    ConvGeometry g;
    DType dtype;
    ConvPass pass;
    ConvKernel kernel;
    int64_t splits;
  };
  const ConvGeometry stem{.n = 256, .c = 3, .h = 224, .w = 224, .k = 64, .r = 7, .s = 7, .stride_h = 2, .stride_w = 2, .pad_h = 3, .pad_w = 3};
  const ConvGeometry c3{.n = 256, .c = 128, .h = 28, .w = 28, .k = 128, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};
  const ConvGeometry c5{.n = 32, .c = 512, .h = 7, .w = 7, .k = 512, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};
  const ConvGeometry one_image{.n = 1, .c = 512, .h = 7, .w = 7, .k = 512, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1};
  const ConvGeometry resnext{.n = 64, .c = 128, .h = 56, .w = 56, .k = 128, .r = 3, .s = 3, .pad_h = 1, .pad_w = 1, .groups = 32};
  const ConvGeometry mobile{.n = 128, .c = 96, .h = 112, .w = 112, .k = 96, .r = 3, .s = 3, .stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1, .groups = 96};
  const std::vector<Row> rows = {
      {stem, DType::float32, ConvPass::forward, ConvKernel::broad, 1},
      {stem, DType::float32, ConvPass::backward_data, ConvKernel::grouped, 1},
      {stem, DType::float32, ConvPass::backward_weight, ConvKernel::broad, 132},
      {c3, DType::float32, ConvPass::forward, ConvKernel::wide, 1},
      {c3, DType::float32, ConvPass::backward_data, ConvKernel::wide, 1},
      {c3, DType::float32, ConvPass::backward_weight, ConvKernel::wide, 29},
      {c3, DType::float64, ConvPass::forward, ConvKernel::medium, 1},
      {c3, DType::float64, ConvPass::backward_weight, ConvKernel::medium, 7},
      {c5, DType::float32, ConvPass::forward, ConvKernel::wide, 5},
      {c5, DType::float32, ConvPass::backward_weight, ConvKernel::wide, 3},
      {one_image, DType::float32, ConvPass::forward, ConvKernel::medium, 32},
      {one_image, DType::float32, ConvPass::backward_weight, ConvKernel::wide, 1},
      {resnext, DType::float32, ConvPass::forward, ConvKernel::direct, 1},
      {resnext, DType::float64, ConvPass::forward, ConvKernel::grouped, 1},
      {resnext, DType::float32, ConvPass::backward_weight, ConvKernel::direct, 8},
      {resnext, DType::float64, ConvPass::backward_weight, ConvKernel::grouped, 8},
      {mobile, DType::float32, ConvPass::forward, ConvKernel::depthwise, 1},
      {mobile, DType::float32, ConvPass::backward_data, ConvKernel::depthwise, 1},
      {mobile, DType::float32, ConvPass::backward_weight, ConvKernel::depthwise, 1},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    INFO("row ", i);
    const kernels::cuda::ConvPlan plan = choose_conv_kernel(rows[i].g, rows[i].dtype, rows[i].pass);
    CHECK(static_cast<int>(plan.kernel) == static_cast<int>(rows[i].kernel));
    CHECK(plan.splits == rows[i].splits);
  }
  CHECK(kernels::cuda::conv_pass_bytes(c3, DType::float32, ConvPass::backward_weight) == 29 * c3.weights() * 4);
  CHECK(kernels::cuda::conv_pass_bytes(c3, DType::float32, ConvPass::forward) == c3.weights() * 4);
  CHECK(kernels::cuda::conv_pass_bytes(one_image, DType::float32, ConvPass::forward) == 32 * one_image.outputs() * 4);
}
