// The last norm and the output head, for the tokens that need logits.
#pragma once

#include "model/blocks/block.h"
#include "model/blocks/embedding.h"

namespace uniproc {

class Head {
 public:
  Head(const ModelShard& shard, const Embedding& embedding)
      : shard_(shard), embedding_(embedding) {}

  void declare(Parameters& parameters);
  // Allocates buffers for at most `maxRows` tokens. Throws Error OUT_OF_MEMORY. `communicator`
  // connects the ranks that hold the other shards; null for a single rank.
  void allocate(Ops& ops, DType activations, int32_t maxRows, Communicator* communicator);
  void release() noexcept;
  void reserve(Ops& ops);

  // [count, vocabSize], float32: the logits of tokens index[0 .. count) of the batch with these
  // final activations; count <= maxRows. All ranks must call. The next call overwrites them.
  // `index` null: tokens 0 .. count, whose activations are then overwritten rather than copied.
  float* computeLogits(Ops& ops, const Activations& activations, const int32_t* index,
                       int32_t count);
  float* logits() const { return logits_.as<float>(); }
  // [count, hiddenSize], of the activation type: the last norm's output for the same tokens, in
  // memory that the next call overwrites.
  void* computeStates(Ops& ops, const Activations& activations, const int32_t* index,
                      int32_t count);

 private:
  const ModelShard& shard_;
  const Embedding& embedding_;
  Communicator* communicator_ = nullptr;

  Weight norm_;        // [hiddenSize]
  LinearWeight head_;  // [vocabShardSize, hiddenSize]; null if tied to the embedding

  Buffer residual_;  // [maxRows, hiddenSize]
  Buffer hidden_;    // [maxRows, hiddenSize]
  Buffer logits_;    // [maxRows, vocabSize], float32
  // With several ranks only, float32:
  Buffer shardLogits_;     // [maxRows, vocabShardSize]
  Buffer gatheredLogits_;  // [worldSize, maxRows, vocabShardSize]
};

}  // namespace uniproc
