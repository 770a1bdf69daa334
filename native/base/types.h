#pragma once

#include <cstddef>
#include <cstdint>

namespace uniproc {

// The type of activations and of the KV cache.
enum class DType : uint8_t { kFloat32, kFloat16, kBFloat16 };

constexpr size_t sizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The storage type of a tensor's elements. Float8E4M3: 1 sign, 4 exponent, 3 mantissa bits, no
// infinities (Micikevicius et al. 2022, FP8 formats for deep learning).
enum class StorageType : uint8_t { kFloat32, kFloat16, kBFloat16, kFloat8E4M3 };

constexpr size_t sizeOf(StorageType type) {
  switch (type) {
    case StorageType::kFloat32:
      return 4;
    case StorageType::kFloat8E4M3:
      return 1;
    default:
      return 2;
  }
}

constexpr StorageType storageOf(DType dtype) { return static_cast<StorageType>(dtype); }
constexpr bool isFloat(StorageType type) { return type <= StorageType::kBFloat16; }
// Requires isFloat(type).
constexpr DType dtypeOf(StorageType type) { return static_cast<DType>(type); }

// How a matrix is stored: its element type and, if scaleRows > 0, one scale for each block of
// [scaleRows, scaleCols] elements.
struct WeightFormat {
  StorageType type = StorageType::kFloat32;
  int32_t scaleRows = 0;
  int32_t scaleCols = 0;

  bool hasScales() const { return scaleRows > 0; }
  bool operator==(const WeightFormat&) const = default;
};

}  // namespace uniproc
