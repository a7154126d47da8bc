// Convolution (cross-correlation) as an implicit matrix product, x [n,c,h,w], weight [k,c/groups,r,s], y [n,k,p,q], contiguous:
//   forward   y[n,k,p,q]  = bias[k] + sum_{c,r,s} weight[k,c,r,s] x[n,c,p*stride - pad + r*dilation, q*stride - pad + s*dilation]
//   data      dx[n,c,h,w] = sum over k and the (r,s) that reach (h,w) of weight[k,c,r,s] dy[n,k,p,q]
//   weight    dweight[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] x[n,c,...],   dbias[k] = sum_{n,p,q} dy[n,k,p,q]
// All three are the blocked product of gemm.h over patches that are packed straight from the image (conv_patches.h); there is no patch matrix in memory.
// With strides, the pixels of dx that see the same (r,s) form a phase; each phase is a convolution of its own with unit stride over dy.
// Overwrites. Sums in the element type, in the order of gemm.h: deterministic.
// Depthwise convolutions and most of those with 3x3 kernels have ways of their own (conv_depthwise.cpp, conv_winograd.cpp).
// Floor: 2 * geometry.macs() FLOPs each; reading and writing every tensor once.
#include <algorithm>

#include <fovea/kernels/cpu/conv_functions.h>
#include <fovea/kernels/cpu/conv_layout.h>
#include <fovea/kernels/cpu/gemm.h>

namespace fovea::kernels {
namespace {

// Rows without a gap between them are one long row.
template <class T>
void join_rows(PatchSource<T>& source) {
  if (source.row_stride != source.width) return;
  source.width *= source.height;
  source.height = 1;
}

// Copies the image as `split` says into memory from the arena, unless it can be read where it lies.
template <class T>
PatchSource<T> make_source(const PlaneSplit& split, const T* image, int64_t channels, Arena& arena) {
  PatchSource<T> source;
  const bool is_direct = split.is_identity();
  const int64_t plane = is_direct ? split.h * split.w : split.plane_size();
  source.size = split.planes * plane;
  source.row_stride = is_direct ? split.w : split.out_w;
  source.channel_stride = plane;
  source.image_stride = channels * plane;
  source.data = image;
  if (is_direct) return source;
  source.size += gemm_slack;
  T* copy = arena.take<T>(source.size);
  if (copy) patch_functions<T>().split(split, image, copy);
  source.data = copy;
  return source;
}

template <class T>
PatchSource<T> source_of_x(const ConvGeometry& g, const T* x, Arena& arena) {
  const PlaneSplit split = split_of_x(g);
  PatchSource<T> source = make_source(split, x, g.c, arena);
  source.width = g.out_w();
  source.height = g.out_h();
  source.num_taps = g.r * g.s;
  int64_t* taps = arena.take<int64_t>(source.num_taps);
  if (taps) fill_taps_of_x(g, split, source.row_stride, taps);
  source.taps = taps;
  join_rows(source);
  return source;
}

// Weights times patches, one product a group.
template <class T>
class PatchProduct : public GemmOperands<T> {
 public:
  PatchProduct(const GemmShape& shape, const T* weight, const PatchSource<T>& source, int64_t group_channels, const T* bias, T* y, int64_t group_stride_y)
      : shape_(shape), weight_(weight), source_(source), group_stride_(group_channels * source.channel_stride), bias_(bias), y_(y), group_stride_y_(group_stride_y) {}

  GemmBlock<T> left(int64_t group, int64_t i0, int64_t rows, int64_t k0, int64_t depth, T* buffer) const override {
    return left_rows(weight_ + (group * shape_.m + i0) * shape_.k + k0, shape_.k, rows, depth, buffer);
  }
  GemmBlock<T> right(int64_t group, int64_t j0, int64_t columns, int64_t width, int64_t k0, int64_t depth, T* buffer) const override {
    if (depth > 0) {
      PatchSource<T> source = source_;
      source.data += group * group_stride_;
      source.size -= group * group_stride_;
      patch_functions<T>().pack(source, j0, columns, k0, depth, buffer, width);
    }
    return {buffer, width};
  }
  GemmOutput<T> output(int64_t group) const override {
    return {y_ + group * group_stride_y_, bias_ ? bias_ + group * shape_.m : nullptr, nullptr};
  }

