// Max and average pooling over x [n, c, h, w], with kernel, stride, padding, (max:) dilation and ceil_mode, or to a given size (adaptive), and their backward passes.
//     y[oh, ow] = max or mean over x[oh * stride - pad + i * dilation, ow * stride - pad + j * dilation]; what lies outside x does not count for the maximum and is
//     zero for the mean, which divides by the window clipped to the padded input, or (count_include_pad = false) to the input, as PyTorch does.
//     Adaptive: output i looks at inputs [floor(i * in / out), ceil((i + 1) * in / out)).
// indices: h * w positions within the plane, int64; the first of equals; a NaN wins. Overwrites its outputs. float32, float64, and the half types.
// Layout: all of a call's tensors contiguous, or all channels-last, [n,h,w,c] in memory (but where the backward pass of maxima does not know the
// windows). A thread makes one output of up to 16 bytes of channels, in accesses of that size; see Note [Planes are images of one channel].
// Sums in the element's type, of half types in float32; adaptive means in float64. Deterministic: gradients are gathered, each element by its own thread, in the order of the outputs;
// those of maxima, where only the indices are known, are added by threads that take turns (turns.h).
// Floor: one read of x, one write of y (and of the 8-byte indices).
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/warp.h>
#include <fovea/kernels/cuda/planes.h>
#include <fovea/kernels/cuda/turns.h>
#include <fovea/kernels/cuda/wide_sums.h>

#include <limits>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads_per_block = 256;

// One axis of the windows.
struct Axis {
  int32_t size = 0, kernel = 1, stride = 1, pad = 0, dilation = 1, outputs = 0;
  FastDivide by_stride, by_dilation;

  __device__ int32_t start(int32_t output) const { return output * stride - pad; }
  __device__ int32_t first_tap(int32_t output) const {
    const int32_t before = -start(output);
    return before > 0 ? static_cast<int32_t>(by_dilation.quotient(before + dilation - 1)) : 0;
  }
  // How many positions average pooling divides by along this axis.
  __device__ int32_t count(int32_t output, bool include_pad) const {
    const int32_t from = start(output), to = min(from + kernel, size + pad);
    return include_pad ? to - from : min(to, size) - max(from, 0);
  }
  // The outputs [first_output, end_output) whose window (without dilation) an input lies in.
  __device__ int32_t first_output(int32_t input) const {
    const int32_t beyond = input + pad - kernel + 1;
    return beyond > 0 ? static_cast<int32_t>(by_stride.quotient(beyond + stride - 1)) : 0;
  }
  __device__ int32_t end_output(int32_t input) const { return min(outputs, static_cast<int32_t>(by_stride.quotient(input + pad)) + 1); }
};

Axis axis_of(const char* op, int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t outputs) {
  const int64_t reach = std::max({size + 2 * pad + stride, kernel * dilation, dilation + stride, outputs});
  check<ShapeError>(reach < index_limit / 4, op, ": windows that reach over ", reach, " elements are too large for the CUDA kernels");
  const auto narrow = [](int64_t v) { return static_cast<int32_t>(v); };
  return {narrow(size), narrow(kernel), narrow(stride), narrow(pad), narrow(dilation), narrow(outputs), divide_by(stride), divide_by(dilation)};
}
Axis vertical(const char* op, const PoolGeometry& g) { return axis_of(op, g.h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, g.out_h()); }
Axis horizontal(const char* op, const PoolGeometry& g) { return axis_of(op, g.w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, g.out_w()); }

// Note [Planes are images of one channel]
// Contiguous tensors [n,c,h,w] lie as n * c images of one channel do, channels-last. So there is one kernel for both layouts: of images [images, h, w, channels].
struct Layout {
  int64_t images = 0, channels = 1;
  bool has_packs = false;                              // do all channels of a pixel split into packs of 16 bytes?
};

