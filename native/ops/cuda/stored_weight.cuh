// A weight in any storage format on the device, element by element, for the plain kernels.
#pragma once

#include "ops/cuda/device_math.cuh"
#include "ops/linear.h"

namespace uniproc::cuda {

// The arrays of a LinearWeight; layouts as in ops/linear.h.
struct StoredWeight {
  const uint8_t* data;
  const void* scales;    // null: the elements are the values
  const uint8_t* zeros;  // or null
  const int32_t* order;  // or null
  int32_t scaleRows;
  int32_t scaleCols;
  int32_t cols;
  int32_t scaleColumns;

  static StoredWeight of(const LinearWeight& weight) {
    const bool scaled = weight.format.hasScales();
    return {static_cast<const uint8_t*>(weight.data),
            weight.scales,
            weight.zeros,
            weight.order,
            scaled ? weight.format.scaleRows : 1,
            scaled ? weight.format.scaleCols : 1,
            static_cast<int32_t>(weight.cols),
            scaled ? static_cast<int32_t>(weight.scaleColumns()) : 0};
  }
};

// The values of the codes 0 to 7 of Float4E2M1; 8 to 15 are their negatives.
__device__ inline float widenFloat4(uint32_t code) {
  const uint32_t magnitude = code & 7;
  const uint32_t sign = (code & 8) << 28;
  // Code 1 is 0.5, the only subnormal; others have exponent bits 1 to 3 and one mantissa bit.
  const uint32_t bits = magnitude == 0   ? 0
                        : magnitude == 1 ? 0x3f000000
                                         : ((magnitude >> 1) + 126) << 23 | (magnitude & 1) << 22;
  return __uint_as_float(sign | bits);
}

// isFloat for device code, which calls no functions of the host.
template <StorageType kType>
constexpr bool kIsFloat = isFloat(kType);

// Element (row, col), col in the order of the stored columns. T: the type of unscaled elements.
template <StorageType kType, class T>
__device__ inline float storedElement(const StoredWeight& weight, int64_t row, int32_t col) {
  const int64_t at = row * weight.cols + col;
  if constexpr (kIsFloat<kType>) {
    return widen(reinterpret_cast<const T*>(weight.data)[at]);
  } else {
    const int64_t block = row / weight.scaleRows * weight.scaleColumns + col / weight.scaleCols;
    if constexpr (kType == StorageType::kFloat4E2M1) {
      const uint32_t code = weight.data[at / 2] >> (at % 2 * 4) & 15;
      const uint32_t exponent = static_cast<const uint8_t*>(weight.scales)[block];
      return widenFloat4(code) * exp2f(static_cast<float>(exponent) - 127.0f);
    } else {
      const float scale = static_cast<const float*>(weight.scales)[block];
      if constexpr (kType == StorageType::kUInt4) {
        const int32_t code = weight.data[at / 2] >> (at % 2 * 4) & 15;
        const int32_t zero = weight.zeros ? weight.zeros[block] : 8;
        return static_cast<float>(code - zero) * scale;
      } else if constexpr (kType == StorageType::kInt8) {
        return static_cast<float>(reinterpret_cast<const int8_t*>(weight.data)[at]) * scale;
      } else {
        return widen(reinterpret_cast<const __nv_fp8_e4m3*>(weight.data)[at]) * scale;
      }
    }
  }
}

// Calls run.operator()<StorageType>() with the type, kFloat32 standing for all float types.
template <class Run>
void withStoredType(StorageType type, Run run) {
  switch (type) {
    case StorageType::kFloat8E4M3:
      return run.template operator()<StorageType::kFloat8E4M3>();
    case StorageType::kInt8:
      return run.template operator()<StorageType::kInt8>();
    case StorageType::kUInt4:
      return run.template operator()<StorageType::kUInt4>();
    case StorageType::kFloat4E2M1:
      return run.template operator()<StorageType::kFloat4E2M1>();
    default:
      return run.template operator()<StorageType::kFloat32>();
  }
}

}  // namespace uniproc::cuda
