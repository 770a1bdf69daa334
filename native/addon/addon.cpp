#include <napi.h>

#include "addon/communicator_binding.h"
#include "addon/device_binding.h"
#include "addon/environment.h"
#include "addon/event_binding.h"
#include "addon/model_runner_binding.h"
#include "addon/ops_binding.h"
#include "addon/output_thread_binding.h"
#include "addon/values.h"
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

// Runs once in each Node environment that loads the addon.
Napi::Object open(Napi::Env env, Napi::Object exports) {
  Environment::open(env);
  DeviceBinding::define(env, exports);
  CommunicatorBinding::define(env, exports);
  EventBinding::define(env, exports);
  OutputThreadBinding::define(env, exports);
  ModelRunnerBinding::define(env, exports);
  exports.Set("setErrorFactory", Napi::Function::New<setErrorFactory>(env, "setErrorFactory"));

  // For tests and benchmarks.
  exports.Set("ops", makeOpsBinding(env));
  exports.Set("loseDevice", Napi::Function::New<loseDevice>(env, "loseDevice"));
  return exports;
}

}  // namespace

NODE_API_MODULE(uniproc, open)

}  // namespace uniproc