 private:
  const GemmShape& shape_;
  const T* weight_;
  const PatchSource<T>& source_;
  int64_t group_stride_;
  const T* bias_;
  T* y_;
  int64_t group_stride_y_;
};

GemmShape forward_shape(const ConvGeometry& g) {
  const int64_t pixels = out_pixels(g);
  GemmShape shape{g.groups, g.group_k(), g.n * pixels, patch_size(g), pixels, {}};
  shape.columns.width = pixels;
  shape.columns.stride_image = g.k * pixels;
  return shape;
}

template <class T>
void forward(const ConvGeometry& g, const T* x, const T* weight, const T* bias, T* y, Workspace scratch) {
  Arena arena(scratch.data);
  const GemmShape shape = forward_shape(g);
  const PatchSource<T> source = source_of_x(g, x, arena);
  const PatchProduct<T> product(shape, weight, source, g.group_c(), bias, y, g.group_k() * shape.row_stride);
  gemm<T>().run(shape, T(1), false, product, arena.rest(scratch));
}

template <class T>
int64_t forward_workspace(const ConvGeometry& g) {
  Arena arena(nullptr);
  source_of_x<T>(g, nullptr, arena);
  return arena.used() + gemm<T>().workspace(forward_shape(g));
}

// --- gradient of the input ---

// to[group][c][k][tap] = weight[group][k][c][taps[tap]]; sixteen channels at a time, which lie together in weight.
template <class T>
void gather_weight(const ConvGeometry& g, const T* weight, const int64_t* taps, int64_t num_taps, T* to) {
  const int64_t kernel = g.r * g.s, group_c = g.group_c(), group_k = g.group_k();
  parallel_for(g.c, 16, [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < group_k; ++k)
      for (int64_t channel = begin; channel < end; ++channel) {
        const T* from = weight + ((channel / group_c * group_k + k) * group_c + channel % group_c) * kernel;
        T* out = to + (channel * group_k + k) * num_taps;
        if (num_taps == kernel) {
          for (int64_t t = 0; t < kernel; ++t) out[t] = from[t];
        } else {
          for (int64_t t = 0; t < num_taps; ++t) out[t] = from[taps[t]];
        }
      }
  });
}

template <class T>
struct DataScratch {
  PatchSource<T> source;
  T* weight;                                         // of one phase
  int64_t* kernel_taps;                              // r * s_size + s of the phase's taps
  int64_t* source_taps;                              // their offsets in the source
};

template <class T>
DataScratch<T> make_data_scratch(const ConvGeometry& g, const T* dy, Arena& arena) {
  DataScratch<T> scratch;
  scratch.source = make_source(split_of_dy(g), dy, g.k, arena);
  scratch.weight = arena.take<T>(g.k * patch_size(g));
  scratch.kernel_taps = arena.take<int64_t>(g.r * g.s);
  scratch.source_taps = arena.take<int64_t>(g.r * g.s);
  return scratch;
}

GemmShape data_shape(const ConvGeometry& g, const Phase& phase) {
  GemmShape shape{g.groups, g.group_c(), g.n * phase.height * phase.width, g.group_k() * phase.taps, g.h * g.w, {}};
  shape.columns = {phase.width, phase.height, g.stride_w, g.stride_h * g.w, g.c * g.h * g.w};
  if (g.stride_h == 1 && g.stride_w == 1) shape.columns = {g.h * g.w, 1, 1, 0, g.c * g.h * g.w};
  return shape;
}

template <class T>
void backward_data(const ConvGeometry& g, const T* dy, const T* weight, T* dx, Workspace workspace) {
  Arena arena(workspace.data);
  const DataScratch<T> scratch = make_data_scratch(g, dy, arena);
  for_each_phase(g, [&](const Phase& phase) {
    fill_taps_of_dy(g, phase, scratch.source.row_stride, scratch.kernel_taps, scratch.source_taps);
    gather_weight(g, weight, scratch.kernel_taps, phase.taps, scratch.weight);
    PatchSource<T> source = scratch.source;
    source.height = phase.height;
    source.width = phase.width;
    source.num_taps = std::max<int64_t>(1, phase.taps);
    source.taps = scratch.source_taps;
    join_rows(source);
    const GemmShape shape = data_shape(g, phase);
    const PatchProduct<T> product(shape, scratch.weight, source, g.group_k(), nullptr, dx + phase.first_h * g.w + phase.first_w, g.group_c() * g.h * g.w);
    gemm<T>().run(shape, T(1), false, product, arena.rest(workspace));
  });
}

template <class T>
int64_t data_workspace(const ConvGeometry& g) {
  Arena arena(nullptr);
  make_data_scratch<T>(g, nullptr, arena);
  int64_t most = 0;
  for_each_phase(g, [&](const Phase& phase) { most = std::max(most, gemm<T>().workspace(data_shape(g, phase))); });
  return arena.used() + most;
}

// --- gradient of the weight ---

// Patches (rows: c,r,s) times dy transposed (columns: k), summed over all pixels; the patches stay contiguous along the sum, only dy has to be transposed.
template <class T>
class WeightProduct : public GemmOperands<T> {
 public:
  WeightProduct(const ConvGeometry& g, const PatchSource<T>& source, const T* dy, T* sums)
      : g_(g), source_(source), dy_(dy), sums_(sums), pixels_(out_pixels(g)) {}

