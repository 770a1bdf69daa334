// Kernels on vectors of 8 floats, for processors with AVX2, FMA and F16C.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

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
  static Vec256 load(const int8_t* x) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
  }
  // The bits of a Float16 that is 2^-8 times as large: sign, a zero, exponent and mantissa.
  static Vec256 load(const Float8E4M3* x) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
    const __m128i upper = _mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 8);
    const __m128i half =
        _mm_and_si128(_mm_srai_epi16(upper, 1), _mm_set1_epi16(static_cast<int16_t>(0xbfff)));
    const __m128i mask = _mm_set1_epi8(0x7f);
    const __m128i nan = _mm_cmpeq_epi8(_mm_and_si128(bytes, mask), mask);
    const __m256 value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
    const __m256 quiet = _mm256_set1_ps(std::numeric_limits<float>::quiet_NaN());
    return {_mm256_blendv_ps(value, quiet, _mm256_castsi256_ps(_mm256_cvtepi8_epi32(nan)))};
  }
  // Of 8 elements in 4 bytes, lane i has the code of the i-th in its low 4 bits.
  static __m256i codes(const char* bytes) {
    int32_t word;
    std::memcpy(&word, bytes, sizeof word);
    return _mm256_srlv_epi32(_mm256_set1_epi32(word),
                             _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  }
  // (values[code] - zero) * scale of each code.
  struct Table {
    __m256 low;
    __m256 high;

    Table(const float* of, float scale) : Table(of, 0.0f, scale) {}
    Table(const float* of, float zero, float scale)
        : low(part(of, zero, scale)), high(part(of + 8, zero, scale)) {}
    static __m256 part(const float* of, float zero, float scale) {
      return _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(of), _mm256_set1_ps(zero)),
                           _mm256_set1_ps(scale));
    }
    // A lookup takes the low 3 bits; bit 3, moved to the sign, selects the half.
    Vec256 at(__m256i codes) const {
      return {_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes),
                               _mm256_permutevar8x32_ps(high, codes),
                               _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)))};
    }
  };
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
  // As narrow() of float_types.h, without branches.
  void store(Float8E4M3* out) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_set1_epi32(0x7ffff - 120 * 0x800000), odd);
    const __m256i normal = _mm256_srli_epi32(_mm256_add_epi32(magnitude, up), 20);
    const __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p14f));
    __m256i code = _mm256_sub_epi32(_mm256_castps_si256(sum), _mm256_set1_epi32(0x46800000));
    const auto setAbove = [&](int32_t below, __m256i value) {
      const __m256i isAbove = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(below));
      code = _mm256_blendv_epi8(code, value, isAbove);
    };
    setAbove(0x3c7fffff, normal);
    setAbove(0x43dfffff, _mm256_set1_epi32(0x7e));
    setAbove(0x7f800000, _mm256_set1_epi32(0x7f));
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
    const __m256i lanes = _mm256_or_si256(code, sign);
    // Packing works within each half of the register.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(lanes, lanes), 0x08);
    const __m128i half = _mm256_castsi256_si128(words);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(half, half));
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
#include "ops/cpu/simd_tiles.h"

namespace uniproc {
namespace {

// Tiles in vectors of 8 floats.
struct FloatTiles256 {
  using X = float;
  using W = Vec256;
  using Sum = Vec256;
  static constexpr int kLanes = Vec256::kLanes;
  static constexpr int kDepth = 1;
  static constexpr int kTileRows = 6;  // 12 sums and 2 + 1 operands in 16 registers
  static constexpr int kDirectRows = 4;

  static Vec256 load(const float* x) { return Vec256::load(x); }
  static void store(Vec256 w, float* out) { w.store(out); }
  static Vec256 broadcast(const float* x) { return Vec256::broadcast(*x); }

  template <class Format>
  struct Codes;
};

inline __m256i loadTile(const char* tile) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile));
}

// Of a tile of 8 bits, the byte of column `col` of each row in the upper byte of its lane.
inline __m256i upperBytes(__m256i tile, int col) {
  const int first = col / 2 * 8 + col % 2;
  const auto at = [first](int row) { return ((first + 2 * row) << 24) | 0x808080; };
  const __m128i bytes = _mm_setr_epi32(at(0), at(1), at(2), at(3));
  return _mm256_shuffle_epi8(tile, _mm256_broadcastsi128_si256(bytes));
}

template <>
struct FloatTiles256::Codes<simd::TileFormat<StorageType::kInt8>> {
  explicit Codes(const uint8_t*) {}
  void decode(const char* tile, Vec256 (&out)[4]) const {
    const __m256i bytes = loadTile(tile);
#pragma GCC unroll 4
    for (int col = 0; col < 4; ++col) {
      out[col].v = _mm256_cvtepi32_ps(_mm256_srai_epi32(upperBytes(bytes, col), 24));
    }
  }
};

