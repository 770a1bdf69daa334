#include "model/gguf_rows.h"

#include <algorithm>
#include <cstring>

#include "model/copy_rows.h"
#include "ops/gguf_blocks.h"

namespace uniproc {

void MatrixInFile::read(int64_t row, int64_t begin, int64_t size, std::byte* to) const {
  int64_t inFile = firstRow + row;
  if (headDim > 0) {
    const int64_t half = headDim / 2;
    const int64_t inHead = inFile % headDim;
    inFile += 2 * (inHead % half) + inHead / half - inHead;
  }
  file.read(offset + bytesOf(type, cols.of) * inFile + bytesOf(type, cols.first) + begin, size, to);
}

std::vector<std::byte> MatrixInFile::row(int64_t row) const {
  std::vector<std::byte> bytes(static_cast<size_t>(rowBytes()));
  read(row, 0, rowBytes(), bytes.data());
  return bytes;
}

void StoredRows::read(int64_t offset, int64_t size, std::byte* to) const {
  const int64_t rowBytes = matrix_.rowBytes();
  while (size > 0) {
    const int64_t begin = offset % rowBytes;
    const int64_t count = std::min(size, rowBytes - begin);
    matrix_.read(offset / rowBytes, begin, count, to);
    to += count;
    offset += count;
    size -= count;
  }
}

void DecodedRows::read(int64_t offset, int64_t size, std::byte* to) const {
  const int64_t cols = matrix_.cols.count;
  copyRows(offset, size, cols * static_cast<int64_t>(sizeof(float)), to, [&](int64_t row) {
    const std::vector<std::byte> bytes = matrix_.row(row);
    std::vector<float> values(static_cast<size_t>(cols));
    gguf::withBlockType(matrix_.type, [&](auto type) {
      constexpr int64_t kCols = gguf::kGroupCols<type()>;
      for (int64_t group = 0; group < cols / kCols; ++group) {
        gguf::decodeRowGroup<type()>(reinterpret_cast<const char*>(bytes.data()), group,
                                     &values[group * kCols]);
      }
    });
    return values;
  });
}

void BlockElements::read(int64_t offset, int64_t size, std::byte* to) const {
  constexpr int64_t kCols = 32;
  constexpr int64_t kHalf = kCols / 2;
  constexpr int64_t kScaleBytes = 2;
  const bool isQ8 = matrix_.type == StorageType::kQ8_0;
  const int64_t bytesPerBlock = isQ8 ? kCols : kHalf;
  const int64_t blocks = matrix_.cols.count / kCols;
  copyRows(offset, size, blocks * bytesPerBlock, to, [&](int64_t row) {
    const std::vector<std::byte> stored = matrix_.row(row);
    std::vector<uint8_t> out(static_cast<size_t>(blocks * bytesPerBlock));
    for (int64_t block = 0; block < blocks; ++block) {
      const auto* from = reinterpret_cast<const uint8_t*>(stored.data()) +
                         block * blockSizeOf(matrix_.type).bytes + kScaleBytes;
      uint8_t* codes = &out[block * bytesPerBlock];
      if (isQ8) {
        std::memcpy(codes, from, kCols);
        continue;
      }
      // Column i is in the low bits of byte i, column 16 + i in its high bits.
      for (int64_t i = 0; i < kHalf / 2; ++i) {
        const uint8_t even = from[2 * i];
        const uint8_t odd = from[2 * i + 1];
        codes[i] = static_cast<uint8_t>((even & 15) | (odd & 15) << 4);
        codes[kHalf / 2 + i] = static_cast<uint8_t>(even >> 4 | (odd & 0xf0));
      }
    }
    return out;
  });
}

void BlockScales::read(int64_t offset, int64_t size, std::byte* to) const {
  const BlockSize block = blockSizeOf(matrix_.type);
  const int64_t perRow = matrix_.cols.count / block.cols;
  copyRows(offset, size, perRow * static_cast<int64_t>(sizeof(float)), to, [&](int64_t row) {
    const std::vector<std::byte> stored = matrix_.row(row);
    std::vector<float> scales;
    for (int64_t i = 0; i < perRow; ++i) {
      scales.push_back(
          gguf::halfAt(reinterpret_cast<const uint8_t*>(stored.data()) + i * block.bytes));
    }
    return scales;
  });
}

}  // namespace uniproc
