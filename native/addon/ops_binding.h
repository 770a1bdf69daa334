// The operations one by one, for tests and benchmarks: `addon.ops`, typed in
// test/native/ops/binding.ts. The library itself does not use it.
#pragma once

#include <napi.h>

namespace uniproc {

// { Ops, philox, hostMemory }. The environment must be open.
Napi::Object makeOpsBinding(Napi::Env env);

}  // namespace uniproc
