// Selects the attention kernels of a batch, by the type of activations and of the KV cache:
//
//   rows of        cache of the activations' type           cache in fp8
//   one query      attention_decode_few.cu, or              attention_decode.cu
//                  attention_decode.cu
//   several        attention_prefill_wgmma.cu, or           attention_prefill.cu
//                  attention_prefill.cu
//   float32, other attention_plain.cu                       attention_plain.cu
//   head sizes
//
// The kernels of a cache in fp8 convert keys and values to the activations' type in registers. The
// others' bulk copies bring them to shared memory as the tensor cores read them.
#include <algorithm>

#include "base/error.h"
#include "ops/cuda/attention.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

// Static shared memory of the tensor-core kernels, at most.
constexpr size_t kStaticBytes = 1024;

// Whether there are tensor-core kernels and the device has the shared memory that they take. GPUs
// of compute capability 8.6, 8.9 and 12.x have too little for heads of 128.
bool hasTensorCoreKernels(DType type, int32_t headDim) {
  const size_t bytes = std::max(attentionDecodeSharedBytes(type, headDim),
                                attentionPrefillSharedBytes(type, headDim));
  return bytes > 0 && bytes + kStaticBytes <= maxSharedBytes();
}

}  // namespace

void attention(const void* qkv, const Batch& batch, const AttentionShape& shape,
               const KvCache& cache, const RequestTable& requests, void* out, DType type,
               void* workspace, int32_t numMultiprocessors, cudaStream_t stream) {
  const bool isFloat8 = cache.isFloat8();
  if (cache.type != storageOf(type) && !isFloat8) {
    throw Error("NOT_SUPPORTED",
                "CUDA attention requires a KV cache of the activations' type or in fp8");
  }
  if (batch.numTokens == 0) return;
  const AttentionArgs args(qkv, batch, shape, cache, requests, out);
  if (!hasTensorCoreKernels(type, shape.headDim)) {
    return attentionPlain(args, type, isFloat8, batch.maxQueryLen, stream);
  }
  if (batch.hasFewKeys && batch.maxQueryLen == 1 && kernelsWait() && !isFloat8) {
    attentionDecodeFew(args, nullptr, type, numMultiprocessors, stream);
  } else if (batch.numDecodeRows > 0) {
    attentionDecode(args, type, isFloat8, workspace, numMultiprocessors, stream);
  }
  if (batch.maxQueryLen == 1) return;
  if (!isFloat8 && canPrefillWithWgmma(args, type)) {
    attentionPrefillWgmma(args, type, batch, numMultiprocessors, stream);
  } else {
    attentionPrefill(args, type, isFloat8, batch, stream);
  }
}

bool ropeAndAttention(const void* qkv, const Batch& batch, const AttentionShape& shape,
                      const Weight& qNorm, const Weight& kNorm, float eps, const float* rope,
                      const KvCache& cache, const RequestTable& requests, void* out, DType type,
                      int32_t numMultiprocessors, cudaStream_t stream) {
  const auto addresses = {qkv,
                          qNorm.data,
                          kNorm.data,
                          static_cast<const void*>(rope),
                          static_cast<const void*>(cache.keys),
                          static_cast<const void*>(cache.values)};
  if (!batch.isDecode || !batch.hasFewKeys || batch.numRows == 0 || !kernelsWait() ||
      cache.type != storageOf(type) || !hasTensorCoreKernels(type, shape.headDim) ||
      !std::ranges::all_of(addresses, isAligned)) {
    return false;
  }
  const RopeArgs ropeArgs{qNorm.data, kNorm.data,   qNorm.offset, rope,
                          cache.keys, cache.values, eps};
  attentionDecodeFew(AttentionArgs(qkv, batch, shape, cache, requests, out), &ropeArgs, type,
                     numMultiprocessors, stream);
  return true;
}

}  // namespace uniproc::cuda
