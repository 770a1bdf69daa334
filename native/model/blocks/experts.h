// Mixture of experts in place of one gated MLP: each token passes the few experts that the router
// selects (Shazeer et al. 2017; Qwen3-MoE). Experts are divided among ranks whole; a rank computes
// its own experts' terms of a token's sum.
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
  // This rank's experts, stacked:
  LinearWeight gateUp_;  // [count, 2 * intermediateSize, hiddenSize]
  LinearWeight down_;    // [count, hiddenSize, intermediateSize]
};

}  // namespace uniproc
