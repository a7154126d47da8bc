#include <fovea/kernels/cuda/conv_plan.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

namespace fovea::kernels::cuda {
namespace {

// Blocks that fill a large GPU once. A constant, not the GPU at hand: results must not depend on it.
constexpr int64_t full_gpu = 132;
constexpr int64_t most_splits = 512;
constexpr int64_t most_partial_bytes = int64_t{256} << 20;
constexpr int64_t least_pixels_per_split = 256;      // shorter sums are not worth a second kernel
constexpr int64_t slice_bytes = int64_t{32} << 20;   // of copies, so that what is read from and written to still has room in a cache of 50 MB

int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }
int64_t round_up(int64_t size, int64_t unit) { return tiles(size, unit) * unit; }

struct TileSize {
  int64_t rows, columns;
};

// The sizes of conv_plain.cu's tiles in float32 (but for `medium`, float64 has the same), and of conv_tensor.cu's.
TileSize tile_of(ConvKernel kernel, ConvPass pass) {
  if (pass == ConvPass::backward_weight) {
    switch (kernel) {
      case ConvKernel::wide:
      case ConvKernel::tensor_wide: return {128, 128};
      case ConvKernel::broad: return {64, 128};
      case ConvKernel::medium:
      case ConvKernel::tensor_small: return {64, 64};
      case ConvKernel::tensor_slim: return {16, 128};
      case ConvKernel::tensor_grouped: return {32, 32};
      default: return {16, 64};
    }
  }
  switch (kernel) {
    case ConvKernel::wide:
    case ConvKernel::tensor_wide: return {128, 128};
    case ConvKernel::broad: return {64, 256};
    case ConvKernel::medium: return {64, 128};
    case ConvKernel::narrow: return {32, 128};
    case ConvKernel::direct: return {16, 256};
    case ConvKernel::tensor_medium: return {128, 64};
    case ConvKernel::tensor_small: return {64, 64};
    case ConvKernel::tensor_narrow: return {128, 32};
    case ConvKernel::tensor_slim: return {128, 16};
    case ConvKernel::tensor_grouped: return {128, 32};
    default: return {8, 256};
  }
}
TileSize tile_of(ConvKernel kernel, ConvPass pass, DType dtype) {
  const bool is_smaller = kernel == ConvKernel::medium && pass != ConvPass::backward_weight && dtype == DType::float64;
  return is_smaller ? TileSize{64, 64} : tile_of(kernel, pass);
}

// --- names ---

constexpr const char* pass_names[] = {"conv2d_forward", "conv2d_backward_data", "conv2d_backward_weight"};
constexpr const char* kernel_names[] = {"depthwise", "wide", "broad", "medium", "narrow", "grouped", "direct", "wide", "medium", "small", "narrow", "slim", "grouped"};
constexpr const char* source_names[] = {"tensor", "tensor_pointwise", "tensor_few_channels"};
constexpr size_t kernel_count = std::size(kernel_names), source_count = std::size(source_names);

std::vector<std::string> all_names() {
  std::vector<std::string> names;
  for (const char* pass : pass_names)
    for (size_t kernel = 0; kernel < kernel_count; ++kernel)
      for (const char* source : source_names) {
        const bool is_tensor = kernel >= static_cast<size_t>(ConvKernel::tensor_wide);
        names.push_back(std::string(pass) + "_" + (is_tensor ? std::string(source) + "_" : "") + kernel_names[kernel]);
      }
  return names;
}

// Lives as long as the program: last_kernel() keeps the pointer.
const char* name_of(ConvPass pass, ConvKernel kernel, ConvSource source) {
  static const std::vector<std::string> names = all_names();
  return names[(static_cast<size_t>(pass) * kernel_count + static_cast<size_t>(kernel)) * source_count + static_cast<size_t>(source)].c_str();
}

// --- tiles ---

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

// What a tile's instructions reach of the largest tile's rate, as long as an SM has two tiles or more to work on: smaller tiles read more for each product. Estimates from
// the accesses to shared memory that each product takes, to be replaced by measurements.
double rate_of(ConvKernel kernel) {
  switch (kernel) {
    case ConvKernel::wide:
    case ConvKernel::broad:
    case ConvKernel::tensor_wide: return 1;
    case ConvKernel::medium:
    case ConvKernel::tensor_medium: return 0.85;
    case ConvKernel::narrow: return 0.6;
    case ConvKernel::grouped: return 0.35;
    case ConvKernel::tensor_small: return 0.7;
    case ConvKernel::tensor_narrow: return 0.5;
    default: return 0.3;
  }
}
constexpr double rate_of_one_tile = 0.6;              // of an SM that has nothing to do while its only tile waits
// Of a second kernel, and of 4 bytes written or read by all SMs together, in multiplications of an SM.
constexpr double launch_time = 6e5, time_of_element = 0.21;

// The tile with which the SM that gets the most tiles is done first.
ConvKernel choose_tensor_tile(const ProductShape& p, ConvPass pass) {
  if (pass == ConvPass::backward_weight) {
    if (p.rows <= 16) return ConvKernel::tensor_slim;
    return p.rows <= 64 || p.columns <= 64 ? ConvKernel::tensor_small : ConvKernel::tensor_wide;
  }
  const ProductShape by_pixels{p.columns, p.rows, p.blocks_beside};
  ConvKernel best = ConvKernel::tensor_slim;
  double best_time = std::numeric_limits<double>::infinity();
  for (const ConvKernel kernel : {ConvKernel::tensor_wide, ConvKernel::tensor_medium, ConvKernel::tensor_small, ConvKernel::tensor_narrow, ConvKernel::tensor_slim}) {
    const TileSize tile = tile_of(kernel, pass);
    const int64_t most = tiles(count_tiles(by_pixels, tile), full_gpu);
    const double time = static_cast<double>(most * tile.rows * tile.columns) / (rate_of(kernel) * (most > 1 ? 1 : rate_of_one_tile));
    if (time < best_time) best = kernel, best_time = time;
  }
  return best;
}

// A choice of conv_plain.cu.
struct TileAndSplits {
  ConvKernel kernel = ConvKernel::medium;
  int64_t splits = 1;
};

// The tile, and for small results the number of parts of the sum, with which the SM that gets the most tiles is done first. Time is counted in multiplications of one SM, of
// which it does 128 in a cycle: in units of 4.5 ps.
TileAndSplits choose_tile(const ProductShape& p, int64_t depth, DType dtype, ConvPass pass) {
  constexpr int64_t least_depth = 128, most_parts = 32;
  const int64_t results = p.rows * p.columns * p.blocks_beside, most_elements = most_partial_bytes / 4 / std::max<int64_t>(size_of(dtype), 1);
  const std::vector<ConvKernel> kernels = dtype == DType::float64
                                              ? std::vector{ConvKernel::medium, ConvKernel::grouped}
                                              : std::vector{ConvKernel::wide, ConvKernel::broad, ConvKernel::medium, ConvKernel::narrow, ConvKernel::grouped};
  TileAndSplits best;
  double best_time = std::numeric_limits<double>::infinity();
  for (const ConvKernel kernel : kernels) {
    const TileSize tile = tile_of(kernel, pass, dtype);
    const int64_t tile_count = count_tiles(p, tile);
    for (int64_t splits = 1; splits <= most_parts; ++splits) {
      if (splits > 1 && (depth / splits < least_depth || tile_count * (splits - 1) > 2 * full_gpu || results * splits > most_elements)) break;
      const int64_t most = tiles(tile_count * splits, full_gpu);
      double time = static_cast<double>(most * tile.rows * tile.columns * tiles(depth, splits)) / (rate_of(kernel) * (most > 1 ? 1 : rate_of_one_tile));
      if (splits > 1) time += launch_time + time_of_element * static_cast<double>((2 * splits + 1) * results);
      if (time < best_time) best = {kernel, splits}, best_time = time;
    }
  }
  return best;
}

// Does the product read the weights as they lie? Then it copies them one by one instead of four at once, and the pixels of pointwise
// windows as well; but no kernel has to pack them first.
bool reads_weights_as_they_lie(const ConvGeometry& g, const ProductShape& p, int64_t depth, DType dtype, ConvPass pass,
                               const TileAndSplits& choice) {
  constexpr double time_of_copy = 24;  // an estimate: a warp's 32 copies take about 6 cycles, in which an SM multiplies 768 times
  const TileSize tile = tile_of(choice.kernel, pass, dtype);
  const int64_t most = tiles(count_tiles(p, tile) * choice.splits, full_gpu),
                copies = most * tiles(depth, choice.splits) * (tile.rows + (is_pointwise(g) ? tile.columns : 0));
  return time_of_copy * static_cast<double>(copies) < launch_time + time_of_element * 2 * static_cast<double>(g.weights());
}

ConvKernel choose_weight_tile(const ProductShape& p, DType dtype) {
  if (p.rows <= 16) return ConvKernel::grouped;
  if (dtype == DType::float64 || p.columns <= 64) return ConvKernel::medium;
  return p.rows <= 64 ? ConvKernel::broad : ConvKernel::wide;
}

// So many parts that every SM has about two tiles, and that no SM has many more than others: the fewest that come close to the best of those numbers.
int64_t weight_splits(int64_t bytes, int64_t tile_count, int64_t pixels) {
  const int64_t most = std::max<int64_t>(1, std::min({most_splits, pixels / least_pixels_per_split, most_partial_bytes / std::max<int64_t>(bytes, 1)}));
  const int64_t first = std::clamp<int64_t>(2 * full_gpu / std::max<int64_t>(tile_count, 1), 1, most), last = std::min(most, 2 * tiles(2 * full_gpu, std::max<int64_t>(tile_count, 1)));
  const auto time = [&](int64_t splits) { return static_cast<double>(tiles(tile_count * splits, full_gpu)) / static_cast<double>(splits); };
  double best = time(first);
  for (int64_t splits = first; splits <= last; ++splits) best = std::min(best, time(splits));
  int64_t splits = first;
  while (time(splits) > 1.1 * best) ++splits;
  return splits;
}

int64_t splits_for(int64_t bytes, int64_t blocks, int64_t pixels) {
  int64_t splits = tiles(2 * full_gpu, std::max<int64_t>(blocks, 1));
  splits = std::min({splits, most_splits, pixels / least_pixels_per_split, most_partial_bytes / std::max<int64_t>(bytes, 1)});
  return std::max<int64_t>(splits, 1);
}

// --- the tensor cores' layout ---

bool is_few(int64_t channels, int64_t size) { return size == 2 && channels <= 4; }

int64_t padded_channels(int64_t channels, int64_t size, bool is_source) { return is_source && is_few(channels, size) ? 4 : round_up(std::max<int64_t>(channels, 1), 16 / size); }

int64_t piece(int64_t bytes) { return round_up(bytes, 256); }

ConvLayout layout_of(const ConvGeometry& g, int64_t size, ConvPass pass) {
  ConvLayout layout;
  layout.x_channels = padded_channels(g.group_c(), size, pass != ConvPass::backward_data);
  layout.y_channels = padded_channels(g.group_k(), size, pass == ConvPass::backward_data);
  const int64_t x_image = pass == ConvPass::backward_data ? 0 : g.h * g.w * g.groups * layout.x_channels * size;
  const int64_t y_image = pass == ConvPass::forward ? 0 : g.out_h() * g.out_w() * g.groups * layout.y_channels * size;
  const int64_t images = std::max<int64_t>(g.n, 1), most = std::clamp<int64_t>(slice_bytes / std::max<int64_t>(x_image + y_image, 1), 1, images);
  layout.images_per_slice = tiles(images, tiles(images, most));              // slices of about one size
  layout.x_bytes = piece(layout.images_per_slice * x_image);
  layout.y_bytes = piece(layout.images_per_slice * y_image);
  const int64_t source_channels = pass == ConvPass::backward_data ? layout.y_channels : layout.x_channels;
  layout.weight_row = round_up(g.r * g.s * source_channels, 16 / size);
  const int64_t rows = pass == ConvPass::backward_data ? g.c : g.k;
  if (pass != ConvPass::backward_weight) layout.weight_bytes = piece(rows * layout.weight_row * size);
  return layout;
}

ConvSource source_of(const ConvGeometry& g, int64_t size, ConvPass pass) {
  if (is_few(pass == ConvPass::backward_data ? g.group_k() : g.group_c(), size)) return ConvSource::few_channels;
  return is_pointwise(g) ? ConvSource::pointwise : ConvSource::windows;
}

// Of an axis: so many of the kernel's taps reach the pixels of a phase of dx.
int64_t taps_of_phase(int64_t phase, int64_t stride, int64_t pad, int64_t dilation, int64_t taps) {
  int64_t count = 0;
  for (int64_t tap = 0; tap < taps; ++tap) count += (phase + pad - tap * dilation) % stride == 0;
  return count;
}

// Steps of conv_grouped.cu's sum, of 16 products each. In the data gradient each phase has its own.
int64_t grouped_steps(const ConvGeometry& g, ConvPass pass) {
  if (pass == ConvPass::forward) return tiles(g.r * g.s * g.group_c(), 16);
  int64_t steps = 0;
  for (int64_t i = 0; i < g.stride_h; ++i)
    for (int64_t j = 0; j < g.stride_w; ++j)
      steps += tiles(
          taps_of_phase(i, g.stride_h, g.pad_h, g.dilation_h, g.r) * taps_of_phase(j, g.stride_w, g.pad_w, g.dilation_w, g.s) * g.group_k(),
          16);
  return steps;
}

bool is_small_group(int64_t channels) { return channels == 4 || channels == 8 || channels == 16 || channels == 32; }

// Is a convolution one of small groups, for conv_grouped.cu? A block's patch of the image, its weights and its results must leave room for others beside it, also
// on GPUs that give a block no more than 99 KiB.
bool is_in_small_groups(const ConvGeometry& g, DType dtype, ConvPass pass) {
  constexpr int64_t most_bytes = 84 << 10, pixel_bytes = 80, most_phases = 4;
  if (size_of(dtype) != 2 || pass == ConvPass::backward_weight || g.groups == 1) return false;
  const bool is_forward = pass == ConvPass::forward;
  if (!is_forward && g.stride_h * g.stride_w > most_phases) return false;
  if (!is_small_group(g.group_c()) || !is_small_group(g.group_k()) || (is_forward ? g.c : g.k) % 8 != 0) return false;
  // The pixels of an axis of the source that a tile sees.
  const auto side = [&](int64_t tile, int64_t taps, int64_t dilation, int64_t stride) {
    const int64_t reach = (taps - 1) * dilation;
    return is_forward ? (tile - 1) * stride + reach + 1 : tile + tiles(reach, stride);
  };
  const auto patch = [&](int64_t height, int64_t width) {
    return side(height, g.r, g.dilation_h, g.stride_h) * side(width, g.s, g.dilation_w, g.stride_w) * pixel_bytes;
  };
  const int64_t from = is_forward ? g.group_c() : g.group_k(), to = is_forward ? g.group_k() : g.group_c();
  const int64_t together = std::min(g.groups, 32 / from), weights = together * grouped_steps(g, pass) * tiles(to, 8) * 256;
  const int64_t results = 8 * 16 * (together * to + 8) * 2;
  return std::max(patch(8, 16), patch(16, 8)) + weights + results <= most_bytes;
}

// Pixels of an axis of x that a tile of y sees.
int64_t seen(int64_t tile, int64_t taps, int64_t dilation, int64_t stride) { return (tile - 1) * stride + (taps - 1) * dilation + 1; }

struct PixelTile {
  int64_t height = 0, width = 0;
};

// The tile of conv_grouped_weight.cu with which a block copies and multiplies the least in all; none where every patch is too large for two
// stages of three or four blocks to lie beside each other.
PixelTile grouped_weight_tile(const ConvGeometry& g) {
  constexpr int64_t most_pixels = 128, pixel_bytes = 80;
  const int64_t most_bytes = (g.group_c() == 32 ? 36 : 27) << 10;
  constexpr int64_t start = 48;  // pixels that could be copied in the time that a tile takes besides
  PixelTile best;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t width = 1; width <= std::min(g.out_w(), most_pixels); ++width)
    for (int64_t height = 1; height <= std::min(g.out_h(), most_pixels / width); ++height) {
      const int64_t patch = seen(height, g.r, g.dilation_h, g.stride_h) * seen(width, g.s, g.dilation_w, g.stride_w),
                    pixels = round_up(height * width, 16);
      if ((patch + pixels) * pixel_bytes > most_bytes) continue;
      const int64_t cost = tiles(g.out_h(), height) * tiles(g.out_w(), width) * (patch + pixels + start);
      if (cost < least) least = cost, best = {height, width};
    }
  return best;
}

