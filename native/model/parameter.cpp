#include "model/parameter.h"

namespace uniproc {

std::string ModuleName::toString() const {
  std::string name;
  if (layer >= 0) name.append("layers.").append(std::to_string(layer)).append(".");
  return name.append(module);
}

std::vector<RowRun> Parameter::rowRuns() const {
  const int64_t half = order.headDim / 2;
  const int64_t rotated = order.rotaryDim / 2;
  std::vector<RowRun> runs;
  if (order.isInterleaved) {
    for (int64_t head = 0; head < rows().count; head += order.headDim) {
      for (int64_t i = 0; i < order.headDim; ++i)
        runs.push_back({head + i % half * 2 + i / half, 1});
    }
    return runs;
  }
  if (rotated == half) return {{0, rows().count}};
  for (int64_t head = 0; head < rows().count; head += order.headDim) {
    runs.push_back({head, rotated});
    runs.push_back({head + 2 * rotated, half - rotated});
    runs.push_back({head + rotated, rotated});
    runs.push_back({head + half + rotated, half - rotated});
  }
  return runs;
}

std::string Parameter::toString(int64_t tensor) const {
  const auto suffix = [this] {
    switch (part) {
      case ParameterPart::kBias:
        return ".bias";
      case ParameterPart::kScales:
        return ".scales";
      case ParameterPart::kZeros:
        return ".zeros";
      case ParameterPart::kOrder:
        return ".order";
      default:
        return ".weight";
    }
  };
  std::string text = name.toString();
  if (isOfExperts()) text.append(".").append(std::to_string(experts.first + tensor));
  return text + suffix();
}

}  // namespace uniproc
