// The CUDA backend's own kernels, as functions that enqueue on a stream. Arguments and layouts are
// those of ops.h; activations, weights and cache are float32, float16 or bfloat16, sums are
// float32.
//
// A row with slot -1 pads a batch to the size of a captured graph: kernels skip it, so its outputs
// are undefined. Grids depend only on values known to the host (numRows, numTokens, shapes) and
// lengths are read on the device, so that a captured launch can be replayed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace uniproc::cuda {

// inputs.cu ------------------------------------------------------------------------------------

void prepareInputs(const HostToDevice& inputs, const RequestTable& requests,
                   const int32_t* blockUpdates, int32_t numBlockUpdates, int32_t blockSize,
                   const Batch& batch, cudaStream_t stream);
// Backend::copyToPinned.
void copyToPinned(void* host, const void* device, size_t bytes, cudaStream_t stream);

// elementwise.cu -------------------------------------------------------------------------------

void embed(const int32_t* tokenIds, int32_t numTokens, const Weight& table, int32_t firstToken,
           void* out, DType type, cudaStream_t stream);
void rmsNorm(const void* x, void* residual, int32_t numTokens, const Weight& weight, float eps,
             void* out, DType type, cudaStream_t stream);
void siluAndMul(const void* gateUp, int32_t numTokens, int32_t size, void* out, DType type,
                cudaStream_t stream);
void gatherRows(const void* x, const int32_t* index, int32_t count, int32_t width, void* out,
                DType type, cudaStream_t stream);
void joinColumns(const float* parts, int32_t count, int32_t partWidth, int32_t width, float* out,
                 cudaStream_t stream);
// out [rows, width] += bias [width]
void addBias(void* out, int32_t rows, int32_t width, const Weight& bias, DType type,
             cudaStream_t stream);
void convert(void* out, DType outType, const void* in, DType inType, int64_t count,
             cudaStream_t stream);
void fillRandom(void* out, StorageType type, int64_t count, float mean, float std, uint64_t seed,
                cudaStream_t stream);

// checksum.cu ----------------------------------------------------------------------------------

// *sum = a checksum of data [bytes]; bytes and data are even.
void checksum(const void* data, size_t bytes, uint64_t* sum, cudaStream_t stream);

// linear_stream.cu -----------------------------------------------------------------------------

// The products of Ops::linear and Ops::linearSiluAndMul for few tokens of a half type, on GPUs from
// Hopper on. Return false without doing anything for other arguments.
bool linearStream(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                  DType outType, int numMultiprocessors, cudaStream_t stream);
bool linearSiluAndMulStream(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                            int numMultiprocessors, cudaStream_t stream);

// linear_few.cu --------------------------------------------------------------------------------

// The product of Ops::linear for up to 8 tokens of a half type and small weights. Returns false
// without doing anything for other arguments.
bool linearFewTokens(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                     void* out, DType outType, int32_t numMultiprocessors, cudaStream_t stream);

// dequantize.cu --------------------------------------------------------------------------------

// out [rows, cols] of type weight.dtype = the elements of a weight with scales.
void dequantize(const LinearWeight& weight, void* out, cudaStream_t stream);

// experts.cu -----------------------------------------------------------------------------------

void routeTokens(const void* logits, bool normalize, const Routing& routing, DType type,
                 cudaStream_t stream);
void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                  const LinearWeight& weight, void* out, DType type, cudaStream_t stream);
void sumExperts(const void* x, const Routing& routing, int32_t width, void* out, DType type,
                cudaStream_t stream);

// rope.cu --------------------------------------------------------------------------------------

void ropeAndCache(void* qkv, const Batch& batch, const AttentionShape& shape, const Weight& qNorm,
                  const Weight& kNorm, float eps, const float* rope, const KvCache& cache,
                  DType type, cudaStream_t stream);

// attention.cu ---------------------------------------------------------------------------------

// Bytes of scratch for attention, independent of the batch. The scratch is attention's alone and
// zeroed once; every launch leaves its counters zero, for all shapes.
size_t attentionWorkspaceBytes(const AttentionShape& shape, int32_t numMultiprocessors);

// Launches one kernel for rows with one query (attention_decode.cu, or attention_decode_few.cu for
// a batch of such rows with hasFewKeys) and one for rows with several (attention_prefill_wgmma.cu
// or attention_prefill.cu), if the batch has such rows.
void attention(const void* qkv, const Batch& batch, const AttentionShape& shape,
               const KvCache& cache, const RequestTable& requests, void* out, DType type,
               void* workspace, int32_t numMultiprocessors, cudaStream_t stream);

// ropeAndCache and attention in one kernel, with the same results, on Hopper and later, for a batch
// with isDecode and hasFewKeys and the types and head sizes of the tensor-core kernels. Returns
// false without doing anything for other arguments.
bool ropeAndAttention(const void* qkv, const Batch& batch, const AttentionShape& shape,
                      const Weight& qNorm, const Weight& kNorm, float eps, const float* rope,
                      const KvCache& cache, const RequestTable& requests, void* out, DType type,
                      int32_t numMultiprocessors, cudaStream_t stream);

// sampler.cu -----------------------------------------------------------------------------------

// Bytes of scratch that sample and gatherLogprobs need for at most that many rows.
size_t samplerWorkspaceBytes(int32_t maxRows, int32_t vocabSize, int32_t maxLogprobs);

struct SamplerScratch {
  void* workspace;     // samplerWorkspaceBytes
  unsigned* counters;  // [maxRows], zeroed once; every launch leaves them zero
};

// How tokens are sampled. Both give the same tokens.
enum class SamplerPath : uint8_t {
  kPlain,  // one block finds a row's cut
  kFused,  // fewer kernels, and a cluster of blocks for a truncated row
};

// The path for a batch on this thread's device.
SamplerPath samplerPath(const SampledFeatures& features);

void sample(const float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
            const RequestTable& requests, const int32_t* bitmask, const SampledFeatures& features,
            int32_t* sampled, int32_t* numNans, const Logprobs& logprobs, SamplerPath path,
            const SamplerScratch& scratch, cudaStream_t stream);
void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize, const int32_t* tokenIds,
                    int32_t numTop, int32_t* numNans, const Logprobs& out, void* workspace,
                    cudaStream_t stream);

}  // namespace uniproc::cuda
