// Which kernel a convolution gets, for the layers of well-known networks: a function of the shape alone, so no device is needed.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include <fovea/kernels/cuda/conv_plan.h>

using namespace fovea;
using kernels::cuda::choose_conv_kernel;
using kernels::cuda::conv_bias_splits;
using kernels::cuda::conv_pass_bytes;
using kernels::cuda::ConvKernel;
using kernels::cuda::ConvMath;
using kernels::cuda::ConvPass;
using kernels::cuda::ConvPlan;

namespace {

// A square kernel, equal strides and paddings.
ConvGeometry layer(int64_t n, int64_t c, int64_t h, int64_t w, int64_t k, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation = 1, int64_t groups = 1) {
  return {n, c, h, w, k, kernel, kernel, stride, stride, pad, pad, dilation, dilation, groups};
}

struct Row {
  const char* layer_name;
  ConvGeometry g;
  // After "conv2d_forward_" and so on: of bfloat16, and of float32 without TF32.
  std::string forward, data, weight, plain_forward, plain_weight, plain_data = "";         // the last where it is not a tile of conv_plain.cu
};

const std::vector<Row>& rows() {
  static const std::vector<Row> all = {
      // ResNet-50 (He et al. 2015)
      {"stem", layer(256, 3, 224, 224, 64, 7, 2, 3), "tensor_few_channels_medium", "tensor_slim", "tensor_few_channels_small", "broad", "broad"},
      {"c2 1x1 64-64", layer(256, 64, 56, 56, 64, 1, 1, 0), "tensor_pointwise_medium", "tensor_pointwise_medium", "tensor_pointwise_small", "broad", "medium"},
      {"c2 3x3", layer(256, 64, 56, 56, 64, 3, 1, 1), "tensor_medium", "tensor_medium", "tensor_small", "broad", "broad"},
      {"c2 1x1 64-256", layer(256, 64, 56, 56, 256, 1, 1, 0), "tensor_pointwise_wide", "tensor_pointwise_medium", "tensor_pointwise_small", "wide", "medium"},
      {"c2 1x1 256-64", layer(256, 256, 56, 56, 64, 1, 1, 0), "tensor_pointwise_medium", "tensor_pointwise_wide", "tensor_pointwise_small", "broad", "broad"},
      {"c3 3x3/2", layer(256, 128, 56, 56, 128, 3, 2, 1), "tensor_wide", "tensor_wide", "tensor_wide", "wide", "wide"},
      {"c3 3x3", layer(256, 128, 28, 28, 128, 3, 1, 1), "tensor_wide", "tensor_wide", "tensor_wide", "wide", "wide"},
      {"c3 1x1/2 256-512", layer(256, 256, 56, 56, 512, 1, 2, 0), "tensor_wide", "tensor_wide", "tensor_wide", "wide", "wide"},
      {"c4 3x3", layer(256, 256, 14, 14, 256, 3, 1, 1), "tensor_wide", "tensor_wide", "tensor_wide", "wide", "wide"},
      {"c4 1x1 256-1024", layer(256, 256, 14, 14, 1024, 1, 1, 0), "tensor_pointwise_wide", "tensor_pointwise_wide", "tensor_pointwise_wide", "wide", "wide"},
      {"c5 3x3", layer(256, 512, 7, 7, 512, 3, 1, 1), "tensor_wide", "tensor_wide", "tensor_wide", "wide", "wide"},
      {"c4 3x3, 32 images", layer(32, 256, 14, 14, 256, 3, 1, 1), "tensor_small", "tensor_small", "tensor_wide", "medium", "wide"},
      {"c5 3x3, 32 images", layer(32, 512, 7, 7, 512, 3, 1, 1), "tensor_small", "tensor_small", "tensor_wide", "wide", "wide"},
      {"c5 3x3, one image", layer(1, 512, 7, 7, 512, 3, 1, 1), "tensor_small", "tensor_small", "tensor_wide", "medium", "wide"},
      // CRNN (Shi et al. 2015) on images of 32 x 100
      {"crnn 1-64", layer(256, 1, 32, 100, 64, 3, 1, 1), "tensor_few_channels_medium", "tensor_slim", "tensor_few_channels_small", "broad", "medium"},
      {"crnn 64-128", layer(256, 64, 16, 50, 128, 3, 1, 1), "tensor_wide", "tensor_medium", "tensor_wide", "wide", "wide"},
      {"crnn 256-512", layer(256, 256, 4, 26, 512, 3, 1, 1), "tensor_wide", "tensor_wide", "tensor_wide", "wide", "wide"},
      {"crnn 2x2", layer(256, 512, 2, 27, 512, 2, 1, 0), "tensor_wide", "tensor_wide", "tensor_wide", "wide", "wide"},
      // MobileNetV2 (Sandler et al. 2018)
      {"mobilenet depthwise", layer(128, 96, 112, 112, 96, 3, 2, 1, 1, 96), "depthwise", "depthwise", "depthwise", "depthwise", "depthwise"},
      {"mobilenet 1x1 96-24", layer(128, 96, 56, 56, 24, 1, 1, 0), "tensor_pointwise_narrow", "tensor_pointwise_wide", "tensor_pointwise_small", "narrow", "broad"},
      // ResNeXt-50 32x4d (Xie et al. 2017)
      {"resnext 128", layer(64, 128, 56, 56, 128, 3, 1, 1, 1, 32), "tensor_grouped", "tensor_grouped", "tensor_grouped", "direct", "direct", "direct"},
      {"resnext 256/2", layer(64, 256, 56, 56, 256, 3, 2, 1, 1, 32), "tensor_grouped", "tensor_grouped", "tensor_grouped", "grouped", "direct", "direct"},
      {"resnext 256", layer(64, 256, 28, 28, 256, 3, 1, 1, 1, 32), "tensor_grouped", "tensor_grouped", "tensor_grouped", "direct", "direct"},
      {"resnext 512", layer(64, 512, 14, 14, 512, 3, 1, 1, 1, 32), "tensor_grouped", "tensor_grouped", "tensor_grouped", "direct", "direct"},
      {"resnext 1024/2", layer(64, 1024, 14, 14, 1024, 3, 2, 1, 1, 32), "tensor_grouped", "tensor_grouped", "tensor_grouped", "narrow", "broad"},
      {"groups of 64", layer(64, 512, 14, 14, 512, 3, 1, 1, 1, 8), "tensor_medium", "tensor_medium", "tensor_small", "broad", "broad"},
      // DeepLabV3 (Chen et al. 2017)
      {"dilation 2", layer(32, 512, 28, 28, 512, 3, 1, 2, 2), "tensor_wide", "tensor_wide", "tensor_wide", "wide", "wide"},
      {"dilation 12", layer(8, 2048, 32, 32, 256, 3, 1, 12, 12), "tensor_medium", "tensor_wide", "tensor_wide", "wide", "wide"},
  };
  return all;
}

std::string name(const ConvGeometry& g, DType dtype, ConvPass pass, ConvMath math = {}) { return choose_conv_kernel(g, dtype, pass, math).name; }

}  // namespace

