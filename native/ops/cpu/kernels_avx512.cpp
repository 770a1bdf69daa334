// Kernels on vectors of 16 floats, for processors with AVX-512 F, BW, DQ and VL.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
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

UNIPROC_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")

#include "ops/cpu/simd_table.h"
#include "ops/cpu/tiles512.h"
#include "ops/cpu/vec512.h"

UNIPROC_END_TARGET

namespace uniproc {

const Kernels* avx512Kernels() {
  static constexpr Kernels kernels = [] {
    Kernels table = simd::makeKernels<Vec512>("avx512");
    simd::setTiles<FloatTiles512>(table.dotTiles);
    return table;
  }();
  // Every processor with AVX2 has F16C, which Clang's builtin does not know.
  const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return supported ? &kernels : nullptr;
}

}  // namespace uniproc

#else

namespace uniproc {

const Kernels* avx512Kernels() { return nullptr; }

}  // namespace uniproc

#endif
