// Tiles in vectors of 16 floats. For sources that include it, with <immintrin.h> before, between
// UNIPROC_BEGIN_TARGET and UNIPROC_END_TARGET.
#pragma once

#include "ops/cpu/simd_tiles.h"
#include "ops/cpu/vec512.h"

namespace uniproc {
namespace {

struct FloatTiles512 {
  using X = float;
  using W = Vec512;
  using Sum = Vec512;
  static constexpr int kLanes = Vec512::kLanes;
  static constexpr int kDepth = 1;
  static constexpr int kTileRows = 8;  // 16 sums, 2 tables and 9 operands in 32 registers
  static constexpr int kDirectRows = 8;

  static Vec512 load(const float* x) { return Vec512::load(x); }
  static void store(Vec512 w, float* out) { w.store(out); }
  static Vec512 broadcast(const float* x) { return Vec512::broadcast(*x); }

  template <class Format>
  struct Codes;
};

// Of a tile of 8 bits, the byte of column `col` of each row in the upper byte of its lane.
inline __m512i upperBytes(__m512i tile, int col) {
  const int first = col / 2 * 8 + col % 2;
  const auto at = [first](int row) { return ((first + 2 * row) << 24) | 0x808080; };
  return _mm512_shuffle_epi8(tile,
                             _mm512_broadcast_i32x4(_mm_setr_epi32(at(0), at(1), at(2), at(3))));
}

template <>
struct FloatTiles512::Codes<simd::TileFormat<StorageType::kInt8>> {
  explicit Codes(const uint8_t*) {}
  void decode(const char* tile, Vec512 (&out)[4]) const {
    const __m512i bytes = _mm512_loadu_si512(tile);
#pragma GCC unroll 4
    for (int col = 0; col < 4; ++col) {
      out[col].v = _mm512_cvtepi32_ps(_mm512_srai_epi32(upperBytes(bytes, col), 24));
    }
  }
};

// Exponents move from 4 bits to 8, that is, by 120. Exponent 0 then has an implicit one too many
// and half of the place value: 2^-7 * (1 + m / 8), where 2^-6 * m / 8 is meant.
template <>
struct FloatTiles512::Codes<simd::TileFormat<StorageType::kFloat8E4M3>> {
  explicit Codes(const uint8_t*) {}
  void decode(const char* tile, Vec512 (&out)[4]) const {
    const __m512i bytes = _mm512_loadu_si512(tile);
    const __m512i exponents = _mm512_set1_epi32(0x07f00000);
    const __m512i signs = _mm512_set1_epi32(std::numeric_limits<int32_t>::min());
#pragma GCC unroll 4
    for (int col = 0; col < 4; ++col) {
      const __m512i upper = upperBytes(bytes, col);
      const __m512i magnitude = _mm512_and_si512(_mm512_srli_epi32(upper, 4), exponents);
      __m512 value = _mm512_castsi512_ps(_mm512_add_epi32(magnitude, _mm512_set1_epi32(120 << 23)));
      const __mmask16 subnormal = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(1 << 23));
      value = _mm512_mask_fmsub_ps(value, subnormal, _mm512_set1_ps(2.0f), _mm512_set1_ps(0x1p-6f));
      const __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, exponents);
      value =
          _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()));
      // value | (upper & signs)
      out[col].v = _mm512_castsi512_ps(
          _mm512_ternarylogic_epi32(_mm512_castps_si512(value), upper, signs, 0xf8));
    }
  }
};

struct TableCodes512 {
  __m512 table;

  // The lookup takes the low 4 bits alone.
  void decode(const char* tile, Vec512 (&out)[8]) const {
    const __m512i words = _mm512_loadu_si512(tile);
#pragma GCC unroll 8
    for (int col = 0; col < 8; ++col) {
      out[col].v = _mm512_permutexvar_ps(_mm512_srli_epi32(words, codeShift(col)), table);
    }
  }
};

template <>
struct FloatTiles512::Codes<simd::TileFormat<StorageType::kUInt4>> : TableCodes512 {
  explicit Codes(const uint8_t*) : TableCodes512{_mm512_loadu_ps(simd::kCodesLess8)} {}
};

