// The seam between blocks and operations: the weights of a linear layer in any storage format.
#pragma once

#include <cstdint>

#include "base/types.h"

namespace uniproc {

// A matrix [rows, cols] of a float type; a vector has shape [rows, 1].
struct Weight {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;

  explicit operator bool() const { return data != nullptr; }
};

// y = x W^T + b, with W[r, c] = data[r, c], times scales[r / scaleRows, c / scaleCols] if the
// format has scales.
struct LinearWeight {
  const void* data = nullptr;  // [rows, cols]
  WeightFormat format;
  DType dtype = DType::kFloat32;  // the model's type, in which a backend may multiply
  int64_t rows = 0;
  int64_t cols = 0;
  const void* scales = nullptr;  // [ceil(rows / scaleRows), ceil(cols / scaleCols)], float32
  Weight bias;                   // [rows], or null

  static LinearWeight of(const Weight& matrix, const Weight& bias = {}) {
    return {matrix.data, {storageOf(matrix.dtype)}, matrix.dtype, matrix.rows, matrix.cols, nullptr,
            bias};
  }

  // Requires a format without scales in the model's own type.
  Weight matrix() const { return {data, dtype, rows, cols}; }
  int64_t scaleColumns() const { return (cols + format.scaleCols - 1) / format.scaleCols; }
  // Rows [first, first + count); both must be multiples of scaleRows.
  LinearWeight slice(int64_t first, int64_t count) const {
    LinearWeight part = *this;
    part.data =
        static_cast<const char*>(data) + first * cols * static_cast<int64_t>(sizeOf(format.type));
    part.rows = count;
    if (scales) {
      part.scales = static_cast<const float*>(scales) + first / format.scaleRows * scaleColumns();
    }
    if (bias) {
      part.bias.data =
          static_cast<const char*>(bias.data) + first * static_cast<int64_t>(sizeOf(bias.dtype));
      part.bias.rows = count;
    }
    return part;
  }
};

}  // namespace uniproc