TEST_CASE("the layers of well-known networks get the kernels that were meant for them") {
  for (const Row& row : rows()) {
    INFO(std::string(row.layer_name));
    for (const DType half : {DType::bfloat16, DType::float16}) {
      CHECK(name(row.g, half, ConvPass::forward) == "conv2d_forward_" + row.forward);
      CHECK(name(row.g, half, ConvPass::backward_data) == "conv2d_backward_data_" + row.data);
      CHECK(name(row.g, half, ConvPass::backward_weight) == "conv2d_backward_weight_" + row.weight);
    }
    CHECK(name(row.g, DType::float32, ConvPass::forward) == "conv2d_forward_" + row.plain_forward);
    CHECK(name(row.g, DType::float32, ConvPass::backward_weight) == "conv2d_backward_weight_" + row.plain_weight);
    if (row.plain_data != "") CHECK(name(row.g, DType::float32, ConvPass::backward_data) == "conv2d_backward_data_" + row.plain_data);
  }
}

TEST_CASE("TF32 takes tensor cores for float32 alone, and for all but depthwise convolutions and groups of up to eight channels that are computed out of patches") {
  for (const Row& row : rows())
    for (const ConvPass pass : {ConvPass::forward, ConvPass::backward_data, ConvPass::backward_weight}) {
      INFO(std::string(row.layer_name));
      const bool is_small = row.g.group_c() <= 8 && row.g.group_k() <= 8 && choose_conv_kernel(row.g, DType::float32, pass).kernel == ConvKernel::direct;
      CHECK(choose_conv_kernel(row.g, DType::float32, pass, {true}).uses_tensor_cores() == !(row.g.is_depthwise() || is_small));
      if (row.layer_name == std::string("resnext 128")) CHECK(is_small);
      CHECK_FALSE(choose_conv_kernel(row.g, DType::float32, pass).uses_tensor_cores());
      CHECK_FALSE(choose_conv_kernel(row.g, DType::float64, pass, {true}).uses_tensor_cores());
    }
}

