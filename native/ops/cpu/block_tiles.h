// GGUF's blocks in tiles (tiles.h): of 32 rows, the blocks of the same columns take as many bytes
// together as apart, in this order.
//
//   scales  [32] halves d, or the bytes of MXFP4; [32] halves of minimums, where there are some;
//           then what groups have of their own, each [32]: bytes (Q2_K, Q6_K), or scales of six
//           bits (Q3_K, IQ4_XS; of Q4_K and Q5_K scale and minimum in turn) as bytes with the low
//           four bits of two, then bytes with the high two bits of four.
//   low     tiles of the low bits of codes: 8, 4 or 2
//   high    tiles of what is left: 1 or 2 bits
//
// A tile of `bits` bits has a word of 32 / bits columns for each of 16 rows. Column c of these, of
// the pair c / 2, is at bits * (c / 2) in the lower (c even) or upper half of the word: the halves
// of a word shifted right have a pair of columns. In the tiles of high bits it is so many bits
// further on, in a circle, as a code has low bits, so that the same shift puts them where they
// belong: see highShift.
#pragma once

#include <cstdint>

#include "ops/cpu/tiles.h"
#include "ops/gguf_blocks.h"

namespace uniproc {

// What six bits of a scale have too many, where there is no minimum.
constexpr int kSixBitsOffset = 32;

template <StorageType kType>
struct BlockTiles {
  static constexpr BlockSize kBlock = blockSizeOf(kType);
  static constexpr int kGroupCols = gguf::kGroupCols<kType>;
  static constexpr int kGroups = static_cast<int>(kBlock.cols) / kGroupCols;
  static constexpr int kCodeBits = gguf::kCodeBits<kType>;
  static constexpr int kLowBits = kCodeBits == 8 ? 8 : kCodeBits >= 4 ? 4 : 2;
  static constexpr int kHighBits = kCodeBits - kLowBits;
  // Columns of a word of low bits.
  static constexpr int kColumns = 32 / kLowBits;

  // Scales and minimums of six bits of a block.
  static constexpr bool kHasSixBits = kType == StorageType::kQ3K || kType == StorageType::kQ4K ||
                                      kType == StorageType::kQ5K || kType == StorageType::kIQ4XS;
  static constexpr int kSixBits = kHasSixBits ? kGroups * (gguf::kHasMin<kType> ? 2 : 1) : 0;

  static constexpr int64_t kMins = kType == StorageType::kMXFP4 ? 32 : 64;
  static constexpr int64_t kGroupScales = kMins + (gguf::kHasMin<kType> ? 64 : 0);
  static constexpr int64_t kHighOfSix = kGroupScales + kSixBits / 2 * kBlockRows;
  static constexpr int64_t kLow = kHasSixBits ? kHighOfSix + kSixBits / 4 * kBlockRows
                                  : gguf::kHasGroupScales<kType>
                                      ? kGroupScales + kGroups * kBlockRows
                                      : kGroupScales;
  static constexpr int64_t kHigh = kLow + kBlock.cols * kBlockRows * kLowBits / 8;
  static constexpr int64_t kBytes = kBlockRows * kBlock.bytes;
  static_assert(kHigh + kBlock.cols * kBlockRows * kHighBits / 8 == kBytes);

  // Of column `col` of a block, where row 0 has its word of low or high bits.
  static constexpr int64_t lowAt(int64_t col) { return kLow + at(col, kLowBits); }
  static constexpr int64_t highAt(int64_t col) { return kHigh + at(col, kHighBits); }

  static constexpr int lowShift(int col) { return shift(col, kLowBits); }
  static constexpr int highShift(int col) { return (shift(col, kHighBits) + kLowBits) % 32; }

  // The byte of a code of 8 bits from lowAt on, of row `row` of 16; see tiles.h.
  static constexpr int64_t byteAt(int col, int64_t row) {
    return row / 4 * 16 + col / 2 * 8 + row % 4 * 2 + col % 2;
  }

 private:
  static constexpr int64_t at(int64_t col, int bits) {
    return bits == 0 ? 0 : col / (32 / bits) * 2 * kTileBytes;
  }
  static constexpr int shift(int col, int bits) {
    return bits == 0 ? 0 : bits * (col % (32 / bits) / 2) + 16 * (col % 2);
  }
};

// Rearranges whole rows, kBlockRows of them; `rows` has them in the file's order.
void tileRowsOfBlocks(const LinearWeight& weight, const uint8_t* rows, uint8_t* to);

// out [cols] = row `row` of a weight in tiles.
void decodeTiledRow(const LinearWeight& weight, int64_t row, float* out);

}  // namespace uniproc
