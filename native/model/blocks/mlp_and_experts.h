// Gemma 4's MLP and mixture of experts side by side: outputNorm(mlp(x) + experts(x)), each with
// norms of its own input and output.
#pragma once

#include "model/blocks/block.h"
#include "model/blocks/experts.h"
#include "model/blocks/gated_mlp.h"

namespace uniproc {

class MlpAndExpertsBlock final : public Block {
 public:
  MlpAndExpertsBlock(const ModelShard& shard, int32_t layer)
      : Block(shard, layer), mlp_(shard, layer, "dense.outputNorm"), experts_(shard, layer) {}

  void declare(Parameters& parameters) override;
  ScratchBytes scratch(DType activations) const override;
  void forward(const ForwardPass& pass, bool isFirst) override;
  // The ranks' terms are summed before the norms of the two outputs.
  void finish(const ForwardPass& pass) const override;

 private:
  GatedMlpBlock mlp_;
  ExpertsBlock experts_;
};

}  // namespace uniproc
