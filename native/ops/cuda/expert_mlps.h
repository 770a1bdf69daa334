// The MLPs of a layer's experts by the grouped products of expert_products.cu, for half types on
// Hopper.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/cuda/kernels.h"
#include "ops/cuda/memory.h"
#include "ops/ops.h"

namespace uniproc::cuda {

class ExpertMlps {
 public:
  ExpertMlps(cudaStream_t stream, MemoryAccount& memory, int numMultiprocessors)
      : stream_(stream),
        numMultiprocessors_(numMultiprocessors),
        lists_(memory),
        converted_(memory) {}

  // Ops::multiplyExperts. Returns false without doing anything for arguments that the plain kernels
  // have to take, or take faster.
  bool run(const void* x, const Routing& routing, const ExpertMlp& mlp, void* wide, void* product,
           void* out, DType type);

 private:
  void multiply(const void* x, const Routing& routing, const ExpertGroups& groups,
                const LinearWeight& weight, ExpertStage stage, void* out);

  const cudaStream_t stream_;
  const int numMultiprocessors_;
  Scratch lists_;
  Scratch converted_;
};

}  // namespace uniproc::cuda
