// The inner loops of the CPU operations, as a table of functions: one table for each instruction
// set, all made from the same templates (simd_*.h) over that set's vector type (kernels_*.cpp).
//
// Every kernel runs on one thread over plain memory, any alignment. Rows are contiguous; strides
// count elements. A sum's order depends on the length summed alone, never on how many rows or
// columns are computed together: that is what makes a row's result independent of its neighbours.
#pragma once

#include <cstdint>
#include <string_view>

#include "ops/ops.h"

namespace uniproc {

constexpr int kNumDTypes = 3;

struct Kernels {
  const char* name;

  // out[m * outStride + n] += x[m * xStride + :k] . w[n][:k] for m < rows, n < cols; w points to
  // rows of the indexing type.
  void (*dot[kNumDTypes])(const float* x, int64_t xStride, int64_t rows, const void* const* w,
                          int64_t cols, int64_t k, float* out, int64_t outStride);

  // out[q * outStride + :width] += p[q * pStride + j] * v[j][:width] for q < rows, over j from
  // begin to end in that order; v points to rows of the indexing type.
  void (*weightedSum[kNumDTypes])(const float* p, int64_t pStride, int64_t rows,
                                  const void* const* v, int64_t begin, int64_t end, int64_t width,
                                  float* out, int64_t outStride);

  // One step of the online softmax (Milakov and Gimelshein 2018) over scores [count], a multiple of
  // 16, -inf where masked but not everywhere: they become exp(score - max), max and sum are
  // updated, and the factor for what was summed before under the old max is returned.
  float (*softmaxStep)(float* scores, int64_t count, float* max, float* sum);

  // x [count] *= factor.
  void (*scale)(float* x, int64_t count, float factor);

  void (*widen[kNumDTypes])(const void* x, int64_t count, float* out);
  void (*narrow[kNumDTypes])(const float* x, int64_t count, void* out);

  // residual += x unless x is null; out = residual / sqrt(mean(residual^2) + eps) * weight. [size]
  void (*rmsNorm[kNumDTypes])(const float* x, float* residual, int64_t size, const void* weight,
                              float eps, float* out);

  // Rotates the pairs (x[i], x[half + i]) by the angles whose cos and sin are given. x [2 * half]
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);

  // out = silu(gate) * up. [size]
  void (*siluAndMul)(const float* gate, const float* up, int64_t size, float* out);

  // Logits -------------------------------------------------------------------------------------

  // out [count] = logits with NaN as -inf and +inf as the largest float; may be in place. What
  // follows takes such logits. Returns how many were NaN: a comparison beside the pass's one load
  // and store a logit.
  int64_t (*cleanLogits)(const float* logits, int64_t count, float* out);
  // The largest, -inf of none.
  float (*max)(const float* logits, int64_t count);
  // The sum of exp(logit - max).
  double (*sumExp)(const float* logits, int64_t count, float max);
  int64_t (*countGreater)(const float* logits, int64_t count, float threshold);
  // The first index from begin on whose logit is greater than (or equal to) the threshold, else
  // count.
  int64_t (*findGreater)(const float* logits, int64_t begin, int64_t count, float threshold);
  int64_t (*findNotLess)(const float* logits, int64_t begin, int64_t count, float threshold);
  // Logits below the threshold become -inf.
  void (*maskLess)(float* logits, int64_t count, float threshold);
  // logits [count] /= temperature, which is positive, limited as by limitLogit; -inf stays -inf.
  void (*divide)(float* logits, int64_t count, float temperature);
  // out [count] = -log(-log(u)) of the uniform u in (0, 1) that philox.h makes of each word; count
  // is a multiple of 16.
  void (*gumbel)(const uint32_t* words, int64_t count, float* out);
};

// The tables this build has; null where the processor lacks the instructions.
const Kernels* plainKernels();
const Kernels* avx2Kernels();
const Kernels* avx512Kernels();

// The table named 'plain', 'avx2' or 'avx512', or the fastest there is for an empty name. Throws
// Error NOT_SUPPORTED for one that this processor cannot run.
const Kernels& chooseKernels(std::string_view name);

}  // namespace uniproc

// Functions between the two, templates too, may use the given x86 instructions whatever the file is
// compiled for. Standard headers must come before: their functions stay as they are.
#define UNIPROC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNIPROC_BEGIN_TARGET(isa) \
  UNIPROC_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define UNIPROC_END_TARGET UNIPROC_PRAGMA(clang attribute pop)
#else
#define UNIPROC_BEGIN_TARGET(isa) UNIPROC_PRAGMA(GCC push_options) UNIPROC_PRAGMA(GCC target(isa))
#define UNIPROC_END_TARGET UNIPROC_PRAGMA(GCC pop_options)
#endif
