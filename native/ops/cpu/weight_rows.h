// Pieces of a weight's rows in the form the inner loop takes.
#pragma once

#include <cstdint>

#include "ops/cpu/kernels.h"
#include "ops/linear.h"

namespace uniproc {

// Whether the kernels' `dotStored` and `decode` take a quantized weight.
bool canDecodeVectors(const LinearWeight& weight);

class WeightRows {
 public:
  // Largest number of rows in a piece, and of bytes in a row of it. A piece fits the L1 cache
  // beside the rows of x of a tile.
  static constexpr int64_t kRows = 12;
  static constexpr int64_t kRowBytes = 2048;

  // Pieces are copied, since rows whose distance is a power of two would displace each other in the
  // cache, and converted to float32 unless `keepType`, which requires a float type.
  WeightRows(const LinearWeight& weight, const Kernels& kernels, bool keepType);

  // Pointers to columns [col, col + width) of `count` rows from `row` on. Valid until the next
  // call.
  const void* const* at(int64_t row, int64_t count, int64_t col, int64_t width);
  // Pointers to where `at` will read, for prefetching; past the last row to the last.
  const void* const* sources(int64_t row, int64_t count, int64_t col);

 private:
  using Convert = void (*)(const LinearWeight& weight, const Kernels& kernels, int64_t row,
                           int64_t col, int64_t width, void* out);

  const LinearWeight& weight_;
  const Kernels& kernels_;
  const Convert convert_;
  const void* rows_[kRows];
  const void* sources_[kRows];
  alignas(64) char values_[kRows][kRowBytes];
};

}  // namespace uniproc
