// The blocks of GGUF's quantized types, decoded in groups of columns that have one scale. Layouts
// follow the description of each struct below; numbers are little-endian, and `half` is float16.
//
// Intel and Arm read unaligned halves at no cost, so blocks are read where they lie.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/float_types.h"
#include "base/types.h"

namespace uniproc::gguf {

// The 16 values of IQ4_NL and IQ4_XS.
inline constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};
// Twice those of MXFP4 (OCP Microscaling Formats 1.0).
inline constexpr int8_t kMXFP4Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                            0, -1, -2, -3, -4, -6, -8, -12};

[[gnu::always_inline]] inline float halfAt(const uint8_t* bytes) {
  Float16 value;
  std::memcpy(&value, bytes, sizeof value);
  return widen(value);
}

// Columns with one scale; a multiple of 16 that divides the block's.
template <StorageType kType>
inline constexpr int kGroupCols =
    kType == StorageType::kQ2K || kType == StorageType::kQ3K || kType == StorageType::kQ6K ? 16
                                                                                           : 32;

// Whether a group has a minimum, which is added to each element.
template <StorageType kType>
inline constexpr bool kHasMin =
    kType == StorageType::kQ4_1 || kType == StorageType::kQ5_1 || kType == StorageType::kQ2K ||
    kType == StorageType::kQ4K || kType == StorageType::kQ5K;

// The elements of a group: scale * codes[i] + min.
template <StorageType kType>
struct Group {
  alignas(32) int8_t codes[kGroupCols<kType>];
  float scale;
  float min;
};

// 16 bytes, in words that all processors can shift; masks clear what comes from the other byte.
using Words = uint16_t __attribute__((vector_size(16)));
using SignedBytes = int8_t __attribute__((vector_size(16)));

[[gnu::always_inline]] inline Words wordsAt(const uint8_t* bytes) {
  Words words;
  std::memcpy(&words, bytes, sizeof words);
  return words;
}
[[gnu::always_inline]] inline Words everyByte(uint8_t value) {
  const auto word = static_cast<uint16_t>(value << 8 | value);
  return Words{word, word, word, word, word, word, word, word};
}
[[gnu::always_inline]] inline void storeCodes(Words codes, int8_t minus, int8_t* out) {
  SignedBytes bytes = reinterpret_cast<SignedBytes>(codes);
  bytes -= minus;
  std::memcpy(out, &bytes, sizeof bytes);
}

// out [32] = 16 bytes' low four bits, then their high ones, less `minus`.
[[gnu::always_inline]] inline void storeNibbles(const uint8_t* bytes, int8_t minus, int8_t* out) {
  const Words words = wordsAt(bytes);
  storeCodes(words & everyByte(15), minus, out);
  storeCodes(words >> 4 & everyByte(15), minus, out + 16);
}
[[gnu::always_inline]] inline void storeValues(const uint8_t* bytes, const int8_t* values,
                                               int8_t* out) {
  for (int i = 0; i < 16; ++i) out[i] = values[bytes[i] & 15];
  for (int i = 0; i < 16; ++i) out[16 + i] = values[bytes[i] >> 4];
}

