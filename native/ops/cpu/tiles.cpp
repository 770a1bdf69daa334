#include "ops/cpu/tiles.h"

#include <cstring>
#include <vector>

#include "ops/cpu/block_tiles.h"

namespace uniproc {
namespace {

constexpr int64_t kTileRows = kBlockRows / 2;

// Even nibbles of a word in its lower half, odd ones in its upper.
uint32_t splitNibbles(uint32_t word) {
  uint32_t x = word;
  x = (x & 0xf00ff00f) | (x & 0x00f000f0) << 4 | (x >> 4 & 0x00f000f0);
  return (x & 0xff0000ff) | (x & 0x0000ff00) << 8 | (x >> 8 & 0x0000ff00);
}

// The elements of a block of rows; `rows` has them in row-major order.
void tileElements(const uint8_t* rows, int64_t rowBytes, bool isPacked, uint8_t* to) {
  for (int64_t row = 0; row < kBlockRows; ++row) {
    const uint8_t* from = rows + row * rowBytes;
    uint8_t* tile = to + row / kTileRows * kTileBytes;
    const int64_t inTile = row % kTileRows;
    for (int64_t i = 0; i < rowBytes; i += 4, tile += 2 * kTileBytes) {
      if (isPacked) {
        uint32_t word;
        std::memcpy(&word, from + i, sizeof word);
        word = splitNibbles(word);
        std::memcpy(tile + 4 * inTile, &word, sizeof word);
      } else {
        uint8_t* pairs = tile + inTile / 4 * 16 + inTile % 4 * 2;
        std::memcpy(pairs, from + i, 2);
        std::memcpy(pairs + 8, from + i + 2, 2);
      }
    }
  }
}

// values [kBlockRows, groups] to [groups, kBlockRows].
template <class T>
void transposeGroups(T* values, int64_t groups) {
  const std::vector<T> from(values, values + kBlockRows * groups);
  for (int64_t row = 0; row < kBlockRows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      values[group * kBlockRows + row] = from[static_cast<size_t>(row * groups + group)];
    }
  }
}

}  // namespace

bool canTile(const LinearWeight& weight, int64_t sliceRows) {
  const WeightFormat& format = weight.format;
  if (sliceRows % kBlockRows != 0 || weight.rows % kBlockRows != 0) return false;
  if (isBlocks(format.type)) return true;
  const int64_t columns = tileColumns(format.type);
  return format.hasScales() && weight.cols % columns == 0 &&
         (format.scaleCols % columns == 0 || format.scaleCols >= weight.cols);
}

void tileBlocks(const LinearWeight& weight, int64_t begin, int64_t end) {
  const WeightFormat& format = weight.format;
  const int64_t rowBytes = bytesOf(format.type, weight.cols);
  const int64_t blockBytes = kBlockRows * rowBytes;
  const int64_t groups = isBlocks(format.type) ? 0 : weight.scaleColumns();
  std::vector<uint8_t> rows(static_cast<size_t>(blockBytes));
  for (int64_t block = begin; block < end; ++block) {
    auto* data = static_cast<uint8_t*>(const_cast<void*>(weight.data)) + block * blockBytes;
    std::memcpy(rows.data(), data, rows.size());
    if (isBlocks(format.type)) {
      tileRowsOfBlocks(weight, rows.data(), data);
      continue;
    }
    tileElements(rows.data(), rowBytes, isPacked(format.type), data);
    if (format.scaleRows > 1) continue;
    const int64_t first = block * kBlockRows * groups;
    if (format.scaleBytes() == 1) {
      transposeGroups(static_cast<uint8_t*>(const_cast<void*>(weight.scales)) + first, groups);
    } else {
      transposeGroups(static_cast<float*>(const_cast<void*>(weight.scales)) + first, groups);
    }
    if (weight.zeros) transposeGroups(const_cast<uint8_t*>(weight.zeros) + first, groups);
  }
}

}  // namespace uniproc
