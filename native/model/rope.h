#pragma once

#include <vector>

#include "model/spec.h"

namespace uniproc {

// The rotation of each position: [maxModelLen, 2, headDim / 2], cos then sin, float32. Su et al.
// 2021; scaled as Hugging Face transformers has it for 'linear', 'llama3' and 'yarn' (Peng et al.
// 2023), in float32 like there, since long contexts tell the difference.
std::vector<float> ropeTable(const ModelSpec& spec, int32_t maxModelLen);

}  // namespace uniproc