// As with AVX-512.
template <>
struct FloatTiles256::Codes<simd::TileFormat<StorageType::kFloat8E4M3>> {
  explicit Codes(const uint8_t*) {}
  void decode(const char* tile, Vec256 (&out)[4]) const {
    const __m256i bytes = loadTile(tile);
    const __m256i exponents = _mm256_set1_epi32(0x07f00000);
    const __m256i signs = _mm256_set1_epi32(std::numeric_limits<int32_t>::min());
    const __m256 quiet = _mm256_set1_ps(std::numeric_limits<float>::quiet_NaN());
#pragma GCC unroll 4
    for (int col = 0; col < 4; ++col) {
      const __m256i upper = upperBytes(bytes, col);
      const __m256i magnitude = _mm256_and_si256(_mm256_srli_epi32(upper, 4), exponents);
      const __m256 normal =
          _mm256_castsi256_ps(_mm256_add_epi32(magnitude, _mm256_set1_epi32(120 << 23)));
      const __m256 subnormal =
          _mm256_fmsub_ps(normal, _mm256_set1_ps(2.0f), _mm256_set1_ps(0x1p-6f));
      const __m256i isSubnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(1 << 23), magnitude);
      const __m256i isNan = _mm256_cmpeq_epi32(magnitude, exponents);
      __m256 value = _mm256_blendv_ps(normal, subnormal, _mm256_castsi256_ps(isSubnormal));
      value = _mm256_blendv_ps(value, quiet, _mm256_castsi256_ps(isNan));
      out[col].v = _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_and_si256(upper, signs)));
    }
  }
};

// Code less zero point.
struct IntegerCodes256 {
  __m256i zeros;

  void decode(const char* tile, Vec256 (&out)[8]) const {
    const __m256i words = loadTile(tile);
#pragma GCC unroll 8
    for (int col = 0; col < 8; ++col) {
      const __m256i code =
          _mm256_and_si256(_mm256_srli_epi32(words, codeShift(col)), _mm256_set1_epi32(15));
      out[col].v = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, zeros));
    }
  }
};

template <>
struct FloatTiles256::Codes<simd::TileFormat<StorageType::kUInt4>> : IntegerCodes256 {
  explicit Codes(const uint8_t*) : IntegerCodes256{_mm256_set1_epi32(8)} {}
};

template <>
struct FloatTiles256::Codes<simd::TileFormat<StorageType::kUInt4, true>> : IntegerCodes256 {
  explicit Codes(const uint8_t* of)
      : IntegerCodes256{
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(of)))} {}
};

// A lookup takes the low 3 bits; bit 3 is the sign.
template <>
struct FloatTiles256::Codes<simd::TileFormat<StorageType::kFloat4E2M1>> {
  __m256 magnitudes = _mm256_loadu_ps(kFloat4Values);

  explicit Codes(const uint8_t*) {}
  void decode(const char* tile, Vec256 (&out)[8]) const {
    const __m256i words = loadTile(tile);
    const __m256 signs = _mm256_set1_ps(-0.0f);
#pragma GCC unroll 8
    for (int col = 0; col < 8; ++col) {
      const __m256i codes = _mm256_srli_epi32(words, codeShift(col));
      const __m256 sign = _mm256_and_ps(_mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)), signs);
      out[col].v = _mm256_or_ps(_mm256_permutevar8x32_ps(magnitudes, codes), sign);
    }
  }
};

// GGUF's blocks: codes become integers, or are looked up in two halves of 8.
template <class Format>
struct FloatTiles256::Codes {
  using Tiles = BlockTiles<Format::kType>;
  static constexpr int kCount = static_cast<int>(Format::kColumns);
  static constexpr bool kHasTable = gguf::kHasTable<Format::kType>;
  static constexpr auto kTable = [] {
    std::array<float, 16> table{};
    for (int code = 0; code < 16 && kHasTable; ++code) {
      table[code] = gguf::valueOf<Format::kType>(code);
    }
    return table;
  }();
  Vec256::Table table{kTable.data(), 1.0f};
  __m256i high;  // the next tile's bits first

  explicit Codes(const uint8_t* of)
      : high(Tiles::kHighBits > 0 ? loadTile(reinterpret_cast<const char*>(of))
                                  : _mm256_setzero_si256()) {}
  void skipTiles(int64_t count) {
    for (; count > 0; --count) turn();
  }
  void decode(const char* tile, Vec256 (&out)[kCount]) {
    const __m256i words = loadTile(tile);
    const __m256i low = _mm256_set1_epi32((1 << Tiles::kLowBits) - 1);
#pragma GCC unroll 16
    for (int col = 0; col < kCount; ++col) {
      __m256i code = _mm256_srli_epi32(words, Tiles::lowShift(col));
      if constexpr (kHasTable) {
        out[col] = table.at(code);
        continue;
      }
      code = _mm256_and_si256(code, low);
      if constexpr (Tiles::kHighBits > 0) {
        const int shift = Tiles::highShift(col) - Tiles::kLowBits;
        const __m256i bits =
            _mm256_and_si256(_mm256_srli_epi32(high, shift),
                             _mm256_set1_epi32(((1 << Tiles::kHighBits) - 1) << Tiles::kLowBits));
        code = _mm256_or_si256(code, bits);
      }
      code = _mm256_add_epi32(code, _mm256_set1_epi32(gguf::valueOf<Format::kType>(0)));
      out[col].v = _mm256_cvtepi32_ps(code);
    }
    if constexpr (Tiles::kHighBits > 0) turn();
  }

 private:
  void turn() {
    constexpr int kTurn = Tiles::kHighBits * kCount / 2;
    high = _mm256_or_si256(_mm256_srli_epi32(high, kTurn), _mm256_slli_epi32(high, 32 - kTurn));
  }
};

template <>
struct FloatTiles256::Codes<simd::TileFormat<StorageType::kQ8_0>>
    : FloatTiles256::Codes<simd::TileFormat<StorageType::kInt8>> {
  using Codes<simd::TileFormat<StorageType::kInt8>>::Codes;
};

}  // namespace
}  // namespace uniproc

UNIPROC_END_TARGET

namespace uniproc {

const Kernels* avx2Kernels() {
  static constexpr Kernels kernels = [] {
    Kernels table = simd::makeKernels<Vec256>("avx2");
    simd::setTiles<FloatTiles256>(table.dotTiles);
    return table;
  }();
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
