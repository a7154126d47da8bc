// Limits: CUDA driver API, cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col. The driver's functions are looked up when they are first needed: the library is not
// linked with the driver.
#include <fovea/kernels/cuda/core/tensor_map.h>

#include <cstring>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/core/pack.h>

#ifdef FOVEA_HOST_CUDA
#include <ptx_hopper.h>
#else
#include <cuda.h>
#endif

namespace fovea::kernels::cuda {
namespace {

// What is asked of both kinds of layouts.
template <class Layout>
void check_tensor(const char* name, const Layout& l, int least_rank) {
  check<ShapeError>(l.rank >= least_rank && l.rank <= 5, name, ": a tensor has ", least_rank, " to 5 dimensions, got ", l.rank);
  check<ShapeError>(is_aligned(l.data), name, ": the tensor must begin at a multiple of 16 bytes");
  check<ShapeError>(l.strides[0] == 1, name, ": the innermost dimension must have stride 1, got ", l.strides[0]);
  for (int i = 0; i < l.rank; ++i) {
    check<ShapeError>(l.sizes[i] >= 1 && l.sizes[i] < int64_t{1} << 32, name, ": size ", l.sizes[i], " of dimension ", i, " is not one of 1 to 2^32 - 1");
    const int64_t stride_bytes = l.strides[i] * size_of(l.dtype);
    check<ShapeError>(i == 0 || (stride_bytes > 0 && stride_bytes % 16 == 0 && stride_bytes < int64_t{1} << 40), name, ": the stride of dimension ", i, " is ",
                      stride_bytes, " bytes; it must be a multiple of 16 below 2^40");
  }
}

// The innermost dimension of what a copy brings.
void check_row(const char* name, int64_t row_bytes, Swizzle swizzle) {
  const int64_t swizzle_bytes = int64_t{16} << static_cast<int>(swizzle);
  check<ShapeError>(row_bytes % 16 == 0, name, ": the box has ", row_bytes, " bytes along the innermost dimension; they must be a multiple of 16");
  check<ShapeError>(swizzle == Swizzle::none || row_bytes == swizzle_bytes, name, ": with a swizzle of ", swizzle_bytes,
                    " bytes the box must have as many along the innermost dimension, got ", row_bytes);
}

void check_layout(const TiledLayout& l) {
  check_tensor("tiled_map", l, 1);
  for (int i = 0; i < l.rank; ++i)
    check<ShapeError>(l.box[i] >= 1 && l.box[i] <= 256, "tiled_map: a box has 1 to 256 elements along a dimension, got ", l.box[i], " along dimension ", i);
  check_row("tiled_map", l.box[0] * size_of(l.dtype), l.swizzle);
}

void check_layout(const Im2colLayout& l) {
  check_tensor("im2col_map", l, 3);
  const int directions = l.rank - 2, most = directions == 1 ? 1 << 15 : directions == 2 ? 1 << 7 : 1 << 4;
  for (int d = 0; d < directions; ++d) {
    for (const int corner : {l.lower[d], l.upper[d]})
      check<ShapeError>(corner >= -most && corner < most, "im2col_map: ", corner, " as a corner of dimension ", d + 1, " is not one of ", -most, " to ", most - 1);
    check<ShapeError>(l.sizes[d + 1] + l.upper[d] - l.lower[d] >= 1, "im2col_map: there is no place for the filter along dimension ", d + 1, ": it could stand at ",
                      l.lower[d], " to ", l.sizes[d + 1] - 1 + l.upper[d]);
    check<ShapeError>(l.steps[d] >= 1 && l.steps[d] <= 8, "im2col_map: a step is 1 to 8, got ", l.steps[d], " along dimension ", d + 1);
  }
  check<ShapeError>(l.channels >= 1 && l.channels <= 256, "im2col_map: a copy brings 1 to 256 channels, got ", l.channels);
  check<ShapeError>(l.pixels >= 1 && l.pixels <= 1024, "im2col_map: a copy brings 1 to 1024 pixels, got ", l.pixels);
  check_row("im2col_map", l.channels * size_of(l.dtype), l.swizzle);
}

#ifdef FOVEA_HOST_CUDA

template <class Layout>
host_cuda::BoxDescription describe(const Layout& l, uint32_t magic) {
  host_cuda::BoxDescription d{};
  d.magic = magic;
  d.data = static_cast<char*>(const_cast<void*>(l.data));
  d.element_bytes = static_cast<int>(size_of(l.dtype));
  d.rank = l.rank;
  d.swizzle = static_cast<int>(l.swizzle);
  for (int i = 0; i < 5; ++i) {
    d.sizes[i] = i < l.rank ? static_cast<uint32_t>(l.sizes[i]) : 1;
    d.box[i] = 1;
    if (i > 0) d.stride_bytes[i - 1] = i < l.rank ? l.strides[i] * size_of(l.dtype) : 0;
  }
  return d;
}

TensorMap as_map(const host_cuda::BoxDescription& d) {
  TensorMap map{};
  static_assert(sizeof d <= sizeof map);
  std::memcpy(map.bytes, &d, sizeof d);
  return map;
}

TensorMap encode(const TiledLayout& l) {
  host_cuda::BoxDescription d = describe(l, host_cuda::tiled_magic);
  for (int i = 0; i < l.rank; ++i) d.box[i] = static_cast<uint16_t>(l.box[i]);
  return as_map(d);
}

TensorMap encode(const Im2colLayout& l) {
  host_cuda::BoxDescription d = describe(l, host_cuda::im2col_magic);
  d.box[0] = static_cast<uint16_t>(l.channels), d.box[1] = static_cast<uint16_t>(l.pixels);
  for (int i = 0; i < l.rank - 2; ++i)
    d.lower[i] = static_cast<int16_t>(l.lower[i]), d.upper[i] = static_cast<int16_t>(l.upper[i]), d.steps[i] = static_cast<uint8_t>(l.steps[i]);
  return as_map(d);
}

#else

CUtensorMapDataType map_type(DType dtype) {
  switch (dtype) {
    case DType::float32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::float64: return CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
    case DType::float16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::bfloat16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::int32: return CU_TENSOR_MAP_DATA_TYPE_INT32;
    case DType::int64: return CU_TENSOR_MAP_DATA_TYPE_INT64;
    default: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

CUtensorMapSwizzle map_swizzle(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::rows_of_32_bytes: return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::rows_of_64_bytes: return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::rows_of_128_bytes: return CU_TENSOR_MAP_SWIZZLE_128B;
    default: return CU_TENSOR_MAP_SWIZZLE_NONE;
  }
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
using EncodeIm2col = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const int*, const int*, cuuint32_t,
                                  cuuint32_t, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

void* find_in_driver(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
  check_cuda(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &status), "looking for ", name);
#else
  check_cuda(cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &status), "looking for ", name);
#endif
  check<DeviceError>(function && status == cudaDriverEntryPointSuccess, "tensor map: the driver has no ", name, "; drivers of CUDA 12.0 and later do");
  return function;
}

// A layout's sizes and strides as the driver takes them.
struct Extents {
  cuuint64_t sizes[5], stride_bytes[4];
};
template <class Layout>
Extents extents_of(const Layout& l) {
  Extents e;
  for (int i = 0; i < l.rank; ++i) {
    e.sizes[i] = static_cast<cuuint64_t>(l.sizes[i]);
    if (i > 0) e.stride_bytes[i - 1] = static_cast<cuuint64_t>(l.strides[i] * size_of(l.dtype));
  }
  return e;
}

TensorMap as_map(const char* name, CUresult result, const CUtensorMap& made) {
  check<DeviceError>(result == CUDA_SUCCESS, name, ": the driver refuses the layout (CUresult ", static_cast<int>(result), ")");
  TensorMap map;
  static_assert(sizeof made == sizeof map);
  std::memcpy(map.bytes, &made, sizeof made);
  return map;
}

TensorMap encode(const TiledLayout& l) {
  static const EncodeTiled function = reinterpret_cast<EncodeTiled>(find_in_driver("cuTensorMapEncodeTiled"));
  const Extents e = extents_of(l);
  cuuint32_t box[5], steps[5];
  for (int i = 0; i < l.rank; ++i) box[i] = static_cast<cuuint32_t>(l.box[i]), steps[i] = 1;
  CUtensorMap made;
  const CUresult result = function(&made, map_type(l.dtype), static_cast<cuuint32_t>(l.rank), const_cast<void*>(l.data), e.sizes, e.stride_bytes, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, map_swizzle(l.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return as_map("tiled_map", result, made);
}

// The corners are those of width, height, depth in this order, as the coordinates are.
TensorMap encode(const Im2colLayout& l) {
  static const EncodeIm2col function = reinterpret_cast<EncodeIm2col>(find_in_driver("cuTensorMapEncodeIm2col"));
  const Extents e = extents_of(l);
  cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  for (int d = 0; d < l.rank - 2; ++d) steps[d + 1] = static_cast<cuuint32_t>(l.steps[d]);
  CUtensorMap made;
  const CUresult result = function(&made, map_type(l.dtype), static_cast<cuuint32_t>(l.rank), const_cast<void*>(l.data), e.sizes, e.stride_bytes, l.lower, l.upper,
                                   static_cast<cuuint32_t>(l.channels), static_cast<cuuint32_t>(l.pixels), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                   map_swizzle(l.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return as_map("im2col_map", result, made);
}

#endif

}  // namespace

TensorMap tiled_map(const TiledLayout& layout) {
  check_layout(layout);
  return encode(layout);
}

TensorMap im2col_map(const Im2colLayout& layout) {
  check_layout(layout);
  return encode(layout);
}

}  // namespace fovea::kernels::cuda
