// Quantized tensors as published checkpoints hold them, read in the layouts of ops/linear.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/spec.h"

namespace uniproc {

// How a file holds a tensor. Words are int32, little-endian, of eight int4 codes from the low bits
// up. Below, a parameter has shape [rows, cols], G groups of columns for scales and zero points.
enum class TensorLayout : uint8_t {
  kRows,        // the parameter's own shape and layout
  kOneForAll,   // scales: a single element for the whole matrix
  kTransposed,  // scales [G, rows]
  // AutoGPTQ: a weight has words [cols / 8, rows] of eight columns, zero points have words [G, rows
  // / 8] of eight rows, less one.
  kGptq,
  kGptqV2,  // the same with zero points as they are
  // AutoAWQ: words of eight rows, in the order 0, 2, 4, 6, 1, 3, 5, 7: a weight [cols, rows / 8],
  // zero points [G, rows / 8].
  kAwq,
  kPackedRows,  // compressed-tensors' zero points: words [rows / 8, G] of eight rows
  // GGUF's queries and keys of some architectures: rows 2 * i and 2 * i + 1 of a head are the pair
  // that other checkpoints have in rows i and i + headDim / 2.
  kInterleavedHeads,
};
constexpr TensorLayout kLastTensorLayout = TensorLayout::kInterleavedHeads;

// Which rows of a file's tensor a parameter is: [firstRow, firstRow + rows) of `wholeRows`.
struct TensorRows {
  int64_t wholeRows = 0;
  int64_t firstRow = 0;
};

// Bytes of the file's tensor [whole.wholeRows, cols], of an int4 weight or zero points in a layout
// of words.
int64_t wordBytes(TensorLayout layout, bool isWeight, int64_t wholeRows, int64_t cols);

// An int4 weight in a layout of words, or in kRows with `fileCols` columns in another order, as
// bytes [rows, columns.size() / 2] of two columns each. `columns`: the file's column of each column
// in memory, of which some are none, -1. Several threads may read at once.
class RepackedRows final : public HostBytes {
 public:
  RepackedRows(const HostBytes& file, int64_t offset, TensorLayout layout, TensorRows whole,
               int64_t fileCols, std::vector<int32_t> columns);

  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  // Rows [first, first + count) of the parameter.
  std::vector<uint8_t> repack(int64_t first, int64_t count) const;
  std::vector<uint8_t> reorder(int64_t first, int64_t count) const;

  const HostBytes& file_;
  const int64_t offset_;
  const TensorLayout layout_;
  const TensorRows whole_;
  const int64_t fileCols_;
  const std::vector<int32_t> columns_;
  // The file's columns in use: [firstColumn_, endColumn_).
  int64_t firstColumn_ = 0;
  int64_t endColumn_ = 0;
};

// Zero points [rows, groups.count] of rows [first, first + rows) of the file's tensor.
std::vector<uint8_t> readZeros(const HostBytes& file, int64_t offset, TensorLayout layout,
                               int64_t wholeRows, int64_t first, int64_t rows, const Share& groups);

// Blocks of a share of columns in act-order: as small as the fast products take, since a share has
// some columns of each group.
constexpr int64_t kOrderedBlockCols = 32;
// A multiple that they take.
constexpr int64_t kOrderedCols = 128;

// Columns in act-order as they are in memory: those of a share, sorted by their group, in their own
// order within it.
struct ColumnOrder {
  std::vector<int32_t> columns;  // of all of the file, or -1
  std::vector<int32_t> groups;   // of each block of columns in memory
  bool operator==(const ColumnOrder&) const = default;
};

// `groupOf` [share.of] holds each column's group, of `groupCols` columns. Of a share of some
// columns each group is filled up with -1 to blocks of `blockCols`, and the whole to a multiple of
// kOrderedCols. Empty unless every group has `groupCols` columns, the last one what remains.
ColumnOrder columnOrder(const std::vector<int32_t>& groupOf, int64_t groupCols, const Share& share,
                        int64_t blockCols);

}  // namespace uniproc