// Into how many parts the weight gradient of small groups is cut. `blocks` make one part of all weights, and go through `tile_count` tiles
// of so much time each.
struct PartedTiles {
  int64_t blocks, tile_count, part_bytes;
  double time_of_tile, time_of_part;
  int64_t most_blocks;  // of an SM: what the kernel's registers and shared memory leave room for
};

// So many parts that the SM that has the most to do is done first.
int64_t splits_of(const PartedTiles& p) {
  constexpr double rate_of_blocks[] = {0.5, 0.8, 1};  // of an SM's most, while it has one, two or more blocks
  const int64_t most = std::min({most_splits, p.tile_count, p.most_blocks * full_gpu / p.blocks, most_partial_bytes / p.part_bytes});
  int64_t best = 1;
  double best_time = std::numeric_limits<double>::infinity();
  for (int64_t splits = 1; splits <= std::max<int64_t>(most, 1); ++splits) {
    const int64_t of_sm = tiles(p.blocks * splits, full_gpu);
    const double rate = rate_of_blocks[std::min<int64_t>(of_sm, 3) - 1];
    const double time =
        static_cast<double>(of_sm * tiles(p.tile_count, splits)) * p.time_of_tile / rate + static_cast<double>(splits) * p.time_of_part;
    if (time < best_time) best = splits, best_time = time;
  }
  return best;
}

