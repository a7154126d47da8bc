// Reading the patches of a convolution as rows of a matrix, without that matrix being in memory.
//
// The image is copied once, padded with zeros and, for strides, split so that pixels `stride` apart lie beside each other. After that every element
// of a patch is a fixed offset ("tap") away from the patch's origin, and the origins of neighbouring patches are neighbours in memory: a row of the
// patch matrix is made of a few contiguous runs. Without padding and stride the image itself will do.
#pragma once

#include <cstdint>

namespace fovea::kernels {

// Element (tap, pixel) of the patch matrix is at data[tap / num_taps * channel_stride + taps[tap % num_taps] + origin(pixel)], where pixel counts through
// images of height x width patches, and origin = image * image_stride + y * row_stride + x.
template <class T>
struct PatchSource {
  const T* data = nullptr;
  int64_t size = 0;                                  // elements that may be read from data on
  int64_t width = 1, height = 1;
  int64_t row_stride = 1, channel_stride = 0, image_stride = 0;
  const int64_t* taps = nullptr;
  int64_t num_taps = 1;
};

// How planes are padded and split: to[plane][a][b][i][j] = from[plane][i * step_h + a - shift_h][j * step_w + b - shift_w], zero outside, for a < phases_h, b < phases_w.
struct PlaneSplit {
  int64_t planes = 0, h = 0, w = 0;                  // of the image
  int64_t step_h = 1, step_w = 1, phases_h = 1, phases_w = 1, shift_h = 0, shift_w = 0;
  int64_t out_h = 1, out_w = 1;                      // of one phase

  int64_t plane_size() const { return phases_h * phases_w * out_h * out_w; }
  bool is_identity() const {
    return step_h == 1 && step_w == 1 && phases_h == 1 && phases_w == 1 && shift_h == 0 && shift_w == 0 && out_h <= h && out_w <= w;
  }
};

template <class T>
struct PatchFunctions {
  // to[t * pitch + p] = element (tap + t, pixel + p) for t < taps, p < pixels <= 256 and pitch >= pixels. Overruns the end by less than a vector.
  void (*pack)(const PatchSource<T>&, int64_t pixel, int64_t pixels, int64_t tap, int64_t taps, T* to, int64_t pitch);
  void (*split)(const PlaneSplit&, const T* from, T* to);
  void (*split_plane)(const PlaneSplit&, const T* from, T* to);      // one plane
  // sums[c] = sum over images and pixels of x[images, channels, pixels], in a fixed order
  void (*sum_channels)(const T* x, int64_t images, int64_t channels, int64_t pixels, T* sums);
};

// The version for this processor; T is float or double.
template <class T>
const PatchFunctions<T>& patch_functions();

}  // namespace fovea::kernels
