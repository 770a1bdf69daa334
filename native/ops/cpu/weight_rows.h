// Pieces of a weight's rows as the product's inner loop takes them: rows of a float type where they
// lie, rows of another format dequantised to float32. A new format is a function here.
#pragma once

#include <cstdint>

#include "ops/linear.h"

namespace uniproc {

class WeightRows {
 public:
  // The most rows and columns of a piece.
  static constexpr int64_t kRows = 4;
  static constexpr int64_t kCols = 512;

  explicit WeightRows(const LinearWeight& weight);

  // The type that `at` gives.
  DType dtype() const { return dtype_; }
  // Where each of `count` rows from `row` on has its columns [col, col + width). Valid until the
  // next call.
  const void* const* at(int64_t row, int64_t count, int64_t col, int64_t width);

 private:
  using Dequantize = void (*)(const LinearWeight& weight, int64_t row, int64_t col, int64_t width,
                              float* out);

  const LinearWeight& weight_;
  const Dequantize dequantize_;  // null of a float type
  const DType dtype_;
  const void* rows_[kRows];
  float values_[kRows][kCols];
};

}  // namespace uniproc
