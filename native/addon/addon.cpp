#include <napi.h>

#include <cstdint>
#include <limits>

#include "addon/communicator_binding.h"
#include "addon/device_binding.h"
#include "addon/environment.h"
#include "addon/event_binding.h"
#include "addon/model_binding.h"
#include "addon/ops_binding.h"
#include "addon/output_thread_binding.h"
#include "addon/values.h"
#include "model/request.h"
#include "runtime/error.h"

namespace uniproc {
namespace {

void setErrorFactory(const Napi::CallbackInfo& info) {
  Environment::of(info.Env())->errorFactory = Napi::Persistent(toFunction(info[0], "make"));
}

// loseDevice(device): the device fails for good, as one does whose driver reports that it is lost.
void loseDevice(const Napi::CallbackInfo& info) {
  DeviceBinding::of(*Environment::of(info.Env()), info[0]).device()->enqueue([](Ops&) {
    throw Error("DEVICE_FAILED", "the device is lost");
  });
}

// What the native side accepts of a request whatever the model: the constants of RequestLimits.
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

// Runs once in each Node environment that loads the addon.
Napi::Object open(Napi::Env env, Napi::Object exports) {
  Environment::open(env);
  DeviceBinding::define(env, exports);
  CommunicatorBinding::define(env, exports);
  EventBinding::define(env, exports);
  OutputThreadBinding::define(env, exports);
  ModelBinding::define(env, exports);
  exports.Set("requestLimits", requestLimits(env));
  exports.Set("setErrorFactory", Napi::Function::New<setErrorFactory>(env, "setErrorFactory"));

  // For tests and benchmarks.
  exports.Set("ops", makeOpsBinding(env));
  exports.Set("loseDevice", Napi::Function::New<loseDevice>(env, "loseDevice"));
  return exports;
}

}  // namespace

NODE_API_MODULE(uniproc, open)

}  // namespace uniproc
