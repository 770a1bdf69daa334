// A vector of 16 floats. For sources that include it, with <immintrin.h> before, between
// UNIPROC_BEGIN_TARGET and UNIPROC_END_TARGET.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/float_types.h"

namespace uniproc {
namespace {

struct Vec512 {
  using Sum = Vec512;
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 4;  // 16 sums and 4 + 1 operands in 32 registers

  __m512 v;

  static __mmask16 firstLanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Vec512 widened(__m256i half, BFloat16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static Vec512 widened(__m256i half, Float16) { return {_mm512_cvtph_ps(half)}; }

  static Vec512 zero() { return {_mm512_setzero_ps()}; }
  static Vec512 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec512 load(const float* x) { return {_mm512_loadu_ps(x)}; }
  template <class T>
  static Vec512 load(const T* x) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)), T{});
  }
  static Vec512 load(const int8_t* x) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }
  // The bits of a Float16 that is 2^-8 times as large: sign, a zero, exponent and mantissa.
  static Vec512 load(const Float8E4M3* x) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    const __m256i upper = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8);
    const __m256i half = _mm256_and_si256(_mm256_srai_epi16(upper, 1),
                                          _mm256_set1_epi16(static_cast<int16_t>(0xbfff)));
    const __m128i mask = _mm_set1_epi8(0x7f);
    const __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_and_si128(bytes, mask), mask);
    const __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
    return {
        _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()))};
  }
  // Of 16 elements in 8 bytes, lane i has the code of the i-th in its low 4 bits.
  static __m512i codes(const char* bytes) {
    const __m512i all =
        _mm512_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    // Byte i / 2 in lane i; each quarter of the register has all 8 bytes twice.
    const __m512i lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i shifts = _mm512_set1_epi64(int64_t{4} << 32);
    return _mm512_srlv_epi32(_mm512_shuffle_epi8(all, lanes), shifts);
  }
  // (values[code] - zero) * scale of each code.
  struct Table {
    __m512 values;

    Table(const float* of, float scale)
        : values(_mm512_mul_ps(_mm512_loadu_ps(of), _mm512_set1_ps(scale))) {}
    Table(const float* of, float zero, float scale)
        : values(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(of), _mm512_set1_ps(zero)),
                               _mm512_set1_ps(scale))) {}
    // The lookup takes the low 4 bits alone.
    Vec512 at(__m512i codes) const { return {_mm512_permutexvar_ps(codes, values)}; }
  };
  // Loads the first n lanes; the others are zero.
  static Vec512 loadPartial(const float* x, int n) {
    return {_mm512_maskz_loadu_ps(firstLanes(n), x)};
  }
  template <class T>
  static Vec512 loadPartial(const T* x, int n) {
    return widened(_mm256_maskz_loadu_epi16(firstLanes(n), x), T{});
  }
  static Vec512 loadPartial(const Float8E4M3* x, int n) {
    Float8E4M3 lanes[kLanes] = {};
    std::memcpy(lanes, x, static_cast<size_t>(n));
    return load(lanes);
  }
  void store(float* out) const { _mm512_storeu_ps(out, v); }
  void storePartial(float* out, int n) const { _mm512_mask_storeu_ps(out, firstLanes(n), v); }
  void store(Float16* out) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  void store(BFloat16* out) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, up), nan, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  // As narrow() of float_types.h, without branches.
  void store(Float8E4M3* out) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_set1_epi32(0x7ffff - 120 * 0x800000), odd);
    const __m512i normal = _mm512_srli_epi32(_mm512_add_epi32(magnitude, up), 20);
    const __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1p14f));
    const __m512i subnormal =
        _mm512_sub_epi32(_mm512_castps_si512(sum), _mm512_set1_epi32(0x46800000));
    const auto isAtLeast = [&](int32_t least) {
      return _mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(least));
    };
    __m512i code = _mm512_mask_mov_epi32(subnormal, isAtLeast(0x3c800000), normal);
    code = _mm512_mask_mov_epi32(code, isAtLeast(0x43e00000), _mm512_set1_epi32(0x7e));
    code = _mm512_mask_mov_epi32(code, isAtLeast(0x7f800001), _mm512_set1_epi32(0x7f));
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign)));
  }

  // Return b for a NaN and a number, or two zeros.
  static Vec512 max(Vec512 a, Vec512 b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec512 min(Vec512 a, Vec512 b) { return {_mm512_min_ps(a.v, b.v)}; }
  // (word >> 9) as float, below 2^23.
  static Vec512 fromUpper23Bits(const uint32_t* words) {
    return {_mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_loadu_si512(words), 9))};
  }
};

