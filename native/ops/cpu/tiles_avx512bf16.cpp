// Quantized weights in tiles with AVX512_BF16: elements become bfloat16, which is exact, by lookups
// of AVX512_VBMI.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/float_types.h"
#include "ops/cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's intrinsics read an intentionally uninitialized variable (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

UNIPROC_BEGIN_TARGET(
    "avx512bf16,avx512vbmi,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")

#include "ops/cpu/simd_tiles.h"
#include "ops/cpu/vec512.h"

namespace uniproc {
namespace {

// Two columns of a row in each lane.
struct BFloat16Columns {
  __m512i v;
};

struct BFloat16Tiles {
  using X = BFloat16;
  using W = BFloat16Columns;
  using Sum = Vec512;
  static constexpr int kLanes = Vec512::kLanes;
  static constexpr int kDepth = 2;
  static constexpr int kTileRows = 8;  // 16 sums and 8 + 1 operands in 32 registers
  static constexpr int kDirectRows = 8;

  static W load(const BFloat16* x) { return {_mm512_loadu_si512(x)}; }
  static void store(W w, BFloat16* out) { _mm512_storeu_si512(out, w.v); }
  static W broadcast(const BFloat16* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return {_mm512_set1_epi32(pair)};
  }

  template <class Format>
  struct Codes;
};

// Lane i of c plus the products of lanes 2i and 2i + 1.
inline Vec512 fma(BFloat16Columns a, BFloat16Columns b, Vec512 c) {
  return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

// The bytes of the bfloat16 of 128 codes.
struct ByteTable {
  alignas(64) uint8_t lower[128];
  alignas(64) uint8_t upper[128];

  template <class ValueOf>
  constexpr explicit ByteTable(ValueOf valueOf) : lower(), upper() {
    for (int code = 0; code < 128; ++code) {
      const auto bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(valueOf(code)) >> 16);
      lower[code] = static_cast<uint8_t>(bits);
      upper[code] = static_cast<uint8_t>(bits >> 8);
    }
  }
};

// Magnitudes are looked up by 7 bits, where `nonzero`; signs are those of the codes.
struct SignedCodes {
  __m512i lower0, lower1, upper0, upper1;

  explicit SignedCodes(const ByteTable& table)
      : lower0(_mm512_load_si512(table.lower)),
        lower1(_mm512_load_si512(table.lower + 64)),
        upper0(_mm512_load_si512(table.upper)),
        upper1(_mm512_load_si512(table.upper + 64)) {}

  void decode(__m512i codes, __m512i magnitudes, __mmask64 nonzero,
              BFloat16Columns (&out)[2]) const {
    const __m512i lower = _mm512_maskz_permutex2var_epi8(nonzero, lower0, magnitudes, lower1);
    const __m512i unsignedUpper =
        _mm512_maskz_permutex2var_epi8(nonzero, upper0, magnitudes, upper1);
    // unsignedUpper | (codes & 0x80)
    const __m512i upper = _mm512_ternarylogic_epi32(
        unsignedUpper, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
    out[0].v = _mm512_unpacklo_epi8(lower, upper);
    out[1].v = _mm512_unpackhi_epi8(lower, upper);
  }
};

// E4M3: 4 bits of exponent, 3 of mantissa; exponent 0 is subnormal; all ones is NaN.
constexpr float float8Magnitude(int code) {
  if (code == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const int exponent = code >> 3;
  const auto mantissa = static_cast<float>(exponent == 0 ? code & 7 : 8 + (code & 7));
  float value = mantissa * 0x1p-9f;
  for (int i = 1; i < exponent; ++i) value *= 2.0f;
  return value;
}

template <>
struct BFloat16Tiles::Codes<simd::TileFormat<StorageType::kFloat8E4M3>> {
  static constexpr ByteTable kTable{float8Magnitude};
  SignedCodes table{kTable};

  explicit Codes(const uint8_t*) {}
  void decode(const char* tile, BFloat16Columns (&out)[2]) const {
    const __m512i codes = _mm512_loadu_si512(tile);
    table.decode(codes, codes, ~__mmask64{0}, out);
  }
};

// Code 0 of a magnitude is 128: zeros are not looked up.
template <>
struct BFloat16Tiles::Codes<simd::TileFormat<StorageType::kInt8>> {
  static constexpr ByteTable kTable{
      [](int code) { return code == 0 ? 128.0f : static_cast<float>(code); }};
  SignedCodes table{kTable};

  explicit Codes(const uint8_t*) {}
  void decode(const char* tile, BFloat16Columns (&out)[2]) const {
    const __m512i codes = _mm512_loadu_si512(tile);
    table.decode(codes, _mm512_abs_epi8(codes), _mm512_test_epi8_mask(codes, codes), out);
  }
};

// The bfloat16 of values of codes, in vectors of 16-bit lanes.
template <int kCount, class ValueOf>
constexpr std::array<uint16_t, kCount> wordTable(ValueOf valueOf) {
  std::array<uint16_t, kCount> table{};
  for (int code = 0; code < kCount; ++code) {
    table[code] = static_cast<uint16_t>(std::bit_cast<uint32_t>(valueOf(code)) >> 16);
  }
  return table;
}

// A lookup takes the low 5 bits of 16: the fifth is another code's, so the table has 16 twice.
struct WordCodes {
  __m512i table;

  explicit WordCodes(const std::array<uint16_t, 32>& values)
      : table(_mm512_loadu_si512(values.data())) {}
  void decode(const char* tile, BFloat16Columns (&out)[4]) const {
    const __m512i words = _mm512_loadu_si512(tile);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      out[pair].v = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * pair), table);
    }
  }
};

template <>
struct BFloat16Tiles::Codes<simd::TileFormat<StorageType::kUInt4>> : WordCodes {
  static constexpr auto kTable =
      wordTable<32>([](int code) { return static_cast<float>(code % 16 - 8); });
  explicit Codes(const uint8_t*) : WordCodes(kTable) {}
};

template <>
struct BFloat16Tiles::Codes<simd::TileFormat<StorageType::kFloat4E2M1>> : WordCodes {
  static constexpr auto kTable = wordTable<32>([](int code) { return kFloat4Values[code % 16]; });
  explicit Codes(const uint8_t*) : WordCodes(kTable) {}
};

// The difference of code and zero point is looked up.
template <>
struct BFloat16Tiles::Codes<simd::TileFormat<StorageType::kUInt4, true>> {
  static constexpr auto kTable =
      wordTable<32>([](int code) { return static_cast<float>(code - 16); });
  __m512i table;
  __m512i offsets;  // 16 less the zero point, in each byte of a lane

