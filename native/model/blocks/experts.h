// Mixture of experts in place of one gated MLP: each token passes the few experts that the router
// selects (Shazeer et al. 2017), and the shared one if there is one, in Qwen 1.5-MoE by a gate of
// its own. Experts are divided among ranks whole, the shared one by columns; a rank computes its
// own terms of a token's sum.
#pragma once

#include "model/blocks/block.h"

namespace uniproc {

class ExpertsBlock final : public Block {
 public:
  using Block::Block;

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;

 private:
  // A token's bytes in the third scratch buffer, by array; each is a multiple of 16.
  struct TokenBytes {
    size_t logits;      // of the router, [numExperts]
    size_t ids;         // of its experts, [topK]
    size_t weights;     // of its experts, [topK]
    size_t shared;      // output of the shared expert, [hiddenSize]
    size_t sharedGate;  // [1], with a gate
  };
  TokenBytes tokenBytes(DType activations) const;
  const ExpertsSpec& experts() const { return *shard_.spec().experts; }
  bool hasShared() const { return experts().sharedIntermediateSize > 0; }
  void declareShared(Parameters& parameters);
  void forwardShared(const ForwardPass& pass, const void* in, void* gate, void* out) const;

  DType logitType(DType activations) const;
  // Chooses each token's experts by the router's output.
  void route(const ForwardPass& pass, std::byte* logits, const Routing& routing) const;

  Weight routerNorm_;       // [hiddenSize], or null
  LinearWeight router_;     // [numExperts, hiddenSize]
  Weight routerScoreBias_;  // [numExperts], float32, or null
  Weight scales_;           // [numExperts], float32, or null
  // This rank's experts, stacked:
  LinearWeight gateUp_;  // [count, 2 * intermediateSize, hiddenSize]
  LinearWeight down_;    // [count, hiddenSize, intermediateSize]
  // The shared expert, or null:
  LinearWeight sharedRouter_;  // [1, hiddenSize], or null
  LinearWeight sharedGateUp_;  // [2 * sharedIntermediateSize, hiddenSize]
  LinearWeight sharedDown_;    // [hiddenSize, sharedIntermediateSize]
};

}  // namespace uniproc
