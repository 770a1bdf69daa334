// The operations of a forward pass, at the granularity at which a GPU backend fuses them. The
// decoder is written once against this interface. Matrices are row-major. Activations have the type
// activationType(); sums are float32.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/communicator.h"
#include "base/types.h"
#include "ops/batch.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/sampling.h"

namespace uniproc {

class ForwardOps : public ExpertOps {
 public:
  virtual DType activationType(DType weights) const = 0;

  // Copies `inputs`, which hold blockUpdates and the batch's first members, from memory of
  // allocateHost in multiples of 16 bytes. Applies blockUpdates [numBlockUpdates, 3] = (slot,
  // index, block) to the block tables, then fills batch.tokenIds, positions and cacheSlots. Token
  // ids are read from the request table on the device, where the previous step may have just
  // written them.
  virtual void prepareInputs(const HostToDevice& inputs, const RequestTable& requests,
                             const int32_t* blockUpdates, int32_t numBlockUpdates,
                             int32_t blockSize, const Batch& batch) = 0;

  // out [numTokens, hiddenSize] = rows of table [rows, hiddenSize]. Row 0 of the table is token
  // `firstToken`; tokens outside the table give zeros.
  virtual void embed(const int32_t* tokenIds, int32_t numTokens, const Weight& table,
                     int32_t firstToken, void* out) = 0;

  // residual += x if x is not null; out = residual / rms(residual) * weight. All [numTokens,
  // hiddenSize]. `out` may be `x`. Zhang and Sennrich 2019.
  virtual void rmsNorm(const void* x, void* residual, int32_t numTokens, const Weight& weight,
                       float eps, void* out) = 0;

  // rmsNorm of the sum of x over the communicator's ranks. x is this rank's term, and undefined
  // afterwards unless it is `out`. The sum has x's type.
  virtual void sumRmsNorm(Communicator& communicator, void* x, void* residual, int32_t numTokens,
                          const Weight& weight, float eps, void* out) {
    const CommType type = toCommType(activationType(weight.dtype));
    communicator.allReduce(x, numTokens * weight.rows, type, ReduceOp::kSum);
    rmsNorm(x, residual, numTokens, weight, eps, out);
  }

  // out [numTokens, rows] = x [numTokens, cols] W^T (+ bias). `outType` is the activation type or
  // float32 (logits).
  virtual void linear(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                      DType outType) = 0;

  // The input of a layer that begins with a norm: rmsNorm's arguments, or sumRmsNorm's.
  struct NormInput {
    void* x = nullptr;  // [numTokens, hiddenSize], or null
    void* residual = nullptr;
    const Weight& norm;
    float eps = 0.0f;
    void* normed = nullptr;                // [numTokens, hiddenSize]; may be x
    Communicator* communicator = nullptr;  // connects the ranks that hold terms of x; null: x is
                                           // complete
  };
  void norm(const NormInput& in, int32_t numTokens) {
    if (in.x && in.communicator) {
      sumRmsNorm(*in.communicator, in.x, in.residual, numTokens, in.norm, in.eps, in.normed);
    } else {
      rmsNorm(in.x, in.residual, numTokens, in.norm, in.eps, in.normed);
    }
  }

  // The norm, then linear on its output.
  virtual void normLinear(const NormInput& in, int32_t numTokens, const LinearWeight& weight,
                          void* out) {
    norm(in, numTokens);
    linear(in.normed, numTokens, weight, out, activationType(in.norm.dtype));
  }

  // Gate and up projection, then SiLU and product: y = linear(x), out [numTokens, rows / 2] =
  // silu(y[:, :rows / 2]) * y[:, rows / 2:]. `gateUp` [numTokens, rows] is scratch for y. All of
  // type `type`.
  virtual void linearSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight,
                                void* gateUp, void* out, DType type) {
    linear(x, numTokens, weight, gateUp, type);
    siluAndMul(gateUp, numTokens, static_cast<int32_t>(weight.rows / 2), out, type);
  }

  // In place on qkv [numTokens, (numHeads + 2 numKvHeads) * headDim]: RMS-normalizes each head of q
  // and k if qNorm is given, rotates q and k (in halves, as GPT-NeoX) by rope [maxModelLen, 2,
  // headDim / 2] (cos, then sin, float32) at each token's position, and writes k and v to the
  // cache.
  virtual void ropeAndCache(void* qkv, const Batch& batch, const AttentionShape& shape,
                            const Weight& qNorm, const Weight& kNorm, float eps, const float* rope,
                            const KvCache& cache) = 0;

  // out [numTokens, numHeads * headDim]: causal attention of each token over its request's cache,
  // with scale 1 / sqrt(headDim), within the sliding window.
  virtual void attention(const void* qkv, const Batch& batch, const AttentionShape& shape,
                         const KvCache& cache, const RequestTable& requests, void* out) = 0;

  // ropeAndCache, then attention. qkv is undefined afterwards.
  virtual void ropeAndAttention(void* qkv, const Batch& batch, const AttentionShape& shape,
                                const Weight& qNorm, const Weight& kNorm, float eps,
                                const float* rope, const KvCache& cache,
                                const RequestTable& requests, void* out) {
    ropeAndCache(qkv, batch, shape, qNorm, kNorm, eps, rope, cache);
    attention(qkv, batch, shape, cache, requests, out);
  }

  // out [numTokens, size] = silu(gateUp[:, :size]) * gateUp[:, size:], both of type `type`.
  virtual void siluAndMul(const void* gateUp, int32_t numTokens, int32_t size, void* out,
                          DType type) = 0;

  // out [count, width] = x[index[i], :], both of type `type`. index is device memory.
  virtual void gatherRows(const void* x, const int32_t* index, int32_t count, int32_t width,
                          void* out, DType type) = 0;

  // out [count, width] = parts [ceil(width / partWidth), count, partWidth] joined along the
  // columns, float32. Columns of the last part beyond `width` are dropped.
  virtual void joinColumns(const float* parts, int32_t count, int32_t partWidth, int32_t width,
                           float* out) = 0;
};

// All operations of a device.
class Ops : public Backend, public ForwardOps, public SamplingOps {};

}  // namespace uniproc