int64_t count_tiles(const ConvGeometry& g, const PixelTile& tile) {
  return g.n * tiles(g.out_h(), tile.height) * tiles(g.out_w(), tile.width);
}

// Time is what an SM copies meanwhile, in bytes; a part is written and read by all SMs.
int64_t grouped_weight_splits(const ConvGeometry& g, const PixelTile& tile, int64_t part_bytes) {
  const int64_t pixels =
      seen(tile.height, g.r, g.dilation_h, g.stride_h) * seen(tile.width, g.s, g.dilation_w, g.stride_w) + tile.height * tile.width;
  return splits_of({tiles(g.c, 32) * tiles(g.r * g.s, 10), count_tiles(g, tile), part_bytes, static_cast<double>(pixels * 64),
                    static_cast<double>(2 * part_bytes) / full_gpu, g.group_c() == 32 ? 3 : 4});
}

// The gradient of the weight in small groups, for conv_grouped_weight.cu. False where it is not for that.
bool plan_grouped_weight(const ConvGeometry& g, DType dtype, ConvPlan& plan) {
  if (size_of(dtype) != 2 || g.groups == 1 || g.group_c() != g.group_k() || !is_small_group(g.group_c()) || g.c % 8 != 0) return false;
  const PixelTile tile = grouped_weight_tile(g);
  if (tile.height == 0) return false;
  const int64_t part_bytes = g.k * plan.layout.weight_row * int64_t{sizeof(float)};
  plan.kernel = ConvKernel::tensor_grouped;
  plan.tile_h = tile.height;
  plan.tile_w = tile.width;
  plan.splits = grouped_weight_splits(g, tile, part_bytes);
  plan.layout.parts_bytes = piece(plan.splits * part_bytes);
  return true;
}

