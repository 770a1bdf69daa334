#include "model/spec.h"

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
  requireDivisible("numExperts", experts.numExperts, worldSize);
}

void check(const ModelSpec& spec, int32_t worldSize) {
  requirePositive({spec.vocabSize, spec.hiddenSize, spec.intermediateSize, spec.numLayers,
                   spec.numHeads, spec.numKvHeads, spec.headDim});
  require(spec.numHeads % spec.numKvHeads == 0, "numHeads, " + std::to_string(spec.numHeads) +
                                                    ", must be a multiple of numKvHeads, " +
                                                    std::to_string(spec.numKvHeads));
  require(spec.headDim % 2 == 0, "headDim, " + std::to_string(spec.headDim) + ", must be even");
  require(static_cast<int32_t>(spec.slidingWindows.size()) == spec.numLayers,
          "slidingWindows must have one entry for each of its " + std::to_string(spec.numLayers) +
              " layers");
  requireDivisible("numHeads", spec.numHeads, worldSize);
  require(spec.numKvHeads % worldSize == 0 || worldSize % spec.numKvHeads == 0,
          "numKvHeads, " + std::to_string(spec.numKvHeads) +
              ", must divide or be a multiple of the " + std::to_string(worldSize) + " ranks");
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

void ModelLimits::check() const {
  requirePositive({maxNumSeqs, maxNumBatchedTokens, maxModelLen, blockSize, numSteps});
  require(maxLogprobs >= 0, "maxLogprobs must not be negative");
}

}  // namespace uniproc
