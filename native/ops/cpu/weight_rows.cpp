#include "ops/cpu/weight_rows.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/stored_element.h"

namespace uniproc {
namespace {

// The byte of an element; of two if the type is packed; of its block.
const char* elementAt(const LinearWeight& weight, int64_t row, int64_t col) {
  return static_cast<const char*>(weight.data) +
         bytesOf(weight.format.type, row * weight.cols + col);
}

// The functions below convert `width` elements of the row from `col` on.

void decodeRow(const LinearWeight& weight, const Kernels& kernels, int64_t row, int64_t col,
               int64_t width, void* out) {
  kernels.decode[indexOfStored(weight.format.type)](weight, row, col, width,
                                                    static_cast<float*>(out));
}

// Of blocks that a vector may cut.
void decodeElements(const LinearWeight& weight, const Kernels&, int64_t row, int64_t col,
                    int64_t width, void* out) {
  for (int64_t i = 0; i < width; ++i) {
    static_cast<float*>(out)[i] = storedElement(weight, row, col + i);
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

bool canDecodeVectors(const LinearWeight& weight) {
  if (isBlocks(weight.format.type)) return true;
  const int64_t columns = weight.format.scaleCols;
  return columns % kStoredColumns == 0 || columns >= weight.cols;
}

WeightRows::WeightRows(const LinearWeight& weight, const Kernels& kernels, bool keepType)
    : weight_(weight),
      kernels_(kernels),
      convert_(keepType                      ? copyRow
               : isFloat(weight.format.type) ? widenRow
               : canDecodeVectors(weight)    ? decodeRow
                                             : decodeElements) {}

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
