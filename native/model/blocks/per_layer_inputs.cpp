#include "model/blocks/per_layer_inputs.h"

#include <cmath>

#include "base/float_types.h"

namespace uniproc {

void PerLayerInputs::declare(Parameters& parameters) {
  const ModelSpec& spec = shard_.spec();
  const Dimension all = {Share::all(width()), "numLayers * perLayerInputSize"};
  parameters.matrix(table_, {-1, "perLayer.embedding"}, {shard_.vocab(), "vocabSize"}, all,
                    shard_.vocabShardSize());
  parameters.linear(projection_, {.parts = {{{-1, "perLayer.projection"}, all}},
                                  .cols = {Share::all(spec.hiddenSize), "hiddenSize"}});
  parameters.norm(norm_, {-1, "perLayer.norm"},
                  {Share::all(spec.perLayerInputSize), "perLayerInputSize"});
}

size_t PerLayerInputs::bytesPerToken(DType activations) const {
  return static_cast<size_t>(width()) * sizeOf(activations);
}

ScratchBytes PerLayerInputs::scratch(DType activations) const {
  return {bytesPerToken(activations), 0, 0};
}

void PerLayerInputs::forward(const ForwardPass& pass) const {
  const ModelSpec& spec = shard_.spec();
  const Activations& activations = pass.activations;
  const DType dtype = activations.dtype;
  const int32_t numTokens = pass.batch.numTokens;
  const int64_t count = numTokens * width();
  void* inputs = activations.perLayerInputs.data();
  void* ofTable = activations.first.data();
  Ops& ops = pass.ops;

  ops.linear(activations.residual.data(), numTokens, projection_, inputs, dtype);
  // The norm of the projection divided by sqrt(hiddenSize), in which eps alone differs.
  const float eps = spec.rmsNormEps * static_cast<float>(spec.hiddenSize);
  ops.rmsNorm(nullptr, inputs, numTokens * spec.numLayers, norm_, eps, inputs);
  ops.embed(pass.batch.tokenIds, numTokens, table_,
            static_cast<int32_t>(shard_.rank() * table_.rows), ofTable);
  if (pass.communicator) {
    pass.communicator->allReduce(ofTable, count, toCommType(dtype), ReduceOp::kSum);
  }
  const auto size = static_cast<float>(spec.perLayerInputSize);
  ops.scale(ofTable, count, roundTo(spec.dtype, std::sqrt(size)), dtype);
  ops.add(inputs, ofTable, count, dtype);
  ops.scale(inputs, count, std::sqrt(0.5f), dtype);
}

void PerLayerInputBlock::declare(Parameters& parameters) {
  const Dimension hidden = {Share::all(shard_.spec().hiddenSize), "hiddenSize"};
  const Dimension size = {Share::all(shard_.spec().perLayerInputSize), "perLayerInputSize"};
  parameters.linear(gate_, {.parts = {{name("perLayer.gate"), size}}, .cols = hidden});
  parameters.linear(projection_, {.parts = {{name("perLayer.output"), hidden}}, .cols = size});
  declareOutputNorm(parameters, "perLayer.outputNorm");
}

ScratchBytes PerLayerInputBlock::scratch(DType activations) const {
  const size_t bytes = shard_.spec().perLayerInputSize * sizeOf(activations);
  return {bytes, bytes, 0};
}

void PerLayerInputBlock::forward(const ForwardPass& pass, bool isFirst) {
  const ModelSpec& spec = shard_.spec();
  const Activations& activations = pass.activations;
  const int32_t numTokens = pass.batch.numTokens;
  const int64_t size = spec.perLayerInputSize;
  void* gate = activations.first.data();
  void* product = activations.second.data();
  const auto* own = activations.perLayerInputs.as<std::byte>() +
                    layer_ * size * static_cast<int64_t>(sizeOf(activations.dtype));

  const void* in = input(pass, isFirst);
  pass.ops.linear(in, numTokens, gate_, gate, activations.dtype);
  pass.ops.activateAndMulRows({gate, size, own, spec.numLayers * size}, numTokens,
                              spec.perLayerInputSize, spec.activation, product, activations.dtype);
  pass.ops.linear(product, numTokens, projection_, activations.hidden.data(), activations.dtype);
}

void PerLayerInputBlock::finish(const ForwardPass& pass) const {
  normOutput(pass, pass.activations.hidden.data());
}

}  // namespace uniproc
