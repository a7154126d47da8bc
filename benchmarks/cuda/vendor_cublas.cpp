// cuBLAS as a vendor of matrix products: cublasGemmEx's own choice, and the first algorithms that cublasLt's heuristics name.
// cuBLAS stores columns one after the other, we rows: y = a b is computed as y^T = b^T a^T.
#include <cublasLt.h>
#include <cublas_v2.h>

#include <fovea/kernels/error.h>

#include "vendor.h"

namespace fovea::benchmarks {

namespace {

void check_status(cublasStatus_t status, const char* what) { check<Error>(status == CUBLAS_STATUS_SUCCESS, what, ": ", cublasGetStatusString(status)); }

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return CUDA_R_32F;
    case DType::float16: return CUDA_R_16F;
    case DType::bfloat16: return CUDA_R_16BF;
    default: fail<Error>("cuBLAS: no product of this dtype");
  }
}

// One row-major operand, as cuBLAS sees it.
struct Operand {
  cublasOperation_t operation;                                   // N where rows are contiguous, T where columns are
  int64_t leading, batch_stride;
};

Operand operand_of(const Array& x) {
  const size_t rank = x.shape.size();
  const int64_t rows = x.strides[rank - 2], columns = x.strides[rank - 1], batch = rank == 3 ? x.strides[0] : 0;
  // An axis of one element has any stride; the other one decides.
  if (columns == 1 || x.shape[rank - 1] == 1) return {CUBLAS_OP_N, std::max(rows, x.shape[rank - 1]), batch};
  check<Error>(rows == 1 || x.shape[rank - 2] == 1, "cuBLAS: neither rows nor columns are contiguous");
  return {CUBLAS_OP_T, std::max(columns, x.shape[rank - 2]), batch};
}

struct Product {
  int64_t batch, m, n, k;
  Operand a, b;
  cudaDataType_t type;
  cublasComputeType_t compute;
};

Product product_of(const Task& task) {
  const Array &a = task.inputs[0], &b = task.inputs[1], &y = task.outputs[0];
  const size_t rank = y.shape.size();
  return {.batch = rank == 3 ? y.shape[0] : 1, .m = y.shape[rank - 2], .n = y.shape[rank - 1], .k = a.shape[rank - 1], .a = operand_of(a), .b = operand_of(b),
          .type = type_of(y.dtype), .compute = task.allows_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F};
}

constexpr float one = 1, zero = 0;
constexpr int64_t workspace_bytes = 64 << 20;                    // what NVIDIA recommends for Hopper is half of it

// What a plan of cublasLt needs, destroyed with the last copy of the algorithm.
struct LtPlan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, y = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  ~LtPlan() {
    if (preference) cublasLtMatmulPreferenceDestroy(preference);
    for (cublasLtMatrixLayout_t layout : {a, b, y})
      if (layout) cublasLtMatrixLayoutDestroy(layout);
    if (operation) cublasLtMatmulDescDestroy(operation);
  }
};

cublasLtMatrixLayout_t layout_of(const Product& p, int64_t rows, int64_t columns, cublasOperation_t operation, int64_t leading, int64_t batch_stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  if (operation == CUBLAS_OP_T) std::swap(rows, columns);
  check_status(cublasLtMatrixLayoutCreate(&layout, p.type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), leading), "cublasLtMatrixLayoutCreate");
  const int32_t batch = static_cast<int32_t>(p.batch);
  check_status(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch), "cublasLtMatrixLayoutSetAttribute");
  check_status(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride, sizeof batch_stride), "cublasLtMatrixLayoutSetAttribute");
  return layout;
}

class Cublas final : public Vendor {
 public:
  explicit Cublas(bool has_device) {
    if (!has_device) return;
    check_status(cublasCreate(&handle_), "cublasCreate");
    check_status(cublasLtCreate(&lt_handle_), "cublasLtCreate");
  }
  ~Cublas() override {
    if (lt_handle_) cublasLtDestroy(lt_handle_);
    if (handle_) cublasDestroy(handle_);
  }

  std::string name() const override {
    int version = 0;
    cublasGetVersion(handle_, &version);
    return "cuBLAS " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
  }