ConvPlan tensor_plan(const ConvGeometry& g, DType dtype, ConvPass pass) {
  ConvPlan plan;
  plan.layout = layout_of(g, size_of(dtype), pass);
  if (is_in_small_groups(g, dtype, pass)) {
    const int64_t columns = pass == ConvPass::forward ? g.group_k() : g.group_c();
    plan.kernel = ConvKernel::tensor_grouped;
    plan.layout.weight_bytes = piece(g.groups * grouped_steps(g, pass) * tiles(columns, 8) * 32 * 8);  // a step and tile: 8 bytes a lane
    return plan;
  }
  if (pass == ConvPass::backward_weight && plan_grouped_weight(g, dtype, plan)) return plan;
  plan.source = source_of(g, size_of(dtype), pass);
  ProductShape product = product_of(g, pass);
  if (pass == ConvPass::backward_weight) product.columns = plan.layout.weight_row;
  plan.kernel = choose_tensor_tile(product, pass);
  if (pass != ConvPass::backward_weight) return plan;
  const int64_t bytes = product.rows * product.columns * product.blocks_beside * int64_t{sizeof(float)};
  const int64_t pixels = plan.layout.images_per_slice * g.out_h() * g.out_w();
  plan.splits = weight_splits(bytes, count_tiles(product, tile_of(plan.kernel, pass)), pixels);
  plan.layout.parts_bytes = piece(plan.splits * bytes);
  return plan;
}

