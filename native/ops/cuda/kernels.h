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
void activateAndMul(const ForwardOps::GateAndUp& in, int32_t numTokens, int32_t size,
                    Activation activation, void* out, DType type, cudaStream_t stream);
void gatherRows(const void* x, const int32_t* index, int32_t count, int32_t width, void* out,
                DType type, cudaStream_t stream);
// out [count, width] = x [count, xWidth] with column index[c] at c, 0 where index[c] is -1
void gatherColumns(const void* x, int32_t xWidth, const int32_t* index, int32_t count,
                   int32_t width, void* out, DType type, cudaStream_t stream);
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

// linear_quantized_stream.cu -------------------------------------------------------------------

// The same for weights of 4 and 8 bits.
bool linearQuantizedStream(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                           DType outType, int numMultiprocessors, cudaStream_t stream);
bool linearSiluAndMulQuantizedStream(const void* x, int32_t numTokens, const LinearWeight& weight,
                                     void* out, int numMultiprocessors, cudaStream_t stream);

// linear_quantized.cu --------------------------------------------------------------------------

// The product of Ops::linear with weights of 4 and 8 bits, for any number of tokens of a half type,
// on Hopper. Returns false without doing anything for other arguments.
bool linearQuantized(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                     DType outType, int numMultiprocessors, cudaStream_t stream);
// linear_stream_float8.cu ----------------------------------------------------------------------

// The same for up to 4 tokens of bfloat16 and float8 weights, on Hopper.
bool linearStreamFloat8(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                        DType outType, int numMultiprocessors, cudaStream_t stream);
bool linearSiluAndMulStreamFloat8(const void* x, int32_t numTokens, const LinearWeight& weight,
                                  void* out, int numMultiprocessors, cudaStream_t stream);

// quantize.cu ----------------------------------------------------------------------------------

// x [numTokens, cols] of a half type as e4m3 and scales [numTokens], or with `byGroup` scales
// [cols / 128, numTokens]; x = scale * quantized, rounded to 4 significant bits. cols is a multiple
// of 8, with `byGroup` of 128.
void quantizeTokens(const void* x, int32_t numTokens, int32_t cols, bool byGroup, DType type,
                    void* quantized, float* scales, cudaStream_t stream);

// linear_few.cu --------------------------------------------------------------------------------

// The product of Ops::linear for up to 8 tokens of a half type and small weights. Returns false
// without doing anything for other arguments.
bool linearFewTokens(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                     void* out, DType outType, int32_t numMultiprocessors, cudaStream_t stream);

// linear_narrow.cu -----------------------------------------------------------------------------

// The product of Ops::linear with a weight of up to 7 rows. Returns false without doing anything
// for other arguments.
bool linearNarrow(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                  void* out, DType outType, cudaStream_t stream);

// dequantize.cu --------------------------------------------------------------------------------

// out [rows, cols] of type weight.dtype = the elements of a weight with scales, in the order of x's
// columns.
void dequantize(const LinearWeight& weight, void* out, cudaStream_t stream);

// residual.cu ----------------------------------------------------------------------------------

void scaleQueries(void* qkv, const Batch& batch, const AttentionShape& shape,
                  const ForwardOps::Temperature& temperature, DType type, cudaStream_t stream);
void scale(void* x, int64_t count, float factor, DType type, cudaStream_t stream);
void scaleBy(void* x, int64_t count, const Weight& factor, DType type, cudaStream_t stream);
void softcap(float* x, int64_t count, float cap, cudaStream_t stream);
void add(void* residual, const void* x, int64_t count, DType type, cudaStream_t stream);
void addGated(const void* x, const void* gate, int32_t numTokens, int32_t width, void* out,
              DType type, cudaStream_t stream);

// projection_norm.cu ---------------------------------------------------------------------------

void sumSquares(const void* qkv, int32_t numTokens, const AttentionShape& shape, float* sums,
                DType type, cudaStream_t stream);
void normValues(void* qkv, int32_t numTokens, const AttentionShape& shape, float eps, DType type,
                cudaStream_t stream);
void normProjections(void* qkv, int32_t numTokens, const AttentionShape& shape,
                     const ForwardOps::ProjectionNorm& norm, DType type, cudaStream_t stream);

// experts.cu -----------------------------------------------------------------------------------

void routeTokens(const void* logits, const SoftmaxRouting& rule, const Routing& routing, DType type,
                 cudaStream_t stream);
void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                  const LinearWeight& weight, void* out, DType type, cudaStream_t stream);
void sumExperts(const void* x, const Routing& routing, int32_t width, void* out, DType type,
                cudaStream_t stream);

// expert_linear_groups.cu ----------------------------------------------------------------------

// expertLinear without biases for weights of 4 and 8 bits and activations of weight.dtype. Returns
// false without doing anything for other arguments.
bool expertLinearGroups(const void* x, int32_t rowsPerToken, const Routing& routing,
                        const LinearWeight& weight, void* out, cudaStream_t stream);

// expert_groups.cu -----------------------------------------------------------------------------

// The pairs of a batch, token * topK + k, by expert: those of local expert e are pairs[offsets[e]]
// to pairs[offsets[e + 1] - 1], in ascending order. Pairs of other ranks' experts are left out.
struct ExpertGroups {
  int32_t* offsets;  // [numLocal + 1]
  int32_t* pairs;    // [numTokens * topK]
};
void groupPairs(const Routing& routing, const ExpertGroups& groups, cudaStream_t stream);

// expert_products.cu ---------------------------------------------------------------------------

// Whether expertProducts computes both products of the experts' MLPs, once their weights have the
// type of the activations.
bool hasExpertProducts(const Routing& routing, const ExpertMlp& mlp);

// Whether expertProducts finds the pairs of each expert itself: `groups` are then null.
bool areFewPairs(const Routing& routing);

struct ExpertStage {
  bool isGated = false;         // gate and up of a token, activated; otherwise down of a pair
  Activation activation{};      // if it is gated
  bool areGroupsReady = false;  // the previous kernel is expertProducts of the same groups
  int32_t firstExpert = 0;      // of those of this rank, the first in the weight
  int32_t numExperts = 0;       // in the weight
};
// out [numTokens * topK, units] = the products of the pairs of `groups` with their experts'
// matrices, of those in the weight. Other pairs are not written. x [numTokens, cols] if the stage
// is gated, else [numTokens * topK, cols].
void expertProducts(const void* x, const Routing& routing, const ExpertGroups& groups,
                    const LinearWeight& weight, const ExpertStage& stage, void* out,
                    int numMultiprocessors, cudaStream_t stream);

// routing.cu -----------------------------------------------------------------------------------

void applyWeights(void* x, const Routing& routing, int32_t width, DType type, cudaStream_t stream);
void routeTokensBySigmoid(const float* logits, const SigmoidRouting& rule, const Routing& routing,
                          cudaStream_t stream);
// Adds its expert's part of bias [numLocal * rows], of type `type`, to each row of out [numTokens *
// topK, rows] that has an expert of this rank.
void addExpertBias(const Weight& bias, const Routing& routing, void* out, DType type,
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
