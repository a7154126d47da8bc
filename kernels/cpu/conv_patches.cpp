// Packing the patches of a convolution (conv_patches.h). Floor: one vector read and one written for each vector of the packed block.
#include <fovea/kernels/cpu/conv_patches.h>

#include <algorithm>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/conv_patches.cpp"
#include <fovea/kernels/cpu/simd.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// At most one vector of a row: `length` elements that start `source` after the tap and go to `column`.
struct Piece {
  int64_t source;
  int32_t column, length;
};

constexpr int64_t max_pixels = 256;

// Cuts pixels [pixel, pixel + pixels) into runs that are contiguous in the source, and those into vectors.
template <class T>
int64_t cut(const PatchSource<T>& s, int64_t pixel, int64_t pixels, Piece* pieces) {
  const int64_t lanes = hn::MaxLanes(hn::ScalableTag<T>());
  int64_t x = pixel % s.width, y = pixel / s.width % s.height, image = pixel / s.width / s.height, count = 0;
  for (int64_t column = 0; column < pixels;) {
    const int64_t run = std::min(pixels - column, s.width - x), source = image * s.image_stride + y * s.row_stride + x;
    for (int64_t e = 0; e < run; e += lanes)
      pieces[count++] = {source + e, static_cast<int32_t>(column + e), static_cast<int32_t>(std::min(lanes, run - e))};
    column += run;
    x = 0;
    if (++y == s.height) {
      y = 0;
      ++image;
    }
  }
  return count;
}

// Note [Pieces are written from left to right]
// Whole vectors are read and written even where a piece is shorter: what is written too much is overwritten by the next piece, or by the next row. So the
// source must be readable a little past its last piece; where it is not, pieces are copied element by element.
template <class T>
void pack(const PatchSource<T>& s, int64_t pixel, int64_t pixels, int64_t tap, int64_t taps, T* to, int64_t pitch) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::MaxLanes(d);
  Piece pieces[max_pixels];
  const int64_t count = cut(s, pixel, pixels, pieces);
  int64_t channel = tap / s.num_taps, within = tap % s.num_taps;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t offset = channel * s.channel_stride + s.taps[within];
    const T* from = s.data + offset;
    if (offset + pieces[count - 1].source + lanes <= s.size) {
      for (int64_t p = 0; p < count; ++p) hn::StoreU(hn::LoadU(d, from + pieces[p].source), d, to + pieces[p].column);
    } else {
      for (int64_t p = 0; p < count; ++p) std::copy_n(from + pieces[p].source, pieces[p].length, to + pieces[p].column);
    }
    to += pitch;
    if (++within == s.num_taps) {
      within = 0;
      ++channel;
    }
  }
}

template <class T>
void copy_row(const T* from, T* to, int64_t count) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::MaxLanes(d);
  if (count < lanes) {
    for (int64_t j = 0; j < count; ++j) to[j] = from[j];
    return;
  }
  for (int64_t j = 0; j + lanes < count; j += lanes) hn::StoreU(hn::LoadU(d, from + j), d, to + j);
  hn::StoreU(hn::LoadU(d, from + count - lanes), d, to + count - lanes);       // overlaps the one before
}

// to[j] = from[j * step + first], zero where that is outside [0, size).
template <class T>
void split_row(const T* from, int64_t size, int64_t first, int64_t step, T* to, int64_t count) {
  const int64_t begin = std::min(count, first >= 0 ? 0 : (-first + step - 1) / step);
  const int64_t end = std::max(begin, std::min(count, size > first ? (size - first + step - 1) / step : 0));
  for (int64_t j = 0; j < begin; ++j) to[j] = T(0);
  if (step == 1) {
    copy_row(from + begin + first, to + begin, end - begin);
  } else if (step == 2) {
    for (int64_t j = begin; j < end; ++j) to[j] = from[2 * j + first];
  } else {
    for (int64_t j = begin; j < end; ++j) to[j] = from[step * j + first];
  }
  for (int64_t j = end; j < count; ++j) to[j] = T(0);
}

template <class T>
void split_plane(const PlaneSplit& s, const T* from, T* to) {
  for (int64_t a = 0; a < s.phases_h; ++a)
    for (int64_t b = 0; b < s.phases_w; ++b)
      for (int64_t i = 0; i < s.out_h; ++i, to += s.out_w) {
        const int64_t y = i * s.step_h + a - s.shift_h;
        if (y < 0 || y >= s.h) {
          std::fill(to, to + s.out_w, T(0));
        } else {
          split_row(from + y * s.w, s.w, b - s.shift_w, s.step_w, to, s.out_w);
        }
      }
}

template <class T>
void split(const PlaneSplit& s, const T* from, T* to) {
  const int64_t grain = 1 + 32768 / std::max<int64_t>(1, s.plane_size());
  parallel_for(s.planes, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t plane = begin; plane < end; ++plane) split_plane(s, from + plane * s.h * s.w, to + plane * s.plane_size());
  });
}

template <class T>
T sum_row(const T* x, int64_t count) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::MaxLanes(d);
  auto sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    sum0 = hn::Add(sum0, hn::LoadU(d, x + i));
    sum1 = hn::Add(sum1, hn::LoadU(d, x + i + lanes));
    sum2 = hn::Add(sum2, hn::LoadU(d, x + i + 2 * lanes));
    sum3 = hn::Add(sum3, hn::LoadU(d, x + i + 3 * lanes));
  }
  for (; i + lanes <= count; i += lanes) sum0 = hn::Add(sum0, hn::LoadU(d, x + i));
  T sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
  for (; i < count; ++i) sum += x[i];
  return sum;
}

template <class T>
void sum_channels(const T* x, int64_t images, int64_t channels, int64_t pixels, T* sums) {
  const int64_t grain = 1 + 16384 / std::max<int64_t>(1, images * pixels);
  parallel_for(channels, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t c = begin; c < end; ++c) {
      T sum = 0;
      for (int64_t n = 0; n < images; ++n) sum += sum_row(x + (n * channels + c) * pixels, pixels);
      sums[c] = sum;
    }
  });
}

template <class T>
const PatchFunctions<T>* functions() {
  static constexpr PatchFunctions<T> table = {pack<T>, split<T>, split_plane<T>, sum_channels<T>};
  return &table;
}
const PatchFunctions<float>* float_functions() { return functions<float>(); }
const PatchFunctions<double>* double_functions() { return functions<double>(); }

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

template <>
const PatchFunctions<float>& patch_functions<float>() {
  static const PatchFunctions<float>& table = *FOVEA_BEST(float_functions)();
  return table;
}

template <>
const PatchFunctions<double>& patch_functions<double>() {
  static const PatchFunctions<double>& table = *FOVEA_BEST(double_functions)();
  return table;
}

}  // namespace fovea::kernels
#endif
