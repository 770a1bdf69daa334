// The inner loops of the CPU operations, as one table of functions per instruction set. All tables
// are instantiated from the same templates (simd_*.h) with that set's vector type (kernels_*.cpp).
//
// Every kernel runs on one thread over plain memory of any alignment. Rows are contiguous; strides
// count elements. The order of a sum depends only on its length, not on the number of rows or
// columns computed together, so a row's result is independent of the other rows.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/float_types.h"
// These here, so that their functions have no instruction set of their own: the linker keeps
// one of each for all processors (UNIPROC_BEGIN_TARGET).
#include "ops/cpu/block_tiles.h"
#include "ops/cpu/stored_element.h"
#include "ops/gguf_blocks.h"
#include "ops/ops.h"

namespace uniproc {

constexpr int kNumDTypes = 3;
// Types of the KV cache: those, and kFloat8E4M3, in the order of StorageType.
constexpr int kNumCacheTypes = 4;
constexpr int indexOfCached(StorageType type) { return static_cast<int>(type); }
// Quantized storage types, from kFloat8E4M3 on.
constexpr int kNumStoredTypes =
    static_cast<int>(kLastStorageType) - static_cast<int>(StorageType::kFloat8E4M3) + 1;
constexpr int indexOfStored(StorageType type) {
  return static_cast<int>(type) - static_cast<int>(StorageType::kFloat8E4M3);
}
// Columns that the kernels of such types decode together, at most.
constexpr int64_t kStoredColumns = 16;

struct Kernels {
  const char* name;

  // out[m * outStride + n] += x[m * xStride + :k] . w[n][:k] for m < rows, n < cols; w points to
  // rows of the type at the function's index. Meanwhile prefetches next[n][:k], which the next call
  // reads.
  void (*dot[kNumCacheTypes])(const float* x, int64_t xStride, int64_t rows, const void* const* w,
                              int64_t cols, int64_t k, const void* const* next, float* out,
                              int64_t outStride);
  // The same for few rows, reading w once and in order: w points to rows wStride apart. K is
  // divided into slices of `slice` products, whose sums are added to out in order; x holds the
  // slices one after another, each [rows, slice]. If `ahead` is not 0, x fits the L1 cache, and
  // what is `ahead` bytes from the weights in use is prefetched.
  void (*dotStream[kNumDTypes])(const float* x, int64_t rows, const void* w, int64_t wStride,
                                int64_t cols, int64_t k, int64_t slice, int64_t ahead, float* out,
                                int64_t outStride);
  // Both for x and w in bfloat16, with products and sums in float32; subnormal numbers count as
  // zero. Null if the processor has no such instruction.
  void (*dotBFloat16)(const BFloat16* x, int64_t xStride, int64_t rows, const void* const* w,
                      int64_t cols, int64_t k, const void* const* next, float* out,
                      int64_t outStride);
  void (*dotStreamBFloat16)(const BFloat16* x, int64_t rows, const void* w, int64_t wStride,
                            int64_t cols, int64_t k, int64_t slice, int64_t ahead, float* out,
                            int64_t outStride);

  // For quantized weights whose blocks have a multiple of kStoredColumns columns, or all. Adds
  // the products with the weight's rows [row, row + cols) and columns [begin, begin + k) to out, as
  // dotStream and bit by bit as `dot` of the decoded elements; `slice` and `begin` are multiples of
  // kStoredColumns.
  void (*dotStored[kNumStoredTypes])(const float* x, int64_t rows, const LinearWeight& weight,
                                     int64_t row, int64_t cols, int64_t begin, int64_t k,
                                     int64_t slice, float* out, int64_t outStride);
  // The same for weights in tiles (tiles.h), in an order of sums of their own; `row` and `cols` are
  // multiples of kBlockRows, `rows` is at most kMaxProductRows. Null if weights stay row-major.
  void (*dotTiles[kNumStoredTypes])(const float* x, int64_t rows, const LinearWeight& weight,
                                    int64_t row, int64_t cols, int64_t begin, int64_t k,
                                    int64_t slice, float* out, int64_t outStride);
  // For x in bfloat16, as dotBFloat16. Null if the processor lacks instructions for it.
  void (*dotTilesBFloat16[kNumStoredTypes])(const BFloat16* x, int64_t rows,
                                            const LinearWeight& weight, int64_t row, int64_t cols,
                                            int64_t begin, int64_t k, int64_t slice, float* out,
                                            int64_t outStride);
  // out [width] = elements [col, col + width) of a row; col is a multiple of kStoredColumns.
  void (*decode[kNumStoredTypes])(const LinearWeight& weight, int64_t row, int64_t col,
                                  int64_t width, float* out);

