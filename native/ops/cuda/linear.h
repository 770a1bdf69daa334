// Linear layers, out = x W^T + b: few tokens by a kernel of our own (linear_few.cu), others by
// cuBLASLt; weights with scales are dequantised first.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>

#include "ops/cuda/memory.h"
#include "ops/ops.h"

namespace uniproc::cuda {

// The algorithm for a shape is the first that cuBLASLt's heuristics name, which is the same in
// every run; a search by time would not be, and as algorithms differ in the order of their sums,
// the same requests could then give other tokens. What that costs against the fastest of those
// named shows where the benchmark sets a step beside the model's products alone, which are searched
// for.
class Linear {
 public:
  Linear(cudaStream_t stream, MemoryAccount& memory, int32_t numMultiprocessors);

  // out [numTokens, weight.rows] = x [numTokens, weight.cols] W^T (+ bias). x has the type
  // weight.dtype, out that or float32. Sums are float32, and true float32 where x is.
  void run(const void* x, int32_t numTokens, const LinearWeight& weight, void* out, DType outType);

 private:
  // What an algorithm was chosen for.
  struct Shape {
    int64_t rows;
    int64_t cols;
    int32_t numTokens;
    DType type;
    DType outType;
    bool bias;
    auto operator<=>(const Shape&) const = default;
  };
  // One product as cuBLASLt is told of it.
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
