// Weights of 4 and 8 bits as operands of tensor-core products.
//
// An element becomes a half-type number that is exact, by moving its bits into a number whose
// exponent makes the last mantissa bit 1, and subtracting. The scale of a group of columns is
// applied to the sum of the group's products in float32, so a product's only roundings are those
// of its sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "ops/cuda/device_math.cuh"
#include "ops/ops.h"

namespace uniproc::cuda {

// Scales and zero points of the groups of columns of a weight, both [rows, columns].
struct Groups {
  const void* scales;    // float, or E8M0 bytes
  const uint8_t* zeros;  // or null
  int32_t shift;         // a group has 2^shift columns
  int32_t columns;
};

// a - b and a * b of two elements of T each.
template <class T>
__device__ inline uint32_t subtractPairs(uint32_t a, uint32_t b) {
  uint32_t difference;
  if constexpr (std::is_same_v<T, __half>) {
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  } else {
    // Before Hopper fused products are bfloat16's only arithmetic.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(b), "r"(0xbf80bf80u), "r"(a));
  }
  return difference;
}
template <class T>
__device__ inline uint32_t multiplyPairs(uint32_t a, uint32_t b) {
  uint32_t product;
  if constexpr (std::is_same_v<T, __half>) {
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  }
  return product;
}

// (a & mask) | other in one instruction.
__device__ inline uint32_t maskOr(uint32_t a, uint32_t mask, uint32_t other) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(mask), "r"(other));
  return result;
}

// Two equal numbers 2^p whose mantissas count ones: 128 in bfloat16, 1,024 in half.
template <class T>
constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x64006400u : 0x43004300u;

// A format converts
// - convert: a word of 4 adjacent bytes of a row, kWordColumns columns, to kWords pairs of columns,
//   in an order to which `reorder` brings the same columns of a token;
// - pair: of 8 adjacent columns, which start at `eight`, columns 2 j and 2 j + 1, with the constant
//   selectorOf(j).
// `zero` is zeroOf the group's zero point. scaleOf reads a group's scale from the low bits of the
// memory that has it, kScaleBytes.

// kZeros: the weight has zero points; otherwise all are 8.
template <class T, bool kZeros>
struct UInt4Weights {
  using Type = T;
  static constexpr int kWordColumns = 8;
  static constexpr int kWords = 4;
  static constexpr int kScaleBytes = 4;
  static constexpr bool kHasZeros = kZeros;

  __device__ static float scaleOf(uint32_t bits) { return __uint_as_float(bits); }
  __device__ static uint32_t zeroOf(uint32_t point) {
    return kOnes<T> | (kZeros ? point : 8u) * 0x00010001u;
  }
  // Pairs (0, 4), (1, 5), (2, 6), (3, 7).
  __device__ static void convert(uint32_t word, uint32_t zero, uint32_t (&to)[kWords]) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      to[w] = subtractPairs<T>(maskOr(word >> 4 * w, 0x000f000fu, kOnes<T>), zero);
    }
  }
  __device__ static void reorder(uint32_t (&x)[kWords]) {
    const uint32_t from[kWords] = {x[0], x[1], x[2], x[3]};
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      x[w] = __byte_perm(from[w / 2], from[w / 2 + 2], w % 2 == 0 ? 0x5410 : 0x7632);
    }
  }
  // Byte j's low nibble into bits 0 to 3, its high one into bits 16 to 19.
  __device__ static uint32_t selectorOf(int j) { return static_cast<uint32_t>(j | (4 + j) << 8); }
  __device__ static uint32_t pair(const uint32_t* eight, uint32_t selector, uint32_t zero) {
    const uint32_t nibbles = __byte_perm(eight[0], eight[0] >> 4, selector);
    return subtractPairs<T>(maskOr(nibbles, 0x000f000fu, kOnes<T>), zero);
  }
};

template <class T>
struct Float4Weights {
  using Type = T;
  static constexpr int kWordColumns = 8;
  static constexpr int kWords = 4;
  static constexpr int kScaleBytes = 1;
  static constexpr bool kHasZeros = false;

