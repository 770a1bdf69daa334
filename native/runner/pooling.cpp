#include "runner/pooling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "base/float_types.h"

namespace uniproc {
namespace {

// In place: from the last element on, so that none is overwritten before it is read.
template <class T>
void widenInPlace(std::span<float> values) {
  const auto* from = reinterpret_cast<const std::byte*>(values.data());
  for (size_t i = values.size(); i-- > 0;) {
    T element;
    std::memcpy(&element, from + i * sizeof(T), sizeof(T));
    values[i] = widen(element);
  }
}

void normalize(std::span<float> values) {
  constexpr double kLeastNorm = 1e-12;  // torch.nn.functional.normalize
  double squares = 0.0;
  for (const float value : values) squares += double{value} * double{value};
  const double norm = std::max(std::sqrt(squares), kLeastNorm);
  for (float& value : values) value = static_cast<float>(double{value} / norm);
}

}  // namespace

void poolRows(StepBuffers& step, int32_t count, int32_t width, DType type) {
  const std::span<float> rows = step.pooled.first(static_cast<size_t>(count) * width);
  if (type == DType::kFloat16) widenInPlace<Float16>(rows);
  if (type == DType::kBFloat16) widenInPlace<BFloat16>(rows);
  for (int32_t i = 0; i < count; ++i) {
    const std::span<float> row = rows.subspan(static_cast<size_t>(i) * width, width);
    const int32_t size = std::clamp(step.pooledSizes[i], 0, width);
    const std::span<float> used = row.first(size > 0 ? size : width);
    step.sampledTokenIds[i] = 0;
    step.numNans[i] = static_cast<int32_t>(
        std::count_if(used.begin(), used.end(), [](float value) { return !std::isfinite(value); }));
    if (size > 0) normalize(used);
  }
}

}  // namespace uniproc
