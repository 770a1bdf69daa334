// The table of kernels for the vector type V.
#pragma once

#include "base/float_types.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd_dot.h"
#include "ops/cpu/simd_logits.h"
#include "ops/cpu/simd_rows.h"

namespace uniproc::simd {

template <class V>
constexpr Kernels makeKernels(const char* name) {
  return {
      .name = name,
      .dot = {dot<V, float, float>, dot<V, float, Float16>, dot<V, float, BFloat16>},
      .dotStream = {dotStream<V, float, float>, dotStream<V, float, Float16>,
                    dotStream<V, float, BFloat16>},
      .dotBFloat16 = nullptr,
      .dotStreamBFloat16 = nullptr,
      .weightedSum = {weightedSum<V, float>, weightedSum<V, Float16>, weightedSum<V, BFloat16>},
      .softmaxStep = softmaxStepRow<V>,
      .scale = scaleRow<V>,
      .widen = {widenRow<V, float>, widenRow<V, Float16>, widenRow<V, BFloat16>},
      .narrow = {narrowRow<V, float>, narrowRow<V, Float16>, narrowRow<V, BFloat16>},
      .rmsNorm = {rmsNormRow<V, float>, rmsNormRow<V, Float16>, rmsNormRow<V, BFloat16>},
      .rotate = rotateRow<V>,
      .siluAndMul = siluAndMulRow<V>,
      .cleanLogits = cleanLogits<V>,
      .max = maxLogit<V>,
      .sumExp = sumExp<V>,
      .countGreater = countGreater<V>,
      .findGreater = findGreater<V>,
      .findNotLess = findNotLess<V>,
      .maskLess = maskLess<V>,
      .divide = divideLogits<V>,
      .gumbel = gumbel<V>,
  };
}

}  // namespace uniproc::simd
