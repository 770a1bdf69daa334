// Llama's MLP: down(silu(gate(x)) * up(x)) (Shazeer 2020, SwiGLU).
#pragma once

#include "model/blocks/block.h"

namespace uniproc {

class GatedMlpBlock final : public Block {
 public:
  explicit GatedMlpBlock(const ModelShard& shard, int32_t layer,
                         const char* outputNorm = "mlp.outputNorm")
      : Block(shard, layer), outputNormName_(outputNorm) {}

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;

 private:
  const char* const outputNormName_;  // its module
  LinearWeight gateUp_;               // [2 * intermediateSize, hiddenSize]
  LinearWeight down_;                 // [hiddenSize, intermediateSize]
};

}  // namespace uniproc
