#include <fovea/tensor/image_tensor.h>

#include <algorithm>

#include <fovea/tensor/creation.h>
#include <fovea/tensor/elements.h>

namespace fovea {
namespace {

// Calls set(place in [C,H,W], place in the picture's bytes) for every value.
template <class Set>
void for_each_value(const ImageBytes& image, const Set& set) {
  const int64_t pixels = image.width * image.height;
  for (int64_t c = 0; c < image.channels; ++c)
    for (int64_t i = 0; i < pixels; ++i) set(c * pixels + i, static_cast<size_t>(i * image.channels + c));
}

uint8_t to_byte(double value) {
  if (!(value > 0)) return 0;                  // NaN too
  return static_cast<uint8_t>(std::min(value, 1.0) * 255 + 0.5);
}
uint8_t to_byte(uint8_t value) { return value; }

template <class T>
void copy_from(const Tensor& x, ImageBytes& image) {
  const T* source = x.view().as<T>();
  const Strides& strides = x.strides();
  const int rank = x.rank();
  const int64_t channel_stride = rank == 3 ? strides[0] : 0, row_stride = strides[rank - 2], column_stride = strides[rank - 1];
  uint8_t* out = image.pixels.data();
  for (int64_t y = 0; y < image.height; ++y)
    for (int64_t column = 0; column < image.width; ++column)
      for (int64_t c = 0; c < image.channels; ++c) *out++ = to_byte(source[c * channel_stride + y * row_stride + column * column_stride]);
}

}  // namespace

Tensor image_to_uint8(const ImageBytes& image) {
  Tensor x = empty({image.channels, image.height, image.width}, {DType::uint8, Device::cpu()});
  uint8_t* values = x.mutable_data<uint8_t>();
  for_each_value(image, [&](int64_t to, size_t from) { values[to] = image.pixels[from]; });
  return x;
}

Tensor image_to_float(const ImageBytes& image) {
  Tensor x = empty({image.channels, image.height, image.width}, Device::cpu());
  float* values = x.mutable_data<float>();
  for_each_value(image, [&](int64_t to, size_t from) { values[to] = static_cast<float>(image.pixels[from]) / 255; });
  return x;
}

ImageBytes image_from_tensor(const Tensor& x) {
  check<ShapeError>(x.rank() == 2 || x.rank() == 3, "image_from_tensor: x must be [channels, height, width] or [height, width], got ", x.shape());
  if (x.device() != Device::cpu()) return image_from_tensor(contiguous_on_cpu(x, "image_from_tensor"));
  const int64_t channels = x.rank() == 3 ? x.size(0) : 1;
  check<ShapeError>(channels >= 1 && channels <= 4, "image_from_tensor: a picture has 1 to 4 channels, got ", x.shape());
  ImageBytes image{x.size(-1), x.size(-2), channels, {}};
  image.pixels.resize(static_cast<size_t>(x.numel()));
  switch (x.dtype()) {
    case DType::uint8: copy_from<uint8_t>(x, image); break;
    case DType::float32: copy_from<float>(x, image); break;
    case DType::float64: copy_from<double>(x, image); break;
    default: fail<DTypeError>("image_from_tensor: x must be uint8, float32 or float64, got ", x.dtype());
  }
  return image;
}

}  // namespace fovea
