// The operations a forward pass needs, at the level at which they are fused on a GPU. The decoder
// is written once over this interface. Matrices are row-major. Activations have the type
// activationType() says; sums are float32.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "base/types.h"
#include "ops/batch.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/sampling.h"

namespace uniproc {

class ForwardOps : public ExpertOps {
 public:
  virtual DType activationType(DType weights) const = 0;

  // Applies blockUpdates [numBlockUpdates, 3] = (slot, index, block) to the block tables, then
  // fills batch.tokenIds, positions, cacheSlots and tokenRows. A token's id is read from the
  // request table, where the step before may just have put it.
  virtual void prepareInputs(const RequestTable& requests, const int32_t* blockUpdates,
                             int32_t numBlockUpdates, int32_t blockSize, const Batch& batch) = 0;

  // out [numTokens, hiddenSize] = rows of table [rows, hiddenSize], whose first is that of token
  // `firstToken`; zeros for tokens that the table does not have.
  virtual void embed(const int32_t* tokenIds, int32_t numTokens, const Weight& table,
                     int32_t firstToken, void* out) = 0;

  // residual += x when x is given; out = residual / rms(residual) * weight. [numTokens, hiddenSize]
  // Zhang and Sennrich 2019. `out` may be `x`.
  virtual void rmsNorm(const void* x, void* residual, int32_t numTokens, const Weight& weight,
                       float eps, void* out) = 0;

  // out [numTokens, rows] = x [numTokens, cols] W^T (+ bias). `outType` is the activations' or
  // float32 (logits).
  virtual void linear(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                      DType outType) = 0;

  // A linear layer behind a norm: rmsNorm, then the layer on its output, of the activations' type.
  struct NormInput {
    const void* x = nullptr;  // [numTokens, hiddenSize], or null
    void* residual = nullptr;
    const Weight& norm;
    float eps = 0.0f;
    void* normed = nullptr;  // [numTokens, hiddenSize]; may be x
  };
  virtual void normLinear(const NormInput& in, int32_t numTokens, const LinearWeight& weight,
                          void* out) {
    rmsNorm(in.x, in.residual, numTokens, in.norm, in.eps, in.normed);
    linear(in.normed, numTokens, weight, out, activationType(in.norm.dtype));
  }

  // The gate and the up projection and their product: out [numTokens, rows / 2] = silu(y[:, :rows /
  // 2]) * y[:, rows / 2:] of y = linear(x). `gateUp` [numTokens, rows] is room for y. All of the
  // activations' `type`.
  virtual void linearSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight,
                                void* gateUp, void* out, DType type) {
    linear(x, numTokens, weight, gateUp, type);
    siluAndMul(gateUp, numTokens, static_cast<int32_t>(weight.rows / 2), out, type);
  }

  // In place on qkv [numTokens, (numHeads + 2 numKvHeads) * headDim]: RMS-normalises each head of q
  // and k when qNorm is given, rotates q and k (halves, as in GPT-NeoX) by rope [maxModelLen, 2,
  // headDim / 2] (cos then sin, float32) at each token's position, writes k and v to the cache.
  virtual void ropeAndCache(void* qkv, const Batch& batch, const AttentionShape& shape,
                            const Weight& qNorm, const Weight& kNorm, float eps, const float* rope,
                            const KvCache& cache) = 0;

  // out [numTokens, numHeads * headDim]: causal attention of each token over its request's cache,
  // scale 1 / sqrt(headDim), within the sliding window.
  virtual void attention(const void* qkv, const Batch& batch, const AttentionShape& shape,
                         const KvCache& cache, const RequestTable& requests, void* out) = 0;

  // out [numTokens, size] = silu(gateUp[:, :size]) * gateUp[:, size:], both of the activations'
  // `type`.
  virtual void siluAndMul(const void* gateUp, int32_t numTokens, int32_t size, void* out,
                          DType type) = 0;

  // out [count, width] = x[index[i], :], both of the activations' `type`. index is device memory.
  virtual void gatherRows(const void* x, const int32_t* index, int32_t count, int32_t width,
                          void* out, DType type) = 0;

  // out [count, width] = the parts [ceil(width / partWidth), count, partWidth] side by side,
  // float32; what of the last is beyond width is left out.
  virtual void joinColumns(const float* parts, int32_t count, int32_t partWidth, int32_t width,
                           float* out) = 0;
};

// All that a device does.
class Ops : public Backend, public ForwardOps, public SamplingOps {};

}  // namespace uniproc