// Of tensors of elements of `size` bytes, each [n,c,h,w]. ShapeError naming `op` unless they all lie one way or all the other, with planes that can be numbered.
Layout layout_of(const char* op, int64_t size, std::initializer_list<ConstView> views) {
  for (const ConstView& v : views)
    check<ShapeError>(!v || v.size(2) * v.size(3) < index_limit, op, ": planes of ", v.shape, " are too large for the CUDA kernels, which take fewer than 2^31 elements");
  const ConstView& first = *views.begin();
  const bool is_planar = std::all_of(views.begin(), views.end(), [](const ConstView& v) { return !v || v.is_contiguous(); });
  if (is_planar) return {first.size(0) * first.size(1), 1, false};
  Layout layout{first.size(0), first.size(1), first.size(1) % (16 / size) == 0};
  for (const ConstView& v : views) {
    check<ShapeError>(!v || v.is_channels_last(), op, ": tensors must be contiguous, or all of them channels-last; got one of shape ", v.shape, " with strides ", v.strides);
    layout.has_packs = layout.has_packs && (!v || is_aligned(v.data));
  }
  return layout;
}

// From a thread's number to an image, a place in it, and its first channel.
struct PlaceIndex {
  FastDivide by_packs, by_plane, by_width;
  int32_t count = 0, channels = 1, width = 1;          // threads of the launch; of an image; channels of a thread

  PlaceIndex(const char* op, int64_t images, int64_t rows, int64_t columns, int64_t channels, int64_t width)
      : by_packs(divide_by(channels / width)), by_plane(divide_by(rows * columns)), by_width(divide_by(columns)), count(static_cast<int32_t>(images * rows * columns * (channels / width))),
        channels(static_cast<int32_t>(channels)), width(static_cast<int32_t>(width)) {
    check<ShapeError>(rows * columns * channels < index_limit, op, ": an image of ", rows, " x ", columns, " x ", channels, " is too large for the CUDA kernels, which take fewer than 2^31 elements");
  }
  struct Place {
    int32_t image, row, column, channel;
  };
  __device__ Place place(int32_t number) const {
    const int32_t pixel = static_cast<int32_t>(by_packs.quotient(number)), pack = number - pixel * static_cast<int32_t>(by_packs.divisor);
    const int32_t image = static_cast<int32_t>(by_plane.quotient(pixel)), within = pixel - image * static_cast<int32_t>(by_plane.divisor);
    const int32_t row = static_cast<int32_t>(by_width.quotient(within));
    return {image, row, within - row * static_cast<int32_t>(by_width.divisor), pack * width};
  }
  // The first channel of a thread, in an image of `pixels`.
  template <class P>
  __device__ P* image_of(P* data, const Place& p, int64_t pixels) const { return data + p.image * pixels * channels + p.channel; }
};

// Calls f(width, first, index) with the number of channels of a thread as a constant, for runs of images [first, ...) with `rows` x `columns` places and `lanes` threads for each.
template <class T, class F>
void for_each_run(const char* op, const Layout& layout, int64_t rows, int64_t columns, int64_t lanes, F&& f) {
  const auto run = [&](auto width) {
    for_each_run_of_planes(layout.images, rows * columns * (layout.channels / width.value) * lanes,
                           [&](int64_t first, int64_t count) { f(width, first, PlaceIndex(op, count, rows, columns, layout.channels, width.value)); });
  };
  if (layout.has_packs) run(std::integral_constant<int, full_pack<T>>());
  else run(std::integral_constant<int, 1>());
}

// The greatest value so far, and where: the rule of "the first of equals; a NaN wins", for values that come in order.
template <class T>
struct Greatest {
  T value;
  int32_t where;

  __device__ void see(T candidate, int32_t at) {
    if (!(candidate > value) && candidate == candidate) return;
    value = candidate;
    where = at;
  }
};

// --- windows of one size ---

template <class T, int width>
__global__ void __launch_bounds__(threads_per_block) max_pool_kernel(PlaceIndex index, Axis v, Axis h, const T* x, T* y, int64_t* indices) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaceIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const image = index.image_of(x, p, static_cast<int64_t>(v.size) * h.size);
  const int32_t top = v.start(p.row), left = h.start(p.column), first_row = v.first_tap(p.row), first_column = h.first_tap(p.column);
  using A = Accumulate<T>;
  Greatest<A> best[width];
