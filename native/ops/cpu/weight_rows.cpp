#include "ops/cpu/weight_rows.h"

#include <algorithm>
#include <array>
#include <cstring>

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

// The functions below convert `width` elements of the row from `col` on.

// Each element times its block's scale, in float32.
void dequantizeFloat8(const LinearWeight& weight, const Kernels&, int64_t row, int64_t col,
                      int64_t width, void* out) {
  auto* to = static_cast<float*>(out);
  const std::array<float, 256>& values = float8Values();
  const auto* codes = reinterpret_cast<const uint8_t*>(elementAt(weight, row, col));
  const float* scales = static_cast<const float*>(weight.scales) +
                        row / weight.format.scaleRows * weight.scaleColumns();
  for (int64_t i = 0; i < width;) {
    const int64_t block = (col + i) / weight.format.scaleCols;
    const int64_t end = std::min(width, (block + 1) * weight.format.scaleCols - col);
    for (; i < end; ++i) to[i] = values[codes[i]] * scales[block];
  }
}

void widenRow(const LinearWeight& weight, const Kernels& kernels, int64_t row, int64_t col,
              int64_t width, void* out) {
  const auto dtype = static_cast<int>(dtypeOf(weight.format.type));
  kernels.widen[dtype](elementAt(weight, row, col), width, static_cast<float*>(out));
}

void copyRow(const LinearWeight& weight, const Kernels&, int64_t row, int64_t col, int64_t width,
             void* out) {
  std::memcpy(out, elementAt(weight, row, col),
              static_cast<size_t>(width) * sizeOf(weight.format.type));
}

}  // namespace

WeightRows::WeightRows(const LinearWeight& weight, const Kernels& kernels, bool keepType)
    : weight_(weight),
      kernels_(kernels),
      convert_(keepType                      ? copyRow
               : isFloat(weight.format.type) ? widenRow
                                             : dequantizeFloat8) {}

const void* const* WeightRows::at(int64_t row, int64_t count, int64_t col, int64_t width) {
  for (int64_t i = 0; i < count; ++i) {
    convert_(weight_, kernels_, row + i, col, width, values_[i]);
    rows_[i] = values_[i];
  }
  return rows_;
}

const void* const* WeightRows::sources(int64_t row, int64_t count, int64_t col) {
  for (int64_t i = 0; i < count; ++i) {
    sources_[i] = elementAt(weight_, std::min(row + i, weight_.rows - 1), col);
  }
  return sources_;
}

}  // namespace uniproc
