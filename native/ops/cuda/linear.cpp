#include "ops/cuda/linear.h"

#include <algorithm>
#include <bit>
#include <string>

#include "base/error.h"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"

namespace uniproc::cuda {
namespace {

// The size that cuBLAS itself uses on Hopper.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  static_cast<void>(cudaGetLastError());  // clear an error that cuBLAS may have left
  const std::string message = std::string(call) + " failed: " + cublasLtGetStatusString(status) +
                              " (" + cublasLtGetStatusName(status) + ")";
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw Error("OUT_OF_MEMORY", message + freeMemory());
  throw Error("DEVICE_FAILED", message);
}

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

// Batches of similar size share an algorithm, chosen for the largest of them (at most a quarter
// larger).
int32_t bucketOf(int32_t numTokens) {
  if (numTokens <= 8) return numTokens;
  const auto step = static_cast<int32_t>(std::bit_floor(static_cast<uint32_t>(numTokens)) / 4);
  return (numTokens + step - 1) / step * step;
}

template <class T>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, T value) {
  check(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute");
}

}  // namespace

Linear::Linear(cudaStream_t stream, MemoryAccount& memory, int32_t numMultiprocessors)
    : stream_(stream),
      numMultiprocessors_(numMultiprocessors),
      workspace_(memory),
      dequantized_(memory) {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle), "cublasLtCreate");
  handle_.reset(handle);
  workspace_.atLeast(kWorkspaceBytes);
}

void Linear::run(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                 DType outType) {
  if (numTokens == 0 ||
      linearStream(x, numTokens, weight, out, outType, numMultiprocessors_, stream_)) {
    return;
  }
  Weight matrix = weight.matrix();
  if (weight.format.hasScales()) {
    // linearFewTokens cannot run here: it reads weights before the previous kernel has ended.
    void* dequantized = dequantized_.atLeast(matrix.rows * matrix.cols * sizeOf(matrix.dtype));
    dequantize(weight, dequantized, stream_);
    matrix.data = dequantized;
  } else if (linearFewTokens(x, numTokens, matrix, weight.bias, out, outType, numMultiprocessors_,
                             stream_)) {
    return;
  }
  multiply(x, numTokens, matrix, weight.bias, out, outType);
}

bool Linear::runSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight,
                           void* out) {
  return linearSiluAndMulStream(x, numTokens, weight, out, numMultiprocessors_, stream_);
}

void Linear::multiply(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                      void* out, DType outType) {
  // cuBLASLt can only fuse a bias of the output's type.
  const bool fused = bias && outType == bias.dtype;
  const void* fusedBias = fused ? bias.data : nullptr;
  const Shape shape = {weight.rows, weight.cols, numTokens, weight.dtype, outType, fused};
  const cublasLtMatmulAlgo_t& chosen = algorithm(shape, fusedBias);
  Problem problem = describe(shape, fusedBias);
  const float alpha = 1.0f;
  const float beta = 0.0f;
  check(cublasLtMatmul(handle_.get(), &problem.product, &alpha, weight.data, &problem.weight, x,
                       &problem.x, &beta, out, &problem.out, out, &problem.out, &chosen,
                       workspace_.atLeast(kWorkspaceBytes), kWorkspaceBytes, stream_),
        "cublasLtMatmul");
  if (bias && !fused) {
    addBias(out, numTokens, static_cast<int32_t>(weight.rows), bias, outType, stream_);
  }
}

// cuBLASLt is column-major and sees a row-major matrix as its transpose. So it computes out^T
// [rows, numTokens] = W x^T, with W passed as its transpose.
Linear::Problem Linear::describe(const Shape& shape, const void* bias) {
  Problem problem;
  const cudaDataType_t type = cudaType(shape.type);
  // Plain float32 for float32, never TF32.
  check(cublasLtMatmulDescInit(&problem.product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "cublasLtMatmulDescInit");
  set(&problem.product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (shape.bias) {
    set(&problem.product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(&problem.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  const auto layOut = [](cublasLtMatrixLayoutOpaque_t& layout, cudaDataType_t elements,
                         int64_t rows, int64_t cols) {
    check(cublasLtMatrixLayoutInit(&layout, elements, static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(cols), rows),
          "cublasLtMatrixLayoutInit");
  };
  layOut(problem.weight, type, shape.cols, shape.rows);
  layOut(problem.x, type, shape.cols, shape.numTokens);
  layOut(problem.out, cudaType(shape.outType), shape.rows, shape.numTokens);
  return problem;
}

const cublasLtMatmulAlgo_t& Linear::algorithm(Shape shape, const void* bias) {
  shape.numTokens = bucketOf(shape.numTokens);
  if (const auto found = algorithms_.find(shape); found != algorithms_.end()) return found->second;

  Problem problem = describe(shape, bias);
  cublasLtMatmulPreferenceOpaque_t preference;
  check(cublasLtMatmulPreferenceInit(&preference), "cublasLtMatmulPreferenceInit");
  check(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &kWorkspaceBytes, sizeof kWorkspaceBytes),
        "cublasLtMatmulPreferenceSetAttribute");
  cublasLtMatmulHeuristicResult_t best;
  int numFound = 0;
  check(
      cublasLtMatmulAlgoGetHeuristic(handle_.get(), &problem.product, &problem.weight, &problem.x,
                                     &problem.out, &problem.out, &preference, 1, &best, &numFound),
      "cublasLtMatmulAlgoGetHeuristic");
  if (numFound == 0) {
    throw Error("DEVICE_FAILED",
                "cuBLASLt has no algorithm for the product of [" + std::to_string(shape.numTokens) +
                    ", " + std::to_string(shape.cols) + "] with [" + std::to_string(shape.rows) +
                    ", " + std::to_string(shape.cols) + "] transposed");
  }
  return algorithms_.emplace(shape, best.algo).first->second;
}

}  // namespace uniproc::cuda
