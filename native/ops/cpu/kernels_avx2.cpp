// Kernels on vectors of 8 floats, for processors with AVX2, FMA and F16C.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/float_types.h"
#include "ops/cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

UNIPROC_BEGIN_TARGET("avx2,fma,f16c,popcnt")

namespace uniproc {
namespace {

struct Vec256 {
  using Sum = Vec256;
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 3;  // 12 sums and 3 + 1 operands in 16 registers

  __m256 v;

  static __m256i firstLanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec256 widened(__m128i half, BFloat16) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static Vec256 widened(__m128i half, Float16) { return {_mm256_cvtph_ps(half)}; }

  static Vec256 zero() { return {_mm256_setzero_ps()}; }
  static Vec256 broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec256 load(const float* x) { return {_mm256_loadu_ps(x)}; }
  template <class T>
  static Vec256 load(const T* x) {
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)), T{});
  }
  // Loads the first n lanes; the others are zero.
  static Vec256 loadPartial(const float* x, int n) {
    return {_mm256_maskload_ps(x, firstLanes(n))};
  }
  template <class T>
  static Vec256 loadPartial(const T* x, int n) {
    T lanes[kLanes] = {};
    std::memcpy(lanes, x, static_cast<size_t>(n) * sizeof(T));
    return load(lanes);
  }
  void store(float* out) const { _mm256_storeu_ps(out, v); }
  void storePartial(float* out, int n) const { _mm256_maskstore_ps(out, firstLanes(n), v); }
  void store(Float16* out) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  void store(BFloat16* out) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256i rounded =
        _mm256_blendv_epi8(_mm256_add_epi32(bits, up), quiet, _mm256_castps_si256(nan));
    const __m256i upper = _mm256_srli_epi32(rounded, 16);
    // Packing works within each half of the register; the result is in quarters 1 and 3.
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(packed));
  }

  // Return b for a NaN and a number, or two zeros.
  static Vec256 max(Vec256 a, Vec256 b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec256 min(Vec256 a, Vec256 b) { return {_mm256_min_ps(a.v, b.v)}; }
  // (word >> 9) as float, below 2^23.
  static Vec256 fromUpper23Bits(const uint32_t* words) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    return {_mm256_cvtepi32_ps(_mm256_srli_epi32(bits, 9))};
  }
};

inline Vec256 operator+(Vec256 a, Vec256 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec256 operator-(Vec256 a, Vec256 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec256 operator*(Vec256 a, Vec256 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec256 operator/(Vec256 a, Vec256 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec256 fma(Vec256 a, Vec256 b, Vec256 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }

inline uint32_t greater(Vec256 a, Vec256 b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}
inline uint32_t notLess(Vec256 a, Vec256 b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
}
// a < b ? yes : no
inline Vec256 selectLess(Vec256 a, Vec256 b, Vec256 yes, Vec256 no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}

inline Vec256 round(Vec256 x) {
  return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integers n from -126 to 127.
inline Vec256 pow2(Vec256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
// x = mantissa * 2^e with mantissa in [sqrt(1/2), sqrt(2)); returns e.
inline Vec256 splitExponent(Vec256 x, Vec256* mantissa) {
  const __m256i sqrtHalf = _mm256_set1_epi32(0x3f3504f3);
  const __m256i bits = _mm256_sub_epi32(_mm256_castps_si256(x.v), sqrtHalf);
  const __m256i fraction = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff));
  mantissa->v = _mm256_castsi256_ps(_mm256_add_epi32(fraction, sqrtHalf));
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(bits, 23))};
}

inline float maxLanes(Vec256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  m = _mm_max_ps(m, _mm_permute_ps(m, 0x4e));
  return _mm_cvtss_f32(_mm_max_ps(m, _mm_permute_ps(m, 0xb1)));
}

// out [4] = the lane sums of a, b, c and d, each added in the same tree.
inline void sum4(Vec256 a, Vec256 b, Vec256 c, Vec256 d, float* out) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
inline float sumLanes(Vec256 x) {
  float sums[4];
  sum4(x, x, x, x, sums);
  return sums[0];
}

}  // namespace
}  // namespace uniproc

#include "ops/cpu/simd_table.h"

UNIPROC_END_TARGET

namespace uniproc {

const Kernels* avx2Kernels() {
  static constexpr Kernels kernels = simd::makeKernels<Vec256>("avx2");
  // Every processor with AVX2 has F16C, which Clang's builtin does not know.
  const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return supported ? &kernels : nullptr;
}

}  // namespace uniproc

#else

namespace uniproc {

const Kernels* avx2Kernels() { return nullptr; }

}  // namespace uniproc

#endif
