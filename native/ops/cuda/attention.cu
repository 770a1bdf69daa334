// Selects the attention kernels of a batch.
#include <algorithm>

#include "base/error.h"
#include "ops/cuda/attention.cuh"
#include "ops/cuda/kernels.h"

namespace uniproc::cuda {
namespace {

bool hasTensorCoreKernels(DType type, int32_t headDim) {
  return withTensorCores(type, headDim, [&]<class T, int kHeadDim>() {});
}

}  // namespace

void attention(const void* qkv, const Batch& batch, const AttentionShape& shape,
               const KvCache& cache, const RequestTable& requests, void* out, DType type,
               void* workspace, int32_t numMultiprocessors, cudaStream_t stream) {
  if (cache.dtype != type) {
    throw Error("NOT_SUPPORTED", "CUDA attention requires a KV cache of the activations' type");
  }
  if (batch.numTokens == 0) return;
  const AttentionArgs args(qkv, batch, shape, cache, requests, out);
  if (!hasTensorCoreKernels(type, shape.headDim)) {
    return attentionPlain(args, type, batch.maxQueryLen, stream);
  }
  if (batch.numDecodeRows > 0) {
    attentionDecode(args, type, workspace, numMultiprocessors, stream);
  }
  if (batch.maxQueryLen == 1) return;
  if (canPrefillWithWgmma(args, type)) {
    attentionPrefillWgmma(args, type, batch, numMultiprocessors, stream);
  } else {
    attentionPrefill(args, type, batch, stream);
  }
}

}  // namespace uniproc::cuda
