// Convolution (cross-correlation), x [n,c,h,w], weight [k,c/groups,r,s], y [n,k,p,q], contiguous:
//   forward   y[n,k,p,q]  = bias[k] + sum_{c,r,s} weight[k,c,r,s] x[n,c,p*stride - pad + r*dilation, q*stride - pad + s*dilation]
//   data      dx[n,c,h,w] = sum over k and the (r,s) that reach (h,w) of weight[k,c,r,s] dy[n,k,p,q]
//   weight    dweight[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] x[n,c,...],   dbias[k] = sum_{n,p,q} dy[n,k,p,q]
// What is here: the table's entries, the choice among the kernels (conv_plan.h), and the gradient of the bias. The kernels:
//   conv_plain.cu, conv_plain_weight.cu      float32 and float64, products of matrices by multiplications and additions
//   conv_tensor.cu, conv_tensor_weight.cu    the half types and, where it is allowed, TF32, on tensor cores
//   conv_direct.cu, conv_direct_weight.cu    float32 in small groups
//   conv_grouped.cu, conv_grouped_weight.cu  the half types in small groups, on tensor cores
//   conv_depthwise.cu                        a channel of x for each group
//   conv_depthwise_last.cu                   the same of tensors that lie channels-last, where y has as many channels
//   conv_layout.cu                           copies into the layouts that these want
// Of tensors that lie channels-last, copies are made for the kernels of float32 and float64 and for conv_depthwise.cu, and results are copied back.
// Overwrites. The gradient of a bias is summed in float64. Deterministic; the order of sums depends on the geometry alone (that of dbias, and of depthwise weights,
// also on how dy lies).
// Floor: 2 * geometry.macs() FLOPs each; reading and writing every tensor once.
#include <fovea/kernels/cuda/conv_functions.h>

#include <memory>

#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/warp.h>
#include <fovea/kernels/cuda/runtime.h>

namespace fovea::kernels::cuda {
namespace {

// The kernels' 31-bit numbers have to hold an image and the weights, and positions far outside of an image.
void check_sizes(const char* op, const ConvGeometry& g) {
  const int64_t image = std::max(g.c * g.h * g.w, g.k * g.out_h() * g.out_w());
  check<ShapeError>(image < index_limit, op, ": an image of ", image, " elements is too large for the CUDA kernels, which take fewer than 2^31");
  check<ShapeError>(g.weights() < index_limit, op, ": ", g.weights(), " weights are too many for the CUDA kernels, which take fewer than 2^31");
  const int64_t reach = std::max({g.r * g.dilation_h, g.s * g.dilation_w, g.h + 2 * g.pad_h, g.w + 2 * g.pad_w, g.stride_h, g.stride_w});
  check<ShapeError>(reach < (1 << 29), op, ": kernel, dilation, stride and padding reach over ", reach, " pixels; the CUDA kernels take fewer than 2^29");
}

// --- gradient of the weight ---

// y[i] = sum over parts of x[part, i], in order.
template <class Sum, class T>
__global__ void __launch_bounds__(256) add_parts(int64_t parts, int64_t n, const Sum* x, T* y) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) {
    Sum sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += x[part * n + i];
    y[i] = narrow<T>(static_cast<Accumulate<T>>(sum));
  }
}

