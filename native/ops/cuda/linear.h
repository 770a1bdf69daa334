// Linear layers, out = x W^T + b. Products of few tokens run in linear_stream.cu, those that it
// does not take and small ones on older GPUs in linear_few.cu, all others in cuBLASLt, for which
// weights with scales are dequantized first.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>

#include "ops/cuda/memory.h"
#include "ops/ops.h"

namespace uniproc::cuda {

// Uses the first algorithm that cuBLASLt's heuristic returns for a shape, which is the same in
// every run. Selecting by measured time is not: algorithms sum in different orders, so the same
// requests could give different tokens. The benchmark shows the cost: it compares a step with the
// model's products alone, run with the fastest algorithms.
class Linear {
 public:
  Linear(cudaStream_t stream, MemoryAccount& memory, int32_t numMultiprocessors);

  // out [numTokens, weight.rows] = x [numTokens, weight.cols] W^T (+ bias). x has the type
  // weight.dtype, out has that type or float32. Sums are float32 (not TF32).
  void run(const void* x, int32_t numTokens, const LinearWeight& weight, void* out, DType outType);

  // Ops::linearSiluAndMul in one kernel. Returns false without doing anything where there is none.
  bool runSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight, void* out);

 private:
  // The key of a chosen algorithm.
  struct Shape {
    int64_t rows;
    int64_t cols;
    int32_t numTokens;
    DType type;
    DType outType;
    bool bias;
    auto operator<=>(const Shape&) const = default;
  };
  // The cuBLASLt descriptors of one product.
  struct Problem {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t weight;
    cublasLtMatrixLayoutOpaque_t x;
    cublasLtMatrixLayoutOpaque_t out;
  };
  struct DestroyHandle {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  };

  void multiply(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                void* out, DType outType);
  static Problem describe(const Shape& shape, const void* bias);
  const cublasLtMatmulAlgo_t& algorithm(Shape shape, const void* bias);

  const cudaStream_t stream_;
  std::unique_ptr<cublasLtContext, DestroyHandle> handle_;
  const int32_t numMultiprocessors_;
  Scratch workspace_;
  Scratch dequantized_;
  std::map<Shape, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace uniproc::cuda
