// Arithmetic on the logits of tokens that may be sampled. The CPU and CUDA backends share this
// file.
#pragma once

#include <cfloat>

#include "base/philox.h"

namespace uniproc {

// A possible token's logit within float32's finite numbers: beyond them it is the nearest, and for
// NaN the lowest. A forbidden or impossible token's logit is -inf and never comes here, so that no
// bias, penalty or temperature makes a token impossible, or a forbidden one possible.
UNIPROC_HOST_DEVICE constexpr float limitLogit(float logit) {
  if (!(logit > -FLT_MAX)) return -FLT_MAX;
  return logit < FLT_MAX ? logit : FLT_MAX;
}

}  // namespace uniproc