  GemmBlock<T> left(int64_t group, int64_t i0, int64_t rows, int64_t k0, int64_t depth, T* buffer) const override {
    if (depth > 0) {
      PatchSource<T> source = source_;
      const int64_t skip = group * g_.group_c() * source.channel_stride;
      source.data += skip;
      source.size -= skip;
      patch_functions<T>().pack(source, k0, depth, i0, rows, buffer, gemm_depth);
    }
    return {buffer, gemm_depth};
  }
  GemmBlock<T> right(int64_t group, int64_t j0, int64_t columns, int64_t width, int64_t k0, int64_t depth, T* buffer) const override {
    for (int64_t done = 0; done < depth;) {
      const int64_t image = (k0 + done) / pixels_, pixel = (k0 + done) % pixels_, run = std::min(depth - done, pixels_ - pixel);
      const T* from = dy_ + (image * g_.k + group * g_.group_k() + j0) * pixels_ + pixel;
      gemm<T>().transpose(from, pixels_, columns, run, buffer + done * width, width);
      done += run;
    }
    return {buffer, width};
  }
  GemmOutput<T> output(int64_t group) const override { return {sums_ + group * patch_size(g_) * g_.group_k(), nullptr, nullptr}; }

 private:
  const ConvGeometry& g_;
  const PatchSource<T>& source_;
  const T* dy_;
  T* sums_;
  int64_t pixels_;
};

GemmShape weight_shape(const ConvGeometry& g) {
  return {g.groups, patch_size(g), g.group_k(), g.n * out_pixels(g), g.group_k(), {}};
}

template <class T>
void backward_weight(const ConvGeometry& g, const T* x, const T* dy, T* dweight, Workspace scratch) {
  Arena arena(scratch.data);
  const PatchSource<T> source = source_of_x(g, x, arena);
  const GemmShape shape = weight_shape(g);
  T* sums = arena.take<T>(g.groups * shape.m * shape.n);
  gemm<T>().run(shape, T(1), false, WeightProduct<T>(g, source, dy, sums), arena.rest(scratch));
  parallel_for(g.k, 16, [&](int64_t begin, int64_t end) {                      // sixteen columns of sums share their cache lines
    for (int64_t k = begin; k < end;) {
      const int64_t group = k / shape.n, within = k % shape.n, count = std::min(end - k, shape.n - within);
      gemm<T>().transpose(sums + group * shape.m * shape.n + within, shape.n, shape.m, count, dweight + k * shape.m, shape.m);
      k += count;
    }
  });
}

template <class T>
int64_t weight_workspace(const ConvGeometry& g) {
  Arena arena(nullptr);
  source_of_x<T>(g, nullptr, arena);
  arena.take<T>(g.k * patch_size(g));
  return arena.used() + gemm<T>().workspace(weight_shape(g));
}

// --- entries ---

template <class T>
int64_t direct_workspace(const ConvGeometry& g) {
  return std::max({forward_workspace<T>(g), data_workspace<T>(g), weight_workspace<T>(g)});
}

template <class T>
const ConvFunctions<T>& functions_for(const ConvGeometry& g) {
  static constexpr ConvFunctions<T> direct = {direct_workspace<T>, forward<T>, backward_data<T>, backward_weight<T>};
  if (g.is_depthwise()) return depthwise_functions<T>();
  return winograd_pays(g) ? winograd_functions<T>() : direct;
}

int64_t conv2d_workspace(const ConvGeometry& g, DType dtype) {
  return dispatch_real(dtype, "conv2d", [&](auto zero) { return functions_for<decltype(zero)>(g).workspace(g); });
}

void conv2d_forward(Queue, const ConvGeometry& g, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y, Workspace scratch) {
  if (y.numel() == 0) return;
  dispatch_real(y.dtype, "conv2d", [&](auto zero) {
    using T = decltype(zero);
    functions_for<T>(g).forward(g, x.as<T>(), weight.as<T>(), bias.as<T>(), y.as<T>(), scratch);
  });
}

void conv2d_backward_data(Queue, const ConvGeometry& g, const ConstView& dy, const ConstView& weight, const View& dx, Workspace scratch) {
  if (dx.numel() == 0) return;
  dispatch_real(dx.dtype, "conv2d_backward_data", [&](auto zero) {
    using T = decltype(zero);
    functions_for<T>(g).backward_data(g, dy.as<T>(), weight.as<T>(), dx.as<T>(), scratch);
  });
}

// dweight or dbias may be absent.
void conv2d_backward_weight(Queue, const ConvGeometry& g, const ConstView& x, const ConstView& dy, const View& dweight, const View& dbias, Workspace scratch) {
  dispatch_real(dy.dtype, "conv2d_backward_weight", [&](auto zero) {
    using T = decltype(zero);
    if (dbias) patch_functions<T>().sum_channels(dy.as<T>(), g.n, g.k, out_pixels(g), dbias.as<T>());
    if (!dweight || dweight.numel() == 0) return;
    functions_for<T>(g).backward_weight(g, x.as<T>(), dy.as<T>(), dweight.as<T>(), scratch);
  });
}

}  // namespace

void add_conv(KernelTable& t) {
  t.conv2d_workspace = conv2d_workspace;
  t.conv2d_forward = conv2d_forward;
  t.conv2d_backward_data = conv2d_backward_data;
  t.conv2d_backward_weight = conv2d_backward_weight;
}

}  // namespace fovea::kernels
