// Limits: CUDA driver API, cuTensorMapEncodeTiled. The driver's function is looked up when it is first needed: the library is not linked with the driver.
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

void check_layout(const TiledLayout& l) {
  check<ShapeError>(l.rank >= 1 && l.rank <= 5, "tiled_map: a tensor has 1 to 5 dimensions, got ", l.rank);
  check<ShapeError>(is_aligned(l.data), "tiled_map: the tensor must begin at a multiple of 16 bytes");
  check<ShapeError>(l.strides[0] == 1, "tiled_map: the innermost dimension must have stride 1, got ", l.strides[0]);
  for (int i = 0; i < l.rank; ++i) {
    check<ShapeError>(l.sizes[i] >= 1 && l.sizes[i] < int64_t{1} << 32, "tiled_map: size ", l.sizes[i], " of dimension ", i, " is not one of 1 to 2^32 - 1");
    check<ShapeError>(l.box[i] >= 1 && l.box[i] <= 256, "tiled_map: a box has 1 to 256 elements along a dimension, got ", l.box[i], " along dimension ", i);
    const int64_t stride_bytes = l.strides[i] * size_of(l.dtype);
    check<ShapeError>(i == 0 || (stride_bytes > 0 && stride_bytes % 16 == 0 && stride_bytes < int64_t{1} << 40), "tiled_map: the stride of dimension ", i, " is ",
                      stride_bytes, " bytes; it must be a multiple of 16 below 2^40");
  }
  const int64_t row_bytes = l.box[0] * size_of(l.dtype), swizzle_bytes = int64_t{16} << static_cast<int>(l.swizzle);
  check<ShapeError>(row_bytes % 16 == 0, "tiled_map: the box has ", row_bytes, " bytes along the innermost dimension; they must be a multiple of 16");
  check<ShapeError>(l.swizzle == Swizzle::none || row_bytes == swizzle_bytes, "tiled_map: with a swizzle of ", swizzle_bytes,
                    " bytes the box must have as many along the innermost dimension, got ", row_bytes);
}

#ifdef FOVEA_HOST_CUDA

TensorMap encode(const TiledLayout& l) {
  TensorMap map{};
  host_cuda::TiledDescription d{};
  d.magic = host_cuda::tiled_magic;
  d.data = static_cast<char*>(const_cast<void*>(l.data));
  d.element_bytes = static_cast<int>(size_of(l.dtype));
  d.rank = l.rank;
  d.swizzle = static_cast<int>(l.swizzle);
  for (int i = 0; i < 5; ++i) {
    d.sizes[i] = i < l.rank ? static_cast<uint32_t>(l.sizes[i]) : 1;
    d.box[i] = static_cast<uint16_t>(i < l.rank ? l.box[i] : 1);
    if (i > 0) d.stride_bytes[i - 1] = i < l.rank ? l.strides[i] * size_of(l.dtype) : 0;
  }
  static_assert(sizeof d <= sizeof map);
  std::memcpy(map.bytes, &d, sizeof d);
  return map;
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

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &status), "looking for cuTensorMapEncodeTiled");
#else
  check_cuda(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &status), "looking for cuTensorMapEncodeTiled");
#endif
  check<DeviceError>(function && status == cudaDriverEntryPointSuccess, "tiled_map: the driver has no cuTensorMapEncodeTiled; drivers of CUDA 12.0 and later do");
  return reinterpret_cast<Encode>(function);
}

TensorMap encode(const TiledLayout& l) {
  static const Encode function = find_encode();
  cuuint64_t sizes[5], stride_bytes[4];
  cuuint32_t box[5], steps[5];
  for (int i = 0; i < l.rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(l.sizes[i]);
    box[i] = static_cast<cuuint32_t>(l.box[i]);
    steps[i] = 1;
    if (i > 0) stride_bytes[i - 1] = static_cast<cuuint64_t>(l.strides[i] * size_of(l.dtype));
  }
  constexpr CUtensorMapSwizzle swizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
  CUtensorMap made;
  const CUresult result = function(&made, map_type(l.dtype), static_cast<cuuint32_t>(l.rank), const_cast<void*>(l.data), sizes, stride_bytes, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, swizzles[static_cast<int>(l.swizzle)], CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check<DeviceError>(result == CUDA_SUCCESS, "tiled_map: the driver refuses the layout (CUresult ", static_cast<int>(result), ")");
  TensorMap map;
  static_assert(sizeof made == sizeof map);
  std::memcpy(map.bytes, &made, sizeof made);
  return map;
}

#endif

}  // namespace

TensorMap tiled_map(const TiledLayout& layout) {
  check_layout(layout);
  return encode(layout);
}

}  // namespace fovea::kernels::cuda
