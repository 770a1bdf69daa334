#include "ops/cpu/block_tiles.h"

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

// Number `index` of six bits, to and from bytes that were zero.
template <StorageType kType>
void writeSixBits(uint8_t* tiles, int index, int64_t row, int value) {
  using Tiles = BlockTiles<kType>;
  uint8_t* low = byteOf(tiles + Tiles::kGroupScales, index / 2, row);
  uint8_t* high = byteOf(tiles + Tiles::kHighOfSix, index / 4, row);
  *low = static_cast<uint8_t>(*low | (value & 15) << (index % 2 * 4));
  *high = static_cast<uint8_t>(*high | value >> 4 << (index % 4 * 2));
}
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
  if constexpr (gguf::kHasGroupScales<kType>) {
    for (int group = 0; group < Tiles::kGroups; ++group) {
      const gguf::GroupScale own = gguf::groupScale<kType>(block, group);
      if constexpr (kType == kQ2K || kType == kQ6K) {
        *byteOf(tiles + Tiles::kGroupScales, group, row) =
            static_cast<uint8_t>(own.scale | own.min << 4);
      } else if constexpr (gguf::kHasMin<kType>) {
        writeSixBits<kType>(tiles, 2 * group, row, own.scale);
        writeSixBits<kType>(tiles, 2 * group + 1, row, own.min);
      } else {
        writeSixBits<kType>(tiles, group, row, own.scale + kSixBitsOffset);
      }
    }
  }
}

template <StorageType kType>
void tileCodes(const uint8_t* block, int64_t row, uint8_t* tiles) {
  using Tiles = BlockTiles<kType>;
  int8_t codes[Tiles::kBlock.cols];
  for (int group = 0; group < Tiles::kGroups; ++group) {
    gguf::readCodes<kType>(block, group, codes + group * Tiles::kGroupCols);
  }
  if constexpr (Tiles::kCodeBits == 8) {
    for (int col = 0; col < Tiles::kBlock.cols; ++col) {
      uint8_t* tile = tiles + Tiles::lowAt(col) + row / kTileRows * kTileBytes;
      tile[Tiles::byteAt(col % Tiles::kColumns, row % kTileRows)] =
          static_cast<uint8_t>(codes[col]);
    }
    return;
  }
  for (int first = 0; first < Tiles::kBlock.cols; first += Tiles::kColumns) {
    uint32_t low = 0;
    for (int col = 0; col < Tiles::kColumns; ++col) {
      const auto code = static_cast<uint32_t>(codes[first + col]);
      low |= (code & ((1u << Tiles::kLowBits) - 1)) << Tiles::lowShift(col);
    }
    std::memcpy(wordOf(tiles + Tiles::lowAt(first), row), &low, sizeof low);
  }
  if constexpr (Tiles::kHighBits > 0) {
    constexpr int kColumns = 32 / Tiles::kHighBits;
    for (int first = 0; first < Tiles::kBlock.cols; first += kColumns) {
      uint32_t high = 0;
      for (int col = 0; col < kColumns; ++col) {
        const auto code = static_cast<uint32_t>(codes[first + col]);
        high |= code >> Tiles::kLowBits << Tiles::highShift(col);
      }
      std::memcpy(wordOf(tiles + Tiles::highAt(first), row), &high, sizeof high);
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
      std::memset(to, 0, Tiles::kLow);
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
