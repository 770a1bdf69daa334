// Rows of a matrix of a GGUF file in other orders or types than the file's, made while they are
// read. All are row-major and may be read by several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/spec.h"

namespace uniproc {

// Columns `cols` of a matrix [rows, cols.of] at byte `offset`, of which row 0 is `firstRow`. The
// range of columns is of whole blocks if the type has blocks.
struct MatrixInFile {
  const HostBytes& file;
  int64_t offset = 0;
  StorageType type = StorageType::kFloat32;
  Share cols;
  int64_t firstRow = 0;
  // Rows of a head that are stored as pairs (TensorLayout::kInterleavedHeads); 0: as they are.
  int64_t headDim = 0;

  int64_t rowBytes() const { return bytesOf(type, cols.count); }
  // The bytes [begin, begin + size) of a row's columns.
  void read(int64_t row, int64_t begin, int64_t size, std::byte* to) const;
  std::vector<std::byte> row(int64_t row) const;
};

// The rows as they are stored: bytes [rows, rowBytes].
class StoredRows final : public HostBytes {
 public:
  explicit StoredRows(const MatrixInFile& matrix) : matrix_(matrix) {}
  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  const MatrixInFile matrix_;
};

// Rows of blocks as float32 [rows, cols.count].
class DecodedRows final : public HostBytes {
 public:
  explicit DecodedRows(const MatrixInFile& matrix) : matrix_(matrix) {}
  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  const MatrixInFile matrix_;
};

// The codes of Q8_0 as int8 [rows, cols.count], of Q4_0 as bytes of two adjacent columns [rows,
// cols.count / 2]: the elements of kInt8 and kUInt4 (ops/linear.h).
class BlockElements final : public HostBytes {
 public:
  explicit BlockElements(const MatrixInFile& matrix) : matrix_(matrix) {}
  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  const MatrixInFile matrix_;
};

// Their scales: float32 [rows, cols.count / 32].
class BlockScales final : public HostBytes {
 public:
  explicit BlockScales(const MatrixInFile& matrix) : matrix_(matrix) {}
  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  const MatrixInFile matrix_;
};

}  // namespace uniproc