// Is a convolution one of small groups, for conv_direct.cu? A block's patch of the image and its weights must leave room for others beside them. Images smaller than
// a tile would leave most of it empty.
bool is_direct(const ConvGeometry& g, DType dtype, ConvPass pass) {
  constexpr int64_t tile = 16, most_channels = 16, most_bytes = 48 << 10;
  if (dtype != DType::float32 || pass == ConvPass::backward_weight || g.groups == 1) return false;
  const bool is_forward = pass == ConvPass::forward;
  if (!is_forward && (g.stride_h > 2 || g.stride_w > 2)) return false;
  const int64_t c = is_forward ? g.group_c() : g.group_k(), k = is_forward ? g.group_k() : g.group_c();
  const int64_t height = is_forward ? g.out_h() : tiles(g.h, g.stride_h),
                width = is_forward ? g.out_w() : tiles(g.w, g.stride_w);  // of one phase
  if (c < 1 || k < 1 || c > most_channels || k > most_channels || height * width < tile * tile / 2) return false;
  const int64_t step_h = is_forward ? g.stride_h : 1, step_w = is_forward ? g.stride_w : 1;
  const int64_t patch =
      ((tile - 1) * step_h + (g.r - 1) * g.dilation_h + 1) * round_up((tile - 1) * step_w + (g.s - 1) * g.dilation_w + 15, 8);
  return c * (patch + g.r * g.s * most_channels) * int64_t{sizeof(float)} <= most_bytes;
}