#pragma unroll
  for (int c = 0; c < width; ++c) best[c] = {-std::numeric_limits<A>::infinity(), (top + first_row * v.dilation) * h.size + left + first_column * h.dilation};
  for (int32_t i = first_row; i < v.kernel && top + i * v.dilation < v.size; ++i)
    for (int32_t j = first_column; j < h.kernel && left + j * h.dilation < h.size; ++j) {
      const int32_t at = (top + i * v.dilation) * h.size + left + j * h.dilation;
      const Pack<T, width> values = load_pack<T, width>(image + static_cast<int64_t>(at) * index.channels, 0);
#pragma unroll
      for (int c = 0; c < width; ++c) best[c].see(widen(values[c]), at);
    }
  Pack<T, width> result;
#pragma unroll
  for (int c = 0; c < width; ++c) result[c] = narrow<T>(best[c].value);
  store_pack(y, number, result);
  if (!indices) return;
  constexpr int together = width > 1 ? 2 : 1;
#pragma unroll
  for (int c = 0; c < width; c += together) {
    Pack<int64_t, together> where;
#pragma unroll
    for (int k = 0; k < together; ++k) where[k] = best[c + k].where;
    store_pack(indices + number * width + c, 0, where);
  }
}

// sums += pack / divisor, or pack itself.
template <class T, int width>
__device__ void add_pack(Accumulate<T> (&sums)[width], const T* from, Accumulate<T> divisor) {
  const Pack<T, width> values = load_pack<T, width>(from, 0);
#pragma unroll
  for (int c = 0; c < width; ++c) sums[c] += widen(values[c]) / divisor;
}
template <class T, int width>
__device__ void add_pack(Accumulate<T> (&sums)[width], const T* from) {
  const Pack<T, width> values = load_pack<T, width>(from, 0);
#pragma unroll
  for (int c = 0; c < width; ++c) sums[c] += widen(values[c]);
}
template <class T, int width>
__device__ void store_sums(T* to, int64_t number, const Accumulate<T> (&sums)[width], Accumulate<T> divisor) {
  Pack<T, width> result;
#pragma unroll
  for (int c = 0; c < width; ++c) result[c] = narrow<T>(sums[c] / divisor);
  store_pack(to, number, result);
}

template <class T, int width>
__global__ void __launch_bounds__(threads_per_block) avg_pool_kernel(PlaceIndex index, Axis v, Axis h, bool count_include_pad, const T* x, T* y) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaceIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const image = index.image_of(x, p, static_cast<int64_t>(v.size) * h.size);
  const int32_t top = v.start(p.row), left = h.start(p.column);
  using A = Accumulate<T>;
  A sums[width] = {};
  for (int32_t i = max(top, 0); i < min(top + v.kernel, v.size); ++i)
    for (int32_t j = max(left, 0); j < min(left + h.kernel, h.size); ++j) add_pack(sums, image + static_cast<int64_t>(i * h.size + j) * index.channels);
  store_sums(y, number, sums, static_cast<A>(v.count(p.row, count_include_pad)) * static_cast<A>(h.count(p.column, count_include_pad)));
}

void max_pool(Queue queue, const PoolGeometry& g, const ConstView& x, const View& y, const View& indices) {
  constexpr const char* op = "max_pool2d";
  dispatch_floating(x.dtype, op, [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical(op, g), h = horizontal(op, g);
    const Layout layout = layout_of(op, sizeof(T), {x, y, indices});
    const int64_t inputs = g.h * g.w * layout.channels, outputs = g.out_h() * g.out_w() * layout.channels;       // of an image
    for_each_run<T>(op, layout, g.out_h(), g.out_w(), 1, [&](auto width, int64_t first, const PlaceIndex& index) {
      launch(queue, "max_pool", thread_each(index.count), max_pool_kernel<T, width.value>, index, v, h, x.as<T>() + first * inputs, y.as<T>() + first * outputs,
             indices ? indices.as<int64_t>() + first * outputs : nullptr);
    });
  });
}

void avg_pool(Queue queue, const PoolGeometry& g, const ConstView& x, const View& y) {
  constexpr const char* op = "avg_pool2d";
  dispatch_floating(x.dtype, op, [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical(op, g), h = horizontal(op, g);
    const Layout layout = layout_of(op, sizeof(T), {x, y});
    const int64_t inputs = g.h * g.w * layout.channels, outputs = g.out_h() * g.out_w() * layout.channels;
    for_each_run<T>(op, layout, g.out_h(), g.out_w(), 1, [&](auto width, int64_t first, const PlaceIndex& index) {
      launch(queue, "avg_pool", thread_each(index.count), avg_pool_kernel<T, width.value>, index, v, h, g.count_include_pad, x.as<T>() + first * inputs, y.as<T>() + first * outputs);
    });
  });
}

