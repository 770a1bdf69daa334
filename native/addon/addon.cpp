#include <napi.h>

#include <cstdint>
#include <limits>

#include "addon/communicator_binding.h"
#include "addon/cuda_binding.h"
#include "addon/device_binding.h"
#include "addon/environment.h"
#include "addon/event_binding.h"
#include "addon/grammar_binding.h"
#include "addon/model_runner_binding.h"
#include "addon/output_thread_binding.h"
#include "addon/values.h"
#include "runner/request.h"
#include "runtime/cuda_backend.h"

namespace uniproc {
namespace {

// The constants of RequestLimits: bounds of a request that hold for every model.
Napi::Object requestLimits(Napi::Env env) {
  Napi::Object limits = Napi::Object::New(env);
  const auto set = [&](const char* name, int64_t value) {
    limits.Set(name, Napi::Number::New(env, static_cast<double>(value)));
  };
  set("maxListLength", RequestLimits::kMaxListLength);
  set("slotListBytes", RequestLimits::kSlotListBytes);
  set("listAlignment", RequestLimits::kListAlignment);
  set("maxListMemory", RequestLimits::kMaxListMemory);
  set("maxInt32", std::numeric_limits<int32_t>::max());
  return limits;
}

void setCudaBackend(const Napi::CallbackInfo& info) {
  setCudaBackendFile(toString(info[0], "file"));
}

// Runs once per Node environment that loads the addon.
Napi::Object open(Napi::Env env, Napi::Object exports) {
  Environment::open(env, exports);
  DeviceBinding::define(env, exports);
  CommunicatorBinding::define(env, exports);
  EventBinding::define(env, exports);
  OutputThreadBinding::define(env, exports);
  GrammarThreadBinding::define(env, exports);
  ModelRunnerBinding::define(env, exports);
  defineCuda(env, exports);
  exports.Set("requestLimits", requestLimits(env));
  exports.Set("setCudaBackend", Napi::Function::New<setCudaBackend>(env, "setCudaBackend"));
  return exports;
}

}  // namespace

NODE_API_MODULE(uniproc, open)

}  // namespace uniproc
