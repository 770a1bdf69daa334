// The formats of weights in tiles, and where a block of rows has its tiles and scales.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ops/cpu/block_tiles.h"
#include "ops/cpu/stored_element.h"
#include "ops/cpu/tiles.h"
#include "ops/linear.h"

namespace uniproc::simd {
// Each source its own, for its instructions.
namespace {

template <StorageType kType>
constexpr int64_t columnsOfTile() {
  if constexpr (isBlocks(kType)) {
    return BlockTiles<kType>::kColumns;
  } else {
    return tileColumns(kType);
  }
}

// A format of elements in tiles; `kHasZeros`: an int4 weight has zero points.
template <StorageType kStored, bool kHasZeros = false>
struct TileFormat {
  static constexpr StorageType kType = kStored;
  static constexpr bool kZeros = kHasZeros;
  static constexpr int64_t kColumns = columnsOfTile<kStored>();
  // Whether scaled sums have a minimum added for each column.
  static constexpr bool kHasMin = isBlocks(kStored) && gguf::kHasMin<kStored>;
};

// A block of kBlockRows rows.
template <class Format>
class TileBlock {
 public:
  TileBlock(const LinearWeight& weight, int64_t row)
      : weight_(weight),
        row_(row),
        groups_(weight.scaleColumns()),
        scaleRow_(row / weight.format.scaleRows),
        isUniform_(scaleRow_ == (row + kBlockRows - 1) / weight.format.scaleRows) {}

  const char* tiles(int64_t col) const {
    return static_cast<const char*>(weight_.data) +
           (row_ * bytesOf(Format::kType, weight_.cols) + bytesOf(Format::kType, kBlockRows * col));
  }
  int64_t scaleCols() const { return weight_.format.scaleCols; }
  // What Codes are made of, for rows from `lane` on: their zero points.
  const uint8_t* beside(int64_t group, int64_t lane) const {
    return Format::kZeros ? weight_.zeros + inBlock(group) + lane : nullptr;
  }
  // The scales of a group for each row, in memory or written to `scratch`; both [kBlockRows].
  template <class V>
  const float* scales(int64_t group, float* scratch) const {
    if constexpr (Format::kType == StorageType::kFloat4E2M1) {
      const auto* bytes = static_cast<const uint8_t*>(weight_.scales) + inBlock(group);
      for (int64_t i = 0; i < kBlockRows; ++i) scratch[i] = widenE8M0(bytes[i]);
      return scratch;
    } else {
      const auto* scales = static_cast<const float*>(weight_.scales);
      if (weight_.format.scaleRows == 1) return scales + inBlock(group);
      for (int64_t i = 0; i < kBlockRows; ++i) {
        const int64_t scaleRow = isUniform_ ? scaleRow_ : (row_ + i) / weight_.format.scaleRows;
        scratch[i] = scales[scaleRow * groups_ + group];
      }
      return scratch;
    }
  }

 private:
  int64_t inBlock(int64_t group) const { return row_ * groups_ + group * kBlockRows; }

  const LinearWeight& weight_;
  const int64_t row_;
  const int64_t groups_;
  const int64_t scaleRow_;  // of the first row
  const bool isUniform_;    // all rows have the same scales
};

// Bytes of kBlockRows rows, in words that all processors can shift.
using RowBytes = uint16_t __attribute__((vector_size(kBlockRows)));
using SignedRowBytes = int8_t __attribute__((vector_size(kBlockRows)));

// The same of GGUF's blocks.
template <class Format>
  requires(isBlocks(Format::kType))
class TileBlock<Format> {
 public:
  TileBlock(const LinearWeight& weight, int64_t row)
      : data_(static_cast<const char*>(weight.data) + row * bytesOf(Format::kType, weight.cols)) {}