// The tile of conv_direct_weight.cu that takes a GPU the least time, in instructions of its warps; none where the kernel, or the groups,
// are not for it, or where tiles would be empty for the most part.
struct DirectWeight {
  PixelTile tile;
  int64_t blocks = 0;  // of a part
  double time_of_tile = 0;
};

DirectWeight direct_weight(const ConvGeometry& g, DType dtype) {
  constexpr int64_t most_channels = 8, most_warps = 8, most_bytes = 54 << 10, warp = 32, strip = 4, strip_rows = 2;
  DirectWeight best;
  const bool is_kernel = g.r == 3 && g.s == 3 && g.dilation_h == 1 && g.dilation_w == 1 && g.stride_h == g.stride_w && g.stride_h <= 2;
  if (dtype != DType::float32 || g.groups == 1 || g.is_depthwise() || !is_kernel || g.group_c() > 2 * most_channels ||
      g.group_k() > 2 * most_channels)
    return best;
  if (g.group_c() < 1 || g.group_k() < 1) return best;
  const int64_t blocks_c = tiles(g.group_c(), most_channels), blocks_k = tiles(g.group_k(), most_channels);
  const int64_t c = tiles(g.group_c(), blocks_c), k = tiles(g.group_k(), blocks_k), warps_c = tiles(c, 2), warps_k = tiles(k, 4);
  best.blocks = g.groups * blocks_c * blocks_k;
  const auto pixels = [&](int64_t tile, int64_t stride) { return seen(tile, 3, 1, stride); };
  double least = std::numeric_limits<double>::infinity();
  for (int64_t across = 1; across <= tiles(g.out_w(), strip); ++across)
    for (int64_t down = 1; down <= tiles(g.out_h(), strip_rows); ++down) {
      const int64_t height = down * strip_rows, width = across * strip, beside = tiles(across * down, warp),
                    warps = warps_c * warps_k * beside;
      const int64_t patch_h = pixels(height, g.stride_h), patch_w = pixels(width, g.stride_w), pitch = (tiles(patch_w, 4) | 1) * 4;
      if (warps > most_warps || (warps_c * 2 * patch_h * pitch + warps_k * 4 * height * width) * int64_t{sizeof(float)} > most_bytes) break;
      const int64_t count = tiles(g.out_h(), height) * tiles(g.out_w(), width);
      const int64_t copies = c * patch_h * tiles(patch_w, warp) + k * height * tiles(width, g.out_w() % strip == 0 ? warp * strip : warp);
      constexpr double of_warp = 760, of_copy = 14;  // instructions: 576 are multiplications
      const double time = of_warp * static_cast<double>(warps) + of_copy * static_cast<double>(copies);
      const bool is_full = 2 * g.out_h() * g.out_w() >= count * beside * warp * strip * strip_rows;
      if (is_full && time * static_cast<double>(count) < least)
        least = time * static_cast<double>(count), best.tile = {height, width}, best.time_of_tile = time;
    }
  return best;
}