template <class T>
void backward_weight(Queue queue, const ConvGeometry& g, const ConvPlan& plan, const ConstView& x, const ConstView& dy, T* dweight, Workspace scratch) {
  using Sum = Accumulate<T>;
  const bool is_last = plan.kernel == ConvKernel::depthwise && takes_depthwise_last(g, x, dy);
  const int64_t splits = is_last ? conv_depthwise_last_splits(g, dtype_of<T>) : plan.splits;
  const bool has_parts = splits > 1 || is_half<T>;
  if (is_last) {
    depthwise_last_backward_weight(queue, g, x, dy, splits, has_parts ? scratch.data : dweight);
  } else if (plan.kernel == ConvKernel::depthwise) {
    depthwise_backward_weight(queue, g, x, dy, dtype_of<T>, plan.splits, has_parts ? scratch.data : dweight);
  } else if constexpr (!is_half<T>) {
    T* const sums = has_parts ? static_cast<T*>(scratch.data) : dweight;
    if constexpr (std::is_same_v<T, float>) {
      if (plan.kernel == ConvKernel::direct) direct_backward_weight(queue, g, plan, x.as<T>(), dy.as<T>(), sums);
      else plain_backward_weight(queue, g, plan, x.as<T>(), dy.as<T>(), sums);
    } else {
      plain_backward_weight(queue, g, plan, x.as<T>(), dy.as<T>(), sums);
    }
  }
  if (has_parts) launch(queue, "conv2d_add_parts", grid_for(g.weights()), add_parts<Sum, T>, splits, g.weights(), static_cast<const Sum*>(scratch.data), dweight);
}

// --- gradient of the bias ---

// blockIdx: x the channel, y the part of the pixels. Neighbouring threads take neighbouring pixels, from one image to the next, and have
// several reads under way at once.
template <class T>
__global__ void __launch_bounds__(256) sum_channels(int64_t images, int64_t channels, int64_t plane, FastDivide by_plane, int64_t pixels_per_split,
                                                    const T* dy, double* parts) {
  auto& scratch = shared<double[warp_size]>();
  const int64_t channel = blockIdx.x, begin = blockIdx.y * pixels_per_split, image_step = channels * plane;
  const int64_t end = begin + pixels_per_split < images * plane ? begin + pixels_per_split : images * plane;
  double sum = 0;
  for (int64_t at = begin, count = 0; at < end; at += count) {               // pixels that can be numbered, from the first of an image on
    const int64_t image = at / plane, before = at - image * plane;
    count = min(end - at, index_limit - before);
    const T* const from = dy + image * image_step + channel * plane;
    const uint32_t last = static_cast<uint32_t>(before + count);
#pragma unroll 8
    for (uint32_t pixel = static_cast<uint32_t>(before) + threadIdx.x; pixel < last; pixel += 256) {
      const uint32_t next = by_plane.quotient(pixel);
      sum += widen(from[next * image_step + (pixel - next * by_plane.divisor)]);
    }
  }
  sum = block_reduce(sum, Sum(), 0.0, scratch);
  if (threadIdx.x == 0) parts[blockIdx.y * channels + channel] = sum;
}

constexpr int channel_lines = 8;                       // pixels that a block looks at beside each other

// Of dy [pixels, channels]. blockIdx: x a warp's width of channels, y the part of the pixels.
template <class T>
__global__ void __launch_bounds__(warp_size * channel_lines) sum_last_channels(int64_t pixels, int64_t channels, int64_t pixels_per_split, const T* dy, double* parts) {
  auto& sums = shared<double[channel_lines][warp_size]>();
  const int lane = static_cast<int>(threadIdx.x) % warp_size, line = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * warp_size + lane, begin = blockIdx.y * pixels_per_split;
  const int64_t end = begin + pixels_per_split < pixels ? begin + pixels_per_split : pixels;
  double sum = 0;
  if (channel < channels)
    for (int64_t pixel = begin + line; pixel < end; pixel += channel_lines) sum += widen(dy[pixel * channels + channel]);
  sums[line][lane] = sum;
  __syncthreads();
  if (line > 0 || channel >= channels) return;
  for (int other = 1; other < channel_lines; ++other) sum += sums[other][lane];
  parts[blockIdx.y * channels + channel] = sum;
}

