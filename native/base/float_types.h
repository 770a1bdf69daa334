// The three weight and KV cache types as C++ types, and conversions between them. widen is exact;
// narrow rounds to nearest, ties to even. A NaN stays a quiet NaN.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/types.h"

namespace uniproc {

// IEEE 754 binary16: 1 sign, 5 exponent, 10 mantissa bits.
struct Float16 {
  uint16_t bits;
};

// The upper half of a float32: 1 sign, 8 exponent, 7 mantissa bits.
struct BFloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }

inline float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// FP8 E4M3 (Micikevicius et al. 2022): 1 sign, 4 exponent, 3 mantissa bits, bias 7; no infinities,
// one NaN per sign.
struct Float8E4M3 {
  uint8_t bits;
};

constexpr float widen(Float8E4M3 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80) << 24;
  const uint32_t exponent = (x.bits >> 3) & 0xf;
  const uint32_t mantissa = x.bits & 7;
  if ((x.bits & 0x7f) == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000);
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-9
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | (exponent + 127 - 7) << 23 | mantissa << 20);
}

inline float widen(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1f;
  const uint32_t mantissa = x.bits & 0x3ff;
  if (exponent == 0x1f) {  // infinity or NaN
    const uint32_t quiet = mantissa == 0 ? 0 : 0x400000;
    return std::bit_cast<float>(sign | 0x7f800000 | quiet | mantissa << 13);
  }
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
}

template <class T>
T narrow(float x);

template <>
inline float narrow<float>(float x) {
  return x;
}

template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  // Adds half a unit in the last place, minus one where the last place is even.
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Saturates at 448, the largest finite value.
template <>
inline Float8E4M3 narrow<Float8E4M3>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint8_t>(sign | 0x7f)};
  if (magnitude >= 0x43e00000) return {static_cast<uint8_t>(sign | 0x7e)};  // 448 and above
  if (magnitude < 0x3c800000) {  // below 2^-6: the sum's last place is 2^-9, a subnormal's
    const float sum = std::bit_cast<float>(magnitude) + 0x1p14f;
    return {static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x46800000))};
  }
  const uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1) - (127u - 7u) * 0x800000u;
  return {static_cast<uint8_t>(sign | rounded >> 20)};
}

template <>
inline Float16 narrow<Float16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return {static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff))};
  }
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and above
  if (magnitude < 0x38800000) {  // below 2^-14: the sum's last place is 2^-24, a subnormal's
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1) - (127u - 15u) * 0x800000u;
  return {static_cast<uint16_t>(sign | rounded >> 13)};
}

// Element `i` of `data` as float32; `data` needs no alignment.
inline float elementAt(const std::byte* data, DType dtype, int64_t i) {
  const auto load = [&]<class T>(T value) {
    std::memcpy(&value, data + i * static_cast<int64_t>(sizeof value), sizeof value);
    return widen(value);
  };
  switch (dtype) {
    case DType::kFloat16:
      return load(Float16{});
    case DType::kBFloat16:
      return load(BFloat16{});
    default:
      return load(0.0f);
  }
}

inline float roundTo(DType dtype, float x) {
  switch (dtype) {
    case DType::kFloat16:
      return widen(narrow<Float16>(x));
    case DType::kBFloat16:
      return widen(narrow<BFloat16>(x));
    default:
      return x;
  }
}

}  // namespace uniproc
