// Linear layers, out = x W^T + b. Products of few tokens run in linear_stream.cu, those that it
// does not take and small ones on older GPUs in linear_few.cu, all others in cuBLASLt, for which
// weights with scales are dequantized first.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "ops/cuda/cublas.h"
#include "ops/cuda/matmul_algorithms.h"
#include "ops/cuda/memory.h"
#include "ops/ops.h"

namespace uniproc::cuda {

class Linear {
 public:
  Linear(cudaStream_t stream, MemoryAccount& memory, int32_t numMultiprocessors);

  // out [numTokens, weight.rows] = x [numTokens, weight.cols] W^T (+ bias). x has the type
  // weight.dtype, out has that type or float32. Sums are float32 (not TF32).
  void run(const void* x, int32_t numTokens, const LinearWeight& weight, void* out, DType outType);

  // Ops::linearSiluAndMul in one kernel. Returns false without doing anything where there is none.
  bool runSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight, void* out);

  // MatmulAlgorithms::chooseFastest.
  std::string chooseFastest(std::string_view known);

 private:
  void multiply(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                void* out, DType outType);

  const cudaStream_t stream_;
  const CublasHandle handle_;
  const int32_t numMultiprocessors_;
  Scratch workspace_;
  Scratch dequantized_;
  MatmulAlgorithms algorithms_;
};

}  // namespace uniproc::cuda