  explicit Codes(const uint8_t* zeros) : table(_mm512_loadu_si512(kTable.data())) {
    const __m512i zero =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
    const __m512i all = _mm512_mullo_epi32(zero, _mm512_set1_epi32(0x01010101));
    offsets = _mm512_sub_epi8(_mm512_set1_epi8(16), all);
  }
  void decode(const char* tile, BFloat16Columns (&out)[4]) const {
    const __m512i bytes = _mm512_loadu_si512(tile);
    const __m512i codes = _mm512_set1_epi8(15);
    const __m512i even = _mm512_add_epi8(_mm512_and_si512(bytes, codes), offsets);
    const __m512i odd =
        _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(bytes, 4), codes), offsets);
    out[0].v = _mm512_permutexvar_epi16(even, table);
    out[1].v = _mm512_permutexvar_epi16(odd, table);
    out[2].v = _mm512_permutexvar_epi16(_mm512_srli_epi16(even, 8), table);
    out[3].v = _mm512_permutexvar_epi16(_mm512_srli_epi16(odd, 8), table);
  }
};

// GGUF's blocks. Bits of a lookup above a code's own are other codes', so the table repeats.
template <class Format>
struct BFloat16Tiles::Codes {
  using Tiles = BlockTiles<Format::kType>;
  static constexpr int kPairs = static_cast<int>(Format::kColumns) / 2;
  static constexpr int kEntries = Tiles::kCodeBits > 5 ? 64 : 32;
  static constexpr auto kTable = wordTable<kEntries>([](int code) {
    return static_cast<float>(gguf::valueOf<Format::kType>(code % (1 << Tiles::kCodeBits)));
  });
  __m512i table0 = _mm512_loadu_si512(kTable.data());
  __m512i table1 = _mm512_loadu_si512(kTable.data() + kEntries - 32);
  __m512i high;  // the next tile's bits first

  explicit Codes(const uint8_t* of)
      : high(Tiles::kHighBits > 0 ? _mm512_loadu_si512(of) : _mm512_setzero_si512()) {}
  void skipTiles(int64_t count) {
    high = _mm512_rorv_epi32(high, _mm512_set1_epi32(static_cast<int>(count) * kTurn));
  }
  void decode(const char* tile, BFloat16Columns (&out)[kPairs]) {
    const __m512i words = _mm512_loadu_si512(tile);
    const __m512i low = _mm512_set1_epi16((1 << Tiles::kLowBits) - 1);
#pragma GCC unroll 8
    for (int pair = 0; pair < kPairs; ++pair) {
      __m512i code = _mm512_srli_epi16(words, Tiles::kLowBits * pair);
      if constexpr (Tiles::kHighBits > 0) {
        // low ? code : high
        code = _mm512_ternarylogic_epi32(low, code,
                                         _mm512_srli_epi16(high, Tiles::kHighBits * pair), 0xca);
      }
      out[pair].v = kEntries == 32 ? _mm512_permutexvar_epi16(code, table0)
                                   : _mm512_permutex2var_epi16(table0, code, table1);
    }
    if constexpr (Tiles::kHighBits > 0) high = _mm512_ror_epi32(high, kTurn);
  }

 private:
  static constexpr int kTurn = Tiles::kHighBits * kPairs;
};

template <>
struct BFloat16Tiles::Codes<simd::TileFormat<StorageType::kQ8_0>>
    : BFloat16Tiles::Codes<simd::TileFormat<StorageType::kInt8>> {
  using Codes<simd::TileFormat<StorageType::kInt8>>::Codes;
};

}  // namespace
}  // namespace uniproc

UNIPROC_END_TARGET

namespace uniproc {

void addBFloat16Tiles(Kernels* kernels) {
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) return;
  simd::setTiles<BFloat16Tiles>(kernels->dotTilesBFloat16);
}

}  // namespace uniproc

#else

namespace uniproc {

void addBFloat16Tiles(Kernels*) {}

}  // namespace uniproc

#endif
