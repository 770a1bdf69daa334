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

// Whether a block's groups have scales of their own, which its half (or halves) are multiplied
// with.
template <StorageType kType>
inline constexpr bool kHasGroupScales = blockSizeOf(kType).cols > 32;

// Where a block has its half d, if it is not MXFP4, and the half of its minimum.
template <StorageType kType>
inline constexpr int kScaleAt = kType == StorageType::kQ2K   ? 80
                                : kType == StorageType::kQ3K ? 108
                                : kType == StorageType::kQ6K ? 208
                                                             : 0;
template <StorageType kType>
inline constexpr int kMinAt = kScaleAt<kType> + 2;

// Bits of a code.
template <StorageType kType>
inline constexpr int kCodeBits =
    kType == StorageType::kQ8_0                                                                ? 8
    : kType == StorageType::kQ2K                                                               ? 2
    : kType == StorageType::kQ3K                                                               ? 3
    : kType == StorageType::kQ6K                                                               ? 6
    : kType == StorageType::kQ5_0 || kType == StorageType::kQ5_1 || kType == StorageType::kQ5K ? 5
                                                                                               : 4;

// Whether codes stand for values of a table.
template <StorageType kType>
inline constexpr bool kHasTable =
    kType == StorageType::kIQ4NL || kType == StorageType::kIQ4XS || kType == StorageType::kMXFP4;

// What a code stands for: an integer of at most eight bits. Codes of eight bits are signed.
template <StorageType kType>
constexpr int8_t valueOf(int code) {
  using enum StorageType;
  if constexpr (kType == kIQ4NL || kType == kIQ4XS) return kIQ4Values[code];
  if constexpr (kType == kMXFP4) return kMXFP4Values[code];
  constexpr int kLess = kType == kQ4_0   ? 8
                        : kType == kQ5_0 ? 16
                        : kType == kQ3K  ? 4
                        : kType == kQ6K  ? 32
                                         : 0;
  return static_cast<int8_t>(code - kLess);
}

// The elements of a group: scale * codes[i] + min.
template <StorageType kType>
struct Group {
  alignas(32) int8_t codes[kGroupCols<kType>];
  float scale;
  float min;
};

// 16 bytes, in words that all processors can shift; masks clear what comes from the other byte.
using Words = uint16_t __attribute__((vector_size(16)));

[[gnu::always_inline]] inline Words wordsAt(const uint8_t* bytes) {
  Words words;
  std::memcpy(&words, bytes, sizeof words);
  return words;
}
[[gnu::always_inline]] inline Words everyByte(uint8_t value) {
  const auto word = static_cast<uint16_t>(value << 8 | value);
  return Words{word, word, word, word, word, word, word, word};
}
[[gnu::always_inline]] inline void storeCodes(Words codes, int8_t* out) {
  std::memcpy(out, &codes, sizeof codes);
}

// out [32] = 16 bytes' low four bits, then their high ones.
[[gnu::always_inline]] inline void storeNibbles(const uint8_t* bytes, int8_t* out) {
  const Words words = wordsAt(bytes);
  storeCodes(words & everyByte(15), out);
  storeCodes(words >> 4 & everyByte(15), out + 16);
}

