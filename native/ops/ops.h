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

  // Rearranges a loaded weight in place into the layout in which the backend multiplies it fastest,
  // and sets isArranged; or leaves it as it is. It will be sliced at multiples of `sliceRows`
  // alone.
  virtual void arrange(LinearWeight& weight, int64_t sliceRows) {
    static_cast<void>(weight);
    static_cast<void>(sliceRows);
  }

  // Copies `inputs`, which hold blockUpdates and the batch's first members, from memory of
  // allocateHost in multiples of 16 bytes. Applies blockUpdates [numBlockUpdates, 3] = (group *
  // maxNumSeqs + slot, index, block) to the block tables, then fills batch.tokenIds, positions and
  // cacheSlots, these for each group of layers. Token
  // ids are read from the request table on the device, where the previous step may have just
  // written them.
  virtual void prepareInputs(const HostToDevice& inputs, const RequestTable& requests,
                             const int32_t* blockUpdates, int32_t numBlockUpdates,
                             int32_t blockSize, const Batch& batch) = 0;

  // out [numTokens, hiddenSize] = rows of table [rows, hiddenSize], of the model's type or, on the
  // CPU, of a float type or blocks. Row 0 of the table is token `firstToken`; tokens outside the
  // table give zeros.
  virtual void embed(const int32_t* tokenIds, int32_t numTokens, const LinearWeight& table,
                     int32_t firstToken, void* out) = 0;

  // residual += x if x is not null; out = residual / rms(residual) * (weight + weight.offset). All
  // [numTokens, hiddenSize]. `out` may be `x`. Zhang and Sennrich 2019.
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
    activateAndMul(gateUp, numTokens, static_cast<int32_t>(weight.rows / 2), Activation::kSilu, out,
                   type);
  }

  // The experts' MLPs: out [numTokens, hiddenSize] = each token's weighted sum, over its experts
  // that this rank holds, of down(act(gate(x)) * up(x)), for x [numTokens, hiddenSize] of type
  // `type`. `wide` [numTokens * topK, max(2 * intermediateSize, hiddenSize)] and `product`
  // [numTokens * topK, intermediateSize] are scratch. out may be x.
  virtual void multiplyExperts(const void* x, const Routing& routing, const ExpertMlp& mlp,
                               void* wide, void* product, void* out, DType type) {
    const auto intermediate = static_cast<int32_t>(mlp.down.cols);
    expertLinear(x, /*rowsPerToken=*/1, routing, mlp.gateUp, wide, type);
    activateAndMul(wide, routing.numRows(), intermediate, mlp.activation, product, type);
    expertLinear(product, routing.topK, routing, mlp.down, wide, type);
    sumExperts(wide, routing, static_cast<int32_t>(mlp.down.rows / routing.numLocal), out, type);
  }

  // In place on qkv [numTokens, (numHeads + 2 numKvHeads) * headDim]: RMS-normalizes each head of q
  // and k if qNorm is given, rotates q and k (in halves, as GPT-NeoX) by rope [maxModelLen, 2,
  // headDim / 2] (cos, then sin, float32; null: no rotation) at each token's position, and writes k
  // and v to the cache.
  virtual void ropeAndCache(void* qkv, const Batch& batch, const AttentionShape& shape,
                            const Weight& qNorm, const Weight& kNorm, float eps, const float* rope,
                            const KvCache& cache) = 0;

  // In place on the values of qkv of type `type`: each head x / sqrt(mean(x^2) + eps) (Gemma 4).
  virtual void normValues(void* qkv, int32_t numTokens, const AttentionShape& shape, float eps,
                          DType type) = 0;

  // The temperature of attention in long contexts (Llama 4): in place on the queries of qkv of type
  // `type`, times 1 + beta * log(1 + floor((position + shift) / period)).
  struct Temperature {
    float beta = 0.0f;
    float period = 1.0f;
    float shift = 0.0f;
  };
  virtual void scaleQueries(void* qkv, const Batch& batch, const AttentionShape& shape,
                            const Temperature& temperature, DType type) = 0;

  // out [numTokens, numHeads * headDim]: causal attention of each token over its request's cache,
  // with shape.scale, softcap and sinks (Xiao et al. 2024), within the sliding window or chunk.
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

  // Rows of gate and of up; a stride is the elements from one row to the next.
  struct GateAndUp {
    const void* gate = nullptr;
    int64_t gateStride = 0;
    const void* up = nullptr;
    int64_t upStride = 0;
  };
  // out [numTokens, size] = activation(gate) * up of rows of `size` elements, all of type `type`;
  // Activation::kClampedSwiglu is a function of both.
  virtual void activateAndMulRows(const GateAndUp& in, int32_t numTokens, int32_t size,
                                  Activation activation, void* out, DType type) = 0;

  // The same for gateUp [numTokens, 2 * size].
  void activateAndMul(const void* gateUp, int32_t numTokens, int32_t size, Activation activation,
                      void* out, DType type) {
    const void* up = static_cast<const char*>(gateUp) + size * sizeOf(type);
    const int64_t stride = 2 * int64_t{size};
    activateAndMulRows({gateUp, stride, up, stride}, numTokens, size, activation, out, type);
  }

  // x [count] *= factor, in place, of type `type`.
  virtual void scale(void* x, int64_t count, float factor, DType type) = 0;

  // x [count] *= factor [1], in place, of type `type`.
  virtual void scaleBy(void* x, int64_t count, const Weight& factor, DType type) = 0;

  // x [count] = cap * tanh(x / cap), in place, float32.
  virtual void softcap(float* x, int64_t count, float cap) = 0;

  // residual [count] += x, both of type `type`.
  virtual void add(void* residual, const void* x, int64_t count, DType type) = 0;

  // out [numTokens, width] += sigmoid(gate [numTokens]) * x [numTokens, width], all of type `type`.
  virtual void addGated(const void* x, const void* gate, int32_t numTokens, int32_t width,
                        void* out, DType type) = 0;

  // sums [numTokens, 2], float32: the sums of squares of each token's q and k in qkv [numTokens,
  // (numHeads + 2 numKvHeads) * headDim] of type `type`.
  virtual void sumSquares(const void* qkv, int32_t numTokens, const AttentionShape& shape,
                          float* sums, DType type) = 0;

  // The norm of whole projections: in place on qkv of type `type`, q and k = x / sqrt(sum / width +
  // eps) * weight. `sums` [numTokens, 2] are those of sumSquares, added over all ranks.
  struct ProjectionNorm {
    const float* sums = nullptr;
    const Weight& q;     // [numHeads * headDim]
    const Weight& k;     // [numKvHeads * headDim]
    int32_t qWidth = 0;  // elements in each sum
    int32_t kWidth = 0;
    float eps = 0.0f;
  };
  virtual void normProjections(void* qkv, int32_t numTokens, const AttentionShape& shape,
                               const ProjectionNorm& norm, DType type) = 0;

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
