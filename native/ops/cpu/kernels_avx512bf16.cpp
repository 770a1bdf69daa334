// The kernels of AVX-512 and, with AVX512_BF16, products of bfloat16 rows: one instruction adds 32
// products in place of 16, and weights are not widened.
#include <algorithm>
#include <cstdint>

#include "base/float_types.h"
#include "ops/cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's intrinsics read an intentionally uninitialized variable (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

UNIPROC_BEGIN_TARGET("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")

#include "ops/cpu/vec512.h"

namespace uniproc {
namespace {

struct BFloat16Pairs {
  using Sum = Vec512;
  static constexpr int kLanes = 32;
  static constexpr int kTileRows = Vec512::kTileRows;

  __m512i v;

  static BFloat16Pairs load(const BFloat16* x) { return {_mm512_loadu_si512(x)}; }
  // Loads the first n lanes, fewer than all; the others are zero.
  static BFloat16Pairs loadPartial(const BFloat16* x, int n) {
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1), x)};
  }
};

// Lane i of c plus the products of lanes 2i and 2i + 1.
inline Vec512 fma(BFloat16Pairs a, BFloat16Pairs b, Vec512 c) {
  return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

}  // namespace
}  // namespace uniproc

#include "ops/cpu/simd_dot.h"

UNIPROC_END_TARGET

namespace uniproc {

const Kernels* avx512BFloat16Kernels() {
  const Kernels* base = avx512Kernels();
  if (!base || !__builtin_cpu_supports("avx512bf16")) return nullptr;
  static const Kernels kernels = [base] {
    Kernels table = *base;
    table.name = "avx512bf16";
    table.dotBFloat16 = simd::dot<BFloat16Pairs, BFloat16, BFloat16>;
    table.dotStreamBFloat16 = simd::dotStream<BFloat16Pairs, BFloat16, BFloat16>;
    addBFloat16Tiles(&table);
    return table;
  }();
  return &kernels;
}

}  // namespace uniproc

#else

namespace uniproc {

const Kernels* avx512BFloat16Kernels() { return nullptr; }

}  // namespace uniproc

#endif