template <class T>
void backward_bias(Queue queue, const ConvGeometry& g, const ConstView& dy, T* dbias, Workspace scratch) {
  const Images<const void*> images = images_of(dy, "conv2d_backward_weight", "dy");
  const int64_t plane = g.out_h() * g.out_w(), pixels = g.n * plane, splits = conv_bias_splits(g, images.is_planar());
  const int64_t per_split = std::max<int64_t>(ceil_div(pixels, splits), 1);
  double* const parts = static_cast<double*>(scratch.data);
  const auto grid = [&](int64_t blocks, int64_t values) {
    return Grid{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(splits)), dim3(256), static_cast<size_t>(values) * sizeof(double)};
  };
  if (images.is_planar()) launch(queue, "conv2d_sum_channels", grid(g.k, warp_size), sum_channels<T>, g.n, g.k, plane, divide_by(plane), per_split,
                                     dy.as<T>(), parts);
  else launch(queue, "conv2d_sum_last_channels", grid(ceil_div<int64_t>(g.k, warp_size), warp_size * channel_lines), sum_last_channels<T>, pixels, g.k, per_split, dy.as<T>(), parts);
  launch(queue, "conv2d_add_bias_parts", grid_for(g.k), add_parts<double, T>, splits, g.k, static_cast<const double*>(parts), dbias);
}

// --- entries ---

ConvMath math() { return {fovea::cuda::allow_tf32()}; }

// A view that lies [n,c,h,w], and the memory of its copy if it is one.
struct PlanarView {
  View view;
  std::unique_ptr<DeviceScratch> memory;
};

PlanarView room_for(Queue queue, const ConstView& v) {
  PlanarView result;
  result.memory = std::make_unique<DeviceScratch>(v.numel() * size_of(v.dtype), queue);
  result.view.data = result.memory->data();
  result.view.dtype = v.dtype;
  result.view.shape = v.shape;
  result.view.strides = contiguous_strides(v.shape);
  return result;
}

const KernelTable& own_table() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cuda: asking for the current device");
  return cuda_table(device);
}

PlanarView as_is(const ConstView& v) {
  PlanarView same;
  same.view.data = const_cast<void*>(v.data);
  same.view.dtype = v.dtype;
  same.view.shape = v.shape;
  same.view.strides = v.strides;
  return same;
}

// A copy only where the view does not lie so already. Its memory may go back as soon as the kernels that read it are on their way.
PlanarView planar(Queue queue, const ConstView& v) {
  if (v.is_contiguous()) return as_is(v);
  PlanarView copy = room_for(queue, v);
  own_table().copy(queue, v, copy.view);
  return copy;
}

// Calls f with a view that lies [n,c,h,w], and puts what f has written there where `out` lies.
template <class F>
void write_planar(Queue queue, const View& out, F&& f) {
  if (out.is_contiguous()) return f(out);
  const PlanarView result = room_for(queue, out);
  f(result.view);
  own_table().copy(queue, result.view, out);
}

int64_t conv2d_workspace(const ConvGeometry& g, DType dtype) {
  return dispatch_floating(dtype, "conv2d", [&](auto) {
    int64_t bytes = 0;
    for (const ConvPass pass : {ConvPass::forward, ConvPass::backward_data, ConvPass::backward_weight}) bytes = std::max(bytes, conv_pass_bytes(g, dtype, pass, math()));
    return bytes;
  });
}

void conv2d_forward(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y, Workspace scratch) {
  if (y.numel() == 0) return;
  dispatch_floating(y.dtype, "conv2d", [&](auto zero) {
    using T = decltype(zero);
    check_sizes("conv2d", g);
    const ConvPlan plan = choose_conv_kernel(g, y.dtype, ConvPass::forward, math());
    if (plan.kernel == ConvKernel::tensor_grouped) return grouped_forward(queue, g, plan, x, weight, bias, y, scratch);
    if (plan.uses_tensor_cores()) return tensor_forward(queue, g, plan, x, weight, bias, y, scratch);
    const PlanarView weights = planar(queue, weight);
    if (plan.kernel == ConvKernel::depthwise && takes_depthwise_last(g, x, y)) return depthwise_last_forward(queue, g, x, weights.view, bias, y);
    const PlanarView from = planar(queue, x);
    write_planar(queue, y, [&](const View& to) {
      if (plan.kernel == ConvKernel::depthwise) return depthwise_forward(queue, g, from.view, weights.view, bias, to);
      if constexpr (std::is_same_v<T, float>)
        if (plan.kernel == ConvKernel::direct) return direct_forward(queue, g, plan, from.view.template as<T>(), weights.view.template as<T>(), bias.as<T>(), to.as<T>());
      if constexpr (!is_half<T>) plain_forward(queue, g, plan, from.view.template as<T>(), weights.view.template as<T>(), bias.as<T>(), to.as<T>(), scratch);
    });
  });
}

