#include "ops/cpu/block_tiles.h"

#include <bit>
#include <cstring>

namespace uniproc {
namespace {

constexpr int64_t kTileRows = kBlockRows / 2;

// A word of row `row` of 32, in the tiles whose first begins at `tiles`.
uint8_t* wordOf(uint8_t* tiles, int64_t row) {
  return tiles + row / kTileRows * kTileBytes + row % kTileRows * 4;
}

// Byte `index` of a list of bytes for each row.
uint8_t* byteOf(uint8_t* bytes, int64_t index, int64_t row) {
  return bytes + index * kBlockRows + row;
}

// The numbers of six bits of a block, into the tiles.
template <StorageType kType>
void writeSixBits(const uint8_t (&values)[BlockTiles<kType>::kSixBits], int64_t row,
                  uint8_t* tiles) {
  using Tiles = BlockTiles<kType>;
  for (int i = 0; i < Tiles::kSixBits; i += 2) {
    const int low = (values[i] & 15) | (values[i + 1] & 15) << 4;
    *byteOf(tiles + Tiles::kGroupScales, i / 2, row) = static_cast<uint8_t>(low);
  }
  for (int i = 0; i < Tiles::kSixBits; i += 4) {
    int high = 0;
    for (int j = 0; j < 4; ++j) high |= values[i + j] >> 4 << (2 * j);
    *byteOf(tiles + Tiles::kHighOfSix, i / 4, row) = static_cast<uint8_t>(high);
  }
}
// Number `index` of them.
template <StorageType kType>
int readSixBits(uint8_t* tiles, int index, int64_t row) {
  using Tiles = BlockTiles<kType>;
  const int low = *byteOf(tiles + Tiles::kGroupScales, index / 2, row) >> (index % 2 * 4) & 15;
  const int high = *byteOf(tiles + Tiles::kHighOfSix, index / 4, row) >> (index % 4 * 2) & 3;
  return low | high << 4;
}

template <StorageType kType>
void tileScales(const uint8_t* block, int64_t row, uint8_t* tiles) {
  using enum StorageType;
  using Tiles = BlockTiles<kType>;
  if constexpr (kType == kMXFP4) {
    tiles[row] = block[0];
    return;
  }
  std::memcpy(tiles + 2 * row, block + gguf::kScaleAt<kType>, 2);
  if constexpr (gguf::kHasMin<kType>) {
    std::memcpy(tiles + Tiles::kMins + 2 * row, block + gguf::kMinAt<kType>, 2);
  }
  if constexpr (Tiles::kHasSixBits) {
    uint8_t values[Tiles::kSixBits];
    for (int group = 0; group < Tiles::kGroups; ++group) {
      const gguf::GroupScale own = gguf::groupScale<kType>(block, group);
      if constexpr (gguf::kHasMin<kType>) {
        values[2 * group] = static_cast<uint8_t>(own.scale);
        values[2 * group + 1] = static_cast<uint8_t>(own.min);
      } else {
        values[group] = static_cast<uint8_t>(own.scale + kSixBitsOffset);
      }
    }
    writeSixBits<kType>(values, row, tiles);
  } else if constexpr (gguf::kHasGroupScales<kType>) {
    for (int group = 0; group < Tiles::kGroups; ++group) {
      const gguf::GroupScale own = gguf::groupScale<kType>(block, group);
      *byteOf(tiles + Tiles::kGroupScales, group, row) =
          static_cast<uint8_t>(own.scale | own.min << 4);
    }
  }
}

// A word of bits [first, first + kBits) of 32 / kBits codes: those of columns 0, 2, 4 and 6 of
// eight are in the lower half at multiples of kBits, the next eight's behind them, and odd columns'
// in the upper half.
template <int kBits>
uint32_t packCodes(const int8_t* codes, int first) {
  constexpr uint64_t kEvenBytes = 0x0001000100010001u * ((1u << kBits) - 1);
  // Times this, bits of lane i of 16 bits each are kBits * i further on than lane 0's, in the
  // uppermost lane. What is moved elsewhere is below it or beyond 64 bits, and nowhere twice.
  constexpr uint64_t kMoves = [] {
    uint64_t moves = 0;
    for (int i = 0; i < 4; ++i) moves |= uint64_t{1} << (48 - (16 - kBits) * i);
    return moves;
  }();
  uint64_t even = 0;
  uint64_t odd = 0;
  for (int i = 0; i < 4 / kBits; ++i) {
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, sizeof eight);
    even |= (eight >> first & kEvenBytes) << (4 * kBits * i);
    odd |= (eight >> (first + 8) & kEvenBytes) << (4 * kBits * i);
  }
  return static_cast<uint32_t>(even * kMoves >> 48 | odd * kMoves >> 48 << 16);
}

template <StorageType kType>
void tileCodes(const uint8_t* block, int64_t row, uint8_t* tiles) {
  using Tiles = BlockTiles<kType>;
  int8_t codes[Tiles::kBlock.cols];
#pragma GCC unroll 16
  for (int group = 0; group < Tiles::kGroups; ++group) {
    gguf::readCodes<kType>(block, group, codes + group * Tiles::kGroupCols);
  }
  if constexpr (Tiles::kCodeBits == 8) {
    uint8_t* tile = tiles + Tiles::kLow + row / kTileRows * kTileBytes;
    for (int col = 0; col < Tiles::kBlock.cols; col += 2) {
      std::memcpy(tile + Tiles::lowAt(col) - Tiles::kLow +
                      Tiles::byteAt(col % Tiles::kColumns, row % kTileRows),
                  codes + col, 2);
    }
    return;
  } else {
    for (int col = 0; col < Tiles::kBlock.cols; col += Tiles::kColumns) {
      const uint32_t low = packCodes<Tiles::kLowBits>(codes + col, 0);
      std::memcpy(wordOf(tiles + Tiles::lowAt(col), row), &low, sizeof low);
    }
  }
  if constexpr (Tiles::kHighBits > 0) {
    for (int col = 0; col < Tiles::kBlock.cols; col += 32 / Tiles::kHighBits) {
      const uint32_t high =
          std::rotl(packCodes<Tiles::kHighBits>(codes + col, Tiles::kLowBits), Tiles::kLowBits);
      std::memcpy(wordOf(tiles + Tiles::highAt(col), row), &high, sizeof high);
    }
  }
}

// Group `group` of row `row` of 32.
template <StorageType kType>
void readTiledGroup(uint8_t* tiles, int64_t row, int group, gguf::Group<kType>* out) {
  using enum StorageType;
  using Tiles = BlockTiles<kType>;
  const auto bitsAt = [row](uint8_t* words, int shift, int bits) {
    uint32_t word;
    std::memcpy(&word, wordOf(words, row), sizeof word);
    return static_cast<int>(word >> shift & ((1u << bits) - 1));
  };
  for (int i = 0; i < Tiles::kGroupCols; ++i) {
    const int col = group * Tiles::kGroupCols + i;
    uint8_t* low = tiles + Tiles::lowAt(col);
    if constexpr (Tiles::kCodeBits == 8) {
      low += row / kTileRows * kTileBytes;
      out->codes[i] =
          static_cast<int8_t>(low[Tiles::byteAt(col % Tiles::kColumns, row % kTileRows)]);
    } else {
      int code = bitsAt(low, Tiles::lowShift(col), Tiles::kLowBits);
      if constexpr (Tiles::kHighBits > 0) {
        code |= bitsAt(tiles + Tiles::highAt(col), Tiles::highShift(col), Tiles::kHighBits)
                << Tiles::kLowBits;
      }
      out->codes[i] = gguf::valueOf<kType>(code);
    }
  }
  out->min = 0.0f;
  if constexpr (kType == kMXFP4) {
    out->scale = gguf::mxfp4Scale(tiles[row]);
    return;
  }
  out->scale = gguf::halfAt(tiles + 2 * row);
  if constexpr (gguf::kHasMin<kType>) out->min = gguf::halfAt(tiles + Tiles::kMins + 2 * row);
  if constexpr (gguf::kHasGroupScales<kType>) {
    const uint8_t byte = *byteOf(tiles + Tiles::kGroupScales, group, row);
    gguf::GroupScale own{};
    if constexpr (kType == kQ2K) {
      own = {byte & 15, byte >> 4};
    } else if constexpr (kType == kQ6K) {
      own = {static_cast<int8_t>(byte), 0};
    } else if constexpr (gguf::kHasMin<kType>) {
      own = {readSixBits<kType>(tiles, 2 * group, row),
             readSixBits<kType>(tiles, 2 * group + 1, row)};
    } else {
      own = {readSixBits<kType>(tiles, group, row) - kSixBitsOffset, 0};
    }
    out->scale *= static_cast<float>(own.scale);
    out->min *= -static_cast<float>(own.min);
  }
}

}  // namespace