// Of the outputs whose windows an element lies in, those whose index is the element. The axes' kernels are the windows' whole reach: with a dilation, some windows step over it.
template <class T, int width>
__global__ void __launch_bounds__(threads_per_block) max_pool_gather_kernel(PlaceIndex index, Axis v, Axis h, const T* dy, const int64_t* indices, T* dx) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaceIndex::Place p = index.place(static_cast<int32_t>(number));
  const int64_t outputs = static_cast<int64_t>(v.outputs) * h.outputs;
  const T* const gradient = index.image_of(dy, p, outputs);
  const int64_t* const where = index.image_of(indices, p, outputs);
  const int32_t here = p.row * h.size + p.column;
  using A = Accumulate<T>;
  A sums[width] = {};
  constexpr int together = width > 1 ? 2 : 1;
  for (int32_t i = v.first_output(p.row); i < v.end_output(p.row); ++i)
    for (int32_t j = h.first_output(p.column); j < h.end_output(p.column); ++j) {
      const int64_t at = static_cast<int64_t>(i * h.outputs + j) * index.channels;
      const Pack<T, width> values = load_pack<T, width>(gradient + at, 0);
#pragma unroll
      for (int c = 0; c < width; c += together) {
        const Pack<int64_t, together> found = load_pack<int64_t, together>(where + at + c, 0);
#pragma unroll
        for (int k = 0; k < together; ++k)
          if (found[k] == here) sums[c + k] += widen(values[c + k]);
      }
    }
  store_sums(dx, number, sums, A(1));
}

void max_pool_gather(Queue queue, const PoolGeometry& g, const ConstView& dy, const ConstView& indices, const View& dx) {
  constexpr const char* op = "max_pool2d_backward";
  dispatch_floating(dy.dtype, op, [&](auto zero) {
    using T = decltype(zero);
    const Axis v = axis_of(op, g.h, (g.kernel_h - 1) * g.dilation_h + 1, g.stride_h, g.pad_h, 1, g.out_h()), h = axis_of(op, g.w, (g.kernel_w - 1) * g.dilation_w + 1, g.stride_w, g.pad_w, 1, g.out_w());
    const Layout layout = layout_of(op, sizeof(T), {dx, dy, indices});
    const int64_t inputs = g.h * g.w * layout.channels, outputs = g.out_h() * g.out_w() * layout.channels;
    for_each_run<T>(op, layout, g.h, g.w, 1, [&](auto width, int64_t first, const PlaceIndex& index) {
      launch(queue, "max_pool_gather", thread_each(index.count), max_pool_gather_kernel<T, width.value>, index, v, h, dy.as<T>() + first * outputs, indices.as<int64_t>() + first * outputs,
             dx.as<T>() + first * inputs);
    });
  });
}

// A block for each plane: nothing is known of the windows, so any output may point anywhere.
template <class T>
__global__ void __launch_bounds__(threads_per_block) max_pool_backward_kernel(int64_t inputs, int64_t outputs, const T* dy, const int64_t* indices, Accumulate<T>* dx) {
  auto& claims = shared<Claims>();
  const int64_t plane = blockIdx.x;
  dy += plane * outputs;
  indices += plane * outputs;
  dx += plane * inputs;
  claims.clear();
  for (int64_t i = threadIdx.x; i < inputs; i += threads_per_block) dx[i] = 0;
  for (int64_t first = 0; first < outputs; first += threads_per_block) {
    const int64_t output = first + threadIdx.x;
    bool waits = output < outputs;
    const int64_t place = waits ? indices[output] : 0;
    while (__syncthreads_or(waits)) {
      if (!claims.take_turn(waits, place)) continue;
      dx[place] += widen(dy[output]);
      waits = false;
    }
  }
}