void conv2d_backward_data(Queue queue, const ConvGeometry& g, const ConstView& dy, const ConstView& weight, const View& dx, Workspace scratch) {
  if (dx.numel() == 0) return;
  dispatch_floating(dx.dtype, "conv2d_backward_data", [&](auto zero) {
    using T = decltype(zero);
    check_sizes("conv2d_backward_data", g);
    const ConvPlan plan = choose_conv_kernel(g, dx.dtype, ConvPass::backward_data, math());
    if (plan.kernel == ConvKernel::tensor_grouped) return grouped_backward_data(queue, g, plan, dy, weight, dx, scratch);
    if (plan.uses_tensor_cores()) return tensor_backward_data(queue, g, plan, dy, weight, dx, scratch);
    const PlanarView weights = planar(queue, weight);
    if (plan.kernel == ConvKernel::depthwise && takes_depthwise_last(g, dx, dy)) return depthwise_last_backward_data(queue, g, dy, weights.view, dx);
    const PlanarView from = planar(queue, dy);
    write_planar(queue, dx, [&](const View& to) {
      if (plan.kernel == ConvKernel::depthwise) return depthwise_backward_data(queue, g, from.view, weights.view, to);
      if constexpr (std::is_same_v<T, float>)
        if (plan.kernel == ConvKernel::direct) return direct_backward_data(queue, g, plan, from.view.template as<T>(), weights.view.template as<T>(), to.as<T>());
      if constexpr (!is_half<T>) plain_backward_data(queue, g, plan, from.view.template as<T>(), weights.view.template as<T>(), to.as<T>(), scratch);
    });
  });
}

// dweight or dbias may be absent.
void conv2d_backward_weight(Queue queue, const ConvGeometry& g, const ConstView& x, const ConstView& dy, const View& dweight, const View& dbias, Workspace scratch) {
  dispatch_floating(dy.dtype, "conv2d_backward_weight", [&](auto zero) {
    using T = decltype(zero);
    check_sizes("conv2d_backward_weight", g);
    if (dbias && g.k > 0) backward_bias(queue, g, dy, dbias.as<T>(), scratch);
    if (!dweight || dweight.numel() == 0) return;
    const ConvPlan plan = choose_conv_kernel(g, dy.dtype, ConvPass::backward_weight, math());
    if (plan.kernel == ConvKernel::tensor_grouped) return grouped_backward_weight(queue, g, plan, x, dy, dweight, scratch);
    if (plan.uses_tensor_cores()) return tensor_backward_weight(queue, g, plan, x, dy, dweight, scratch);
    const bool is_last = plan.kernel == ConvKernel::depthwise && takes_depthwise_last(g, x, dy);
    const PlanarView from = is_last ? as_is(x) : planar(queue, x), gradient = is_last ? as_is(dy) : planar(queue, dy);
    write_planar(queue, dweight, [&](const View& to) { backward_weight(queue, g, plan, from.view, gradient.view, to.as<T>(), scratch); });
  });
}

}  // namespace

void add_conv(KernelTable& t) {
  t.computes_half.add(Family::conv);
  t.conv2d_workspace = conv2d_workspace;
  t.conv2d_forward = conv2d_forward;
  t.conv2d_backward_data = conv2d_backward_data;
  t.conv2d_backward_weight = conv2d_backward_weight;
}

}  // namespace fovea::kernels::cuda