ConvPlan plain_plan(const ConvGeometry& g, DType dtype, ConvPass pass) {
  const int64_t pixels = g.n * g.out_h() * g.out_w(), bytes = g.weights() * std::max<int64_t>(size_of(dtype), 4);
  ConvPlan plan;
  if (g.is_depthwise()) {
    plan.kernel = ConvKernel::depthwise;
    if (pass == ConvPass::backward_weight) plan.splits = std::clamp<int64_t>(splits_for(bytes, g.k * g.r, pixels), 1, std::max<int64_t>(g.n, 1));
    return plan;
  }
  if (is_direct(g, dtype, pass)) {
    plan.kernel = ConvKernel::direct;
    return plan;
  }
  const ProductShape product = product_of(g, pass);
  if (pass == ConvPass::backward_weight) {
    if (const DirectWeight direct = direct_weight(g, dtype); direct.tile.height > 0) {
      constexpr double time_of_byte = time_of_element / 4 / 32;  // an SM multiplies 32 times in the time of a warp's instruction
      plan.kernel = ConvKernel::direct;
      plan.tile_h = direct.tile.height;
      plan.tile_w = direct.tile.width;
      plan.splits = splits_of(
          {direct.blocks, count_tiles(g, direct.tile), bytes, direct.time_of_tile, static_cast<double>(2 * bytes) * time_of_byte, 2});
      return plan;
    }
    plan.kernel = choose_weight_tile(product, dtype);
    plan.splits = weight_splits(bytes, count_tiles(product, tile_of(plan.kernel, pass)), pixels);
    return plan;
  }
  const bool is_forward = pass == ConvPass::forward;
  const int64_t size = size_of(dtype), channels = is_forward ? g.group_c() : g.group_k();
  const int64_t depth = is_forward ? channels * g.r * g.s : tiles(channels * g.r * g.s, g.stride_h * g.stride_w);
  const TileAndSplits choice = choose_tile(product, depth, dtype, pass);
  plan.kernel = choice.kernel;
  plan.splits = choice.splits;
  if (!reads_weights_as_they_lie(g, product, depth, dtype, pass, choice)) plan_packed_weights(g, dtype, pass, plan);
  if (plan.splits > 1) plan.layout.parts_bytes = piece(plan.splits * (is_forward ? g.outputs() : g.inputs()) * size);
  return plan;
}

