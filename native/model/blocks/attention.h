// Self-attention with rotary embedding and grouped-query heads (Ainslie et al. 2023).
#pragma once

#include "model/blocks/block.h"

namespace uniproc {

class AttentionBlock final : public Block {
 public:
  // `rope` [maxModelLen, 2, headDim / 2], float32, belongs to the decoder; null: no rotation.
  AttentionBlock(const ModelShard& shard, int32_t layer, const Buffer* rope)
      : Block(shard, layer), shape_(shard.attention(layer)), rope_(rope) {}

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;

 private:
  void normProjections(const ForwardPass& pass, void* qkv) const;

  const AttentionShape shape_;
  const Buffer* const rope_;

  // [(numHeads + 2 numKvHeads) * headDim, hiddenSize]; of queries alone where the keys and values
  // are an earlier layer's.
  LinearWeight qkv_;
  // Norms of each head, [headDim], or null.
  Weight qNorm_;
  Weight kNorm_;
  // Norms of the projections, [numHeads * headDim] and [numKvHeads * headDim], or null.
  Weight qProjectionNorm_;
  Weight kProjectionNorm_;
  Weight sinks_;    // [numHeads], or null
  LinearWeight o_;  // [hiddenSize, numHeads * headDim]
};

}  // namespace uniproc