TEST_CASE("copies and partial sums stay within their bounds, and have room for what is put there") {
  for (const Row& row : rows())
    for (const DType dtype : {DType::bfloat16, DType::float32}) {
      INFO(std::string(row.layer_name));
      const ConvGeometry& g = row.g;
      const int64_t size = size_of(dtype);
      for (const ConvPass pass : {ConvPass::forward, ConvPass::backward_data, ConvPass::backward_weight}) {
        const ConvPlan plan = choose_conv_kernel(g, dtype, pass, {true});
        if (!plan.uses_tensor_cores()) continue;
        const kernels::cuda::ConvLayout& layout = plan.layout;
        CHECK(layout.images_per_slice >= 1);
        CHECK(layout.x_bytes + layout.y_bytes <= (int64_t{32} << 20) + 512);       // no image of these is larger
        CHECK(layout.parts_bytes <= (int64_t{256} << 20) + 256);
        CHECK(layout.x_channels >= g.group_c());
        CHECK(layout.y_channels >= g.group_k());
        CHECK(layout.x_channels * size % 8 == 0);
        CHECK(layout.weight_row * size % 16 == 0);
        if (pass != ConvPass::backward_data) CHECK(layout.x_bytes >= layout.images_per_slice * g.h * g.w * g.groups * layout.x_channels * size);
        if (pass != ConvPass::forward) CHECK(layout.y_bytes >= layout.images_per_slice * g.out_h() * g.out_w() * g.groups * layout.y_channels * size);
        if (pass == ConvPass::backward_weight) CHECK(layout.parts_bytes >= plan.splits * g.k * layout.weight_row * 4);
        if (pass == ConvPass::forward) CHECK(layout.weight_bytes >= g.k * layout.weight_row * size);
        CHECK(conv_pass_bytes(g, dtype, pass, {true}) >= layout.bytes());
      }
      const int64_t splits = conv_bias_splits(g, true);
      CHECK(conv_pass_bytes(g, dtype, ConvPass::backward_weight) >= splits * g.k * 8);
    }
}

TEST_CASE("a sum over pixels is cut into parts that give every multiprocessor about as much") {
  for (const Row& row : rows()) {
    INFO(std::string(row.layer_name));
    const ConvPlan plan = choose_conv_kernel(row.g, DType::bfloat16, ConvPass::backward_weight);
    if (!plan.uses_tensor_cores() || row.g.n < 32) continue;
    const auto tiles = [](int64_t size, int64_t tile) { return (size + tile - 1) / tile; };
    const bool is_grouped = plan.kernel == ConvKernel::tensor_grouped;           // a block has all taps of 32 channels
    const int64_t tile_count = is_grouped ? tiles(row.g.c, 32) : row.g.groups * tiles(row.g.group_k(), plan.tile_rows) * tiles(plan.layout.weight_row, plan.tile_columns);
    const int64_t blocks = tile_count * plan.splits;
    if (is_grouped) CHECK(plan.splits <= row.g.n * tiles(row.g.out_h(), plan.tile_h) * tiles(row.g.out_w(), plan.tile_w));
    CHECK(blocks >= 240);                                 // two for nearly every one of 132
    CHECK(static_cast<double>(blocks) / static_cast<double>(132 * tiles(blocks, 132)) > 0.75);
  }
}
