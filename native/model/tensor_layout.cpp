#include "model/tensor_layout.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace uniproc {
namespace {

constexpr int64_t kPerWord = 8;
constexpr int64_t kWordBytes = 4;
// Rows that are repacked together: a multiple of kPerWord; reads of a file's row are 2 KiB or, of
// AWQ's, 256 bytes.
constexpr int64_t kRowsPerPiece = 512;

constexpr int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where AutoAWQ puts the i-th of eight rows in a word.
constexpr int kAwqPlace[kPerWord] = {0, 4, 1, 5, 2, 6, 3, 7};

uint8_t codeIn(uint32_t word, int place) { return static_cast<uint8_t>(word >> (4 * place) & 15); }

// The code of `row` in a word of eight rows.
uint8_t codeOfRow(uint32_t word, int64_t row, TensorLayout layout) {
  const auto i = static_cast<int>(row % kPerWord);
  return codeIn(word, layout == TensorLayout::kAwq ? kAwqPlace[i] : i);
}

}  // namespace

int64_t wordBytes(TensorLayout layout, bool isWeight, int64_t wholeRows, int64_t cols) {
  const bool packsColumns =
      isWeight && (layout == TensorLayout::kGptq || layout == TensorLayout::kGptqV2);
  return kWordBytes *
         (packsColumns ? ceilDiv(cols, kPerWord) * wholeRows : cols * ceilDiv(wholeRows, kPerWord));
}

RepackedRows::RepackedRows(const HostBytes& file, int64_t offset, TensorLayout layout,
                           TensorRows whole, int64_t fileCols, std::vector<int32_t> columns)
    : file_(file),
      offset_(offset),
      layout_(layout),
      whole_(whole),
      fileCols_(fileCols),
      columns_(std::move(columns)),
      firstColumn_(fileCols) {
  for (const int32_t column : columns_) {
    if (column < 0) continue;
    firstColumn_ = std::min(firstColumn_, int64_t{column});
    endColumn_ = std::max(endColumn_, int64_t{column} + 1);
  }
}

void RepackedRows::read(int64_t offset, int64_t size, std::byte* to) const {
  const auto rowBytes = static_cast<int64_t>(columns_.size() / 2);
  while (size > 0) {
    const int64_t row = offset / rowBytes;
    const int64_t skipped = offset % rowBytes;
    const int64_t rows = std::min(kRowsPerPiece, ceilDiv(skipped + size, rowBytes));
    const std::vector<uint8_t> piece = repack(row, rows);
    const int64_t count = std::min(size, rows * rowBytes - skipped);
    std::memcpy(to, piece.data() + skipped, static_cast<size_t>(count));
    to += count;
    offset += count;
    size -= count;
  }
}

// Of kRows: the file's rows with other columns.
std::vector<uint8_t> RepackedRows::reorder(int64_t first, int64_t count) const {
  const auto rowBytes = static_cast<int64_t>(columns_.size() / 2);
  const int64_t fileBytes = fileCols_ / 2;
  std::vector<uint8_t> rows(static_cast<size_t>(count * fileBytes));
  file_.read(offset_ + (whole_.firstRow + first) * fileBytes, count * fileBytes,
             reinterpret_cast<std::byte*>(rows.data()));
  std::vector<uint8_t> out(static_cast<size_t>(count * rowBytes));
  for (int64_t row = 0; row < count; ++row) {
    const uint8_t* from = &rows[row * fileBytes];
    const auto codeAt = [&](int64_t i) {
      const int32_t column = columns_[i];
      return column < 0 ? 0 : from[column / 2] >> (column % 2 * 4) & 15;
    };
    for (int64_t i = 0; i < rowBytes; ++i) {
      out[row * rowBytes + i] = static_cast<uint8_t>(codeAt(2 * i) | codeAt(2 * i + 1) << 4);
    }
  }
  return out;
}

