// Products out = x W^T in cuBLASLt: shapes, descriptors and algorithms.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/types.h"

namespace uniproc::cuda {

// Operands in e4m3, and what shares a scale.
enum class Float8Operands : uint8_t {
  kNone,    // operands of the shape's type
  kRows,    // a row of the weight, a token
  kBlocks,  // 128 x 128 elements of the weight, 128 columns of a token
};

// The shape of a product, the key of its algorithm.
struct MatmulShape {
  int64_t rows;  // of the weight
  int64_t cols;
  int32_t numTokens;
  DType type;  // of weight and x
  DType outType;
  bool bias;  // fused
  Float8Operands float8 = Float8Operands::kNone;
  auto operator<=>(const MatmulShape&) const = default;
};

// The scales of e4m3 operands, in which cuBLASLt has rows as columns.
struct MatmulScales {
  const float* weight = nullptr;  // [rows], or [ceil(rows / 128), cols / 128]
  const float* x = nullptr;       // [numTokens], or [cols / 128, numTokens]
};

// Products of similar size share an algorithm, chosen for the largest of them (at most a quarter
// larger): the size of numTokens' bucket.
int32_t bucketOf(int32_t numTokens);

// The cuBLASLt descriptors of one product.
class MatmulProblem {
 public:
  // bias: [rows] of outType, or null if the shape has none.
  MatmulProblem(const MatmulShape& shape, const void* bias, const MatmulScales& scales = {});

  // The algorithms that cuBLASLt's heuristic returns, the one that it prefers first; may be empty,
  // in particular for e4m3 operands that this GPU or version of cuBLASLt does not multiply.
  std::vector<cublasLtMatmulAlgo_t> algorithms(cublasLtHandle_t handle, int most);
  // Whether cuBLASLt can compute this product with the algorithm.
  bool accepts(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm);
  // out [numTokens, rows] = x [numTokens, cols] weight^T; workspace of kCublasWorkspaceBytes.
  cublasStatus_t run(cublasLtHandle_t handle, const void* x, const void* weight, void* out,
                     const cublasLtMatmulAlgo_t& algorithm, void* workspace, cudaStream_t stream);

 private:
  cublasLtMatmulDescOpaque_t product_;
  cublasLtMatrixLayoutOpaque_t weight_;
  cublasLtMatrixLayoutOpaque_t x_;
  cublasLtMatrixLayoutOpaque_t out_;
  bool isKnown_ = true;  // to this version of cuBLASLt
};

}  // namespace uniproc::cuda