void max_pool_backward(Queue queue, const PoolGeometry* windows, const ConstView& dy, const ConstView& indices, const View& dx) {
  if (windows) return max_pool_gather(queue, *windows, dy, indices, dx);
  dispatch_floating(dy.dtype, "max_pool2d_backward", [&](auto zero) {
    using T = decltype(zero);
    check<ShapeError>(dy.is_contiguous() && indices.is_contiguous() && dx.is_contiguous(), "max_pool2d_backward: without the windows, tensors must be contiguous; dx is ", dx.shape, " with strides ", dx.strides);
    const int64_t planes = dx.shape[0] * dx.shape[1];
    if (planes == 0) return;
    check<ShapeError>(planes < index_limit, "max_pool2d_backward: ", planes, " planes are more than one launch can have");
    const Grid grid{dim3(static_cast<unsigned>(planes)), dim3(threads_per_block), sizeof(Claims)};
    with_wide_sums<T>(queue, dx, [&](auto* sums) {
      launch(queue, "max_pool_backward", grid, max_pool_backward_kernel<T>, dx.numel() / planes, dy.numel() / planes, dy.as<T>(), indices.as<int64_t>(), sums);
    });
  });
}

template <class T, int width>
__global__ void __launch_bounds__(threads_per_block) avg_pool_backward_kernel(PlaceIndex index, Axis v, Axis h, bool count_include_pad, const T* dy, T* dx) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaceIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const gradient = index.image_of(dy, p, static_cast<int64_t>(v.outputs) * h.outputs);
  using A = Accumulate<T>;
  A sums[width] = {};
  for (int32_t i = v.first_output(p.row); i < v.end_output(p.row); ++i)
    for (int32_t j = h.first_output(p.column); j < h.end_output(p.column); ++j)
      add_pack(sums, gradient + static_cast<int64_t>(i * h.outputs + j) * index.channels, static_cast<A>(v.count(i, count_include_pad)) * static_cast<A>(h.count(j, count_include_pad)));
  store_sums(dx, number, sums, A(1));
}

void avg_pool_backward(Queue queue, const PoolGeometry& g, const ConstView& dy, const View& dx) {
  constexpr const char* op = "avg_pool2d_backward";
  dispatch_floating(dy.dtype, op, [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical(op, g), h = horizontal(op, g);
    const Layout layout = layout_of(op, sizeof(T), {dx, dy});
    const int64_t inputs = g.h * g.w * layout.channels, outputs = g.out_h() * g.out_w() * layout.channels;
    for_each_run<T>(op, layout, g.h, g.w, 1, [&](auto width, int64_t first, const PlaceIndex& index) {
      launch(queue, "avg_pool_backward", thread_each(index.count), avg_pool_backward_kernel<T, width.value>, index, v, h, g.count_include_pad, dy.as<T>() + first * outputs,
             dx.as<T>() + first * inputs);
    });
  });
}

// --- windows that divide the input ---

// One axis of adaptive pooling.
struct Division {
  int32_t in = 0, out = 0;
  FastDivide by_in, by_out;

  Division(const char* op, int64_t in, int64_t out) : in(static_cast<int32_t>(in)), out(static_cast<int32_t>(out)) {
    check<ShapeError>(in < index_limit && out < index_limit && (in + 1) * (out + 1) < index_limit, op, ": ", in, " elements to ", out, " are too many for the CUDA kernels");
    by_in = divide_by(in), by_out = divide_by(out);
  }
  __device__ int32_t start(int32_t i) const { return static_cast<int32_t>(by_out.quotient(i * in)); }
  __device__ int32_t end(int32_t i) const { return static_cast<int32_t>(by_out.quotient((i + 1) * in + out - 1)); }
  // The outputs [first_output, end_output) whose window an input lies in.
  __device__ int32_t first_output(int32_t input) const { return static_cast<int32_t>(by_in.quotient(input * out)); }
  __device__ int32_t end_output(int32_t input) const { return static_cast<int32_t>(by_in.quotient((input + 1) * out + in - 1)); }
};

struct Window {
  int32_t top, left, height, width, pitch;             // pitch: the width of the plane
  __device__ int32_t size() const { return height * width; }
  // Of the window's element i, in row-major order.
  __device__ int32_t offset(int32_t i) const {
    const int32_t row = static_cast<int32_t>(static_cast<uint32_t>(i) / static_cast<uint32_t>(width));
    return (top + row) * pitch + left + i - row * width;
  }
};

