#pragma once

#include <napi.h>

#include <memory>

#include "addon/binding.h"
#include "runtime/device_thread.h"

namespace uniproc {

// NativeDevice of lib/native/index.ts.
class DeviceBinding : public Binding<DeviceBinding> {
 public:
  static void define(Napi::Env env, Napi::Object exports);
  // The binding of a JavaScript Device. Throws TypeError.
  static DeviceBinding& of(const Environment& environment, Napi::Value value);

  explicit DeviceBinding(const Napi::CallbackInfo& info);
  ~DeviceBinding() override;

  const std::shared_ptr<DeviceThread>& device() const { return device_; }

 private:
  Napi::Value open(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value resetPeakMemory(const Napi::CallbackInfo& info);
  Napi::Value stepTimes(const Napi::CallbackInfo& info);
  Napi::Value profile(const Napi::CallbackInfo& info);
  Napi::Value chooseProductAlgorithms(const Napi::CallbackInfo& info);
  Napi::Value areEqual(const Napi::CallbackInfo& info);
  Napi::Value synchronize(const Napi::CallbackInfo& info);
  Napi::Value shutdown(const Napi::CallbackInfo& info);

  std::shared_ptr<DeviceThread> device_;
};

}  // namespace uniproc