void tileRowsOfBlocks(const LinearWeight& weight, const uint8_t* rows, uint8_t* to) {
  gguf::withBlockType(weight.format.type, [&](auto type) {
    using Tiles = BlockTiles<type()>;
    const int64_t rowBytes = bytesOf(type(), weight.cols);
    for (int64_t col = 0; col < weight.cols; col += Tiles::kBlock.cols, to += Tiles::kBytes) {
      for (int64_t row = 0; row < kBlockRows; ++row) {
        const uint8_t* block = rows + row * rowBytes + bytesOf(type(), col);
        tileScales<type()>(block, row, to);
        tileCodes<type()>(block, row, to);
      }
    }
  });
}

void decodeTiledRow(const LinearWeight& weight, int64_t row, float* out) {
  gguf::withBlockType(weight.format.type, [&](auto type) {
    using Tiles = BlockTiles<type()>;
    auto* tiles = static_cast<uint8_t*>(const_cast<void*>(weight.data)) +
                  row / kBlockRows * kBlockRows * bytesOf(type(), weight.cols);
    for (int64_t col = 0; col < weight.cols; col += Tiles::kBlock.cols, tiles += Tiles::kBytes) {
      for (int group = 0; group < Tiles::kGroups; ++group) {
        gguf::Group<type()> read;
        readTiledGroup<type()>(tiles, row % kBlockRows, group, &read);
        for (int8_t code : read.codes) {
          *out++ = read.scale * static_cast<float>(code) + read.min;
        }
      }
    }
  });
}

}  // namespace uniproc
