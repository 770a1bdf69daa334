#pragma once

#include <memory>

#include "model/spec.h"

namespace uniproc {

// Cos and sin of each position's rotation: [maxModelLen, 2, headDim / 2], float32 (Su et al. 2021).
// Scaling 'linear', 'llama3' and 'yarn' (Peng et al. 2023) as in Hugging Face transformers,
// including float32 arithmetic, which matters in long contexts.
std::unique_ptr<float[]> ropeTable(const ModelSpec& spec, int32_t maxModelLen);

}  // namespace uniproc
