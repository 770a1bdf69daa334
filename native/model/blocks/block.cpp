#include "model/blocks/block.h"

namespace uniproc {

void Block::declareNorms(Parameters& parameters, const char* inputNorm, const char* outputNorm) {
  const ModelSpec& spec = shard_.spec();
  const Dimension hidden = {Share::all(spec.hiddenSize), "hiddenSize"};
  if (spec.inputNorms) parameters.norm(inputNorm_, name(inputNorm), hidden);
  if (spec.outputNorms) declareOutputNorm(parameters, outputNorm);
}

void Block::declareOutputNorm(Parameters& parameters, const char* outputNorm) {
  parameters.norm(outputNorm_, name(outputNorm),
                  {Share::all(shard_.spec().hiddenSize), "hiddenSize"});
}

const void* Block::input(const ForwardPass& pass, bool isFirst) const {
  const Activations& activations = pass.activations;
  const ModelSpec& spec = shard_.spec();
  const int32_t numTokens = pass.batch.numTokens;
  void* residual = activations.residual.data();
  void* hidden = activations.hidden.data();
  if (inputNorm_) {
    pass.ops.norm({isFirst ? nullptr : hidden, residual, inputNorm_, spec.rmsNormEps, hidden,
                   activations.hiddenTerms},
                  numTokens);
    return hidden;
  }
  if (!isFirst) {
    pass.ops.add(residual, hidden, int64_t{numTokens} * spec.hiddenSize, activations.dtype);
  }
  return residual;
}

const void* Block::inputLinear(const ForwardPass& pass, bool isFirst, const LinearWeight& weight,
                               void* out) const {
  const Activations& activations = pass.activations;
  if (!inputNorm_) {
    const void* residual = input(pass, isFirst);
    pass.ops.linear(residual, pass.batch.numTokens, weight, out, activations.dtype);
    return residual;
  }
  void* hidden = activations.hidden.data();
  pass.ops.normLinear({isFirst ? nullptr : hidden, activations.residual.data(), inputNorm_,
                       shard_.spec().rmsNormEps, hidden, activations.hiddenTerms},
                      pass.batch.numTokens, weight, out);
  return hidden;
}

void Block::linearGated(const ForwardPass& pass, const void* x, const LinearWeight& weight,
                        void* gateUp, void* out) const {
  const int32_t numTokens = pass.batch.numTokens;
  const DType dtype = pass.activations.dtype;
  if (shard_.spec().activation == Activation::kSilu) {
    return pass.ops.linearSiluAndMul(x, numTokens, weight, gateUp, out, dtype);
  }
  pass.ops.linear(x, numTokens, weight, gateUp, dtype);
  pass.ops.activateAndMul(gateUp, numTokens, static_cast<int32_t>(weight.rows / 2),
                          shard_.spec().activation, out, dtype);
}

void Block::finish(const ForwardPass& pass) const {
  finishInto(pass, pass.activations.hidden.data());
}

void Block::finishInto(const ForwardPass& pass, void* out) const {
  const Activations& activations = pass.activations;
  if (pass.communicator && !activations.hiddenTerms) {
    pass.communicator->allReduce(activations.hidden.data(),
                                 int64_t{pass.batch.numTokens} * shard_.spec().hiddenSize,
                                 toCommType(activations.dtype), ReduceOp::kSum);
  }
  normOutput(pass, out);
}

void Block::normOutput(const ForwardPass& pass, void* out) const {
  const ModelSpec& spec = shard_.spec();
  const int32_t numTokens = pass.batch.numTokens;
  const Activations& activations = pass.activations;
  if (outputNorm_) {
    pass.ops.rmsNorm(nullptr, activations.hidden.data(), numTokens, outputNorm_, spec.rmsNormEps,
                     out);
  }
  if (spec.residualScale != 1.0f) {
    pass.ops.scale(out, int64_t{numTokens} * spec.hiddenSize, spec.residualScale,
                   activations.dtype);
  }
}

}  // namespace uniproc
