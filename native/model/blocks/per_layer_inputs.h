// Gemma 4's inputs of each layer (E2B and E4B): of a token's embedding and of a table of its own,
// for all layers at once.
#pragma once

#include "model/blocks/block.h"

namespace uniproc {

class PerLayerInputs {
 public:
  explicit PerLayerInputs(const ModelShard& shard) : shard_(shard) {}

  void declare(Parameters& parameters);
  ScratchBytes scratch(DType activations) const;
  // Bytes per token of activations.perLayerInputs.
  size_t bytesPerToken(DType activations) const;
  // Leaves (norm(projection(embeddings)) + table) / sqrt(2) in activations.perLayerInputs; the
  // embeddings are activations.residual.
  void forward(const ForwardPass& pass) const;

 private:
  int64_t width() const {
    return int64_t{shard_.spec().numLayers} * shard_.spec().perLayerInputSize;
  }

  const ModelShard& shard_;
  LinearWeight table_;       // [vocabShardSize, width]
  LinearWeight projection_;  // [width, hiddenSize]
  Weight norm_;              // [perLayerInputSize]
};

// A layer's use of its input: x += norm(projection(act(gate(x)) * input)). Every rank computes all
// of it.
class PerLayerInputBlock final : public Block {
 public:
  using Block::Block;

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;
  void finish(const ForwardPass& pass) const override;

 private:
  LinearWeight gate_;        // [perLayerInputSize, hiddenSize]
  LinearWeight projection_;  // [hiddenSize, perLayerInputSize]
};

}  // namespace uniproc
