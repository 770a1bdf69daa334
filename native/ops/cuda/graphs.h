// Records operations into CUDA graphs, so that a step costs one launch instead of hundreds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "ops/ops.h"

namespace uniproc::cuda {

class CudaGraphs final : public Graphs {
 public:
  explicit CudaGraphs(cudaStream_t stream) : stream_(stream) {}
  ~CudaGraphs() override;
  CudaGraphs(const CudaGraphs&) = delete;
  CudaGraphs& operator=(const CudaGraphs&) = delete;

  // The first call under a key runs the operations directly, so that lazy initialization (scratch
  // memory, the choice of an algorithm) is done before the second call records them.
  void launch(int32_t key, const std::function<void()>& record) override;

 private:
  cudaGraphExec_t capture(const std::function<void()>& record) const;

  const cudaStream_t stream_;
  std::unordered_map<int32_t, cudaGraphExec_t> graphs_;  // null after the first call
};

}  // namespace uniproc::cuda
