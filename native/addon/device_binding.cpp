#include "addon/device_binding.h"

#include <utility>

#include "addon/model_runner_binding.h"
#include "addon/model_values.h"
#include "addon/values.h"

namespace uniproc {

void DeviceBinding::define(Napi::Env env, Napi::Object exports) {
  const Napi::Function deviceClass =
      DefineClass(env, "DeviceThread",
                  {
                      method<&DeviceBinding::open>("open"),
                      method<&DeviceBinding::memory>("memory"),
                      method<&DeviceBinding::resetPeakMemory>("resetPeakMemory"),
                      method<&DeviceBinding::stepTimes>("stepTimes"),
                      method<&DeviceBinding::profile>("profile"),
                      method<&DeviceBinding::chooseProductAlgorithms>("chooseProductAlgorithms"),
                      method<&DeviceBinding::areEqual>("areEqual"),
                      method<&DeviceBinding::synchronize>("synchronize"),
                      method<&DeviceBinding::shutdown>("shutdown"),
                  });
  Environment::of(env)->deviceClass = Napi::Persistent(deviceClass);
  exports.Set("DeviceThread", deviceClass);
}

DeviceBinding& DeviceBinding::of(const Environment& environment, Napi::Value value) {
  const Napi::Object object = toObject(value, "device");
  if (!object.InstanceOf(environment.deviceClass.Value())) {
    throw Napi::TypeError::New(value.Env(), "device must be a NativeDevice");
  }
  return *Unwrap(object);
}

DeviceBinding::DeviceBinding(const Napi::CallbackInfo& info) : Binding(info) {
  withTypedErrors(info.Env(), [&] {
    device_ = std::make_shared<DeviceThread>(toString(info[0], "kind"), toInt32(info[1], "index"),
                                             toInt32(info[2], "numThreads"));
    environment_->addThread(device_);
  });
}

DeviceBinding::~DeviceBinding() {
  if (device_ && !isShutDown()) environment_->retire(device_);
}

Napi::Value DeviceBinding::open(const Napi::CallbackInfo&) {
  struct Properties {
    std::string name;
    std::string capability;
    int numThreads = 0;
    size_t totalMemory = 0;
  };
  auto properties = std::make_shared<Properties>();
  const auto start = [&](Environment::Settle settle) {
    device_->open();
    device_->enqueue(
        [properties](Ops& ops) {
          *properties = {ops.name(), ops.capability(), ops.numThreads(), ops.memory().total};
        },
        settle);
  };
  return environment_->promise(start, [properties](Napi::Env env) {
    auto object = Napi::Object::New(env);
    object.Set("name", properties->name);
    object.Set("totalMemory", static_cast<double>(properties->totalMemory));
    object.Set("capability", properties->capability);
    object.Set("numThreads", properties->numThreads);
    return object;
  });
}

Napi::Value DeviceBinding::memory(const Napi::CallbackInfo&) {
  auto memory = std::make_shared<DeviceMemory>();
  return environment_->promise(
      *device_, [memory](Ops& ops) { *memory = ops.memory(); },
      [memory](Napi::Env env) {
        auto object = Napi::Object::New(env);
        object.Set("total", static_cast<double>(memory->total));
        object.Set("free", static_cast<double>(memory->free));
        object.Set("allocated", static_cast<double>(memory->allocated));
        object.Set("peakAllocated", static_cast<double>(memory->peakAllocated));
        return object;
      });
}

Napi::Value DeviceBinding::resetPeakMemory(const Napi::CallbackInfo&) {
  return environment_->promise(*device_, [](Ops& ops) { ops.resetPeakMemory(); });
}

Napi::Value DeviceBinding::stepTimes(const Napi::CallbackInfo&) {
  auto times = std::make_shared<StepTimes>();
  return environment_->promise(
      *device_, [times](Ops& ops) { *times = ops.stepTimes(); },
      [times](Napi::Env env) {
        auto object = Napi::Object::New(env);
        object.Set("numSteps", static_cast<double>(times->numSteps));
        object.Set("busyMs", times->busyMs);
        object.Set("idleMs", times->idleMs);
        return object;
      });
}

Napi::Value DeviceBinding::profile(const Napi::CallbackInfo& info) {
  const bool isStart = info[0].ToBoolean();
  return environment_->promise(
      *device_, [isStart](Ops& ops) { isStart ? ops.startProfiler() : ops.stopProfiler(); });
}

Napi::Value DeviceBinding::chooseProductAlgorithms(const Napi::CallbackInfo& info) {
  auto chosen = std::make_shared<std::string>();
  return environment_->promise(
      *device_,
      [known = toString(info[0], "known"), chosen](Ops& ops) {
        *chosen = ops.chooseProductAlgorithms(known);
      },
      [chosen](Napi::Env env) { return Napi::String::New(env, *chosen); });
}

Napi::Value DeviceBinding::areEqual(const Napi::CallbackInfo& info) {
  auto work = [a = toStoredTensor(toObject(info[0], "a")),
               b = toStoredTensor(toObject(info[1], "b")), count = toInt64(info[2], "count"),
               dtype = toDType(info[3], "dtype"),
               stop = device_->abandoned()] { return uniproc::areEqual(a, b, count, dtype, stop); };
  auto equal = std::make_shared<bool>();
  return environment_->promise(
      *device_, [equal, work = std::move(work)](Ops&) { *equal = work(); },
      [equal](Napi::Env env) { return Napi::Boolean::New(env, *equal); });
}

Napi::Value DeviceBinding::synchronize(const Napi::CallbackInfo&) {
  return environment_->promise(*device_, [](Ops& ops) { ops.synchronize(); });
}

Napi::Value DeviceBinding::shutdown(const Napi::CallbackInfo&) {
  return shutdownOnce([this] {
    for (ModelRunnerBinding* model : environment_->models) {
      if (model->device() == device_) model->shutdown();
    }
    return environment_->promise(
        [this](Environment::Settle settle) { environment_->retire(device_, settle); });
  });
}

}  // namespace uniproc