std::vector<uint8_t> RepackedRows::repack(int64_t first, int64_t count) const {
  if (layout_ == TensorLayout::kRows) return reorder(first, count);
  const int64_t row = whole_.firstRow + first;
  const bool packsColumns = layout_ != TensorLayout::kAwq;
  // The words of the piece: [lines, perLine], lines `stride` words apart in the file.
  const int64_t firstLine = packsColumns ? firstColumn_ / kPerWord : firstColumn_;
  const int64_t lines = (packsColumns ? ceilDiv(endColumn_, kPerWord) : endColumn_) - firstLine;
  const int64_t firstWord = packsColumns ? row : row / kPerWord;
  const int64_t perLine = (packsColumns ? row + count : ceilDiv(row + count, kPerWord)) - firstWord;
  const int64_t stride = packsColumns ? whole_.wholeRows : ceilDiv(whole_.wholeRows, kPerWord);
  std::vector<uint32_t> words(static_cast<size_t>(lines * perLine));
  for (int64_t line = 0; line < lines; ++line) {
    file_.read(offset_ + ((firstLine + line) * stride + firstWord) * kWordBytes,
               perLine * kWordBytes, reinterpret_cast<std::byte*>(&words[line * perLine]));
  }
  const auto rowBytes = static_cast<int64_t>(columns_.size() / 2);
  std::vector<uint8_t> out(static_cast<size_t>(count * rowBytes));
  for (int64_t i = 0; i < 2 * rowBytes; ++i) {
    const int64_t column = columns_[i];
    if (column < 0) continue;
    const int64_t line = (packsColumns ? column / kPerWord : column) - firstLine;
    const uint32_t* from = &words[line * perLine];
    const auto place = static_cast<int>(column % kPerWord);
    const int shift = i % 2 == 0 ? 0 : 4;
    uint8_t* to = &out[i / 2];
    for (int64_t r = 0; r < count; ++r) {
      const uint8_t code =
          packsColumns ? codeIn(from[r], place)
                       : codeOfRow(from[(row + r) / kPerWord - firstWord], row + r, layout_);
      to[r * rowBytes] = static_cast<uint8_t>(to[r * rowBytes] | code << shift);
    }
  }
  return out;
}

std::vector<uint8_t> readZeros(const HostBytes& file, int64_t offset, TensorLayout layout,
                               int64_t wholeRows, int64_t first, int64_t rows,
                               const Share& groups) {
  const bool isRowMajor = layout == TensorLayout::kPackedRows;
  const int64_t firstWord = first / kPerWord;
  const int64_t numWords = ceilDiv(first + rows, kPerWord) - firstWord;
  const int64_t wholeWords = ceilDiv(wholeRows, kPerWord);
  std::vector<uint32_t> words(static_cast<size_t>(numWords * groups.count));  // [groups, numWords]
  const auto readWords = [&](int64_t at, int64_t count, uint32_t* to) {
    file.read(offset + at * kWordBytes, count * kWordBytes, reinterpret_cast<std::byte*>(to));
  };
  if (isRowMajor) {
    std::vector<uint32_t> line(static_cast<size_t>(groups.count));
    for (int64_t word = 0; word < numWords; ++word) {
      readWords((firstWord + word) * groups.of + groups.first, groups.count, line.data());
      for (int64_t group = 0; group < groups.count; ++group) {
        words[group * numWords + word] = line[group];
      }
    }
  } else {
    for (int64_t group = 0; group < groups.count; ++group) {
      readWords((groups.first + group) * wholeWords + firstWord, numWords,
                &words[group * numWords]);
    }
  }
  std::vector<uint8_t> zeros(static_cast<size_t>(rows * groups.count));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < groups.count; ++group) {
      const uint32_t word = words[group * numWords + (first + row) / kPerWord - firstWord];
      const uint8_t code = codeOfRow(word, first + row, layout);
      // 15 stands for 0: AutoGPTQ subtracts one from an unsigned number.
      const int stored = layout == TensorLayout::kGptq ? (code + 1) % 16 : code;
      zeros[row * groups.count + group] = static_cast<uint8_t>(stored);
    }
  }
  return zeros;
}

ColumnOrder columnOrder(const std::vector<int32_t>& groupOf, int64_t groupCols, const Share& share,
                        int64_t blockCols) {
  std::vector<int32_t> sorted(groupOf.size());
  std::iota(sorted.begin(), sorted.end(), 0);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](int32_t a, int32_t b) { return groupOf[a] < groupOf[b]; });
  for (int64_t i = 0; i < share.of; ++i) {
    if (groupOf[sorted[i]] != i / groupCols) return {};
  }
  ColumnOrder order;
  const bool isWhole = share.count == share.of;
  const auto fillTo = [&](int64_t multiple) {
    const int64_t size = ceilDiv(static_cast<int64_t>(order.columns.size()), multiple) * multiple;
    order.columns.resize(static_cast<size_t>(size), -1);
    order.groups.resize(static_cast<size_t>(size / blockCols), 0);
  };
  for (int64_t i = 0; i < share.of; ++i) {
    const int32_t group = groupOf[sorted[i]];
    const bool isNewGroup = i % groupCols == 0;
    if (isNewGroup && !isWhole) fillTo(blockCols);
    if (!share.contains(sorted[i])) continue;
    if (order.columns.size() % static_cast<size_t>(blockCols) == 0) order.groups.push_back(group);
    order.columns.push_back(sorted[i]);
  }
  if (!isWhole) fillTo(kOrderedCols);
  return order;
}

}  // namespace uniproc
