#include "ops/cuda/expert_mlps.h"

#include <algorithm>

namespace uniproc::cuda {
namespace {

// Weights in other formats are converted for each product, some experts at a time.
constexpr int64_t kConvertedBytes = int64_t{256} << 20;
// Pairs per expert from which on that is faster than the plain kernels, which read a matrix for
// each pair: converting moves about five bytes per element and reads all experts.
constexpr int32_t kLeastPairsToConvert = 4;

bool isConverted(const LinearWeight& weight) { return weight.format.hasScales(); }

}  // namespace

bool ExpertMlps::run(const void* x, const Routing& routing, const ExpertMlp& mlp, void* wide,
                     void* product, void* out, DType type) {
  if (!hasExpertProducts(routing, mlp)) return false;
  if ((isConverted(mlp.gateUp) || isConverted(mlp.down)) &&
      routing.numRows() < kLeastPairsToConvert * routing.numExperts) {
    return false;
  }
  ExpertGroups groups{};
  if (!areFewPairs(routing)) {
    const int32_t numOffsets = routing.numLocal + 1;
    auto* lists = static_cast<int32_t*>(
        lists_.atLeast(static_cast<size_t>(numOffsets + routing.numRows()) * sizeof(int32_t)));
    groups = {lists, lists + numOffsets};
    groupPairs(routing, groups, stream_);
  }
  multiply(x, routing, groups, mlp.gateUp, {.isGated = true, .activation = mlp.activation},
           product);
  multiply(product, routing, groups, mlp.down, {.areGroupsReady = true}, wide);
  sumExperts(wide, routing, static_cast<int32_t>(mlp.down.rows / routing.numLocal), out, type,
             stream_);
  return true;
}

void ExpertMlps::multiply(const void* x, const Routing& routing, const ExpertGroups& groups,
                          const LinearWeight& weight, ExpertStage stage, void* out) {
  const int32_t numLocal = routing.numLocal;
  stage.numExperts = numLocal;
  if (!isConverted(weight)) {
    return expertProducts(x, routing, groups, weight, stage, out, numMultiprocessors_, stream_);
  }
  // The product may not read converted weights before the previous kernel has ended.
  stage.areGroupsReady = false;
  const int64_t rows = weight.rows / numLocal;
  const auto bytes = static_cast<int64_t>(sizeOf(weight.dtype)) * rows * weight.cols;
  const auto most =
      static_cast<int32_t>(std::clamp<int64_t>(kConvertedBytes / bytes, 1, int64_t{numLocal}));
  void* converted = converted_.atLeast(static_cast<size_t>(most * bytes));
  for (int32_t first = 0; first < numLocal; first += most) {
    const int32_t count = std::min(most, numLocal - first);
    const LinearWeight part = weight.slice(first * rows, count * rows);
    dequantize(part, converted, stream_);
    stage.firstExpert = first;
    stage.numExperts = count;
    expertProducts(x, routing, groups,
                   LinearWeight::of({converted, part.dtype, part.rows, part.cols}, part.bias),
                   stage, out, numMultiprocessors_, stream_);
  }
}

}  // namespace uniproc::cuda
