#include "ops/cuda/matmul_problem.h"

#include <bit>

#include "ops/cuda/cublas.h"

namespace uniproc::cuda {
namespace {

cudaDataType_t cudaType(DType type) {
  switch (type) {
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

template <class T>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, T value) {
  check(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute");
}

// Scales for e4m3 operands. Returns false if this version of cuBLASLt has none of the kind.
bool setScales(cublasLtMatmulDesc_t product, Float8Operands operands, const MatmulScales& scales) {
#if CUBLAS_VERSION >= 120900
  const bool byRow = operands == Float8Operands::kRows;
  const int32_t ofWeight = byRow ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                                 : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
  const int32_t ofX =
      byRow ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  const auto setMode = [&](cublasLtMatmulDescAttributes_t attribute, int32_t mode) {
    return cublasLtMatmulDescSetAttribute(product, attribute, &mode, sizeof mode) ==
           CUBLAS_STATUS_SUCCESS;
  };
  if (!setMode(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, ofWeight) ||
      !setMode(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, ofX)) {
    return false;
  }
  set(product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.weight);
  set(product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.x);
  return true;
#else
  return false;
#endif
}

}  // namespace

int32_t bucketOf(int32_t numTokens) {
  if (numTokens <= 8) return numTokens;
  const auto step = static_cast<int32_t>(std::bit_floor(static_cast<uint32_t>(numTokens)) / 4);
  return (numTokens + step - 1) / step * step;
}

// cuBLASLt is column-major and sees a row-major matrix as its transpose. So it computes out^T
// [rows, numTokens] = W x^T, with W passed as its transpose.
MatmulProblem::MatmulProblem(const MatmulShape& shape, const void* bias,
                             const MatmulScales& scales) {
  const bool isFloat8 = shape.float8 != Float8Operands::kNone;
  const cudaDataType_t type = isFloat8 ? CUDA_R_8F_E4M3 : cudaType(shape.type);
  // Plain float32 for float32, never TF32.
  check(cublasLtMatmulDescInit(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "cublasLtMatmulDescInit");
  set(&product_, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (shape.bias) {
    set(&product_, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(&product_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  if (isFloat8) isKnown_ = setScales(&product_, shape.float8, scales);
  const auto layOut = [](cublasLtMatrixLayoutOpaque_t& layout, cudaDataType_t elements,
                         int64_t rows, int64_t cols) {
    check(cublasLtMatrixLayoutInit(&layout, elements, static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(cols), rows),
          "cublasLtMatrixLayoutInit");
  };
  layOut(weight_, type, shape.cols, shape.rows);
  layOut(x_, type, shape.cols, shape.numTokens);
  layOut(out_, cudaType(shape.outType), shape.rows, shape.numTokens);
}

std::vector<cublasLtMatmulAlgo_t> MatmulProblem::algorithms(cublasLtHandle_t handle, int most) {
  if (!isKnown_) return {};
  cublasLtMatmulPreferenceOpaque_t preference;
  check(cublasLtMatmulPreferenceInit(&preference), "cublasLtMatmulPreferenceInit");
  check(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &kCublasWorkspaceBytes, sizeof kCublasWorkspaceBytes),
        "cublasLtMatmulPreferenceSetAttribute");
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
  int numFound = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, &product_, &weight_, &x_, &out_, &out_, &preference, most, results.data(), &numFound);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  check(status, "cublasLtMatmulAlgoGetHeuristic");
  results.resize(static_cast<size_t>(numFound));
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (const cublasLtMatmulHeuristicResult_t& result : results) {
    if (result.state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(result.algo);
  }
  return algorithms;
}

bool MatmulProblem::accepts(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm) {
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status =
      cublasLtMatmulAlgoCheck(handle, &product_, &weight_, &x_, &out_, &out_, &algorithm, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kCublasWorkspaceBytes;
}

cublasStatus_t MatmulProblem::run(cublasLtHandle_t handle, const void* x, const void* weight,
                                  void* out, const cublasLtMatmulAlgo_t& algorithm, void* workspace,
                                  cudaStream_t stream) {
  const float alpha = 1.0f;
  const float beta = 0.0f;
  return cublasLtMatmul(handle, &product_, &alpha, weight, &weight_, x, &x_, &beta, out, &out_, out,
                        &out_, &algorithm, workspace, kCublasWorkspaceBytes, stream);
}

}  // namespace uniproc::cuda
