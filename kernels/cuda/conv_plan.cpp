#include <fovea/kernels/cuda/conv_plan.h>

namespace fovea::kernels::cuda {
namespace {

// Blocks that fill a large GPU once. A constant, not the GPU at hand: results must not depend on it.
constexpr int64_t full_gpu = 132;
constexpr int64_t most_splits = 512;
constexpr int64_t most_partial_bytes = int64_t{256} << 20;
constexpr int64_t least_pixels_per_split = 256;      // shorter sums are not worth a second kernel

int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

struct TileSize {
  int64_t rows, columns;
};

// The sizes of conv.cu's tiles in float32; those of float64 are at most as large.
TileSize tile_of(ConvKernel kernel, ConvPass pass) {
  if (pass == ConvPass::backward_weight) {
    switch (kernel) {
      case ConvKernel::wide: return {128, 128};
      case ConvKernel::medium: return {64, 64};
      default: return {16, 64};
    }
  }
  switch (kernel) {
    case ConvKernel::wide: return {128, 128};
    case ConvKernel::medium: return {64, 128};
    case ConvKernel::narrow: return {32, 128};
    default: return {8, 128};
  }
}

struct ProductShape {
  int64_t rows, columns, blocks_beside;              // of one product, and how many there are: groups, and phases of backward_data
};

ProductShape product_of(const ConvGeometry& g, ConvPass pass) {
  switch (pass) {
    case ConvPass::forward: return {g.group_k(), g.n * g.out_h() * g.out_w(), g.groups};
    case ConvPass::backward_data: return {g.group_c(), tiles(g.n * g.h * g.w, g.stride_h * g.stride_w), g.groups * g.stride_h * g.stride_w};
    default: return {g.group_k(), g.group_c() * g.r * g.s, g.groups};
  }
}

int64_t count_tiles(const ProductShape& p, const TileSize& tile) { return tiles(p.rows, tile.rows) * tiles(p.columns, tile.columns) * p.blocks_beside; }

// The largest tile that the rows fill at least half of, as long as there are enough tiles for a whole GPU.
ConvKernel choose_tile(const ProductShape& p, DType dtype, ConvPass pass) {
  const bool is_double = dtype == DType::float64;
  if (p.rows <= 8) return ConvKernel::grouped;
  if (pass == ConvPass::backward_weight) {
    if (p.rows <= 16) return ConvKernel::grouped;
    return is_double || p.rows <= 64 || p.columns <= 64 ? ConvKernel::medium : ConvKernel::wide;
  }
  if (is_double) return p.rows <= 16 ? ConvKernel::grouped : ConvKernel::medium;
  if (p.rows <= 32) return ConvKernel::narrow;
  for (const ConvKernel kernel : {ConvKernel::wide, ConvKernel::medium}) {
    const TileSize tile = tile_of(kernel, pass);
    if (p.rows > tile.rows / 2 && count_tiles(p, tile) >= full_gpu) return kernel;
  }
  return ConvKernel::narrow;
}

int64_t splits_for(const ConvGeometry& g, DType dtype, int64_t blocks, int64_t pixels) {
  const int64_t bytes = g.weights() * size_of(dtype);
  int64_t splits = tiles(2 * full_gpu, std::max<int64_t>(blocks, 1));
  splits = std::min({splits, most_splits, pixels / least_pixels_per_split, most_partial_bytes / std::max<int64_t>(bytes, 1)});
  return std::max<int64_t>(splits, 1);
}

}  // namespace

ConvPlan choose_conv_kernel(const ConvGeometry& g, DType dtype, ConvPass pass) {
  const int64_t pixels = g.n * g.out_h() * g.out_w();
  ConvPlan plan;
  if (g.is_depthwise()) {
    plan.kernel = ConvKernel::depthwise;
    if (pass == ConvPass::backward_weight) plan.splits = std::clamp<int64_t>(splits_for(g, dtype, g.k * g.r, pixels), 1, std::max<int64_t>(g.n, 1));
    return plan;
  }
  const ProductShape product = product_of(g, pass);
  plan.kernel = choose_tile(product, dtype, pass);
  if (pass == ConvPass::backward_weight) plan.splits = splits_for(g, dtype, count_tiles(product, tile_of(plan.kernel, pass)), pixels);
  return plan;
}

int64_t conv_partial_bytes(const ConvGeometry& g, DType dtype) {
  const int64_t splits = choose_conv_kernel(g, dtype, ConvPass::backward_weight).splits;
  return splits > 1 ? splits * g.weights() * size_of(dtype) : 0;
}

}  // namespace fovea::kernels::cuda
