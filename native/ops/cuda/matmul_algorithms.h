// The choice of a cuBLASLt algorithm for each product.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/cuda/matmul_problem.h"
#include "ops/cuda/memory.h"

namespace uniproc::cuda {

// An algorithm is the first that cuBLASLt's heuristic returns, or the fastest of those that return
// the same bits. Algorithms differ in their tiles, and some in the order in which they sum. Only
// those of the same order are compared by time, so the choice never changes a result: it may differ
// between runs and between ranks.
class MatmulAlgorithms {
 public:
  MatmulAlgorithms(cublasLtHandle_t handle, cudaStream_t stream, MemoryAccount& memory)
      : handle_(handle), stream_(stream), memory_(memory) {}

  // The algorithm of `shape`, which computes `weight`. Throws Error DEVICE_FAILED if cuBLASLt has
  // none. Until `chooseFastest` the product counts as one to be timed.
  const cublasLtMatmulAlgo_t& of(const MatmulShape& shape, const void* weight, const void* bias);

  // The algorithm of a product with e4m3 operands, for this number of tokens alone, which is not
  // timed; null if cuBLASLt has none.
  const cublasLtMatmulAlgo_t* ofFloat8(const MatmulShape& shape, const MatmulScales& scales);

  // Times the algorithms of all products so far, up to their largest number of tokens, except those
  // that `known` has, and returns a table of both. `known`: an earlier result, or empty; one of
  // another GPU or cuBLASLt, or a damaged one, counts as empty. Waits for the device. The weights
  // of the products so far must still exist. Products that first run later keep the heuristic's
  // first.
  std::string chooseFastest(std::string_view known, void* workspace);

 private:
  // A product of any number of tokens.
  struct Product {
    int64_t rows;
    int64_t cols;
    DType type;
    DType outType;
    bool bias;
    auto operator<=>(const Product&) const = default;
  };
  // What `chooseFastest` times it with.
  struct Operands {
    std::vector<const void*> weights;  // of different layers
    const void* bias;
    int32_t numTokens;  // the most so far
  };
  using Table = std::map<MatmulShape, cublasLtMatmulAlgo_t>;

  static MatmulShape shapeOf(const Product& product, int32_t numTokens);
  void remember(const MatmulShape& shape, const void* weight, const void* bias);
  // Adds the product's buckets to the table, but those that it has.
  void timeProduct(const Product& product, const Operands& operands, void* workspace, Table& table);
  std::string header() const;
  std::string textOf(const Table& table) const;
  Table tableOf(std::string_view text) const;

  const cublasLtHandle_t handle_;
  const cudaStream_t stream_;
  MemoryAccount& memory_;
  std::map<Product, Operands> products_;  // until they are timed
  std::optional<Table> timed_;
  Table algorithms_;
  std::map<MatmulShape, std::optional<cublasLtMatmulAlgo_t>> float8Algorithms_;
};

}  // namespace uniproc::cuda
