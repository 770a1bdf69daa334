#pragma once

#include <napi.h>

namespace uniproc {

// readRate(bytes, numThreads): bytes per second at which the threads read that many bytes of host
// memory, the median of several passes.
Napi::Value readRate(const Napi::CallbackInfo& info);

}  // namespace uniproc
