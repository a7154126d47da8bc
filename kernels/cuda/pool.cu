// Max and average pooling over x [n, c, h, w], with kernel, stride, padding, (max:) dilation and ceil_mode, or to a given size (adaptive), and their backward passes.
//     y[oh, ow] = max or mean over x[oh * stride - pad + i * dilation, ow * stride - pad + j * dilation]; what lies outside x does not count for the maximum and is
//     zero for the mean, which divides by the window clipped to the padded input, or (count_include_pad = false) to the input, as PyTorch does.
//     Adaptive: output i looks at inputs [floor(i * in / out), ceil((i + 1) * in / out)).
// indices: h * w positions within the plane, int64; the first of equals; a NaN wins. Layout: contiguous. Overwrites its outputs. float32, float64, and the half types.
// Sums in the element's type, of half types in float32; adaptive means in float64. Deterministic: gradients of means are gathered, each element by its own thread; those of maxima, where only
// the indices are known, are added by threads that take turns (turns.h).
// Floor: one read of x, one write of y (and of the 8-byte indices).
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

// From a thread's number to a plane and a place in it.
struct PlaneIndex {
  FastDivide by_plane, by_width;
  int32_t count = 0;                                   // places of the launch

  PlaneIndex(const char* op, int64_t planes, int64_t height, int64_t width) : by_plane(divide_by(height * width)), by_width(divide_by(width)), count(static_cast<int32_t>(planes * height * width)) {
    check<ShapeError>(height * width < index_limit, op, ": a plane of ", height, " x ", width, " is too large for the CUDA kernels, which take fewer than 2^31 elements");
  }
  struct Place {
    int32_t plane, row, column;
  };
  __device__ Place place(int32_t number) const {
    const int32_t plane = static_cast<int32_t>(by_plane.quotient(number)), within = number - plane * static_cast<int32_t>(by_plane.divisor);
    const int32_t row = static_cast<int32_t>(by_width.quotient(within));
    return {plane, row, within - row * static_cast<int32_t>(by_width.divisor)};
  }
};

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

template <class T>
__global__ void __launch_bounds__(threads_per_block) max_pool_kernel(PlaneIndex index, Axis v, Axis h, const T* x, T* y, int64_t* indices) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaneIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const plane = x + static_cast<int64_t>(p.plane) * v.size * h.size;
  const int32_t top = v.start(p.row), left = h.start(p.column), first_row = v.first_tap(p.row), first_column = h.first_tap(p.column);
  using A = Accumulate<T>;
  Greatest<A> best{-std::numeric_limits<A>::infinity(), (top + first_row * v.dilation) * h.size + left + first_column * h.dilation};
  for (int32_t i = first_row; i < v.kernel && top + i * v.dilation < v.size; ++i)
    for (int32_t j = first_column; j < h.kernel && left + j * h.dilation < h.size; ++j) {
      const int32_t at = (top + i * v.dilation) * h.size + left + j * h.dilation;
      best.see(widen(plane[at]), at);
    }
  y[number] = narrow<T>(best.value);
  if (indices) indices[number] = best.where;
}

template <class T>
__global__ void __launch_bounds__(threads_per_block) avg_pool_kernel(PlaneIndex index, Axis v, Axis h, bool count_include_pad, const T* x, T* y) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaneIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const plane = x + static_cast<int64_t>(p.plane) * v.size * h.size;
  const int32_t top = v.start(p.row), left = h.start(p.column);
  using A = Accumulate<T>;
  A sum = 0;
  for (int32_t i = max(top, 0); i < min(top + v.kernel, v.size); ++i)
    for (int32_t j = max(left, 0); j < min(left + h.kernel, h.size); ++j) sum += widen(plane[i * h.size + j]);
  y[number] = narrow<T>(sum / (static_cast<A>(v.count(p.row, count_include_pad)) * static_cast<A>(h.count(p.column, count_include_pad))));
}

void max_pool(Queue queue, const PoolGeometry& g, const ConstView& x, const View& y, const View& indices) {
  dispatch_floating(x.dtype, "max_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical("max_pool2d", g), h = horizontal("max_pool2d", g);
    const int64_t outputs = g.out_h() * g.out_w();
    for_each_run_of_planes(g.n * g.c, outputs, [&](int64_t first, int64_t count) {
      const PlaneIndex index("max_pool2d", count, g.out_h(), g.out_w());
      launch(queue, "max_pool", thread_each(count * outputs), max_pool_kernel<T>, index, v, h, x.as<T>() + first * g.h * g.w, y.as<T>() + first * outputs,
             indices ? indices.as<int64_t>() + first * outputs : nullptr);
    });
  });
}

