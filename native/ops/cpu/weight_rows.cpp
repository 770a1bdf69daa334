#include "ops/cpu/weight_rows.h"

#include <algorithm>
#include <array>

#include "base/float_types.h"

namespace uniproc {
namespace {

const char* elementAt(const LinearWeight& weight, int64_t row, int64_t col) {
  const auto offset = static_cast<size_t>(row * weight.cols + col) * sizeOf(weight.format.type);
  return static_cast<const char*>(weight.data) + offset;
}

// The 256 codes of Float8E4M3 as float32.
const std::array<float, 256>& float8Values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> all;
    for (int code = 0; code < 256; ++code)
      all[code] = widen(Float8E4M3{static_cast<uint8_t>(code)});
    return all;
  }();
  return values;
}

// out [width] = elements of the row from `col` on, each times its block's scale.
void dequantizeFloat8(const LinearWeight& weight, int64_t row, int64_t col, int64_t width,
                      float* out) {
  const std::array<float, 256>& values = float8Values();
  const auto* codes = reinterpret_cast<const uint8_t*>(elementAt(weight, row, col));
  const float* scales = static_cast<const float*>(weight.scales) +
                        row / weight.format.scaleRows * weight.scaleColumns();
  for (int64_t i = 0; i < width;) {
    const int64_t block = (col + i) / weight.format.scaleCols;
    const int64_t end = std::min(width, (block + 1) * weight.format.scaleCols - col);
    for (; i < end; ++i) out[i] = values[codes[i]] * scales[block];
  }
}

}  // namespace

WeightRows::WeightRows(const LinearWeight& weight)
    : weight_(weight),
      dequantize_(isFloat(weight.format.type) ? nullptr : dequantizeFloat8),
      dtype_(dequantize_ ? DType::kFloat32 : dtypeOf(weight.format.type)) {}

const void* const* WeightRows::at(int64_t row, int64_t count, int64_t col, int64_t width) {
  for (int64_t i = 0; i < count; ++i) {
    if (dequantize_) {
      dequantize_(weight_, row + i, col, width, values_[i]);
      rows_[i] = values_[i];
    } else {
      rows_[i] = elementAt(weight_, row + i, col);
    }
  }
  return rows_;
}

}  // namespace uniproc