template <>
struct FloatTiles512::Codes<simd::TileFormat<StorageType::kFloat4E2M1>> : TableCodes512 {
  explicit Codes(const uint8_t*) : TableCodes512{_mm512_loadu_ps(kFloat4Values)} {}
};

template <>
struct FloatTiles512::Codes<simd::TileFormat<StorageType::kUInt4, true>> {
  __m512i zeros;

  explicit Codes(const uint8_t* of)
      : zeros(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(of)))) {}
  void decode(const char* tile, Vec512 (&out)[8]) const {
    const __m512i words = _mm512_loadu_si512(tile);
#pragma GCC unroll 8
    for (int col = 0; col < 8; ++col) {
      const __m512i code =
          _mm512_and_si512(_mm512_srli_epi32(words, codeShift(col)), _mm512_set1_epi32(15));
      out[col].v = _mm512_cvtepi32_ps(_mm512_sub_epi32(code, zeros));
    }
  }
};

// GGUF's blocks. Bits of a lookup above a code's own are other codes', so the table repeats.
template <class Format>
struct FloatTiles512::Codes {
  using Tiles = BlockTiles<Format::kType>;
  static constexpr int kCount = static_cast<int>(Format::kColumns);
  static constexpr int kEntries = Tiles::kCodeBits > 4 ? 32 : 16;
  static constexpr auto kTable = [] {
    std::array<float, kEntries> table{};
    for (int code = 0; code < kEntries; ++code) {
      table[code] = gguf::valueOf<Format::kType>(code % (1 << Tiles::kCodeBits));
    }
    return table;
  }();
  __m512 table0 = _mm512_loadu_ps(kTable.data());
  __m512 table1 = _mm512_loadu_ps(kTable.data() + kEntries - 16);
  __m512i high;  // the next tile's bits first

  explicit Codes(const uint8_t* of)
      : high(Tiles::kHighBits > 0 ? _mm512_loadu_si512(of) : _mm512_setzero_si512()) {}
  void skipTiles(int64_t count) {
    high = _mm512_rorv_epi32(high, _mm512_set1_epi32(static_cast<int>(count) * kTurn));
  }
  void decode(const char* tile, Vec512 (&out)[kCount]) {
    const __m512i words = _mm512_loadu_si512(tile);
    const __m512i low = _mm512_set1_epi32((1 << Tiles::kLowBits) - 1);
#pragma GCC unroll 16
    for (int col = 0; col < kCount; ++col) {
      __m512i code = _mm512_srli_epi32(words, Tiles::lowShift(col));
      if constexpr (Tiles::kHighBits > 0) {
        const int shift = Tiles::highShift(col) - Tiles::kLowBits;
        // low ? code : high
        code = _mm512_ternarylogic_epi32(low, code, _mm512_srli_epi32(high, shift), 0xca);
      }
      if constexpr (Tiles::kCodeBits > 5) {
        code = _mm512_and_si512(code, _mm512_set1_epi32((1 << Tiles::kCodeBits) - 1));
        code = _mm512_add_epi32(code, _mm512_set1_epi32(gguf::valueOf<Format::kType>(0)));
        out[col].v = _mm512_cvtepi32_ps(code);
      } else {
        out[col].v = kEntries == 16 ? _mm512_permutexvar_ps(code, table0)
                                    : _mm512_permutex2var_ps(table0, code, table1);
      }
    }
    if constexpr (Tiles::kHighBits > 0) high = _mm512_ror_epi32(high, kTurn);
  }

 private:
  static constexpr int kTurn = Tiles::kHighBits * kCount / 2;
};

template <>
struct FloatTiles512::Codes<simd::TileFormat<StorageType::kQ8_0>>
    : FloatTiles512::Codes<simd::TileFormat<StorageType::kInt8>> {
  using Codes<simd::TileFormat<StorageType::kInt8>>::Codes;
};

}  // namespace
}  // namespace uniproc
