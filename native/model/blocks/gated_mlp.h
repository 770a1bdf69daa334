// Llama's MLP: down(silu(gate(x)) * up(x)) (Shazeer 2020, SwiGLU).
#pragma once

#include "model/blocks/block.h"

namespace uniproc {

class GatedMlpBlock final : public Block {
 public:
  GatedMlpBlock(const ModelShard& shard, int32_t layer) : shard_(shard), layer_(layer) {}

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;

 private:
  const ModelShard& shard_;
  const int32_t layer_;

  Weight norm_;          // [hiddenSize]
  LinearWeight gateUp_;  // [2 * intermediateSize, hiddenSize]
  LinearWeight down_;    // [hiddenSize, intermediateSize]
};

}  // namespace uniproc
