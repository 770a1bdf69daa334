// Warpgroup products (wgmma.cuh) of 64 rows of a weight by 8 to 128 tokens.
#pragma once

#include "ops/cuda/wgmma.cuh"

namespace uniproc::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Accumulators as operands, and their names in an instruction's text, by eight.
#define UNIPROC_SUMS_4(d, n) "+f"(d[n]), "+f"(d[n + 1]), "+f"(d[n + 2]), "+f"(d[n + 3])
#define UNIPROC_SUMS_8(d, n) UNIPROC_SUMS_4(d, n), UNIPROC_SUMS_4(d, n + 4)
#define UNIPROC_SUMS_16(d, n) UNIPROC_SUMS_8(d, n), UNIPROC_SUMS_8(d, n + 8)
#define UNIPROC_SUMS_24(d, n) UNIPROC_SUMS_16(d, n), UNIPROC_SUMS_8(d, n + 16)
#define UNIPROC_SUMS_32(d, n) UNIPROC_SUMS_24(d, n), UNIPROC_SUMS_8(d, n + 24)
#define UNIPROC_SUMS_40(d, n) UNIPROC_SUMS_32(d, n), UNIPROC_SUMS_8(d, n + 32)
#define UNIPROC_SUMS_48(d, n) UNIPROC_SUMS_40(d, n), UNIPROC_SUMS_8(d, n + 40)
#define UNIPROC_SUMS_56(d, n) UNIPROC_SUMS_48(d, n), UNIPROC_SUMS_8(d, n + 48)
#define UNIPROC_SUMS_64(d, n) UNIPROC_SUMS_56(d, n), UNIPROC_SUMS_8(d, n + 56)
#define UNIPROC_NAMES_4 "%0, %1, %2, %3"
#define UNIPROC_NAMES_8 UNIPROC_NAMES_4 ", %4, %5, %6, %7"
#define UNIPROC_NAMES_16 UNIPROC_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define UNIPROC_NAMES_24 UNIPROC_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define UNIPROC_NAMES_32 UNIPROC_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define UNIPROC_NAMES_40 UNIPROC_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define UNIPROC_NAMES_48 UNIPROC_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define UNIPROC_NAMES_56 UNIPROC_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define UNIPROC_NAMES_64 UNIPROC_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"

#define UNIPROC_MULTIPLY(TYPE, N, COUNT, A, B, ACCUMULATE)                                      \
  asm volatile(                                                                                 \
      "{\n"                                                                                     \
      ".reg .pred accumulate;\n"                                                                \
      "setp.ne.b32 accumulate, " ACCUMULATE                                                     \
      ", 0;\n"                                                                                  \
      "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" UNIPROC_NAMES_##COUNT \
      "}, " A ", " B                                                                            \
      ", accumulate, 1, 1, 0, 0;\n"                                                             \
      "}\n"                                                                                     \
      : UNIPROC_SUMS_##COUNT(d, 0)                                                              \
      : "l"(a), "l"(b), "r"(accumulate))
#define UNIPROC_MULTIPLY_TOKENS(N, COUNT, A, B, ACCUMULATE)  \
  if constexpr (kTokens == N && std::is_same_v<T, __half>) { \
    UNIPROC_MULTIPLY("f16", #N, COUNT, A, B, ACCUMULATE);    \
  } else if constexpr (kTokens == N) {                       \
    UNIPROC_MULTIPLY("bf16", #N, COUNT, A, B, ACCUMULATE);   \
  }

// Starts d = a b^T (+ d if `accumulate`) for a [64, 16] and b [kTokens, 16] with rows along k; d
// are the first kTokens / 2 registers.
template <class T, int kTokens, int kCount>
__device__ inline void multiplyTokens(float (&d)[kCount], uint64_t a, uint64_t b, int accumulate) {
  static_assert(kTokens == 8 || (kTokens % 16 == 0 && kTokens <= 128), "an instruction below");
  static_assert(kTokens / 2 <= kCount);
  UNIPROC_MULTIPLY_TOKENS(8, 4, "%4", "%5", "%6")
  UNIPROC_MULTIPLY_TOKENS(16, 8, "%8", "%9", "%10")
  UNIPROC_MULTIPLY_TOKENS(32, 16, "%16", "%17", "%18")
  UNIPROC_MULTIPLY_TOKENS(48, 24, "%24", "%25", "%26")
  UNIPROC_MULTIPLY_TOKENS(64, 32, "%32", "%33", "%34")
  UNIPROC_MULTIPLY_TOKENS(80, 40, "%40", "%41", "%42")
  UNIPROC_MULTIPLY_TOKENS(96, 48, "%48", "%49", "%50")
  UNIPROC_MULTIPLY_TOKENS(112, 56, "%56", "%57", "%58")
  UNIPROC_MULTIPLY_TOKENS(128, 64, "%64", "%65", "%66")
}

#undef UNIPROC_MULTIPLY_TOKENS
#undef UNIPROC_MULTIPLY
#undef UNIPROC_SUMS_4
#undef UNIPROC_NAMES_4
#undef UNIPROC_SUMS_8
#undef UNIPROC_NAMES_8
#undef UNIPROC_SUMS_16
#undef UNIPROC_NAMES_16
#undef UNIPROC_SUMS_24
#undef UNIPROC_NAMES_24
#undef UNIPROC_SUMS_32
#undef UNIPROC_NAMES_32
#undef UNIPROC_SUMS_40
#undef UNIPROC_NAMES_40
#undef UNIPROC_SUMS_48
#undef UNIPROC_NAMES_48
#undef UNIPROC_SUMS_56
#undef UNIPROC_NAMES_56
#undef UNIPROC_SUMS_64
#undef UNIPROC_NAMES_64

#endif

}  // namespace uniproc::cuda