  // E8M0: 2^(byte - 127), of which 2^-127 is subnormal.
  __device__ static float scaleOf(uint32_t bits) {
    const uint32_t exponent = bits & 0xffu;
    return __uint_as_float(exponent == 0 ? 0x00400000u : exponent << 23);
  }
  __device__ static uint32_t zeroOf(uint32_t) { return 0; }
  // Exponent and mantissa move into T's fields. The difference of the exponents' biases, also right
  // for subnormal numbers, is a product with a power of two.
  __device__ static uint32_t fromFields(uint32_t signs, uint32_t fields) {
    if constexpr (std::is_same_v<T, __half>) {
      return multiplyPairs<T>(maskOr(signs, 0x80008000u, fields & 0x0e000e00u), 0x74007400u);
    } else {
      return multiplyPairs<T>(maskOr(signs, 0x80008000u, fields & 0x01c001c0u), 0x7e807e80u);
    }
  }
  // The bit that an element's last bit moves to.
  static constexpr int kField = std::is_same_v<T, __half> ? 9 : 6;

  __device__ static void convert(uint32_t word, uint32_t, uint32_t (&to)[kWords]) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int left = kField - 4 * w;
      to[w] = fromFields(word << (12 - 4 * w), left > 0 ? word << left : word >> -left);
    }
  }
  __device__ static void reorder(uint32_t (&x)[kWords]) { UInt4Weights<T, false>::reorder(x); }
  __device__ static uint32_t selectorOf(int j) { return UInt4Weights<T, false>::selectorOf(j); }
  __device__ static uint32_t pair(const uint32_t* eight, uint32_t selector, uint32_t) {
    const uint32_t nibbles = __byte_perm(eight[0], eight[0] >> 4, selector);
    return fromFields(nibbles << 12, nibbles << kField);
  }
};

template <class T>
struct Int8Weights {
  using Type = T;
  static constexpr int kWordColumns = 4;
  static constexpr int kWords = 2;
  static constexpr int kScaleBytes = 4;
  static constexpr bool kHasZeros = false;

  __device__ static float scaleOf(uint32_t bits) { return __uint_as_float(bits); }
  __device__ static uint32_t zeroOf(uint32_t) { return 0; }
  // Bytes 0 and 2 of `bytes`. bfloat16 counts to 127 only: the sign bit, worth -128, doubles the
  // 128 that is subtracted. In half a number plus 128 is counted.
  __device__ static uint32_t fromBytes(uint32_t bytes) {
    if constexpr (std::is_same_v<T, __half>) {
      return subtractPairs<T>((bytes & 0x00ff00ffu) ^ (kOnes<T> | 0x00800080u), 0x64806480u);
    } else {
      return subtractPairs<T>(maskOr(bytes, 0x007f007fu, kOnes<T>),
                              maskOr(bytes, 0x00800080u, kOnes<T>));
    }
  }
  // Pairs (0, 2), (1, 3).
  __device__ static void convert(uint32_t word, uint32_t, uint32_t (&to)[kWords]) {
    to[0] = fromBytes(word);
    to[1] = fromBytes(word >> 8);
  }
  __device__ static void reorder(uint32_t (&x)[kWords]) {
    const uint32_t odd = __byte_perm(x[0], x[1], 0x7632);
    x[0] = __byte_perm(x[0], x[1], 0x5410);
    x[1] = odd;
  }
  __device__ static uint32_t selectorOf(int j) {
    return static_cast<uint32_t>(2 * j | (2 * j + 1) << 8);
  }
  __device__ static uint32_t pair(const uint32_t* eight, uint32_t selector, uint32_t) {
    return fromBytes(__byte_perm(eight[0], eight[1], selector));
  }
};

// Scales and zero points of kGroups adjacent groups of a row.
template <class Format, int kGroups>
struct RowGroups {
  uint32_t scales[ceilDiv(kGroups * Format::kScaleBytes, 4)];
  uint32_t zeros;

