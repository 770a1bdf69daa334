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
  // Added to each element of a norm's weight, in float32; Gemma stores the difference to 1.
  float offset = 0.0f;

  explicit operator bool() const { return data != nullptr; }
};

// y = x W^T + b, with
//   W[r, order[c]] = (element(r, c) - zeros[block]) * scales[block],
//   block = [r / scaleRows, c / scaleCols],
// where order[c] is c if the format is not ordered, scales are 1 if it has none, and zeros are 8
// for kUInt4 without zeros, else 0. A column of order -1 fills a block up and belongs to none of
// W's: its x is 0.
//
// Formats, with G = ceil(cols / scaleCols) and R = ceil(rows / scaleRows):
//   float types        data [rows, cols]; no scales
//   kFloat8E4M3, kInt8 data [rows, cols]; scales float32 [R, G]: blocks, or one for each row (1 x
//                      all columns), to which a scale for the whole matrix is expanded
//   kUInt4             data [rows, cols / 2], cols even; scales float32 [rows, G]; zeros uint8
//                      [rows, G], or null; scaleRows is 1
//   kFloat4E2M1        data [rows, cols / 2]; scales E8M0 [rows, G], value 2^(byte - 127);
//                      scaleRows is 1, scaleCols 32
//   blocks of GGUF     data [rows, cols / block, bytes of a block]; no scales beside it
// All are row-major, unless the backend has rearranged them (ForwardOps::arrange).
struct LinearWeight {
  const void* data = nullptr;
  WeightFormat format;
  DType dtype = DType::kFloat32;  // the model's type, in which a backend may multiply
  int64_t rows = 0;
  int64_t cols = 0;
  const void* scales = nullptr;
  Weight bias;                     // [rows], or null
  const uint8_t* zeros = nullptr;  // null unless format.hasZeros
  const int32_t* order = nullptr;  // [cols], null unless format.isOrdered; see above
  int64_t inputCols = 0;           // of x and W, where order has columns of -1; 0: cols
  bool isArranged = false;         // in the backend's own layout
  // Weights of consecutive rows whose formats differ, such as q and k in Q4_K beside v in Q6_K;
  // null: the weight has one format. `data`, `format` and `bias` are then unused.
  const LinearWeight* parts = nullptr;
  int32_t numParts = 0;

  static LinearWeight of(const Weight& matrix, const Weight& bias = {}) {
    LinearWeight weight;
    weight.data = matrix.data;
    weight.format = {storageOf(matrix.dtype)};
    weight.dtype = matrix.dtype;
    weight.rows = matrix.rows;
    weight.cols = matrix.cols;
    weight.bias = bias;
    return weight;
  }

  // Requires a format without scales in the model's own type.
  Weight matrix() const { return {data, dtype, rows, cols}; }
  // The weight for an x whose column c is column order[c] of the weight's x.
  LinearWeight sorted() const {
    LinearWeight weight = *this;
    weight.format.isOrdered = false;
    weight.order = nullptr;
    weight.inputCols = 0;
    return weight;
  }
  int64_t widthOfInput() const { return inputCols > 0 ? inputCols : cols; }
  // G above; requires scales.
  int64_t scaleColumns() const { return (cols + format.scaleCols - 1) / format.scaleCols; }
  // Rows [first, first + count); both must be multiples of scaleRows.
  LinearWeight slice(int64_t first, int64_t count) const {
    LinearWeight part = *this;
    part.data = static_cast<const char*>(data) + first * bytesOf(format.type, cols);
    part.rows = count;
    if (scales) {
      const int64_t block = first / format.scaleRows * scaleColumns();
      part.scales = static_cast<const char*>(scales) + block * format.scaleBytes();
      if (zeros) part.zeros = zeros + block;
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
