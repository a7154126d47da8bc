#include <fovea/kernels/cuda/blas.h>

#include <mutex>

#include <cublas_v2.h>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/runtime.h>
#include <fovea/kernels/cuda/streams.h>

namespace fovea::kernels::cuda {
namespace {

constexpr int max_devices = 64;

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]] return;
  cudaGetLastError();                                      // as in fail_cuda()
  const std::string message = str("cuda: ", what, ": ", cublasGetStatusString(status));
  if (status == CUBLAS_STATUS_ALLOC_FAILED) fail<MemoryError>(message, "; cuda::allocator::clear() gives back what is cached");
  fail<DeviceError>(message);
}

// cuBLAS takes memory of its own and loads its kernels, which our cache may have left no room for. It calls that "not initialized" too.
cublasHandle_t new_handle(int device) {
  cublasHandle_t handle = nullptr;
  cublasStatus_t status = cublasCreate(&handle);
  if (status == CUBLAS_STATUS_ALLOC_FAILED || status == CUBLAS_STATUS_NOT_INITIALIZED) {
    cudaGetLastError();
    fovea::cuda::detail::make_room(device);
    status = cublasCreate(&handle);
  }
  check_blas(status, "cuBLAS cannot be started");
  return handle;
}

// A handle a thread and device: cuBLAS' handles must not be shared. A thread keeps its own until the program ends, as cuBLAS waits for the device when one goes.
cublasHandle_t handle_of(int device) {
  thread_local cublasHandle_t handles[max_devices] = {};
  cublasHandle_t& handle = handles[device];
  if (!handle) {
    handle = new_handle(device);
    check_blas(cublasSetMathMode(handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION), "cuBLAS cannot be told to sum in float32");
  }
  return handle;
}

// Note [A workspace a stream]
// By itself cuBLAS shares a workspace among the streams of a handle, and takes an algorithm that does with what is free of it: with several streams the bits of a product
// would depend on what else runs. And in a recorded graph it would ask for memory in every run. So each stream has a workspace of its own, of the size that NVIDIA
// recommends for compute capability 9.0 (cuBLAS library, "Results reproducibility", "cublasSetWorkspace"). To be called for each product: cublasSetStream() forgets it.
// A product may be several kernels that hand each other sums there. Threads may share a stream, so one product is put on it at a time: they hold turn_of(device).
std::mutex& turn_of(int device) {
  static std::mutex turns[max_devices];
  return turns[device];
}

void set_stream(cublasHandle_t handle, cudaStream_t stream, int device) {
  constexpr int64_t bytes = int64_t{32} << 20;
  check_blas(cublasSetStream(handle, stream), "cuBLAS takes no stream");
  if (void* workspace = fovea::cuda::detail::scratch_of(stream, device, bytes)) check_blas(cublasSetWorkspace(handle, workspace, bytes), "cuBLAS takes no workspace");
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return CUDA_R_32F;
    case DType::float64: return CUDA_R_64F;
    case DType::float16: return CUDA_R_16F;
    case DType::bfloat16: return CUDA_R_16BF;
    default: fail<DTypeError>("matmul: takes a floating-point dtype, got ", dtype);
  }
}

cublasComputeType_t compute_type(DType dtype) {
  if (dtype == DType::float64) return CUBLAS_COMPUTE_64F;
  return dtype == DType::float32 && fovea::cuda::allow_tf32() ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

cublasOperation_t operation(const BlasMatrix& m) { return m.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }

}  // namespace

void gemm_strided_batched(Queue queue, DType dtype, DType y_dtype, int64_t batch, int64_t m, int64_t n, int64_t k, double alpha, const BlasMatrix& a, const BlasMatrix& b,
                          double beta, const BlasOutput& y) {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cuda: asking for the current device");
  const cublasHandle_t handle = handle_of(device);
  std::lock_guard turn(turn_of(device));
  set_stream(handle, static_cast<cudaStream_t>(queue), device);
  const float alpha32 = static_cast<float>(alpha), beta32 = static_cast<float>(beta);
  const bool is_double = dtype == DType::float64;
  const void* scale = is_double ? static_cast<const void*>(&alpha) : &alpha32;
  const void* keep = is_double ? static_cast<const void*>(&beta) : &beta32;
  const cudaDataType_t type = type_of(dtype);
  // cuBLAS counts by columns: what lies there row after row it sees transposed. So it is asked for y^T = b^T a^T.
  check_blas(cublasGemmStridedBatchedEx(handle, operation(b), operation(a), static_cast<int>(n), static_cast<int>(m), static_cast<int>(k), scale, b.data, type,
                                        static_cast<int>(b.leading), b.batch_stride, a.data, type, static_cast<int>(a.leading), a.batch_stride, keep, y.data, type_of(y_dtype),
                                        static_cast<int>(y.leading), y.batch_stride, static_cast<int>(batch), compute_type(dtype), CUBLAS_GEMM_DEFAULT),
             "matmul by cuBLAS failed");
}

}  // namespace fovea::kernels::cuda
