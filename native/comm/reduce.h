#pragma once

#include <cstdint>
#include <span>

#include "backend/communicator.h"

namespace uniproc {

// out [count] = the elements of all `sources`, each [count] of `type`, combined in order: ((s0 +
// s1) + s2) + ... float16 and bfloat16 are summed in float32 and rounded once; int64 wraps; min and
// max return NaN if any operand is NaN. `out` may be one of the sources.
void reduce(std::span<const void* const> sources, int64_t count, CommType type, ReduceOp op,
            void* out);

}  // namespace uniproc
