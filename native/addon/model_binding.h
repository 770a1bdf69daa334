#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "addon/binding.h"
#include "model/model.h"
#include "runtime/device.h"

namespace uniproc {

// NativeModel of lib/native/index.ts.
class ModelBinding : public Binding<ModelBinding> {
 public:
  static void define(Napi::Env env, Napi::Object exports);

  explicit ModelBinding(const Napi::CallbackInfo& info);
  ~ModelBinding() override;

  const std::shared_ptr<Device>& device() const { return device_; }
  const std::shared_ptr<Model>& model() const { return model_; }
  Napi::Value shutdown();

 private:
  Napi::Value load(const Napi::CallbackInfo& info);
  Napi::Value loadDummy(const Napi::CallbackInfo& info);
  Napi::Value releaseWeights(const Napi::CallbackInfo& info);
  Napi::Value offloadWeights(const Napi::CallbackInfo& info);
  Napi::Value restoreWeights(const Napi::CallbackInfo& info);
  Napi::Value profile(const Napi::CallbackInfo& info);
  Napi::Value allocateKvCache(const Napi::CallbackInfo& info);
  Napi::Value releaseKvCache(const Napi::CallbackInfo& info);
  Napi::Value warmUp(const Napi::CallbackInfo& info);
  Napi::Value checkRequest(const Napi::CallbackInfo& info);
  Napi::Value addRequest(const Napi::CallbackInfo& info);
  Napi::Value removeRequest(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value sample(const Napi::CallbackInfo& info);
  Napi::Value shutdown(const Napi::CallbackInfo& info);

  Napi::Array shareSteps(Napi::Env env);
  // The device's tasks of a model that was not shut down; SHUT_DOWN else.
  void enqueue(Device::Work work, Device::Done done = nullptr);
  Napi::Promise promise(Device::Work work);

  Napi::ObjectReference deviceObject_;        // the device must not be collected before its models
  Napi::ObjectReference communicatorObject_;  // nor the communicator; empty where there is none
  std::shared_ptr<Device> device_;
  std::shared_ptr<Model> model_;
  std::vector<Napi::Reference<Napi::ArrayBuffer>> stepMemory_;
};

}  // namespace uniproc
