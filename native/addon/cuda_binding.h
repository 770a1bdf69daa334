#pragma once

#include <napi.h>

namespace uniproc {

// Exports buildInfo, hasGpu, isFirstGpuWarning and readCuda of lib/native/index.ts. hasGpu and
// readCuda run on libuv's threads.
void defineCuda(Napi::Env env, Napi::Object exports);

}  // namespace uniproc
