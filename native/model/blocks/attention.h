// Self-attention with rotary embedding and grouped-query heads (Ainslie et al. 2023): Llama,
// Mistral, Qwen.
#pragma once

#include "model/blocks/block.h"

namespace uniproc {

class AttentionBlock final : public Block {
 public:
  // `rope` [maxModelLen, 2, headDim / 2], float32, belongs to the decoder.
  AttentionBlock(const ModelShard& shard, int32_t layer, const Buffer& rope)
      : shard_(shard), layer_(layer), shape_(shard.attention(layer)), rope_(rope) {}

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;

 private:
  const ModelShard& shard_;
  const int32_t layer_;
  const AttentionShape shape_;
  const Buffer& rope_;

  Weight norm_;       // [hiddenSize]
  LinearWeight qkv_;  // [(numHeads + 2 numKvHeads) * headDim, hiddenSize]
  Weight qNorm_;      // [headDim], or null
  Weight kNorm_;      // [headDim], or null
  LinearWeight o_;    // [hiddenSize, numHeads * headDim]
};

}  // namespace uniproc
