#include "model/quantized_rows.h"

#include <algorithm>
#include <cmath>

#include "base/float_types.h"
#include "model/copy_rows.h"

namespace uniproc {
namespace {

constexpr int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::vector<float> FloatMatrix::row(int64_t row) const {
  const int64_t first = firstColumn();
  const int64_t end = std::min(share.of, ceilDiv(share.first + share.count, groupCols) * groupCols);
  const auto elementBytes = static_cast<int64_t>(sizeOf(type));
  std::vector<std::byte> stored(static_cast<size_t>((end - first) * elementBytes));
  file.read(offset + (row * share.of + first) * elementBytes, static_cast<int64_t>(stored.size()),
            stored.data());
  std::vector<float> columns(static_cast<size_t>(end - first));
  for (int64_t i = 0; i < end - first; ++i) columns[i] = elementAt(stored.data(), type, i);
  return columns;
}

// fp8: the largest magnitude becomes 448. int4: the number of largest magnitude becomes -8, so that
// the scale may be negative. NaN if the group has one, as the products with it then are.
float FloatMatrix::scale(const std::vector<float>& columns, int64_t begin, StorageType to) const {
  const int64_t end = std::min(static_cast<int64_t>(columns.size()), begin + groupCols);
  float largest = 0.0f;
  for (int64_t i = begin; i < end; ++i) {
    if (!(std::fabs(columns[i]) <= std::fabs(largest))) largest = columns[i];
    if (std::isnan(largest)) break;
  }
  return to == StorageType::kUInt4 ? largest / -8.0f : std::fabs(largest) / 448.0f;
}

void QuantizedElements::read(int64_t offset, int64_t size, std::byte* to) const {
  copyRows(offset, size, bytesOf(to_, matrix_.share.count), to,
           [this](int64_t index) { return row(index); });
}

std::vector<uint8_t> QuantizedElements::row(int64_t index) const {
  const std::vector<float> columns = matrix_.row(index);
  const Share& share = matrix_.share;
  const int64_t skipped = share.first - matrix_.firstColumn();
  std::vector<uint8_t> out(static_cast<size_t>(bytesOf(to_, share.count)));
  float scale = 0.0f;
  for (int64_t i = 0; i < share.count; ++i) {
    const int64_t column = skipped + i;
    if (i == 0 || column % matrix_.groupCols == 0) {
      scale = matrix_.scale(columns, column / matrix_.groupCols * matrix_.groupCols, to_);
    }
    const float scaled = scale == 0.0f ? 0.0f : columns[column] / scale;
    if (to_ == StorageType::kUInt4) {
      const float code = std::clamp(std::nearbyint(scaled) + 8.0f, 0.0f, 15.0f);
      const int nibble = std::isnan(code) ? 8 : static_cast<int>(code);
      out[i / 2] = static_cast<uint8_t>(out[i / 2] | nibble << (i % 2 * 4));
    } else {
      out[i] = narrow<Float8E4M3>(scaled).bits;
    }
  }
  return out;
}

void QuantizedScales::read(int64_t offset, int64_t size, std::byte* to) const {
  const int64_t perRow = ceilDiv(matrix_.share.count, columns_);
  copyRows(offset, size, perRow * static_cast<int64_t>(sizeof(float)), to,
           [this](int64_t index) { return row(index); });
}

std::vector<float> QuantizedScales::row(int64_t index) const {
  const std::vector<float> columns = matrix_.row(index);
  const int64_t skipped = matrix_.share.first - matrix_.firstColumn();
  std::vector<float> out;
  for (int64_t i = 0; i < matrix_.share.count; i += columns_) {
    const int64_t group = (skipped + i) / matrix_.groupCols * matrix_.groupCols;
    out.push_back(matrix_.scale(columns, group, to_));
  }
  return out;
}

}  // namespace uniproc
