// A model's matrix products, x W^T in bfloat16, and nothing else of it.
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

// Of a weight.
struct Shape {
  int64_t rows;
  int64_t cols;
};

struct Step {
  int32_t numTokens;   // rows of the layers' products
  int32_t numSampled;  // rows of the output head's
};

class Products {
 public:
  // Room for all of `steps`. Each layer has weights of its own, so that every step reads them all
  // from memory, as a model's does.
  Products(cudaStream_t stream, int numLayers, const std::vector<Shape>& layer, Shape head,
           const std::vector<Step>& steps);

  // Seconds of one step's products, one after the other, as a CUDA graph. Of the algorithms that
  // cuBLASLt's heuristics name for a product the one that proves fastest is taken.
  double seconds(Step step);

 private:
  // One matrix in each of the layers.
  struct Weight {
    Shape shape;
    std::vector<DeviceMemory> copies;
  };
  // A weight times as many rows, as cuBLASLt is told of it.
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
