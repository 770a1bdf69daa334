#pragma once

#include <cstddef>
#include <cstdint>

namespace uniproc {

// The type of activations and of the KV cache.
enum class DType : uint8_t { kFloat32, kFloat16, kBFloat16 };

constexpr size_t sizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The function of a gated MLP's gate: SiLU, GELU, or GELU by its approximation with tanh
// (Hendrycks and Gimpel 2016). kClampedSwiglu is gpt-oss's product of gate and up: with both
// clamped to kSwigluLimit, the gate from above alone, gate * sigmoid(kSwigluAlpha * gate) * (up +
// 1).
enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh, kClampedSwiglu };
constexpr float kSwigluAlpha = 1.702f;
constexpr float kSwigluLimit = 7.0f;

// The storage type of a tensor's elements.
enum class StorageType : uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  // 1 sign, 4 exponent, 3 mantissa bits, no infinities (Micikevicius et al. 2022, FP8 formats for
  // deep learning).
  kFloat8E4M3,
  kInt8,
  // Two elements in a byte, the one of the even column in the low four bits: 0 to 15.
  kUInt4,
  // The same for 1 sign, 2 exponent, 1 mantissa bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives
  // (OCP Microscaling Formats 1.0).
  kFloat4E2M1,
  // The blocks of GGUF files, which hold their own scales (ops/gguf_blocks.h).
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2K,
  kQ3K,
  kQ4K,
  kQ5K,
  kQ6K,
  kIQ4NL,
  kIQ4XS,
  kMXFP4,
};
constexpr StorageType kLastStorageType = StorageType::kMXFP4;

constexpr bool isPacked(StorageType type) {
  return type == StorageType::kUInt4 || type == StorageType::kFloat4E2M1;
}
constexpr bool isBlocks(StorageType type) { return type > StorageType::kFloat4E2M1; }

// Consecutive elements of a row and the bytes that they take together.
struct BlockSize {
  int64_t cols;
  int64_t bytes;
};

// Requires isBlocks(type).
constexpr BlockSize blockSizeOf(StorageType type) {
  switch (type) {
    case StorageType::kQ4_0:
    case StorageType::kIQ4NL:
      return {32, 18};
    case StorageType::kQ4_1:
      return {32, 20};
    case StorageType::kQ5_0:
      return {32, 22};
    case StorageType::kQ5_1:
      return {32, 24};
    case StorageType::kQ8_0:
      return {32, 34};
    case StorageType::kQ2K:
      return {256, 84};
    case StorageType::kQ3K:
      return {256, 110};
    case StorageType::kQ4K:
      return {256, 144};
    case StorageType::kQ5K:
      return {256, 176};
    case StorageType::kQ6K:
      return {256, 210};
    case StorageType::kIQ4XS:
      return {256, 136};
    default:
      return {32, 17};  // kMXFP4
  }
}

// Requires !isPacked(type) && !isBlocks(type).
constexpr size_t sizeOf(StorageType type) {
  switch (type) {
    case StorageType::kFloat32:
      return 4;
    case StorageType::kFloat16:
    case StorageType::kBFloat16:
      return 2;
    default:
      return 1;
  }
}

// Of a row of elements; `count` is even if the type is packed, a number of whole blocks if it has
// blocks.
constexpr int64_t bytesOf(StorageType type, int64_t count) {
  if (isBlocks(type)) return count / blockSizeOf(type).cols * blockSizeOf(type).bytes;
  return isPacked(type) ? count / 2 : count * static_cast<int64_t>(sizeOf(type));
}

constexpr StorageType storageOf(DType dtype) { return static_cast<StorageType>(dtype); }
constexpr bool isFloat(StorageType type) { return type <= StorageType::kBFloat16; }
// Requires isFloat(type).
constexpr DType dtypeOf(StorageType type) { return static_cast<DType>(type); }

// How a matrix [rows, cols] is stored: its element type and, if scaleRows > 0, one scale for each
// block of [scaleRows, scaleCols] elements. A scale is a float32, or the power of two of an E8M0
// byte if the type is kFloat4E2M1.
struct WeightFormat {
  StorageType type = StorageType::kFloat32;
  int32_t scaleRows = 0;
  int32_t scaleCols = 0;
  // kUInt4: each block has a zero point; without, it is 8.
  bool hasZeros = false;
  // Columns are sorted by their block, which LinearWeight::order undoes.
  bool isOrdered = false;
  // kFloat8E4M3: products may round x to float8 too, as the checkpoint's config has it.
  bool roundsInput = false;

  bool hasScales() const { return scaleRows > 0; }
  int64_t scaleBytes() const { return type == StorageType::kFloat4E2M1 ? 1 : 4; }
  bool operator==(const WeightFormat&) const = default;
};

}  // namespace uniproc