// Eight bytes of 16 or 0, by the bits of a byte from the low one up.
[[gnu::always_inline]] inline uint64_t spreadBits(uint8_t bits) {
  const uint64_t each = (bits * 0x0101010101010101u) & 0x8040201008040201u;
  return ((each + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
}

// The scale and the minimum of a group of those that have their own: integers.
struct GroupScale {
  int scale;
  int min;
};

template <StorageType kType>
[[gnu::always_inline]] inline GroupScale groupScale(const uint8_t* block, int group) {
  if constexpr (kType == StorageType::kQ2K) {
    return {block[group] & 15, block[group] >> 4};
  } else if constexpr (kType == StorageType::kQ3K) {
    const uint8_t* scales = block + 96;
    const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
    return {(low | high << 4) - 32, 0};
  } else if constexpr (kType == StorageType::kQ4K || kType == StorageType::kQ5K) {
    const uint8_t* packed = block + 4;
    if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
    return {(packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4,
            packed[group + 4] >> 4 | (packed[group] >> 6) << 4};
  } else if constexpr (kType == StorageType::kQ6K) {
    return {static_cast<int8_t>(block[192 + group]), 0};
  } else {
    static_assert(kType == StorageType::kIQ4XS);
    const int high = (block[2] | block[3] << 8) >> (2 * group) & 3;
    const int low = block[4 + group / 2] >> (group % 2 * 4) & 15;
    return {(low | high << 4) - 32, 0};
  }
}

// out [kGroupCols] = the codes of a group, as they are stored: from 0 on, unless they have 8 bits.
template <StorageType kType>
[[gnu::always_inline]] inline void readCodes(const uint8_t* block, int group, int8_t* out) {
  if constexpr (kType == StorageType::kQ4_0 || kType == StorageType::kIQ4NL) {
    // half d; codes[16]: d * value
    storeNibbles(block + 2, out);
  } else if constexpr (kType == StorageType::kQ4_1) {
    // half d, m; codes[16]: d * code + m
    storeNibbles(block + 4, out);
  } else if constexpr (kType == StorageType::kQ5_0 || kType == StorageType::kQ5_1) {
    // half d; [half m;] fifth bits[4]; codes[16]: d * (code - 16), or d * code + m
    const uint8_t* fifth = block + (kHasMin<kType> ? 4 : 2);
    const Words nibbles = wordsAt(fifth + 4);
    for (int half = 0; half < 2; ++half) {
      const uint64_t bits[2] = {spreadBits(fifth[2 * half]), spreadBits(fifth[2 * half + 1])};
      Words high;
      std::memcpy(&high, bits, sizeof high);
      const Words low = (half == 0 ? nibbles : nibbles >> 4) & everyByte(15);
      storeCodes(low | high, out + 16 * half);
    }
  } else if constexpr (kType == StorageType::kQ8_0) {
    // half d; int8 codes[32]: d * code
    std::memcpy(out, block + 2, 32);
  } else if constexpr (kType == StorageType::kQ2K) {
    // scales[16], of which each has a scale in the low and a minimum in the high four bits;
    // codes[64] of two bits; half d, dmin: d * scale * code - dmin * minimum
    const uint8_t* from = block + 16 + 32 * (group / 8) + 16 * (group % 2);
    storeCodes(wordsAt(from) >> (group % 8 / 2 * 2) & everyByte(3), out);
  } else if constexpr (kType == StorageType::kQ3K) {
    // third bits[32]; codes[64] of two bits; scales[12] of six bits; half d:
    // d * (scale - 32) * (code - 4), in which the third bit is 4
    const Words two = wordsAt(block + 32 + 32 * (group / 8) + 16 * (group % 2));
    const Words third = wordsAt(block + 16 * (group % 2)) >> (group / 2) & everyByte(1);
    storeCodes((two >> (group % 8 / 2 * 2) & everyByte(3)) | third << 2, out);
  } else if constexpr (kType == StorageType::kQ4K || kType == StorageType::kQ5K) {
    // half d, dmin; scales and minimums of six bits[12]; [fifth bits[32];] codes[128]:
    // d * scale * code - dmin * minimum
    constexpr bool kHasFifth = kType == StorageType::kQ5K;
    const uint8_t* from = block + (kHasFifth ? 48 : 16) + 32 * (group / 2);
    for (int half = 0; half < 2; ++half) {
      Words words = wordsAt(from + 16 * half) >> (group % 2 * 4) & everyByte(15);
      if constexpr (kHasFifth) {
        words |= (wordsAt(block + 16 + 16 * half) >> group & everyByte(1)) << 4;
      }
      storeCodes(words, out + 16 * half);
    }
  } else if constexpr (kType == StorageType::kQ6K) {
    // low four bits[128]; high two bits[64]; int8 scales[16]; half d: d * scale * (code - 32)
    const int quarter = group % 8 / 2;
    const int first = 16 * (group % 2);
    const Words low = wordsAt(block + 64 * (group / 8) + 32 * (quarter % 2) + first);
    const Words high = wordsAt(block + 128 + 32 * (group / 8) + first);
    storeCodes((low >> (quarter / 2 * 4) & everyByte(15)) | (high >> (quarter * 2) & everyByte(3))
                                                                << 4,
               out);
  } else if constexpr (kType == StorageType::kIQ4XS) {
    // half d; uint16 high two bits of scales; their low four bits[4]; codes[128]:
    // d * (scale - 32) * value
    storeNibbles(block + 8 + 16 * group, out);
  } else {
    static_assert(kType == StorageType::kMXFP4);
    // uint8 exponent, less 127; codes[16] of FP4
    storeNibbles(block + 1, out);
  }
}

// Half of the power of two of an MXFP4 block's byte, as its values are twice those meant.
[[gnu::always_inline]] inline float mxfp4Scale(uint8_t exponent) {
  return 0.5f *
         std::bit_cast<float>(exponent == 0 ? 0x00400000u : static_cast<uint32_t>(exponent) << 23);
}

// Group `group` of a block.
template <StorageType kType>
[[gnu::always_inline]] inline void readGroup(const uint8_t* block, int group, Group<kType>* out) {
  readCodes<kType>(block, group, out->codes);
  if constexpr (kType != StorageType::kQ8_0) {
    for (int8_t& code : out->codes) code = valueOf<kType>(code);
  }
  out->min = 0.0f;
  if constexpr (kType == StorageType::kMXFP4) {
    out->scale = mxfp4Scale(block[0]);
  } else if constexpr (kHasGroupScales<kType>) {
    const GroupScale own = groupScale<kType>(block, group);
    out->scale = halfAt(block + kScaleAt<kType>) * static_cast<float>(own.scale);
    if constexpr (kHasMin<kType>) {
      out->min = -halfAt(block + kMinAt<kType>) * static_cast<float>(own.min);
    }
  } else {
    out->scale = halfAt(block + kScaleAt<kType>);
    if constexpr (kHasMin<kType>) out->min = halfAt(block + kMinAt<kType>);
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
