// Rows of a float matrix in a file, quantized while they are read: fp8 or int4, symmetric, rounded
// to nearest, with one scale for each group of columns of a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/spec.h"

namespace uniproc {

// A matrix [rows, share.of] at `offset`, of which columns of `share` are quantized. Groups begin at
// multiples of `groupCols` of all columns, so that the values are the same for any share.
struct FloatMatrix {
  const HostBytes& file;
  int64_t offset = 0;
  DType type = DType::kFloat32;
  Share share;
  int64_t groupCols = 0;

  // A row's columns from the first group of the share to the end of the last, as float32.
  std::vector<float> row(int64_t row) const;
  int64_t firstColumn() const { return share.first / groupCols * groupCols; }
  // The scale of the group that begins at columns[begin] of a row from row().
  float scale(const std::vector<float>& columns, int64_t begin, StorageType to) const;
};

// The elements: bytes [rows, bytesOf(to, share.count)].
class QuantizedElements final : public HostBytes {
 public:
  QuantizedElements(const FloatMatrix& matrix, StorageType to) : matrix_(matrix), to_(to) {}
  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  std::vector<uint8_t> row(int64_t row) const;

  const FloatMatrix matrix_;
  const StorageType to_;
};

// The scales: float32 [rows, ceil(share.count / columns)], each group's repeated for the blocks of
// `columns` columns in memory.
class QuantizedScales final : public HostBytes {
 public:
  QuantizedScales(const FloatMatrix& matrix, StorageType to, int64_t columns)
      : matrix_(matrix), to_(to), columns_(columns) {}
  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  std::vector<float> row(int64_t row) const;

  const FloatMatrix matrix_;
  const StorageType to_;
  const int64_t columns_;
};

}  // namespace uniproc
