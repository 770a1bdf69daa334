#include "model/blocks/gated_mlp.h"

namespace uniproc {

void GatedMlpBlock::declare(Parameters& parameters) {
  const ModelSpec& spec = shard_.spec();
  const Dimension hidden = {Share::all(spec.hiddenSize), "hiddenSize"};
  const Dimension intermediate = {shard_.intermediate(layer_), spec.isDoubleWide(layer_)
                                                                   ? "2 * intermediateSize"
                                                                   : "intermediateSize"};
  using Bias = Parameters::Bias;

  declareNorms(parameters, "mlp.norm", outputNormName_);
  parameters.linear(gateUp_,
                    {.parts = {{name("mlp.gate"), intermediate}, {name("mlp.up"), intermediate}},
                     .cols = hidden,
                     .bias = spec.mlpBias ? Bias::kAll : Bias::kNone});
  parameters.linear(down_, {.parts = {{name("mlp.down"), hidden}},
                            .cols = intermediate,
                            .bias = spec.mlpBias ? Bias::kFirstRank : Bias::kNone});
}

ScratchBytes GatedMlpBlock::scratch(DType activations) const {
  const size_t bytes = static_cast<size_t>(shard_.intermediate(layer_).count) * sizeOf(activations);
  return {2 * bytes, bytes, 0};
}

void GatedMlpBlock::forward(const ForwardPass& pass, bool isFirst) {
  const Activations& activations = pass.activations;
  const int32_t numTokens = pass.batch.numTokens;
  void* gateUp = activations.first.data();
  void* product = activations.second.data();

  const void* in = input(pass, isFirst);
  linearGated(pass, in, gateUp_, gateUp, product);
  pass.ops.linear(product, numTokens, down_, activations.hidden.data(), activations.dtype);
}

}  // namespace uniproc
