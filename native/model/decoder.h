// A decoder-only transformer: an embedding, for each layer a list of blocks, a head. Written once
// over the operations of ops.h.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/blocks/block.h"
#include "model/blocks/embedding.h"
#include "model/blocks/head.h"

namespace uniproc {

class Decoder {
 public:
  // The blocks, without any memory; they declare their parameters.
  Decoder(const ModelShard& shard, Parameters& parameters);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // The activations of the largest batch. Throws Error OUT_OF_MEMORY; what it had allocated is then
  // freed by release. The communicator is that of the ranks that hold the other shares; null when
  // there are none.
  void allocate(Ops& ops, const ModelLimits& limits, Communicator* communicator);
  void release() noexcept;

  // Runs all layers on the batch, whose keys and values go into the cache. The batch is prepared
  // (Ops::prepareInputs); its last hidden states stay here.
  void forward(Ops& ops, const PagedKvCache& cache, const RequestTable& requests,
               const Batch& batch);

  // [count, vocabSize], float32: the logits of tokens index[0 .. count) of the last batch, count at
  // most maxNumSeqs. Overwritten by the next call.
  float* computeLogits(Ops& ops, const int32_t* index, int32_t count) {
    return head_.computeLogits(ops, activations_, index, count);
  }
  float* logits() const { return head_.logits(); }

 private:
  // The sum of all ranks' x [numTokens, hiddenSize], in place of each.
  void sumOverRanks(const Buffer& x, int32_t numTokens);

  const ModelShard& shard_;
  Buffer rope_;  // [maxModelLen, 2, headDim / 2], float32
  Embedding embedding_;
  std::vector<std::unique_ptr<Block>> blocks_;  // of all layers in turn
  Head head_;

  Communicator* communicator_ = nullptr;
  Activations activations_;
};

}  // namespace uniproc
