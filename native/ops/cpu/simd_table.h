// The table of kernels for the vector type V.
#pragma once

#include "base/float_types.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd_dot.h"
#include "ops/cpu/simd_logits.h"
#include "ops/cpu/simd_rows.h"
#include "ops/cpu/simd_stored.h"

namespace uniproc::simd {
// Each source its own, for its instructions.
namespace {

template <class V>
constexpr Kernels makeKernels(const char* name) {
  return {
      .name = name,
      .dot = {dot<V, float, float>, dot<V, float, Float16>, dot<V, float, BFloat16>,
              dot<V, float, Float8E4M3>},
      .dotStream = {dotStream<V, float, float>, dotStream<V, float, Float16>,
                    dotStream<V, float, BFloat16>},
      .dotBFloat16 = nullptr,
      .dotStreamBFloat16 = nullptr,
      .dotStored = {dotStored<V, StorageType::kFloat8E4M3>, dotStored<V, StorageType::kInt8>,
                    dotStored<V, StorageType::kUInt4>, dotStored<V, StorageType::kFloat4E2M1>,
                    dotStored<V, StorageType::kQ4_0>, dotStored<V, StorageType::kQ4_1>,
                    dotStored<V, StorageType::kQ5_0>, dotStored<V, StorageType::kQ5_1>,
                    dotStored<V, StorageType::kQ8_0>, dotStored<V, StorageType::kQ2K>,
                    dotStored<V, StorageType::kQ3K>, dotStored<V, StorageType::kQ4K>,
                    dotStored<V, StorageType::kQ5K>, dotStored<V, StorageType::kQ6K>,
                    dotStored<V, StorageType::kIQ4NL>, dotStored<V, StorageType::kIQ4XS>,
                    dotStored<V, StorageType::kMXFP4>},
      .dotTiles = {},
      .dotTilesBFloat16 = {},
      .decode = {decodeRow<V, StorageType::kFloat8E4M3>, decodeRow<V, StorageType::kInt8>,
                 decodeRow<V, StorageType::kUInt4>, decodeRow<V, StorageType::kFloat4E2M1>,
                 decodeRow<V, StorageType::kQ4_0>, decodeRow<V, StorageType::kQ4_1>,
                 decodeRow<V, StorageType::kQ5_0>, decodeRow<V, StorageType::kQ5_1>,
                 decodeRow<V, StorageType::kQ8_0>, decodeRow<V, StorageType::kQ2K>,
                 decodeRow<V, StorageType::kQ3K>, decodeRow<V, StorageType::kQ4K>,
                 decodeRow<V, StorageType::kQ5K>, decodeRow<V, StorageType::kQ6K>,
                 decodeRow<V, StorageType::kIQ4NL>, decodeRow<V, StorageType::kIQ4XS>,
                 decodeRow<V, StorageType::kMXFP4>},
      .weightedSum = {weightedSum<V, float>, weightedSum<V, Float16>, weightedSum<V, BFloat16>,
                      weightedSum<V, Float8E4M3>},
      .softmaxStep = softmaxStepRow<V>,
      .scale = scaleRow<V>,
      .softcap = softcapRow<V>,
      .widen = {widenRow<V, float>, widenRow<V, Float16>, widenRow<V, BFloat16>,
                widenRow<V, Float8E4M3>},
      .narrow = {narrowRow<V, float>, narrowRow<V, Float16>, narrowRow<V, BFloat16>,
                 narrowRow<V, Float8E4M3>},
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

}  // namespace
}  // namespace uniproc::simd
