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

// The shape of a product, the key of its algorithm.
struct MatmulShape {
  int64_t rows;  // of the weight
  int64_t cols;
  int32_t numTokens;
  DType type;  // of weight and x
  DType outType;
  bool bias;  // fused
  auto operator<=>(const MatmulShape&) const = default;
};

// Products of similar size share an algorithm, chosen for the largest of them (at most a quarter
// larger): the size of numTokens' bucket.
int32_t bucketOf(int32_t numTokens);

// The cuBLASLt descriptors of one product.
class MatmulProblem {
 public:
  // bias: [rows] of outType, or null if the shape has none.
  MatmulProblem(const MatmulShape& shape, const void* bias);

  // The algorithms that cuBLASLt's heuristic returns, the one that it prefers first; may be empty.
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
};

}  // namespace uniproc::cuda