  const char* tiles(int64_t col) const { return blockOf(col) + Tiles::lowAt(col % kCols); }
  static constexpr int64_t scaleCols() { return Tiles::kGroupCols; }
  // High bits of codes.
  const uint8_t* beside(int64_t group, int64_t lane) const {
    if constexpr (Tiles::kHighBits == 0) return nullptr;
    const int64_t col = group * Tiles::kGroupCols;
    return reinterpret_cast<const uint8_t*>(blockOf(col) + Tiles::highAt(col % kCols) + 4 * lane);
  }
  template <class V>
  const float* scales(int64_t group, float* scratch) const {
    const char* block = blockOf(group * Tiles::kGroupCols);
    if constexpr (Format::kType == StorageType::kMXFP4) {
      for (int64_t i = 0; i < kBlockRows; ++i) {
        scratch[i] = gguf::mxfp4Scale(static_cast<uint8_t>(block[i]));
      }
    } else if constexpr (gguf::kHasGroupScales<Format::kType>) {
      multiply<V>(block, groupScales(block, static_cast<int>(group % Tiles::kGroups)), scratch);
    } else {
      widen<V>(block, scratch);
    }
    return scratch;
  }
  // The minimum of a group for each row. Requires Format::kHasMin.
  template <class V>
  const float* mins(int64_t group, float* scratch) const {
    const char* block = blockOf(group * Tiles::kGroupCols);
    if constexpr (gguf::kHasGroupScales<Format::kType>) {
      const SignedRowBytes mins = groupMins(block, static_cast<int>(group % Tiles::kGroups));
      multiply<V>(block + Tiles::kMins, -mins, scratch);
    } else {
      widen<V>(block + Tiles::kMins, scratch);
    }
    return scratch;
  }

 private:
  using Tiles = BlockTiles<Format::kType>;
  static constexpr int64_t kCols = Tiles::kBlock.cols;

  const char* blockOf(int64_t col) const { return data_ + col / kCols * Tiles::kBytes; }

  static RowBytes bytesAt(const char* at) {
    RowBytes bytes;
    std::memcpy(&bytes, at, sizeof bytes);
    return bytes;
  }
  // A word of the same byte twice.
  static constexpr uint16_t every(int byte) { return static_cast<uint16_t>(byte << 8 | byte); }

  static RowBytes sixBits(const char* block, int index) {
    const RowBytes low = bytesAt(block + Tiles::kGroupScales + index / 2 * kBlockRows);
    const RowBytes high = bytesAt(block + Tiles::kHighOfSix + index / 4 * kBlockRows);
    return (low >> (index % 2 * 4) & every(15)) | (high >> (index % 4 * 2) & every(3)) << 4;
  }
  static SignedRowBytes groupScales(const char* block, int group) {
    const char* bytes = block + Tiles::kGroupScales + group * kBlockRows;
    if constexpr (Format::kType == StorageType::kQ6K) return (SignedRowBytes)bytesAt(bytes);
    if constexpr (Format::kType == StorageType::kQ2K) {
      return (SignedRowBytes)(bytesAt(bytes) & every(15));
    }
    if constexpr (Format::kHasMin) return (SignedRowBytes)sixBits(block, 2 * group);
    return (SignedRowBytes)sixBits(block, group) - static_cast<int8_t>(kSixBitsOffset);
  }
  static SignedRowBytes groupMins(const char* block, int group) {
    if constexpr (Format::kType == StorageType::kQ2K) {
      const char* bytes = block + Tiles::kGroupScales + group * kBlockRows;
      return (SignedRowBytes)(bytesAt(bytes) >> 4 & every(15));
    }
    return (SignedRowBytes)sixBits(block, 2 * group + 1);
  }

  template <class V>
  static void widen(const char* halves, float* out) {
    for (int64_t i = 0; i < kBlockRows; i += V::kLanes) {
      V::load(reinterpret_cast<const Float16*>(halves) + i).store(out + i);
    }
  }
  // out = halves * factors.
  template <class V>
  static void multiply(const char* halves, SignedRowBytes factors, float* out) {
    alignas(kBlockRows) int8_t bytes[kBlockRows];
    std::memcpy(bytes, &factors, sizeof bytes);
    for (int64_t i = 0; i < kBlockRows; i += V::kLanes) {
      (V::load(reinterpret_cast<const Float16*>(halves) + i) * V::load(bytes + i)).store(out + i);
    }
  }

  const char* data_;
};

}  // namespace
}  // namespace uniproc::simd