void avg_pool(Queue queue, const PoolGeometry& g, const ConstView& x, const View& y) {
  dispatch_floating(x.dtype, "avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical("avg_pool2d", g), h = horizontal("avg_pool2d", g);
    const int64_t outputs = g.out_h() * g.out_w();
    for_each_run_of_planes(g.n * g.c, outputs, [&](int64_t first, int64_t count) {
      const PlaneIndex index("avg_pool2d", count, g.out_h(), g.out_w());
      launch(queue, "avg_pool", thread_each(count * outputs), avg_pool_kernel<T>, index, v, h, g.count_include_pad, x.as<T>() + first * g.h * g.w, y.as<T>() + first * outputs);
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

void max_pool_backward(Queue queue, const ConstView& dy, const ConstView& indices, const View& dx) {
  dispatch_floating(dy.dtype, "max_pool2d_backward", [&](auto zero) {
    using T = decltype(zero);
    const int64_t planes = dx.shape[0] * dx.shape[1];
    if (planes == 0) return;
    check<ShapeError>(planes < index_limit, "max_pool2d_backward: ", planes, " planes are more than one launch can have");
    const Grid grid{dim3(static_cast<unsigned>(planes)), dim3(threads_per_block), sizeof(Claims)};
    with_wide_sums<T>(queue, dx, [&](auto* sums) {
      launch(queue, "max_pool_backward", grid, max_pool_backward_kernel<T>, dx.numel() / planes, dy.numel() / planes, dy.as<T>(), indices.as<int64_t>(), sums);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(threads_per_block) avg_pool_backward_kernel(PlaneIndex index, Axis v, Axis h, bool count_include_pad, const T* dy, T* dx) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaneIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const gradient = dy + static_cast<int64_t>(p.plane) * v.outputs * h.outputs;
  using A = Accumulate<T>;
  A sum = 0;
  for (int32_t i = v.first_output(p.row); i < v.end_output(p.row); ++i)
    for (int32_t j = h.first_output(p.column); j < h.end_output(p.column); ++j)
      sum += widen(gradient[i * h.outputs + j]) / (static_cast<A>(v.count(i, count_include_pad)) * static_cast<A>(h.count(j, count_include_pad)));
  dx[number] = narrow<T>(sum);
}

void avg_pool_backward(Queue queue, const PoolGeometry& g, const ConstView& dy, const View& dx) {
  dispatch_floating(dy.dtype, "avg_pool2d_backward", [&](auto zero) {
    using T = decltype(zero);
    const Axis v = vertical("avg_pool2d_backward", g), h = horizontal("avg_pool2d_backward", g);
    for_each_run_of_planes(g.n * g.c, g.h * g.w, [&](int64_t first, int64_t count) {
      const PlaneIndex index("avg_pool2d_backward", count, g.h, g.w);
      launch(queue, "avg_pool_backward", thread_each(count * g.h * g.w), avg_pool_backward_kernel<T>, index, v, h, g.count_include_pad, dy.as<T>() + first * g.out_h() * g.out_w(),
             dx.as<T>() + first * g.h * g.w);
    });
  });
}

// --- windows that divide the input ---

// One axis of adaptive pooling.
struct Division {
  int32_t in = 0, out = 0;
  FastDivide by_in, by_out;

  Division(const char* op, int64_t in, int64_t out) : in(static_cast<int32_t>(in)), out(static_cast<int32_t>(out)), by_in(divide_by(in)), by_out(divide_by(out)) {
    check<ShapeError>((in + 1) * (out + 1) < index_limit, op, ": ", in, " elements to ", out, " are too many for the CUDA kernels");
  }
  __device__ int32_t start(int32_t i) const { return static_cast<int32_t>(by_out.quotient(i * in)); }
  __device__ int32_t end(int32_t i) const { return static_cast<int32_t>(by_out.quotient((i + 1) * in + out - 1)); }
  // The outputs [first_output, end_output) whose window an input lies in.
  __device__ int32_t first_output(int32_t input) const { return static_cast<int32_t>(by_in.quotient(input * out)); }
  __device__ int32_t end_output(int32_t input) const { return static_cast<int32_t>(by_in.quotient((input + 1) * out - 1)) + 1; }
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

__device__ Window window_of(const Division& v, const Division& h, const PlaneIndex::Place& p) {
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
template <class T, int lanes>
__global__ void __launch_bounds__(threads_per_block) adaptive_avg_pool_kernel(PlaneIndex index, Division v, Division h, const T* x, T* y) {
  const int64_t number = global_thread() / lanes;
  const bool is_output = number < index.count;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  double sum = 0;
  int32_t size = 1;
  if (is_output) {
    const PlaneIndex::Place p = index.place(static_cast<int32_t>(number));
    const Window w = window_of(v, h, p);
    const T* const plane = x + static_cast<int64_t>(p.plane) * v.in * h.in;
    size = w.size();
    for (int32_t i = lane; i < size; i += lanes) sum += static_cast<double>(widen(plane[w.offset(i)]));
  }
  sum = warp_reduce<lanes>(sum, Sum());
  if (is_output && lane == 0) y[number] = narrow<T>(static_cast<Accumulate<T>>(sum / size));
}

template <class T, int lanes>
__global__ void __launch_bounds__(threads_per_block) adaptive_max_pool_kernel(PlaneIndex index, Division v, Division h, const T* x, T* y, int64_t* indices) {
  const int64_t number = global_thread() / lanes;
  const bool is_output = number < index.count;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  using A = Accumulate<T>;
  Greatest<A> best{-std::numeric_limits<A>::infinity(), 0};
  if (is_output) {
    const PlaneIndex::Place p = index.place(static_cast<int32_t>(number));
    const Window w = window_of(v, h, p);
    const T* const plane = x + static_cast<int64_t>(p.plane) * v.in * h.in;
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
  dispatch_floating(x.dtype, "adaptive_avg_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const Division v("adaptive_avg_pool2d", g.h, g.out_h), h("adaptive_avg_pool2d", g.w, g.out_w);
    const int64_t outputs = g.out_h * g.out_w;
    for_each_run_of_planes(g.n * g.c, outputs * warp_size, [&](int64_t first, int64_t count) {
      const PlaneIndex index("adaptive_avg_pool2d", count, g.out_h, g.out_w);
      const T* const from = x.as<T>() + first * g.h * g.w;
      T* const to = y.as<T>() + first * outputs;
      if (has_large_windows(g)) launch(queue, "adaptive_avg_pool_warp", thread_each(count * outputs * warp_size), adaptive_avg_pool_kernel<T, warp_size>, index, v, h, from, to);
      else launch(queue, "adaptive_avg_pool", thread_each(count * outputs), adaptive_avg_pool_kernel<T, 1>, index, v, h, from, to);
    });
  });
}

void adaptive_max_pool(Queue queue, const AdaptivePoolGeometry& g, const ConstView& x, const View& y, const View& indices) {
  dispatch_floating(x.dtype, "adaptive_max_pool2d", [&](auto zero) {
    using T = decltype(zero);
    const Division v("adaptive_max_pool2d", g.h, g.out_h), h("adaptive_max_pool2d", g.w, g.out_w);
    const int64_t outputs = g.out_h * g.out_w;
    for_each_run_of_planes(g.n * g.c, outputs * warp_size, [&](int64_t first, int64_t count) {
      const PlaneIndex index("adaptive_max_pool2d", count, g.out_h, g.out_w);
      const T* const from = x.as<T>() + first * g.h * g.w;
      T* const to = y.as<T>() + first * outputs;
      int64_t* const where = indices ? indices.as<int64_t>() + first * outputs : nullptr;
      if (has_large_windows(g)) launch(queue, "adaptive_max_pool_warp", thread_each(count * outputs * warp_size), adaptive_max_pool_kernel<T, warp_size>, index, v, h, from, to, where);
      else launch(queue, "adaptive_max_pool", thread_each(count * outputs), adaptive_max_pool_kernel<T, 1>, index, v, h, from, to, where);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(threads_per_block) adaptive_avg_pool_backward_kernel(PlaneIndex index, Division v, Division h, const T* dy, T* dx) {
  const int64_t number = global_thread();
  if (number >= index.count) return;
  const PlaneIndex::Place p = index.place(static_cast<int32_t>(number));
  const T* const gradient = dy + static_cast<int64_t>(p.plane) * v.out * h.out;
  using A = Accumulate<T>;
  A sum = 0;
  for (int32_t i = v.first_output(p.row); i < v.end_output(p.row); ++i)
    for (int32_t j = h.first_output(p.column); j < h.end_output(p.column); ++j)
      sum += widen(gradient[i * h.out + j]) / (static_cast<A>(v.end(i) - v.start(i)) * static_cast<A>(h.end(j) - h.start(j)));
  dx[number] = narrow<T>(sum);
}

void adaptive_avg_pool_backward(Queue queue, const AdaptivePoolGeometry& g, const ConstView& dy, const View& dx) {
  dispatch_floating(dy.dtype, "adaptive_avg_pool2d_backward", [&](auto zero) {
    using T = decltype(zero);
    const Division v("adaptive_avg_pool2d_backward", g.h, g.out_h), h("adaptive_avg_pool2d_backward", g.w, g.out_w);
    for_each_run_of_planes(g.n * g.c, g.h * g.w, [&](int64_t first, int64_t count) {
      const PlaneIndex index("adaptive_avg_pool2d_backward", count, g.h, g.w);
      launch(queue, "adaptive_avg_pool_backward", thread_each(count * g.h * g.w), adaptive_avg_pool_backward_kernel<T>, index, v, h, dy.as<T>() + first * g.out_h * g.out_w,
             dx.as<T>() + first * g.h * g.w);
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