inline Vec512 operator+(Vec512 a, Vec512 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec512 operator-(Vec512 a, Vec512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec512 operator*(Vec512 a, Vec512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec512 operator/(Vec512 a, Vec512 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec512 fma(Vec512 a, Vec512 b, Vec512 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

inline uint32_t greater(Vec512 a, Vec512 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline uint32_t notLess(Vec512 a, Vec512 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
// a < b ? yes : no
inline Vec512 selectLess(Vec512 a, Vec512 b, Vec512 yes, Vec512 no) {
  return {_mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), yes.v)};
}

inline Vec512 round(Vec512 x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integers n from -126 to 127.
inline Vec512 pow2(Vec512 n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// x = mantissa * 2^e with mantissa in [sqrt(1/2), sqrt(2)); returns e.
inline Vec512 splitExponent(Vec512 x, Vec512* mantissa) {
  const __m512i sqrtHalf = _mm512_set1_epi32(0x3f3504f3);
  const __m512i bits = _mm512_sub_epi32(_mm512_castps_si512(x.v), sqrtHalf);
  const __m512i fraction = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffff));
  mantissa->v = _mm512_castsi512_ps(_mm512_add_epi32(fraction, sqrtHalf));
  return {_mm512_cvtepi32_ps(_mm512_srai_epi32(bits, 23))};
}

inline float maxLanes(Vec512 x) { return _mm512_reduce_max_ps(x.v); }
inline float sumLanes(Vec512 x) { return _mm512_reduce_add_ps(x.v); }

// Adds the halves of a, and those of b: [lower + upper half of a, lower + upper half of b].
inline __m512 addHalves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
// out [4] = the lane sums of a, b, c and d, each added in the same tree.
inline void sum4(Vec512 a, Vec512 b, Vec512 c, Vec512 d, float* out) {
  const __m512 ab = addHalves(a.v, b.v);
  const __m512 cd = addHalves(c.v, d.v);
  __m512 quarters =
      _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  quarters = _mm512_add_ps(quarters, _mm512_permute_ps(quarters, 0x4e));
  quarters = _mm512_add_ps(quarters, _mm512_permute_ps(quarters, 0xb1));
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, quarters)));
}

// Four times the first half of sum4: quarter m of the result has four sums of acc[m][n].
inline __m512 sumQuarters(const Vec512 (&acc)[4][4], int n) {
  const __m512 ab = addHalves(acc[0][n].v, acc[1][n].v);
  const __m512 cd = addHalves(acc[2][n].v, acc[3][n].v);
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
// sums [4, 4] = the lane sums of each accumulator, added in the tree of sum4.
inline void sumTile(const Vec512 (&acc)[4][4], float* sums) {
  const __m512 a = sumQuarters(acc, 0);
  const __m512 b = sumQuarters(acc, 1);
  const __m512 c = sumQuarters(acc, 2);
  const __m512 d = sumQuarters(acc, 3);
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_ps(c, d, 0x44), _mm512_shuffle_ps(c, d, 0xee));
  const __m512 all =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x88), _mm512_shuffle_ps(ab, cd, 0xdd));
  _mm512_storeu_ps(sums, all);
}

}  // namespace
}  // namespace uniproc
