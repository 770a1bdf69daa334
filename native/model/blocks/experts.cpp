#include "model/blocks/experts.h"

#include <algorithm>
#include <cmath>

namespace uniproc {
namespace {

// Each array of the third scratch buffer starts aligned.
constexpr size_t kAlignment = 16;

constexpr size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

void ExpertsBlock::declare(Parameters& parameters) {
  const Dimension hidden = {Share::all(shard_.spec().hiddenSize), "hiddenSize"};
  const Dimension intermediate = {Share::all(experts().intermediateSize), "expertIntermediateSize"};

  using Bias = Parameters::Bias;
  declareNorms(parameters, "experts.norm", "experts.outputNorm");
  parameters.linear(
      router_,
      {.parts = {{name("experts.router"), {Share::all(experts().numExperts), "numExperts"}}},
       .cols = hidden,
       .bias = experts().routerBias ? Bias::kAll : Bias::kNone});
  if (experts().routerNorm) parameters.norm(routerNorm_, name("experts.routerNorm"), hidden);
  if (experts().expertScales) {
    parameters.vector(scales_, name("experts.scales"),
                      {Share::all(experts().numExperts), "numExperts"}, DType::kFloat32);
  }
  if (experts().scoreBias) {
    parameters.vector(routerScoreBias_, name("experts.scoreBias"),
                      {Share::all(experts().numExperts), "numExperts"}, DType::kFloat32);
  }
  const Bias bias = experts().bias ? Bias::kAll : Bias::kNone;
  parameters.linear(
      gateUp_, {.parts = {{name("experts.gate"), intermediate}, {name("experts.up"), intermediate}},
                .cols = hidden,
                .bias = bias,
                .experts = shard_.experts()});
  parameters.linear(down_, {.parts = {{name("experts.down"), hidden}},
                            .cols = intermediate,
                            .bias = bias,
                            .experts = shard_.experts()});
  if (hasShared()) declareShared(parameters);
}

void ExpertsBlock::declareShared(Parameters& parameters) {
  const Dimension hidden = {Share::all(shard_.spec().hiddenSize), "hiddenSize"};
  const Dimension intermediate = {shard_.sharedIntermediate(), "sharedIntermediateSize"};
  if (experts().sharedGate) {
    parameters.linear(sharedRouter_,
                      {.parts = {{name("shared.router"), {Share::all(1), "1"}}}, .cols = hidden});
  }
  parameters.linear(sharedGateUp_, {.parts = {{name("shared.gate"), intermediate},
                                              {name("shared.up"), intermediate}},
                                    .cols = hidden});
  parameters.linear(sharedDown_, {.parts = {{name("shared.down"), hidden}}, .cols = intermediate});
}

// Equal scores are rare in float32.
DType ExpertsBlock::logitType(DType activations) const {
  return experts().sigmoidScores || experts().routerNorm ? DType::kFloat32 : activations;
}

ExpertsBlock::TokenBytes ExpertsBlock::tokenBytes(DType activations) const {
  const size_t elementSize = sizeOf(activations);
  const size_t topK = experts().numExpertsPerToken;
  const size_t logitSize = sizeOf(logitType(activations));
  return {.logits = aligned(experts().numExperts * logitSize),
          .ids = aligned(topK * sizeof(int32_t)),
          .weights = aligned(topK * sizeof(float)),
          .shared = hasShared() ? aligned(shard_.spec().hiddenSize * elementSize) : 0,
          .sharedGate = experts().sharedGate ? aligned(elementSize) : 0};
}

ScratchBytes ExpertsBlock::scratch(DType activations) const {
  const size_t elementSize = sizeOf(activations);
  const size_t topK = experts().numExpertsPerToken;
  const size_t intermediate = experts().intermediateSize;
  const size_t hidden = shard_.spec().hiddenSize;
  const size_t shared = hasShared() ? static_cast<size_t>(shard_.sharedIntermediate().count) : 0;
  const TokenBytes third = tokenBytes(activations);
  // Down's output reuses the memory of gate's and up's, which are no longer read.
  return {std::max(topK * std::max(2 * intermediate, hidden), 2 * shared) * elementSize,
          std::max(topK * intermediate, shared) * elementSize,
          third.logits + third.ids + third.weights + third.shared + third.sharedGate};
}

void ExpertsBlock::forward(const ForwardPass& pass, bool isFirst) {
  const Activations& activations = pass.activations;
  Ops& ops = pass.ops;
  const int32_t numTokens = pass.batch.numTokens;
  const int32_t topK = experts().numExpertsPerToken;
  void* hidden = activations.hidden.data();
  void* gateUp = activations.first.data();
  void* product = activations.second.data();

  const TokenBytes bytes = tokenBytes(activations.dtype);
  auto* logits = activations.third.as<std::byte>();
  auto* ids = logits + numTokens * bytes.logits;
  auto* weights = ids + numTokens * bytes.ids;
  auto* shared = weights + numTokens * bytes.weights;
  auto* sharedGate = shared + numTokens * bytes.shared;
  const Routing routing = {numTokens,
                           experts().numExperts,
                           topK,
                           static_cast<int32_t>(shard_.experts().first),
                           static_cast<int32_t>(shard_.experts().count),
                           reinterpret_cast<int32_t*>(ids),
                           reinterpret_cast<float*>(weights)};

  const void* in = nullptr;
  if (routerNorm_) {
    in = input(pass, isFirst);
    // The experts write to gateUp later.
    ops.rmsNorm(nullptr, activations.residual.data(), numTokens, routerNorm_,
                shard_.spec().rmsNormEps, gateUp);
    ops.linear(gateUp, numTokens, router_, logits, logitType(activations.dtype));
  } else if (experts().sigmoidScores) {
    in = input(pass, isFirst);
    ops.linear(in, numTokens, router_, logits, DType::kFloat32);
  } else {
    in = inputLinear(pass, isFirst, router_, logits);
  }
  // Before the experts, whose sum may overwrite the input.
  if (hasShared()) forwardShared(pass, in, sharedGate, shared);
  route(pass, logits, routing);
  if (experts().scalesInput) {
    ops.applyWeights(hidden, routing, shard_.spec().hiddenSize, activations.dtype);
  }
  ops.multiplyExperts(in, routing, {gateUp_, down_, shard_.spec().activation}, gateUp, product,
                      hidden, activations.dtype);
  if (experts().sharedGate) {
    ops.addGated(shared, sharedGate, numTokens, shard_.spec().hiddenSize, hidden,
                 activations.dtype);
  } else if (hasShared()) {
    ops.add(hidden, shared, int64_t{numTokens} * shard_.spec().hiddenSize, activations.dtype);
  }
}

void ExpertsBlock::route(const ForwardPass& pass, std::byte* logits, const Routing& routing) const {
  if (experts().sigmoidScores) {
    return pass.ops.routeTokensBySigmoid(
        reinterpret_cast<const float*>(logits),
        {static_cast<const float*>(routerScoreBias_.data), experts().numGroups,
         experts().numChosenGroups, experts().normTopkProb, experts().weightScale},
        routing);
  }
  const DType type = logitType(pass.activations.dtype);
  if (routerNorm_) {
    const auto width = static_cast<float>(shard_.spec().hiddenSize);
    pass.ops.scale(logits, int64_t{routing.numTokens} * routing.numExperts, 1.0f / std::sqrt(width),
                   type);
  }
  pass.ops.routeTokens(logits, {experts().normTopkProb, static_cast<const float*>(scales_.data)},
                       routing, type);
}

// Leaves the shared expert's output in `out` [numTokens, hiddenSize] and its gate's logits in
// `gate` [numTokens]. Uses the first and second scratch buffer.
void ExpertsBlock::forwardShared(const ForwardPass& pass, const void* in, void* gate,
                                 void* out) const {
  const Activations& activations = pass.activations;
  const int32_t numTokens = pass.batch.numTokens;
  if (experts().sharedGate) {
    pass.ops.linear(in, numTokens, sharedRouter_, gate, activations.dtype);
  }
  linearGated(pass, in, sharedGateUp_, activations.first.data(), activations.second.data());
  pass.ops.linear(activations.second.data(), numTokens, sharedDown_, out, activations.dtype);
}

}  // namespace uniproc
