// The decoder's end: the last norm and the output head, on the tokens whose logits are wanted.
#pragma once

#include "model/blocks/block.h"
#include "model/blocks/embedding.h"

namespace uniproc {

class Head {
 public:
  Head(const ModelShard& shard, const Embedding& embedding)
      : shard_(shard), embedding_(embedding) {}

  void declare(Parameters& parameters);
  // What it computes in, for at most `maxRows` tokens. Throws Error OUT_OF_MEMORY. The communicator
  // is that of the ranks that divide the vocabulary; null when there are none.
  void allocate(Ops& ops, DType activations, int32_t maxRows, Communicator* communicator);
  void release() noexcept;

  // [count, vocabSize], float32: the logits of tokens index[0 .. count) of the batch whose last
  // block left these activations, count at most maxRows. Overwritten by the next call.
  float* computeLogits(Ops& ops, const Activations& activations, const int32_t* index,
                       int32_t count);
  float* logits() const { return logits_.as<float>(); }

 private:
  const ModelShard& shard_;
  const Embedding& embedding_;
  Communicator* communicator_ = nullptr;

  Weight norm_;        // [hiddenSize]
  LinearWeight head_;  // [vocabShardSize, hiddenSize]; null when it is the embedding

  Buffer residual_;  // [maxRows, hiddenSize]
  Buffer hidden_;    // [maxRows, hiddenSize]
  Buffer logits_;    // [maxRows, vocabSize], float32
  // Of several ranks alone, float32:
  Buffer shardLogits_;     // [maxRows, vocabShardSize]
  Buffer gatheredLogits_;  // [worldSize, maxRows, vocabShardSize]
};

}  // namespace uniproc
