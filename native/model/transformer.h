// The decoder of Llama, Mistral and Qwen, written once over the operations of ops.h. One rank's
// share of it where several hold the model (Shoeybi et al. 2019, Megatron-LM).
#pragma once

#include <cstdint>

#include "model/kv_cache.h"
#include "model/spec.h"
#include "model/weights.h"
#include "runtime/buffer.h"

namespace uniproc {

class Transformer {
 public:
  // Allocates the activations of the largest batch. Throws Error OUT_OF_MEMORY. The communicator is
  // that of the ranks that hold the other shares; null when there are none.
  Transformer(Ops& ops, const ModelSpec& spec, const ModelLimits& limits,
              Communicator* communicator);

  // Runs all layers on the batch, whose keys and values go into the cache. The batch is prepared
  // (Ops::prepareInputs); its last hidden states stay here.
  void forward(Ops& ops, const Weights& weights, const PagedKvCache& cache,
               const RequestTable& requests, const Batch& batch);

  // [count, vocabSize], float32: the logits of tokens index[0 .. count) of the last batch, count at
  // most maxNumSeqs. Overwritten by the next call.
  float* computeLogits(Ops& ops, const Weights& weights, const int32_t* index, int32_t count);
  float* logits() const { return logits_.as<float>(); }

 private:
  void decoderLayer(Ops& ops, int32_t index, const LayerWeights& layer, const KvCache& cache,
                    const RequestTable& requests, const Batch& batch);
  // The sum of all ranks' x [numTokens, hiddenSize], in place of each.
  void sumOverRanks(const Buffer& x, int32_t numTokens);

  const ModelSpec spec_;
  const DType activationType_;
  Communicator* const communicator_;
  Buffer rope_;          // [maxModelLen, 2, headDim / 2], float32
  Buffer residual_;      // [numTokens, hiddenSize]: the sum of all blocks before the last
  Buffer hidden_;        // [numTokens, hiddenSize]: the last block's output, or its normed input
  Buffer qkv_;           // [numTokens, qkvSize]
  Buffer attention_;     // [numTokens, numHeads * headDim]
  Buffer gateUp_;        // [numTokens, 2 * intermediateSize]
  Buffer mlp_;           // [numTokens, intermediateSize]
  Buffer lastResidual_;  // [maxNumSeqs, hiddenSize]
  Buffer lastHidden_;    // [maxNumSeqs, hiddenSize]
  Buffer logits_;        // [maxNumSeqs, vocabSize], float32
  // Of several ranks alone, float32:
  Buffer shardLogits_;     // [maxNumSeqs, vocabShard.size]
  Buffer gatheredLogits_;  // [worldSize, maxNumSeqs, vocabShard.size]
};

}  // namespace uniproc
