#include <napi.h>

#include "addon/communicator_binding.h"
#include "addon/device_binding.h"
#include "addon/environment.h"
#include "addon/event_binding.h"
#include "addon/model_runner_binding.h"
#include "addon/output_thread_binding.h"

namespace uniproc {
namespace {

// Runs once in each Node environment that loads the addon.
Napi::Object open(Napi::Env env, Napi::Object exports) {
  Environment::open(env, exports);
  DeviceBinding::define(env, exports);
  CommunicatorBinding::define(env, exports);
  EventBinding::define(env, exports);
  OutputThreadBinding::define(env, exports);
  ModelRunnerBinding::define(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(uniproc, open)

}  // namespace uniproc
