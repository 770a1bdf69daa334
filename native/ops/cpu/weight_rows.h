// Pieces of a weight's rows in the form the inner loop takes: rows of a float type in place, rows
// of other formats dequantized to float32. A new format adds a function here.
#pragma once

#include <cstdint>

#include "ops/linear.h"

namespace uniproc {

class WeightRows {
 public:
  // Largest number of rows and columns in a piece.
  static constexpr int64_t kRows = 4;
  static constexpr int64_t kCols = 512;

  explicit WeightRows(const LinearWeight& weight);

  // The type of the elements that `at` returns.
  DType dtype() const { return dtype_; }
  // Pointers to columns [col, col + width) of `count` rows from `row` on. Valid until the next
  // call.
  const void* const* at(int64_t row, int64_t count, int64_t col, int64_t width);

 private:
  using Dequantize = void (*)(const LinearWeight& weight, int64_t row, int64_t col, int64_t width,
                              float* out);

  const LinearWeight& weight_;
  const Dequantize dequantize_;  // null for a float type
  const DType dtype_;
  const void* rows_[kRows];
  float values_[kRows][kCols];
};

}  // namespace uniproc
