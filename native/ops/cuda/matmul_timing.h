// Finds the fastest cuBLASLt algorithm of a product by timing.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "ops/cuda/event.h"
#include "ops/cuda/matmul_problem.h"
#include "ops/cuda/memory.h"

namespace uniproc::cuda {

// Holds an input and an output for products of a weight's shape with up to largest.numTokens
// tokens.
class MatmulTiming {
 public:
  // `weights`: [rows, cols] each; a product is timed over all of them in turn, so that it reads
  // them from memory as a model does. Throws Error OUT_OF_MEMORY.
  MatmulTiming(cublasLtHandle_t handle, cudaStream_t stream, MemoryAccount& memory,
               const MatmulShape& largest, const std::vector<const void*>& weights,
               const void* bias, void* workspace);
  MatmulTiming(const MatmulTiming&) = delete;
  MatmulTiming& operator=(const MatmulTiming&) = delete;

  // The fastest of the algorithms that return the same bits as the heuristic's first.
  cublasLtMatmulAlgo_t fastest(const MatmulShape& shape);

 private:
  // Device memory that ends with its owner.
  class Buffer {
   public:
    Buffer(MemoryAccount& memory, size_t bytes)
        : memory_(memory), bytes_(bytes), data_(memory.allocate(bytes, "timing products")) {}
    ~Buffer() { memory_.release(data_, bytes_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* data() const { return data_; }

   private:
    MemoryAccount& memory_;
    const size_t bytes_;
    void* const data_;
  };

  // A checksum of the product's bits; none if the algorithm does not run.
  std::optional<uint64_t> bitsOf(MatmulProblem& problem, const MatmulShape& shape,
                                 const cublasLtMatmulAlgo_t& algorithm);
  // Milliseconds of what `run` enqueues, by the device's clock.
  float millisecondsOf(const std::function<void()>& run);

  const cublasLtHandle_t handle_;
  const cudaStream_t stream_;
  const std::vector<const void*>& weights_;
  const void* const bias_;
  void* const workspace_;
  const Buffer x_;
  const Buffer out_;
  const Buffer sum_;
  const CudaEvent begin_{CudaEvent::Timing::kYes};
  const CudaEvent end_{CudaEvent::Timing::kYes};
};

}  // namespace uniproc::cuda
