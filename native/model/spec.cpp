#include "model/spec.h"

#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"

namespace uniproc {
namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw Error("CONFIG_INVALID", "the model's " + what);
}

void requirePositive(std::initializer_list<int32_t> sizes) {
  for (const int32_t size : sizes) {
    require(size >= 1, "sizes and limits must be positive, but one is " + std::to_string(size));
  }
}

void requireDivisible(const char* name, int32_t count, int32_t worldSize) {
  require(count % worldSize == 0, std::string(name) + ", " + std::to_string(count) +
                                      ", must be a multiple of the " + std::to_string(worldSize) +
                                      " ranks that divide it");
}

void checkExperts(const ModelSpec& spec, int32_t worldSize) {
  const ExpertsSpec& experts = *spec.experts;
  requirePositive({experts.numExperts, experts.numExpertsPerToken, experts.intermediateSize});
  require(experts.numExpertsPerToken <= experts.numExperts,
          "numExpertsPerToken, " + std::to_string(experts.numExpertsPerToken) +
              ", must be at most numExperts, " + std::to_string(experts.numExperts));
  require(static_cast<int32_t>(experts.layers.size()) == spec.numLayers,
          "experts.layers must have one entry for each of its " + std::to_string(spec.numLayers) +
              " layers");
  requirePositive({experts.numGroups, experts.numChosenGroups});
  require(experts.numExperts % experts.numGroups == 0 &&
              experts.numChosenGroups <= experts.numGroups &&
              experts.numExpertsPerToken <=
                  experts.numExperts / experts.numGroups * experts.numChosenGroups,
          "numExperts must be a multiple of numGroups, and numChosenGroups must hold "
          "numExpertsPerToken");
  require(experts.sigmoidScores ||
              (experts.numGroups == 1 && experts.weightScale == 1.0f && !experts.scoreBias),
          "numGroups, weightScale and scoreBias need sigmoidScores");
  require(!experts.scalesInput || (experts.numExpertsPerToken == 1 && spec.inputNorms),
          "experts.scalesInput needs numExpertsPerToken 1 and inputNorms");
  require(!experts.sigmoidScores || (!experts.routerNorm && !experts.expertScales),
          "experts.routerNorm and expertScales need the softmax");
  require(!experts.besideMlp || (spec.inputNorms && spec.outputNorms),
          "experts.besideMlp needs inputNorms and outputNorms");
  requireDivisible("numExperts", experts.numExperts, worldSize);
  requireDivisible("sharedIntermediateSize", experts.sharedIntermediateSize, worldSize);
}

void checkRopes(const ModelSpec& spec) {
  require(static_cast<int32_t>(spec.layerRopes.size()) == spec.numLayers,
          "layerRopes must have one entry for each of its " + std::to_string(spec.numLayers) +
              " layers");
  for (const int32_t rope : spec.layerRopes) {
    require(rope < static_cast<int32_t>(spec.ropes.size()), "layerRopes refer to rope " +
                                                                std::to_string(rope) + " of " +
                                                                std::to_string(spec.ropes.size()));
  }
  for (int32_t layer = 0; layer < spec.numLayers; ++layer) {
    const int32_t rope = spec.layerRopes[layer];
    require(rope < 0 || spec.headDimOf(layer) == spec.headDimOfRope(rope),
            "layers with one rope must have one headDim");
  }
  for (size_t i = 0; i < spec.ropes.size(); ++i) {
    const RopeSpec& rope = spec.ropes[i];
    const int32_t headDim = spec.headDimOfRope(static_cast<int32_t>(i));
    require(rope.rotaryDim >= 2 && rope.rotaryDim % 2 == 0 && rope.rotaryDim <= headDim,
            "rotaryDim, " + std::to_string(rope.rotaryDim) +
                ", must be even, and at most headDim, " + std::to_string(headDim));
    require(!spec.interleavedRope || rope.rotaryDim == headDim,
            "interleaved rotation must be of whole heads");
    const RopeScaling& scaling = rope.scaling;
    require(scaling.rotatedDim <= rope.rotaryDim, "rotatedDim must be at most rotaryDim");
    const auto numPairs = static_cast<size_t>(rope.rotaryDim) / 2;
    require(scaling.type != RopeScaling::Type::kLongRope ||
                (scaling.shortFactors.size() == numPairs && scaling.longFactors.size() == numPairs),
            "shortFactors and longFactors must have rotaryDim / 2 entries");
  }
}

// Heads of q, k and v, of one kind of layer.
void checkHeads(int32_t numHeads, int32_t numKvHeads, int32_t headDim, int32_t worldSize) {
  requirePositive({numHeads, numKvHeads, headDim});
  require(numHeads % numKvHeads == 0, "numHeads, " + std::to_string(numHeads) +
                                          ", must be a multiple of numKvHeads, " +
                                          std::to_string(numKvHeads));
  require(headDim % 2 == 0, "headDim, " + std::to_string(headDim) + ", must be even");
  require(numKvHeads % worldSize == 0 || worldSize % numKvHeads == 0,
          "numKvHeads, " + std::to_string(numKvHeads) + ", must divide or be a multiple of the " +
              std::to_string(worldSize) + " ranks");
}

