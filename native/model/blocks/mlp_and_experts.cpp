#include "model/blocks/mlp_and_experts.h"

namespace uniproc {

void MlpAndExpertsBlock::declare(Parameters& parameters) {
  mlp_.declare(parameters);
  experts_.declare(parameters);
  declareOutputNorm(parameters, "mlp.outputNorm");
}

// The MLP's output waits behind the experts' scratch.
ScratchBytes MlpAndExpertsBlock::scratch(DType activations) const {
  ScratchBytes bytes = mlp_.scratch(activations).largest(experts_.scratch(activations));
  bytes.third += shard_.spec().hiddenSize * sizeOf(activations);
  return bytes;
}

void MlpAndExpertsBlock::forward(const ForwardPass& pass, bool isFirst) {
  const Activations& activations = pass.activations;
  const int64_t numTokens = pass.batch.numTokens;
  auto* ofMlp = activations.third.as<std::byte>() +
                numTokens * static_cast<int64_t>(experts_.scratch(activations.dtype).third);
  mlp_.forward(pass, isFirst);
  mlp_.finishInto(pass, ofMlp);
  experts_.forward(pass, /*isFirst=*/true);  // the residual is complete
  experts_.finish(pass);
  pass.ops.add(activations.hidden.data(), ofMlp, numTokens * shard_.spec().hiddenSize,
               activations.dtype);
}

void MlpAndExpertsBlock::finish(const ForwardPass& pass) const {
  normOutput(pass, pass.activations.hidden.data());
}

}  // namespace uniproc
