// The elements of quantized weights, one at a time, in float32.
#pragma once

#include <bit>
#include <cstdint>

#include "base/float_types.h"
#include "ops/gguf_blocks.h"
#include "ops/linear.h"

namespace uniproc {

// The values of the 16 codes of Float4E2M1.
inline constexpr float kFloat4Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                            -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

// The power of two of an E8M0 byte; its NaN, 255, is none.
inline float widenE8M0(uint8_t byte) {
  return std::bit_cast<float>(byte == 0 ? 0x00400000u : static_cast<uint32_t>(byte) << 23);
}

// The scale of a block.
inline float scaleOf(const LinearWeight& weight, int64_t block) {
  if (weight.format.type != StorageType::kFloat4E2M1) {
    return static_cast<const float*>(weight.scales)[block];
  }
  return widenE8M0(static_cast<const uint8_t*>(weight.scales)[block]);
}

inline int zeroOf(const LinearWeight& weight, int64_t block) {
  return weight.zeros ? weight.zeros[block] : 8;
}

// Element (row, col) of a quantized weight, col in the order of the stored columns.
inline float storedElement(const LinearWeight& weight, int64_t row, int64_t col) {
  const WeightFormat& format = weight.format;
  if (isBlocks(format.type)) {
    const char* from =
        static_cast<const char*>(weight.data) + bytesOf(format.type, weight.cols) * row;
    return gguf::withBlockType(format.type, [&](auto type) {
      float group[gguf::kGroupCols<type()>];
      gguf::decodeRowGroup<type()>(from, col / gguf::kGroupCols<type()>, group);
      return group[col % gguf::kGroupCols<type()>];
    });
  }
  const int64_t block = row / format.scaleRows * weight.scaleColumns() + col / format.scaleCols;
  const float scale = scaleOf(weight, block);
  const auto byte =
      static_cast<const uint8_t*>(weight.data)[bytesOf(format.type, row * weight.cols + col)];
  const int code = byte >> (col % 2 * 4) & 15;
  switch (format.type) {
    case StorageType::kInt8:
      return static_cast<float>(static_cast<int8_t>(byte)) * scale;
    case StorageType::kUInt4:
      return static_cast<float>(code - zeroOf(weight, block)) * scale;
    case StorageType::kFloat4E2M1:
      return kFloat4Values[code] * scale;
    default:
      return widen(Float8E4M3{byte}) * scale;
  }
}

}  // namespace uniproc