void checkKvLayers(const ModelSpec& spec) {
  require(
      static_cast<int32_t>(spec.kvLayers.size()) == spec.numLayers,
      "kvLayers must have one entry for each of its " + std::to_string(spec.numLayers) + " layers");
  for (int32_t layer = 0; layer < spec.numLayers; ++layer) {
    const int32_t source = spec.kvLayers[layer];
    const std::string name = "kvLayers[" + std::to_string(layer) + "]";
    require(source >= 0 && source <= layer && spec.hasOwnKeys(source),
            name + ", " + std::to_string(source) +
                ", must be the layer itself, or one before that has keys of its own");
    require(spec.numKvHeadsOf(layer) == spec.numKvHeadsOf(source) &&
                spec.headDimOf(layer) == spec.headDimOf(source) &&
                spec.slidingWindows[layer] == spec.slidingWindows[source],
            name + " must be a layer with the same heads and window");
  }
  require(spec.qkNorm != QkNorm::kProjection, "norms of whole projections need keys in each layer");
}

void checkFp8Cache(const ModelSpec& spec) {
  for (const std::vector<float>* scales :
       {&spec.fp8Cache->keyScales, &spec.fp8Cache->valueScales}) {
    require(static_cast<int32_t>(scales->size()) == spec.numLayers,
            "fp8Cache must have one scale of keys and of values for each of its " +
                std::to_string(spec.numLayers) + " layers");
    for (const float scale : *scales) {
      require(std::isfinite(scale) && scale > 0.0f,
              "fp8Cache has the scale " + std::to_string(scale) + "; scales must be positive");
    }
  }
}

void check(const ModelSpec& spec, int32_t worldSize) {
  requirePositive({spec.vocabSize, spec.hiddenSize, spec.intermediateSize, spec.numLayers,
                   spec.numHeads, spec.numKvHeads, spec.headDim});
  checkHeads(spec.numHeads, spec.numKvHeads, spec.headDim, worldSize);
  if (spec.otherHeads) {
    const auto& [numKvHeads, headDim, layers] = *spec.otherHeads;
    checkHeads(spec.numHeads, numKvHeads, headDim, worldSize);
    require(static_cast<int32_t>(layers.size()) == spec.numLayers,
            "otherHeads.layers must have one entry for each of its " +
                std::to_string(spec.numLayers) + " layers");
    require(spec.qkNorm != QkNorm::kProjection, "norms of whole projections need equal heads");
  }
  require(!spec.layerScales || spec.outputNorms, "layerScales need outputNorms");
  require(static_cast<int32_t>(spec.slidingWindows.size()) == spec.numLayers,
          "slidingWindows must have one entry for each of its " + std::to_string(spec.numLayers) +
              " layers");
  if (!spec.kvLayers.empty()) checkKvLayers(spec);
  require(spec.perLayerInputSize >= 0, "perLayerInputSize must not be negative");
  require(spec.perLayerInputSize == 0 || spec.outputNorms, "perLayerInputSize needs outputNorms");
  checkRopes(spec);
  require(spec.qkNorm != QkNorm::kProjection || spec.normOffset == 0.0f,
          "norms of whole projections cannot have a normOffset");
  requireDivisible("numHeads", spec.numHeads, worldSize);
  if (spec.fp8Cache) checkFp8Cache(spec);
  if (spec.experts) checkExperts(spec, worldSize);
  if (spec.hasGatedMlps()) requireDivisible("intermediateSize", spec.intermediateSize, worldSize);
}

}  // namespace

ModelShard::ModelShard(ModelSpec spec, int32_t rank, int32_t worldSize)
    : spec_(std::move(spec)), rank_(rank), worldSize_(worldSize) {
  require(worldSize >= 1 && rank >= 0 && rank < worldSize, "rank, " + std::to_string(rank) +
                                                               ", must be below the world size, " +
                                                               std::to_string(worldSize));
  check(spec_, worldSize);
}

int64_t ModelShard::vocabShardSize() const {
  return ModelLimits::ceilDiv(spec_.vocabSize, worldSize_);
}

Share ModelShard::vocab() const {
  const int64_t size = vocabShardSize();
  const int64_t first = std::min<int64_t>(rank_ * size, spec_.vocabSize);
  return {spec_.vocabSize, first, std::min(size, spec_.vocabSize - first)};
}

void ModelLimits::check(int32_t numLayers) const {
  requirePositive({maxNumSeqs, maxNumBatchedTokens, maxModelLen, blockSize, numSteps});
  require(maxLogprobs >= 0, "maxLogprobs must not be negative");
  if (kvCacheGroups.empty()) return;
  require(
      static_cast<int32_t>(kvCacheGroups.size()) == numLayers,
      "kvCacheGroups must have one entry for each of its " + std::to_string(numLayers) + " layers");
  for (const int32_t group : kvCacheGroups) {
    require(group >= 0 && group < numLayers, "kvCacheGroups name group " + std::to_string(group) +
                                                 "; there are at most " +
                                                 std::to_string(numLayers));
  }
}

}  // namespace uniproc
