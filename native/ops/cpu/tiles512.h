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

}  // namespace
}  // namespace uniproc
