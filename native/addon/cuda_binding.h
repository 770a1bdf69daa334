#pragma once

#include <napi.h>

namespace uniproc {

// Exports buildInfo, hasGpu and readCuda of lib/native/cuda.ts. The latter two run on libuv's
// threads.
void defineCuda(Napi::Env env, Napi::Object exports);

}  // namespace uniproc