// Eight bytes of 16 or 0, by the bits of a byte from the low one up.
[[gnu::always_inline]] inline uint64_t spreadBits(uint8_t bits) {
  const uint64_t each = (bits * 0x0101010101010101u) & 0x8040201008040201u;
  return ((each + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
}

// Q4_K and Q5_K: scale and minimum, of six bits each, of group `i` in 12 bytes.
[[gnu::always_inline]] inline void scaleAndMin(const uint8_t* packed, int i, int* scale,
                                               int* minimum) {
  if (i < 4) {
    *scale = packed[i] & 63;
    *minimum = packed[i + 4] & 63;
  } else {
    *scale = (packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4;
    *minimum = packed[i + 4] >> 4 | (packed[i] >> 6) << 4;
  }
}

// Group `group` of a block.
template <StorageType kType>
[[gnu::always_inline]] inline void readGroup(const uint8_t* block, int group, Group<kType>* out) {
  int8_t* codes = out->codes;
  out->min = 0.0f;
  if constexpr (kType == StorageType::kQ4_0) {
    // half d; codes[16]: d * (code - 8)
    out->scale = halfAt(block);
    storeNibbles(block + 2, 8, codes);
  } else if constexpr (kType == StorageType::kQ4_1) {
    // half d, m; codes[16]: d * code + m
    out->scale = halfAt(block);
    out->min = halfAt(block + 2);
    storeNibbles(block + 4, 0, codes);
  } else if constexpr (kType == StorageType::kQ5_0 || kType == StorageType::kQ5_1) {
    // half d; [half m;] fifth bits[4]; codes[16]: d * (code - 16), or d * code + m
    out->scale = halfAt(block);
    if constexpr (kHasMin<kType>) out->min = halfAt(block + 2);
    const uint8_t* fifth = block + (kHasMin<kType> ? 4 : 2);
    const Words nibbles = wordsAt(fifth + 4);
    for (int half = 0; half < 2; ++half) {
      const uint64_t bits[2] = {spreadBits(fifth[2 * half]), spreadBits(fifth[2 * half + 1])};
      Words high;
      std::memcpy(&high, bits, sizeof high);
      const Words low = (half == 0 ? nibbles : nibbles >> 4) & everyByte(15);
      storeCodes(low | high, kHasMin<kType> ? 0 : 16, codes + 16 * half);
    }
  } else if constexpr (kType == StorageType::kQ8_0) {
    // half d; int8 codes[32]: d * code
    out->scale = halfAt(block);
    std::memcpy(codes, block + 2, 32);
  } else if constexpr (kType == StorageType::kQ2K) {
    // scales[16], of which each has a scale in the low and a minimum in the high four bits;
    // codes[64] of two bits; half d, dmin: d * scale * code - dmin * minimum
    out->scale = halfAt(block + 80) * static_cast<float>(block[group] & 15);
    out->min = -halfAt(block + 82) * static_cast<float>(block[group] >> 4);
    const uint8_t* from = block + 16 + 32 * (group / 8) + 16 * (group % 2);
    storeCodes(wordsAt(from) >> (group % 8 / 2 * 2) & everyByte(3), 0, codes);
  } else if constexpr (kType == StorageType::kQ3K) {
    // third bits[32]; codes[64] of two bits; scales[12] of six bits; half d:
    // d * (scale - 32) * (code - 4 where the third bit is not set)
    const uint8_t* scales = block + 96;
    const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
    out->scale = halfAt(block + 108) * static_cast<float>((low | high << 4) - 32);
    const Words two = wordsAt(block + 32 + 32 * (group / 8) + 16 * (group % 2));
    const Words third = wordsAt(block + 16 * (group % 2)) >> (group / 2) & everyByte(1);
    storeCodes((two >> (group % 8 / 2 * 2) & everyByte(3)) | third << 2, 4, codes);
  } else if constexpr (kType == StorageType::kQ4K || kType == StorageType::kQ5K) {
    // half d, dmin; scales[12]; [fifth bits[32];] codes[128]: d * scale * code - dmin * minimum
    constexpr bool kHasFifth = kType == StorageType::kQ5K;
    int scale = 0;
    int minimum = 0;
    scaleAndMin(block + 4, group, &scale, &minimum);
    out->scale = halfAt(block) * static_cast<float>(scale);
    out->min = -halfAt(block + 2) * static_cast<float>(minimum);
    const uint8_t* from = block + (kHasFifth ? 48 : 16) + 32 * (group / 2);
    for (int half = 0; half < 2; ++half) {
      Words words = wordsAt(from + 16 * half) >> (group % 2 * 4) & everyByte(15);
      if constexpr (kHasFifth) {
        words |= (wordsAt(block + 16 + 16 * half) >> group & everyByte(1)) << 4;
      }
      storeCodes(words, 0, codes + 16 * half);
    }
  } else if constexpr (kType == StorageType::kQ6K) {
    // low four bits[128]; high two bits[64]; int8 scales[16]; half d: d * scale * (code - 32)
    const auto scale = static_cast<int8_t>(block[192 + group]);
    out->scale = halfAt(block + 208) * static_cast<float>(scale);
    const int quarter = group % 8 / 2;
    const int first = 16 * (group % 2);
    const Words low = wordsAt(block + 64 * (group / 8) + 32 * (quarter % 2) + first);
    const Words high = wordsAt(block + 128 + 32 * (group / 8) + first);
    storeCodes((low >> (quarter / 2 * 4) & everyByte(15)) | (high >> (quarter * 2) & everyByte(3))
                                                                << 4,
               32, codes);
  } else if constexpr (kType == StorageType::kIQ4NL) {
    // half d; codes[16]: d * kIQ4Values[code]
    out->scale = halfAt(block);
    storeValues(block + 2, kIQ4Values, codes);
  } else if constexpr (kType == StorageType::kIQ4XS) {
    // half d; uint16 high two bits of scales; their low four bits[4]; codes[128]:
    // d * (scale - 32) * kIQ4Values[code]
    const int high = (block[2] | block[3] << 8) >> (2 * group) & 3;
    const int low = block[4 + group / 2] >> (group % 2 * 4) & 15;
    out->scale = halfAt(block) * static_cast<float>((low | high << 4) - 32);
    storeValues(block + 8 + 16 * group, kIQ4Values, codes);
  } else {
    static_assert(kType == StorageType::kMXFP4);
    // uint8 exponent, less 127; codes[16] of FP4
    const uint8_t exponent = block[0];
    out->scale = 0.5f * std::bit_cast<float>(exponent == 0 ? 0x00400000u
                                                           : static_cast<uint32_t>(exponent) << 23);
    storeValues(block + 1, kMXFP4Values, codes);
  }
}

// Group `group` of a row.
template <StorageType kType>
[[gnu::always_inline]] inline void readRowGroup(const char* row, int64_t group, Group<kType>* out) {
  constexpr BlockSize kBlock = blockSizeOf(kType);
  constexpr int64_t kGroups = kBlock.cols / kGroupCols<kType>;
  readGroup<kType>(reinterpret_cast<const uint8_t*>(row) + group / kGroups * kBlock.bytes,
                   static_cast<int>(group % kGroups), out);
}

// out [kGroupCols] = the elements of group `group` of a row.
template <StorageType kType>
inline void decodeRowGroup(const char* row, int64_t group, float* out) {
  Group<kType> read;
  readRowGroup<kType>(row, group, &read);
  for (int i = 0; i < kGroupCols<kType>; ++i) {
    out[i] = read.scale * static_cast<float>(read.codes[i]) + read.min;
  }
}

// Calls run with std::integral_constant<StorageType> of a type with blocks.
template <class Run>
auto withBlockType(StorageType type, Run run) {
  using enum StorageType;
  switch (type) {
    case kQ4_0:
      return run(std::integral_constant<StorageType, kQ4_0>{});
    case kQ4_1:
      return run(std::integral_constant<StorageType, kQ4_1>{});
    case kQ5_0:
      return run(std::integral_constant<StorageType, kQ5_0>{});
    case kQ5_1:
      return run(std::integral_constant<StorageType, kQ5_1>{});
    case kQ8_0:
      return run(std::integral_constant<StorageType, kQ8_0>{});
    case kQ2K:
      return run(std::integral_constant<StorageType, kQ2K>{});
    case kQ3K:
      return run(std::integral_constant<StorageType, kQ3K>{});
    case kQ4K:
      return run(std::integral_constant<StorageType, kQ4K>{});
    case kQ5K:
      return run(std::integral_constant<StorageType, kQ5K>{});
    case kQ6K:
      return run(std::integral_constant<StorageType, kQ6K>{});
    case kIQ4NL:
      return run(std::integral_constant<StorageType, kIQ4NL>{});
    case kIQ4XS:
      return run(std::integral_constant<StorageType, kIQ4XS>{});
    default:
      return run(std::integral_constant<StorageType, kMXFP4>{});
  }
}

}  // namespace uniproc::gguf
