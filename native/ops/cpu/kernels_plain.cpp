// Kernels on vectors of 4 floats in the compilers' vector extension, for any processor (SSE2 on
// x86-64, NEON on arm64).
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

namespace uniproc {
namespace {

using Floats = float __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(16)));
using Shorts = uint16_t __attribute__((vector_size(8)));

constexpr auto kFloat8Values = [] {
  std::array<float, 256> values{};
  for (size_t bits = 0; bits < values.size(); ++bits) {
    values[bits] = widen(Float8E4M3{static_cast<uint8_t>(bits)});
  }
  return values;
}();

struct Vec128 {
  using Sum = Vec128;
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 2;  // 8 sums and 4 + 1 operands in 16 registers

  Floats v;

  static Vec128 zero() { return broadcast(0.0f); }
  static Vec128 broadcast(float x) { return {Floats{x, x, x, x}}; }
  static Vec128 load(const float* x) {
    Vec128 result;
    std::memcpy(&result.v, x, sizeof result.v);
    return result;
  }
  static Vec128 load(const BFloat16* x) { return {reinterpret_cast<Floats>(loadBits(x) << 16)}; }
  // As widen() of float_types.h, without branches.
  static Vec128 load(const Float16* x) {
    const Ints bits = loadBits(x);
    const Ints magnitude = (bits & 0x7fff) << 13;
    // The exponent biases differ by 112; the product is exact for subnormals too.
    const Ints finite = reinterpret_cast<Ints>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
    const Ints quiet = (magnitude > 0x0f800000) & 0x400000;
    const Ints special = magnitude | 0x7f800000 | quiet;  // infinity or NaN
    const Ints value = magnitude < 0x0f800000 ? finite : special;
    return {reinterpret_cast<Floats>(value | (bits & 0x8000) << 16)};
  }
  static Vec128 load(const int8_t* x) {
    return {Floats{static_cast<float>(x[0]), static_cast<float>(x[1]), static_cast<float>(x[2]),
                   static_cast<float>(x[3])}};
  }
  static Vec128 load(const Float8E4M3* x) {
    const auto at = [x](int i) { return kFloat8Values[x[i].bits]; };
    return {Floats{at(0), at(1), at(2), at(3)}};
  }
  // Of 4 elements in 2 bytes, the code of each.
  static Ints codes(const char* bytes) {
    const auto at = [bytes](int i) { return static_cast<int32_t>(static_cast<uint8_t>(bytes[i])); };
    return Ints{at(0) & 15, at(0) >> 4, at(1) & 15, at(1) >> 4};
  }
  // (values[code] - zero) * scale of each code.
  struct Table {
    float values[16];

    Table(const float* of, float scale) : Table(of, 0.0f, scale) {}
    Table(const float* of, float zero, float scale) {
      for (int i = 0; i < 16; ++i) values[i] = (of[i] - zero) * scale;
    }
    Vec128 at(Ints codes) const {
      return {Floats{values[codes[0]], values[codes[1]], values[codes[2]], values[codes[3]]}};
    }
  };
  template <class T>
  static Ints loadBits(const T* x) {
    Shorts bits;
    std::memcpy(&bits, x, sizeof bits);
    return __builtin_convertvector(bits, Ints);
  }
  // Loads the first n lanes; the others are zero.
  template <class T>
  static Vec128 loadPartial(const T* x, int n) {
    if (n == kLanes) return load(x);
    T lanes[kLanes] = {};
    std::memcpy(lanes, x, static_cast<size_t>(n) * sizeof(T));
    return load(lanes);
  }
  void store(float* out) const { std::memcpy(out, &v, sizeof v); }
  void storePartial(float* out, int n) const {
    if (n == kLanes) return store(out);
    for (int i = 0; i < n; ++i) out[i] = v[i];
  }
  template <class T>
  void store(T* out) const {
    for (int i = 0; i < kLanes; ++i) out[i] = narrow<T>(v[i]);
  }

  // Return b for a NaN and a number, or two zeros.
  static Vec128 max(Vec128 a, Vec128 b) { return {a.v > b.v ? a.v : b.v}; }
  static Vec128 min(Vec128 a, Vec128 b) { return {a.v < b.v ? a.v : b.v}; }
  // (word >> 9) as float, below 2^23.
  static Vec128 fromUpper23Bits(const uint32_t* words) {
    Vec128 result;
    for (int i = 0; i < kLanes; ++i) result.v[i] = static_cast<float>(words[i] >> 9);
    return result;
  }
};

inline Vec128 operator+(Vec128 a, Vec128 b) { return {a.v + b.v}; }
inline Vec128 operator-(Vec128 a, Vec128 b) { return {a.v - b.v}; }
inline Vec128 operator*(Vec128 a, Vec128 b) { return {a.v * b.v}; }
inline Vec128 operator/(Vec128 a, Vec128 b) { return {a.v / b.v}; }
inline Vec128 fma(Vec128 a, Vec128 b, Vec128 c) { return {a.v * b.v + c.v}; }

// Bit i is set if lane i of a comparison's result is all ones.
inline uint32_t laneBits(Ints lanes) {
  return static_cast<uint32_t>((lanes[0] & 1) | (lanes[1] & 2) | (lanes[2] & 4) | (lanes[3] & 8));
}
inline uint32_t greater(Vec128 a, Vec128 b) { return laneBits(a.v > b.v); }
inline uint32_t notLess(Vec128 a, Vec128 b) { return laneBits(a.v >= b.v); }
// a < b ? yes : no
inline Vec128 selectLess(Vec128 a, Vec128 b, Vec128 yes, Vec128 no) {
  return {a.v < b.v ? yes.v : no.v};
}

inline Vec128 round(Vec128 x) {  // |x| < 2^22: the sum's last place is 1
  const Vec128 large = Vec128::broadcast(0x1.8p23f);
  return (x + large) - large;
}
// 2^n for integers n from -126 to 127.
inline Vec128 pow2(Vec128 n) {
  return {reinterpret_cast<Floats>((__builtin_convertvector(n.v, Ints) + 127) << 23)};
}
// x = mantissa * 2^e with mantissa in [sqrt(1/2), sqrt(2)); returns e.
inline Vec128 splitExponent(Vec128 x, Vec128* mantissa) {
  const Ints bits = reinterpret_cast<Ints>(x.v) - 0x3f3504f3;
  mantissa->v = reinterpret_cast<Floats>((bits & 0x7fffff) + 0x3f3504f3);
  return {__builtin_convertvector(bits >> 23, Floats)};
}

inline float maxLanes(Vec128 x) {
  return std::max(std::max(x.v[0], x.v[1]), std::max(x.v[2], x.v[3]));
}
inline float sumLanes(Vec128 x) { return (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]); }
// out [4] = the lane sums of a, b, c and d, each added in the same tree.
inline void sum4(Vec128 a, Vec128 b, Vec128 c, Vec128 d, float* out) {
  out[0] = sumLanes(a);
  out[1] = sumLanes(b);
  out[2] = sumLanes(c);
  out[3] = sumLanes(d);
}

}  // namespace
}  // namespace uniproc

#include "ops/cpu/simd_table.h"

namespace uniproc {

const Kernels* plainKernels() {
  static constexpr Kernels kernels = simd::makeKernels<Vec128>("plain");
  return &kernels;
}

}  // namespace uniproc
