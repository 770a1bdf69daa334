// Arithmetic on logits, shared by the CPU and CUDA backends.
#pragma once

#include <cfloat>

#include "base/philox.h"

namespace uniproc {

// Clamps the logit of a possible token to float32's finite range; NaN becomes the lowest value.
// Tokens that are forbidden or impossible keep -inf and are never passed here, so a bias, penalty
// or temperature changes neither.
UNIPROC_HOST_DEVICE constexpr float limitLogit(float logit) {
  if (!(logit > -FLT_MAX)) return -FLT_MAX;
  return logit < FLT_MAX ? logit : FLT_MAX;
}

}  // namespace uniproc