  // Those from the element `at`, a multiple of kGroups, of the groups' arrays on.
  __device__ void load(const Groups& groups, int64_t at) {
    using Scales = typename Access<kGroups * Format::kScaleBytes>::Type;
    const Scales words = __ldg(reinterpret_cast<const Scales*>(
        static_cast<const char*>(groups.scales) + Format::kScaleBytes * at));
    std::memcpy(scales, &words, sizeof words);
    if constexpr (Format::kHasZeros) {
      using Zeros = typename Access<kGroups>::Type;
      zeros = __ldg(reinterpret_cast<const Zeros*>(groups.zeros + at));
    }
  }
  __device__ float scale(int group) const {
    if constexpr (Format::kScaleBytes == 1) return Format::scaleOf(scales[0] >> 8 * group);
    return Format::scaleOf(scales[group % ceilDiv(kGroups * Format::kScaleBytes, 4)]);
  }
  __device__ uint32_t zero(int group) const { return Format::zeroOf(zeros >> 8 * group & 0xffu); }
};

// Whether the kernels that use this file multiply the weight: a half type, groups of a row whose
// size is a power of two and at least 32, or all columns.
inline bool hasGroups(const LinearWeight& weight) {
  const WeightFormat& format = weight.format;
  const auto group = static_cast<uint32_t>(format.scaleCols);
  const bool isQuantized = format.type == StorageType::kInt8 ||
                           format.type == StorageType::kUInt4 ||
                           format.type == StorageType::kFloat4E2M1;
  return isQuantized && weight.dtype != DType::kFloat32 && format.scaleRows == 1 &&
         (format.scaleCols >= weight.cols || (group >= 32 && std::has_single_bit(group))) &&
         (format.type != StorageType::kInt8 || format.scaleCols >= weight.cols || group >= 128) &&
         (format.type != StorageType::kFloat4E2M1 || group == 32) && !weight.order &&
         (!weight.bias || weight.bias.dtype == weight.dtype) && isAligned(weight.data) &&
         isAligned(weight.scales) && reinterpret_cast<uintptr_t>(weight.zeros) % 4 == 0;
}

// Requires hasGroups.
inline Groups groupsOf(const LinearWeight& weight) {
  const auto group = static_cast<uint32_t>(weight.format.scaleCols);
  const bool isRow = weight.format.scaleCols >= weight.cols;
  return {weight.scales, weight.zeros, isRow ? 31 : std::countr_zero(group),
          static_cast<int32_t>(weight.scaleColumns())};
}

// T: the activations' type.
struct QuantizedProduct {
  const void* x;     // T [numTokens, cols]
  const void* bias;  // T [rows], or null
  void* out;  // T or, with isFloatOut, float [numTokens, rows]; T [numTokens, rows / 2] with SiLU
  Groups groups;
  int32_t numTokens;
  int32_t rows;
  int32_t cols;
  bool isFloatOut;
};

// Requires hasGroups.
inline QuantizedProduct productOf(const void* x, int32_t numTokens, const LinearWeight& weight,
                                  void* out, DType outType) {
  return {x,
          weight.bias.data,
          out,
          groupsOf(weight),
          numTokens,
          static_cast<int32_t>(weight.rows),
          static_cast<int32_t>(weight.cols),
          outType == DType::kFloat32};
}

// Calls run.operator()<Format, kGroupColumns>() with the format of a weight that hasGroups, of
// whose groups kGroupColumns is the size, or 128 if all are multiples of 128.
template <class Run>
void withQuantizedFormat(const LinearWeight& weight, Run run) {
  withType(weight.dtype, [&]<class T>(T) {
    if constexpr (!std::is_same_v<T, float>) {
      if (weight.format.type == StorageType::kInt8) {
        run.template operator()<Int8Weights<T>, 128>();
      } else if (weight.format.type == StorageType::kFloat4E2M1) {
        run.template operator()<Float4Weights<T>, 32>();
      } else {
        const auto withGroups = [&]<class Format>() {
          if (weight.format.scaleCols >= std::min<int64_t>(128, weight.cols)) {
            run.template operator()<Format, 128>();
          } else if (weight.format.scaleCols == 64) {
            run.template operator()<Format, 64>();
          } else {
            run.template operator()<Format, 32>();
          }
        };
        if (weight.zeros) {
          withGroups.template operator()<UInt4Weights<T, true>>();
        } else {
          withGroups.template operator()<UInt4Weights<T, false>>();
        }
      }
    }
  });
}

}  // namespace uniproc::cuda