__device__ Window window_of(const Division& v, const Division& h, const PlaceIndex::Place& p) {
  const int32_t top = v.start(p.row), left = h.start(p.column);
  return {top, left, v.end(p.row) - top, h.end(p.column) - left, h.in};
}

// What the lanes of a warp found, each over its own elements: they did not see them in order, so of equals the first has to be told by its place, and of NaNs the last.
struct Greater {
  template <class T>
  __device__ Greatest<T> operator()(const Greatest<T>& a, const Greatest<T>& b) const {
    const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
    if (a_is_nan && b_is_nan) return a.where > b.where ? a : b;
    if (a_is_nan || b_is_nan) return a_is_nan ? a : b;
    if (a.value == b.value) return a.where < b.where ? a : b;
    return a.value > b.value ? a : b;
  }
};

template <class T>
__device__ Greatest<T> warp_greatest(Greatest<T> value) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2)
    value = Greater()(value, Greatest<T>{__shfl_xor_sync(all_lanes, value.value, distance), __shfl_xor_sync(all_lanes, value.where, distance)});
  return value;
}

// `lanes` threads for an output: 1, or a warp where windows are large.
template <class T, int width, int lanes>
__global__ void __launch_bounds__(threads_per_block) adaptive_avg_pool_kernel(PlaceIndex index, Division v, Division h, const T* x, T* y) {
  const int64_t number = global_thread() / lanes;
  const bool is_output = number < index.count;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  double sums[width] = {};
  int32_t size = 1;
  if (is_output) {
    const PlaceIndex::Place p = index.place(static_cast<int32_t>(number));
    const Window w = window_of(v, h, p);
    const T* const image = index.image_of(x, p, static_cast<int64_t>(v.in) * h.in);
    size = w.size();
    for (int32_t i = lane; i < size; i += lanes) {
      const Pack<T, width> values = load_pack<T, width>(image + static_cast<int64_t>(w.offset(i)) * index.channels, 0);
#pragma unroll
      for (int c = 0; c < width; ++c) sums[c] += static_cast<double>(widen(values[c]));
    }
  }
  Pack<T, width> result;
#pragma unroll
  for (int c = 0; c < width; ++c) result[c] = narrow<T>(static_cast<Accumulate<T>>(warp_reduce<lanes>(sums[c], Sum()) / size));
  if (is_output && lane == 0) store_pack(y, number, result);
}

template <class T, int lanes>
__global__ void __launch_bounds__(threads_per_block) adaptive_max_pool_kernel(PlaceIndex index, Division v, Division h, const T* x, T* y, int64_t* indices) {
  const int64_t number = global_thread() / lanes;
  const bool is_output = number < index.count;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  using A = Accumulate<T>;
  Greatest<A> best{-std::numeric_limits<A>::infinity(), 0};
  if (is_output) {
    const PlaceIndex::Place p = index.place(static_cast<int32_t>(number));
    const Window w = window_of(v, h, p);
    const T* const plane = index.image_of(x, p, static_cast<int64_t>(v.in) * h.in);
    best.where = w.top * w.pitch + w.left;
    for (int32_t i = lane; i < w.size(); i += lanes) best.see(widen(plane[w.offset(i)]), w.offset(i));
  }
  if constexpr (lanes > 1) best = warp_greatest(best);
  if (!is_output || lane != 0) return;
  y[number] = narrow<T>(best.value);
  if (indices) indices[number] = best.where;
}

bool has_large_windows(const AdaptivePoolGeometry& g) { return g.h * g.w >= 64 * g.out_h * g.out_w; }

void adaptive_avg_pool(Queue queue, const AdaptivePoolGeometry& g, const ConstView& x, const View& y) {
  constexpr const char* op = "adaptive_avg_pool2d";
  dispatch_floating(x.dtype, op, [&](auto zero) {
    using T = decltype(zero);
    const Division v(op, g.h, g.out_h), h(op, g.w, g.out_w);
    const Layout layout = layout_of(op, sizeof(T), {x, y});
    const int64_t inputs = g.h * g.w * layout.channels, outputs = g.out_h * g.out_w * layout.channels;
    for_each_run<T>(op, layout, g.out_h, g.out_w, warp_size, [&](auto width, int64_t first, const PlaceIndex& index) {
      const T* const from = x.as<T>() + first * inputs;
      T* const to = y.as<T>() + first * outputs;
      if (has_large_windows(g)) launch(queue, "adaptive_avg_pool_warp", thread_each(int64_t{index.count} * warp_size), adaptive_avg_pool_kernel<T, width.value, warp_size>, index, v, h, from, to);
      else launch(queue, "adaptive_avg_pool", thread_each(index.count), adaptive_avg_pool_kernel<T, width.value, 1>, index, v, h, from, to);
    });
  });
}

