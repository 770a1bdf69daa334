// The CPU backend: the reference for other backends, and the fallback without a GPU.
#pragma once

#include <memory>
#include <string_view>

#include "ops/ops.h"

namespace uniproc {

// `numThreads` includes the calling thread; 0: the number of cores available to this process.
// `isa`: 'avx512bf16', 'avx512', 'avx2' or 'plain'; empty: the fastest one supported. Activations
// are float32 for all weight types. Throws Error NOT_SUPPORTED for an instruction set that this
// processor lacks.
std::unique_ptr<Ops> makeCpuOps(int numThreads, std::string_view isa = {});

}  // namespace uniproc
