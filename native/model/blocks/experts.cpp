#include "model/blocks/experts.h"

namespace uniproc {
namespace {

// A token's part of the third scratch buffer: router logits, then ids and weights of its experts.
// Each array is a multiple of 16 bytes per token, so each starts aligned.
constexpr size_t kAlignment = 16;

constexpr size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

void ExpertsBlock::declare(Parameters& parameters) {
  const Dimension hidden = {Share::all(shard_.spec().hiddenSize), "hiddenSize"};
  const Dimension intermediate = {Share::all(experts().intermediateSize), "expertIntermediateSize"};
  const auto name = [this](const char* module) { return ModuleName{layer_, module}; };

  parameters.norm(norm_, name("experts.norm"), hidden);
  parameters.linear(
      router_,
      {.parts = {{name("experts.router"), {Share::all(experts().numExperts), "numExperts"}}},
       .cols = hidden});
  parameters.linear(
      gateUp_, {.parts = {{name("experts.gate"), intermediate}, {name("experts.up"), intermediate}},
                .cols = hidden,
                .experts = shard_.experts()});
  parameters.linear(down_, {.parts = {{name("experts.down"), hidden}},
                            .cols = intermediate,
                            .experts = shard_.experts()});
}

ScratchBytes ExpertsBlock::scratch(DType activations) const {
  const size_t elementSize = sizeOf(activations);
  const size_t topK = experts().numExpertsPerToken;
  const size_t intermediate = experts().intermediateSize;
  const size_t hidden = shard_.spec().hiddenSize;
  // Down's output reuses the memory of gate's and up's, which are no longer read.
  return {topK * std::max(2 * intermediate, hidden) * elementSize,
          topK * intermediate * elementSize,
          aligned(experts().numExperts * elementSize) + aligned(topK * sizeof(int32_t)) +
              aligned(topK * sizeof(float))};
}

void ExpertsBlock::forward(const ForwardPass& pass, bool isFirst) {
  const Activations& activations = pass.activations;
  Ops& ops = pass.ops;
  const int32_t numTokens = pass.batch.numTokens;
  const int32_t topK = experts().numExpertsPerToken;
  void* hidden = activations.hidden.data();
  void* gateUp = activations.first.data();
  void* product = activations.second.data();

  auto* logits = activations.third.as<std::byte>();
  auto* ids = logits + numTokens * aligned(experts().numExperts * sizeOf(activations.dtype));
  auto* weights = ids + numTokens * aligned(topK * sizeof(int32_t));
  const Routing routing = {numTokens,
                           experts().numExperts,
                           topK,
                           static_cast<int32_t>(shard_.experts().first),
                           static_cast<int32_t>(shard_.experts().count),
                           reinterpret_cast<int32_t*>(ids),
                           reinterpret_cast<float*>(weights)};

  ops.normLinear({isFirst ? nullptr : hidden, activations.residual.data(), norm_,
                  shard_.spec().rmsNormEps, hidden, pass.communicator},
                 numTokens, router_, logits);
  ops.routeTokens(logits, experts().normTopkProb, routing, activations.dtype);
  ops.expertLinear(hidden, /*rowsPerToken=*/1, routing, gateUp_, gateUp, activations.dtype);
  ops.siluAndMul(gateUp, numTokens * topK, experts().intermediateSize, product, activations.dtype);
  ops.expertLinear(product, /*rowsPerToken=*/topK, routing, down_, gateUp, activations.dtype);
  ops.sumExperts(gateUp, routing, shard_.spec().hiddenSize, hidden, activations.dtype);
}

}  // namespace uniproc