// Are groups so small that tensor cores would be busy with padding for the most part, and copies channels-last take longer than all of
// float32's multiplications?
bool is_small_for_tf32(const ConvGeometry& g, ConvPass pass) {
  constexpr int64_t most_channels = 8;
  if (g.group_c() > most_channels || g.group_k() > most_channels) return false;
  return pass == ConvPass::backward_weight ? direct_weight(g, DType::float32).tile.height > 0 : is_direct(g, DType::float32, pass);
}

}  // namespace

ConvPlan choose_conv_kernel(const ConvGeometry& g, DType dtype, ConvPass pass, ConvMath math) {
  const bool has_tensor_cores = size_of(dtype) == 2 || (dtype == DType::float32 && math.has_tf32 && !is_small_for_tf32(g, pass));
  ConvPlan plan = has_tensor_cores && !g.is_depthwise() ? tensor_plan(g, dtype, pass) : plain_plan(g, dtype, pass);
  const TileSize tile = tile_of(plan.kernel, pass, dtype);
  if (plan.kernel != ConvKernel::depthwise) plan.tile_rows = tile.rows, plan.tile_columns = tile.columns;
  plan.name = name_of(pass, plan.kernel, plan.source);
  return plan;
}

void plan_packed_weights(const ConvGeometry& g, DType dtype, ConvPass pass, ConvPlan& plan) {
  const bool is_forward = pass == ConvPass::forward;
  const int64_t size = size_of(dtype), rows = is_forward ? g.group_k() : g.group_c(), channels = is_forward ? g.group_c() : g.group_k();
  plan.layout.weight_row = round_up(rows, 16 / size);
  plan.layout.weight_bytes = piece(g.groups * g.r * g.s * channels * plan.layout.weight_row * size);
}

int64_t conv_depthwise_last_splits(const ConvGeometry& g, DType dtype) {
  const int64_t bytes = g.weights() * std::max<int64_t>(size_of(dtype), 4), pieces = g.r == 3 && g.s == 3 ? 1 : g.r * tiles(g.s, 4);
  return splits_for(bytes, tiles(tiles(g.c, 32) * pieces, 2), g.n * g.out_h() * g.out_w());
}

int64_t conv_bias_splits(const ConvGeometry& g, bool is_planar) {
  const int64_t pixels = g.n * g.out_h() * g.out_w(), blocks = is_planar ? g.k : tiles(g.k, 32);
  return std::clamp<int64_t>(tiles(4 * full_gpu, std::max<int64_t>(blocks, 1)), 1, std::max<int64_t>(tiles(pixels, 4 * least_pixels_per_split), 1));
}

int64_t conv_pass_bytes(const ConvGeometry& g, DType dtype, ConvPass pass, ConvMath math) {
  const ConvPlan plan = choose_conv_kernel(g, dtype, pass, math);
  if (pass != ConvPass::backward_weight) return plan.layout.bytes();
  const int64_t size = std::max<int64_t>(size_of(dtype), sizeof(float));       // the half types are summed in float32
  const int64_t splits = g.is_depthwise() ? std::max(plan.splits, conv_depthwise_last_splits(g, dtype)) : plan.splits;
  const int64_t parts = splits > 1 || size_of(dtype) == 2 ? splits * g.weights() * size : 0;
  const int64_t bias = std::max(conv_bias_splits(g, true), conv_bias_splits(g, false)) * g.k * int64_t{sizeof(double)};
  return std::max(plan.uses_tensor_cores() ? plan.layout.bytes() : parts, bias);
}

}  // namespace fovea::kernels::cuda
