// Llama's MLP: down(silu(gate(x)) * up(x)) (Shazeer 2020, SwiGLU).
#pragma once

#include "model/blocks/block.h"

namespace uniproc {

class GatedMlpBlock final : public Block {
 public:
  using Block::Block;

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;

 private:
  LinearWeight gateUp_;  // [2 * intermediateSize, hiddenSize]
  LinearWeight down_;    // [hiddenSize, intermediateSize]
};

}  // namespace uniproc