  // out[q * outStride + :width] += p[q * pStride + j] * v[j][:width] for q < rows, over j in
  // [begin, end) in order; v points to rows of the type at the function's index.
  void (*weightedSum[kNumCacheTypes])(const float* p, int64_t pStride, int64_t rows,
                                      const void* const* v, int64_t begin, int64_t end,
                                      int64_t width, float* out, int64_t outStride);

  // One step of the online softmax (Milakov and Gimelshein 2018) over scores [count], count a
  // multiple of 16, -inf where masked but not everywhere. Scores become exp(score - max); max and
  // sum are updated. Returns the factor that rescales earlier sums to the new max.
  float (*softmaxStep)(float* scores, int64_t count, float* max, float* sum);

  // x [count] *= factor.
  void (*scale)(float* x, int64_t count, float factor);
  // x [count] = cap * tanh(x / cap), with an error of about cap * 2^-22; NaN stays NaN.
  void (*softcap)(float* x, int64_t count, float cap);

  void (*widen[kNumCacheTypes])(const void* x, int64_t count, float* out);
  void (*narrow[kNumCacheTypes])(const float* x, int64_t count, void* out);

  // residual += x unless x is null; out = residual / sqrt(mean(residual^2) + eps) * (weight +
  // offset). [size]
  void (*rmsNorm[kNumDTypes])(const float* x, float* residual, int64_t size, const void* weight,
                              float offset, float eps, float* out);

  // Rotates the pairs (x[i], x[half + i]) by angles given as cos and sin. x [2 * half]
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);

  // out = silu(gate) * up. [size]
  void (*siluAndMul)(const float* gate, const float* up, int64_t size, float* out);

  // Logits -------------------------------------------------------------------------------------

  // out [count] = logits with NaN as -inf and +inf as the largest float; may be in place. The
  // kernels below take such logits. Returns the number of NaN; counting them costs one comparison
  // per logit.
  int64_t (*cleanLogits)(const float* logits, int64_t count, float* out);
  // The largest logit, -inf if count is 0.
  float (*max)(const float* logits, int64_t count);
  // The sum of exp(logit - max).
  double (*sumExp)(const float* logits, int64_t count, float max);
  int64_t (*countGreater)(const float* logits, int64_t count, float threshold);
  // The first index in [begin, count) with a logit greater than (or equal to) the threshold, or
  // count.
  int64_t (*findGreater)(const float* logits, int64_t begin, int64_t count, float threshold);
  int64_t (*findNotLess)(const float* logits, int64_t begin, int64_t count, float threshold);
  // Sets logits below the threshold to -inf.
  void (*maskLess)(float* logits, int64_t count, float threshold);
  // logits [count] /= temperature, which is positive; clamped as by limitLogit; -inf stays -inf.
  void (*divide)(float* logits, int64_t count, float temperature);
  // out [count] = -log(-log(u)), with u in (0, 1) the uniform() of each word (philox.h); count is a
  // multiple of 16.
  void (*gumbel)(const uint32_t* words, int64_t count, float* out);
};

// The tables in this build; null if the processor lacks the instructions.
const Kernels* plainKernels();
const Kernels* avx2Kernels();
const Kernels* avx512Kernels();
const Kernels* avx512BFloat16Kernels();

// Sets dotTilesBFloat16 if this processor has AVX512_BF16 and AVX512_VBMI.
void addBFloat16Tiles(Kernels* kernels);

// The table named 'plain', 'avx2', 'avx512' or 'avx512bf16'; an empty name selects the fastest
// supported one. Throws Error NOT_SUPPORTED if this processor or build does not support it.
const Kernels& chooseKernels(std::string_view name);

}  // namespace uniproc

// Functions and templates between these macros may use the given x86 instructions, independent of
// the file's compiler flags. Include standard headers before, so that their functions are not
// affected.
#define UNIPROC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNIPROC_BEGIN_TARGET(isa) \
  UNIPROC_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define UNIPROC_END_TARGET UNIPROC_PRAGMA(clang attribute pop)
#else
#define UNIPROC_BEGIN_TARGET(isa) UNIPROC_PRAGMA(GCC push_options) UNIPROC_PRAGMA(GCC target(isa))
#define UNIPROC_END_TARGET UNIPROC_PRAGMA(GCC pop_options)
#endif
