#pragma once

#include <memory>

#include "model/spec.h"

namespace uniproc {

// Cos and sin of each position's rotation: [maxModelLen, 2, headDim / 2], float32 (Su et al. 2021);
// 1 and 0 for pairs beyond rotaryDim. Scaling 'linear', 'llama3', 'yarn' (Peng et al. 2023),
// 'dynamic', 'proportional' and 'longrope' (Ding et al. 2024) as in Hugging Face transformers,
// including float32 arithmetic, which matters in long contexts. The last two depend on the length
// of a sequence there; here on maxModelLen alone, as longrope in vLLM, so that a cached key fits
// every later query.
std::unique_ptr<float[]> ropeTable(const RopeSpec& spec, int32_t headDim, int32_t maxModelLen);

}  // namespace uniproc