void adaptive_max_pool(Queue queue, const AdaptivePoolGeometry& g, const ConstView& x, const View& y, const View& indices) {
  constexpr const char* op = "adaptive_max_pool2d";
  dispatch_floating(x.dtype, op, [&](auto zero) {
    using T = decltype(zero);
    const Division v(op, g.h, g.out_h), h(op, g.w, g.out_w);
    Layout layout = layout_of(op, sizeof(T), {x, y, indices});
    layout.has_packs = false;
    const int64_t inputs = g.h * g.w * layout.channels, outputs = g.out_h * g.out_w * layout.channels;
    for_each_run<T>(op, layout, g.out_h, g.out_w, warp_size, [&](auto, int64_t first, const PlaceIndex& index) {
      const T* const from = x.as<T>() + first * inputs;
      T* const to = y.as<T>() + first * outputs;
      int64_t* const where = indices ? indices.as<int64_t>() + first * outputs : nullptr;
      if (has_large_windows(g)) launch(queue, "adaptive_max_pool_warp", thread_each(int64_t{index.count} * warp_size), adaptive_max_pool_kernel<T, warp_size>, index, v, h, from, to, where);
      else launch(queue, "adaptive_max_pool", thread_each(index.count), adaptive_max_pool_kernel<T, 1>, index, v, h, from, to, where);
    });
  });
}

template <class T, int width>
__global__ void __launch_bounds__(threads_per_block) adaptive_avg_pool_backward_kernel(PlaceIndex index, Division v, Division h, const T* dy, T* dx) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaceIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const gradient = index.image_of(dy, p, static_cast<int64_t>(v.out) * h.out);
  using A = Accumulate<T>;
  A sums[width] = {};
  for (int32_t i = v.first_output(p.row); i < v.end_output(p.row); ++i)
    for (int32_t j = h.first_output(p.column); j < h.end_output(p.column); ++j)
      add_pack(sums, gradient + static_cast<int64_t>(i * h.out + j) * index.channels, static_cast<A>(v.end(i) - v.start(i)) * static_cast<A>(h.end(j) - h.start(j)));
  store_sums(dx, number, sums, A(1));
}

void adaptive_avg_pool_backward(Queue queue, const AdaptivePoolGeometry& g, const ConstView& dy, const View& dx) {
  constexpr const char* op = "adaptive_avg_pool2d_backward";
  dispatch_floating(dy.dtype, op, [&](auto zero) {
    using T = decltype(zero);
    const Division v(op, g.h, g.out_h), h(op, g.w, g.out_w);
    const Layout layout = layout_of(op, sizeof(T), {dx, dy});
    const int64_t inputs = g.h * g.w * layout.channels, outputs = g.out_h * g.out_w * layout.channels;
    for_each_run<T>(op, layout, g.h, g.w, 1, [&](auto width, int64_t first, const PlaceIndex& index) {
      launch(queue, "adaptive_avg_pool_backward", thread_each(index.count), adaptive_avg_pool_backward_kernel<T, width.value>, index, v, h, dy.as<T>() + first * outputs,
             dx.as<T>() + first * inputs);
    });
  });
}

}  // namespace

void add_pool(KernelTable& t) {
  t.computes_half.add(Family::pool);
  t.max_pool = max_pool;
  t.max_pool_backward = max_pool_backward;
  t.avg_pool = avg_pool;
  t.avg_pool_backward = avg_pool_backward;
}

void add_adaptive_pool(KernelTable& t) {
  t.adaptive_avg_pool = adaptive_avg_pool;
  t.adaptive_avg_pool_backward = adaptive_avg_pool_backward;
  t.adaptive_max_pool = adaptive_max_pool;
}

}  // namespace fovea::kernels::cuda
