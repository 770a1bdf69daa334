// A model's matrix products x W^T in bfloat16, without its other operations.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "ceilings/device.h"

namespace uniproc::ceilings {

// The shape of a weight.
struct Shape {
  int64_t rows;
  int64_t cols;
};

struct Step {
  int32_t numTokens;   // rows of the layers' products
  int32_t numSampled;  // rows of the output head's product
};

class Products {
 public:
  // Allocates memory for all of `steps`. Each layer has its own weights, so that every step reads
  // them all from memory, as a model does.
  Products(cudaStream_t stream, int numLayers, const std::vector<Shape>& layer, Shape head,
           const std::vector<Step>& steps);

  // Seconds of one step's products, run in order as a CUDA graph, each with the fastest algorithm
  // that cuBLASLt's heuristic returns for it.
  double seconds(Step step);

 private:
  // One matrix per layer.
  struct Weight {
    Shape shape;
    std::vector<DeviceMemory> copies;
  };
  // The cuBLASLt descriptors of the product of a weight with some number of rows.
  struct Product {
    const Weight* weight;
    cublasLtMatmulDescOpaque_t description;
    cublasLtMatrixLayoutOpaque_t weightLayout;
    cublasLtMatrixLayoutOpaque_t xLayout;
    cublasLtMatrixLayoutOpaque_t outLayout;
    cublasLtMatmulAlgo_t algorithm;
  };
  struct DestroyHandle {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  };

  Weight makeWeight(Shape shape, int copies);
  const Product& product(const Weight& weight, int32_t numRows);
  std::vector<cublasLtMatmulHeuristicResult_t> candidates(const Product& product) const;
  void chooseFastest(Product& product) const;
  cublasStatus_t tryRun(const Product& product, size_t copy) const;
  void run(const Product& product, size_t copy) const;

  const cudaStream_t stream_;
  const int numLayers_;
  uint64_t seed_ = 1;
  std::unique_ptr<cublasLtContext, DestroyHandle> handle_;
  std::vector<Weight> layer_;
  Weight head_;
  DeviceMemory x_;
  DeviceMemory out_;
  DeviceMemory workspace_;
  std::map<std::pair<const Weight*, int32_t>, Product> products_;
};

}  // namespace uniproc::ceilings
