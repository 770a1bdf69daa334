// Experts in place of one gated MLP: each token goes through the few that the router picks (Shazeer
// et al. 2017; Qwen3-MoE). Ranks divide the experts whole: what a rank leaves of a token's sum is
// that of its own experts.
#pragma once

#include "model/blocks/block.h"

namespace uniproc {

class ExpertsBlock final : public Block {
 public:
  ExpertsBlock(const ModelShard& shard, int32_t layer) : shard_(shard), layer_(layer) {}

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;

 private:
  const ExpertsSpec& experts() const { return *shard_.spec().experts; }

  const ModelShard& shard_;
  const int32_t layer_;

  Weight norm_;          // [hiddenSize]
  LinearWeight router_;  // [numExperts, hiddenSize]
  // Of this rank's experts, one below the other:
  LinearWeight gateUp_;  // [count, 2 * intermediateSize, hiddenSize]
  LinearWeight down_;    // [count, hiddenSize, intermediateSize]
};

}  // namespace uniproc
