#include "model/blocks/gated_mlp.h"

namespace uniproc {

void GatedMlpBlock::declare(Parameters& parameters) {
  const ModelSpec& spec = shard_.spec();
  const Dimension hidden = {Share::all(spec.hiddenSize), "hiddenSize"};
  const Dimension intermediate = {shard_.intermediate(), "intermediateSize"};
  const auto name = [this](const char* module) { return ModuleName{layer_, module}; };
  using Bias = Parameters::Bias;

  parameters.norm(norm_, name("mlp.norm"), hidden);
  parameters.linear(gateUp_,
                    {.parts = {{name("mlp.gate"), intermediate}, {name("mlp.up"), intermediate}},
                     .cols = hidden,
                     .bias = spec.mlpBias ? Bias::kAll : Bias::kNone});
  parameters.linear(down_, {.parts = {{name("mlp.down"), hidden}},
                            .cols = intermediate,
                            .bias = spec.mlpBias ? Bias::kFirstRank : Bias::kNone});
}

ScratchBytes GatedMlpBlock::scratch(DType activations) const {
  const size_t bytes = static_cast<size_t>(shard_.intermediate().count) * sizeOf(activations);
  return {2 * bytes, bytes, 0};
}

void GatedMlpBlock::forward(const ForwardPass& pass, bool isFirst) {
  const Activations& activations = pass.activations;
  const int32_t numTokens = pass.batch.numTokens;
  void* hidden = activations.hidden.data();
  void* gateUp = activations.first.data();
  void* product = activations.second.data();

  pass.ops.norm({isFirst ? nullptr : hidden, activations.residual.data(), norm_,
                 shard_.spec().rmsNormEps, hidden, pass.communicator},
                numTokens);
  pass.ops.linearSiluAndMul(hidden, numTokens, gateUp_, gateUp, product, activations.dtype);
  pass.ops.linear(product, numTokens, down_, hidden, activations.dtype);
}

}  // namespace uniproc
