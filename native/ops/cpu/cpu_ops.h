// The operations on the host's processor: the reference that other backends are checked against,
// and what runs where there is no GPU.
#pragma once

#include <memory>
#include <string_view>

#include "ops/ops.h"

namespace uniproc {

// `numThreads` counts the calling thread; 0: as many as there are cores for this process. `isa`:
// 'avx512', 'avx2' or 'plain', empty for the fastest this processor has. Activations are float32
// whatever the weights. Throws Error NOT_SUPPORTED for an instruction set this processor lacks.
std::unique_ptr<Ops> makeCpuOps(int numThreads, std::string_view isa = {});

}  // namespace uniproc