  std::vector<std::function<Algorithm()>> algorithms(const Task& task) override {
    if (task.op != "matmul") return {};
    const Product p = product_of(task);
    std::vector<std::function<Algorithm()>> makers{[this, p] { return gemm_ex(p); }};
    const std::shared_ptr<LtPlan> plan = described_plan(p);
    constexpr int wanted = 8;
    cublasLtMatmulHeuristicResult_t results[wanted];
    int found = 0;
    if (cublasLtMatmulAlgoGetHeuristic(lt_handle_, plan->operation, plan->a, plan->b, plan->y, plan->y, plan->preference, wanted, results, &found) != CUBLAS_STATUS_SUCCESS)
      return makers;
    for (int i = 0; i < found; ++i)
      if (results[i].state == CUBLAS_STATUS_SUCCESS) makers.push_back([this, plan, result = results[i], i] { return lt_matmul(plan, result, i); });
    return makers;
  }

  std::string check_without_device(const Task& task, double) override {
    if (task.op != "matmul") return "cuBLAS does not compute it";
    described_plan(product_of(task));
    return "descriptors made";
  }

 private:
  // Without a device too.
  static std::shared_ptr<LtPlan> described_plan(const Product& p) {
    const auto plan = std::make_shared<LtPlan>();
    check_status(cublasLtMatmulDescCreate(&plan->operation, p.compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
    check_status(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &p.b.operation, sizeof p.b.operation), "cublasLtMatmulDescSetAttribute");
    check_status(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &p.a.operation, sizeof p.a.operation), "cublasLtMatmulDescSetAttribute");
    plan->a = layout_of(p, p.n, p.k, p.b.operation, p.b.leading, p.b.batch_stride);
    plan->b = layout_of(p, p.k, p.m, p.a.operation, p.a.leading, p.a.batch_stride);
    plan->y = layout_of(p, p.n, p.m, CUBLAS_OP_N, p.n, p.m * p.n);
    check_status(cublasLtMatmulPreferenceCreate(&plan->preference), "cublasLtMatmulPreferenceCreate");
    const uint64_t most = workspace_bytes;
    check_status(cublasLtMatmulPreferenceSetAttribute(plan->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most),
                 "cublasLtMatmulPreferenceSetAttribute");
    return plan;
  }

  Algorithm gemm_ex(const Product& p) {
    return {.name = "GemmEx", .workspace_bytes = workspace_bytes,
            .run = [this, p](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void* workspace) {
              check_status(cublasSetStream(handle_, static_cast<cudaStream_t>(stream)), "cublasSetStream");
              check_status(cublasSetWorkspace(handle_, workspace, workspace_bytes), "cublasSetWorkspace");     // else it would ask for memory while a graph is recorded
              check_status(cublasGemmStridedBatchedEx_64(handle_, p.b.operation, p.a.operation, p.n, p.m, p.k, &one, in[1].data, p.type, p.b.leading, p.b.batch_stride,
                                                         in[0].data, p.type, p.a.leading, p.a.batch_stride, &zero, out[0].data, p.type, p.n, p.m * p.n, p.batch,
                                                         p.compute, CUBLAS_GEMM_DEFAULT),
                           "cublasGemmStridedBatchedEx");
            }};
  }

  Algorithm lt_matmul(const std::shared_ptr<LtPlan>& plan, const cublasLtMatmulHeuristicResult_t& result, int rank) {
    int id = -1;
    size_t written = 0;
    cublasLtMatmulAlgoConfigGetAttribute(&result.algo, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &written);
    return {.name = "Lt choice " + std::to_string(rank) + " (algorithm " + std::to_string(id) + ")", .workspace_bytes = static_cast<int64_t>(result.workspaceSize),
            .run = [this, plan, result](void* stream, const std::vector<Array>& in, const std::vector<Array>& out, void* workspace) {
              check_status(cublasLtMatmul(lt_handle_, plan->operation, &one, in[1].data, plan->a, in[0].data, plan->b, &zero, out[0].data, plan->y, out[0].data, plan->y,
                                          &result.algo, workspace, result.workspaceSize, static_cast<cudaStream_t>(stream)),
                           "cublasLtMatmul");
            }};
  }

  cublasHandle_t handle_ = nullptr;
  cublasLtHandle_t lt_handle_ = nullptr;
};

}  // namespace
}  // namespace fovea::benchmarks

extern "C" fovea::benchmarks::Vendor* fovea_make_vendor(bool has_device) { return new fovea::benchmarks::Cublas(has_device); }
