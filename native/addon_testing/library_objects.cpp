#include "addon_testing/library_objects.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/device_binding.h"
#include "addon/environment.h"
#include "addon/model_runner_binding.h"
#include "addon/values.h"
#include "base/error.h"

namespace uniproc {
namespace {

// The binding of an object of the library's class `name`. `InstanceOf` does not work, because the
// library's addon has its own copy of the class.
template <typename Class>
Class& unwrap(Napi::Value value, const char* name) {
  const Napi::Object object = toObject(value, name);
  const Napi::Value constructor = object.Get("constructor");
  if (!constructor.IsFunction() ||
      toString(constructor.As<Napi::Object>().Get("name"), "name") != name) {
    throw Napi::TypeError::New(value.Env(), std::string("the object must be a ") + name);
  }
  return *Class::Unwrap(object);
}

// A promise of `result(env)`, once `work(model, ops)` of the model in info[0] is done.
template <typename Work, typename Result>
Napi::Value runOnDevice(const Napi::CallbackInfo& info, const Work& work, const Result& result) {
  const ModelRunnerBinding& binding = unwrap<ModelRunnerBinding>(info[0], "ModelRunner");
  const std::shared_ptr<Environment> environment = Environment::of(info.Env());
  const auto start = [&](Environment::Settle settle) {
    // The device's thread belongs to the library and may outlive this addon's environment, so keep
    // the environment until the task is done.
    binding.device()->enqueue(
        [model = binding.model(), work](Ops& ops) { work(*model, ops); },
        [environment, settle = std::move(settle)](std::exception_ptr error) { settle(error); });
  };
  return environment->promise(start, result);
}

}  // namespace

void loseDevice(const Napi::CallbackInfo& info) {
  unwrap<DeviceBinding>(info[0], "DeviceThread").device()->enqueue([](Ops&) {
    throw Error("DEVICE_FAILED", "the device is lost");
  });
}

Napi::Value readLogits(const Napi::CallbackInfo& info) {
  const int32_t numRows = toInt32(info[1], "numRows");
  auto logits = std::make_shared<std::vector<float>>();
  const auto read = [numRows, logits](ModelRunner& model, Ops& ops) {
    *logits = model.logits(ops, numRows);
  };
  return runOnDevice(info, read, [logits](Napi::Env env) {
    auto array = Napi::Float32Array::New(env, logits->size());
    std::copy(logits->begin(), logits->end(), array.Data());
    return array;
  });
}

Napi::Value runLargestStep(const Napi::CallbackInfo& info) {
  const auto run = [](ModelRunner& model, Ops& ops) { model.runLargestStep(ops); };
  return runOnDevice(info, run, [](Napi::Env env) { return env.Undefined(); });
}

}  // namespace uniproc
