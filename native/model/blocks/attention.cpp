#include "model/blocks/attention.h"

namespace uniproc {

void AttentionBlock::declare(Parameters& parameters) {
  const ModelSpec& spec = shard_.spec();
  const Dimension hidden = {Share::all(spec.hiddenSize), "hiddenSize"};
  const Dimension heads = {shard_.heads().times(spec.headDim), "numHeads * headDim"};
  const Dimension kvHeads = {shard_.kvHeads().times(spec.headDim), "numKvHeads * headDim"};
  const Dimension head = {Share::all(spec.headDim), "headDim"};
  const auto name = [this](const char* module) { return ModuleName{layer_, module}; };

  parameters.norm(norm_, name("attention.norm"), hidden);
  using Bias = Parameters::Bias;
  parameters.linear(qkv_, {.parts = {{name("attention.q"), heads},
                                     {name("attention.k"), kvHeads},
                                     {name("attention.v"), kvHeads}},
                           .cols = hidden,
                           .bias = spec.qkvBias ? Bias::kAll : Bias::kNone});
  if (spec.qkNorm) {
    parameters.norm(qNorm_, name("attention.qNorm"), head);
    parameters.norm(kNorm_, name("attention.kNorm"), head);
  }
  parameters.linear(o_, {.parts = {{name("attention.o"), hidden}},
                         .cols = heads,
                         .bias = spec.outputBias ? Bias::kFirstRank : Bias::kNone});
}

ScratchBytes AttentionBlock::scratch(DType activations) const {
  const size_t headSize = shape_.headDim * sizeOf(activations);
  return {(shape_.numHeads + 2 * shape_.numKvHeads) * headSize, shape_.numHeads * headSize, 0};
}

void AttentionBlock::forward(const ForwardPass& pass, bool isFirst) {
  const auto& [ops, batch, requests, cache, activations, communicator] = pass;
  const float eps = shard_.spec().rmsNormEps;
  void* hidden = activations.hidden.data();
  void* qkv = activations.first.data();
  void* attended = activations.second.data();
  const KvCache& ownCache = cache.layer(layer_);

  ops.normLinear(
      {isFirst ? nullptr : hidden, activations.residual.data(), norm_, eps, hidden, communicator},
      batch.numTokens, qkv_, qkv);
  ops.ropeAndAttention(qkv, batch, shape_, qNorm_, kNorm_, eps, rope_.as<float>(), ownCache,
                       requests, attended);
  ops.linear(attended, batch.numTokens, o_, hidden, activations.dtype);
}

}  // namespace uniproc
