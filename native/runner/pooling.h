// Embeddings from the last hidden states of requests (last-token pooling), on the host.
#pragma once

#include <cstdint>

#include "base/types.h"
#include "runner/step_buffers.h"

namespace uniproc {

// step.pooled: in, [count, width] of type `type`, packed; out, [count, width], float32. With n =
// step.pooledSizes[i] above 0, the first n elements of row i are divided by their Euclidean norm,
// summed in float64; a zero vector stays zero. Sets step.numNans to the elements among each row's
// first n (n = 0: all) that are not finite, and step.sampledTokenIds to 0. Moves 8 bytes for each
// element.
void poolRows(StepBuffers& step, int32_t count, int32_t width, DType type);

}  // namespace uniproc
