// Linear layers, out = x W^T + b, and the choice among the ways to compute one. The plain way,
// which takes all arguments, is cuBLASLt, for which weights with scales are dequantized first.
//
// Weights without scales: linear_stream.cu for few tokens; linear_few.cu for those that it does not
// take and small ones on older GPUs; else the plain way.
//
// Float8 weights, where the format and the GPU allow it (else the next one):
//   17 tokens or more   cuBLASLt with e4m3 tokens, whose scales are found at run time, where
//                       WeightFormat::roundsInput
//   1 to 4 of bfloat16  linear_stream_float8.cu
//   1 to 32 tokens      linear_stream.cu
//   any                 the plain way
// The first one alone rounds the tokens, to 4 significant bits.
//
// Weights of 4 and 8 bits (int4, int8, mxfp4), where the format and the GPU allow it (else the next
// one):
//   1 to 16 tokens      linear_quantized_stream.cu
//   17 to 384 tokens    linear_quantized.cu
//   more                the plain way
// The columns of x are sorted first for a weight with LinearWeight::order.
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
  // The product of e4m3 tokens and weights. Returns false without doing anything where there is
  // none.
  bool runQuantized(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                    DType outType);
  void multiply(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                void* out, DType outType);

  // [numTokens, cols]: the columns of x in the order of weight.order, in scratch memory.
  const void* sortColumns(const void* x, int32_t numTokens, const LinearWeight& weight);

  const cudaStream_t stream_;
  const CublasHandle handle_;
  const int32_t numMultiprocessors_;
  Scratch workspace_;
  Scratch dequantized_;
  Scratch sorted_;     // tokens
  Scratch quantized_;  // tokens
  MatmulAlgorithms algorithms_;
};

}  // namespace uniproc::cuda
