// The addon for tests and benchmarks, build/Release/uniproc_testing.node. The library does not load
// it and the npm package excludes it.
#include <napi.h>

#include <cstring>

#include "addon/environment.h"
#include "addon/values.h"
#include "addon_testing/grammar_checker.h"
#include "addon_testing/library_objects.h"
#include "addon_testing/ops_binding.h"
#include "addon_testing/ops_values.h"
#include "addon_testing/read_rate.h"
#include "base/philox.h"
#include "ops/cpu/host.h"

namespace uniproc {
namespace {

// philox(counter, key): counter [4], key [2] and the result [4] as Uint32Array.
Napi::Value philoxWords(const Napi::CallbackInfo& info) {
  const auto counter = info[0].As<Napi::Uint32Array>();
  const auto key = info[1].As<Napi::Uint32Array>();
  const PhiloxBlock block =
      philox({{counter[0], counter[1], counter[2], counter[3]}}, uint64_t{key[1]} << 32 | key[0]);
  auto words = Napi::Uint32Array::New(info.Env(), 4);
  std::memcpy(words.Data(), block.words, sizeof block.words);
  return words;
}

// hostMemory(root): { total, free } from the system files below `root`.
Napi::Value hostMemoryFigures(const Napi::CallbackInfo& info) {
  const HostMemory memory = hostMemory(toString(info[0], "root"));
  return fromFigures(info.Env(), static_cast<double>(memory.total),
                     static_cast<double>(memory.free));
}

// Exports TestingAddon of test/support/testingAddon.ts.
Napi::Object open(Napi::Env env, Napi::Object exports) {
  Environment::open(env, exports);
  exports.Set("Ops", OpsBinding::define(env));
  exports.Set("philox", Napi::Function::New<philoxWords>(env, "philox"));
  exports.Set("hostMemory", Napi::Function::New<hostMemoryFigures>(env, "hostMemory"));
  exports.Set("ReadRate", ReadRate::define(env));
  exports.Set("GrammarChecker", GrammarChecker::define(env));
  exports.Set("loseDevice", Napi::Function::New<loseDevice>(env, "loseDevice"));
  exports.Set("readLogits", Napi::Function::New<readLogits>(env, "readLogits"));
  exports.Set("runLargestStep", Napi::Function::New<runLargestStep>(env, "runLargestStep"));
  return exports;
}

}  // namespace

NODE_API_MODULE(uniproc_testing, open)

}  // namespace uniproc
