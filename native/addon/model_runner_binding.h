#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "addon/binding.h"
#include "runner/model_runner.h"
#include "runtime/device_thread.h"

namespace uniproc {

// NativeModel of lib/native/index.ts.
class ModelRunnerBinding : public Binding<ModelRunnerBinding> {
 public:
  static void define(Napi::Env env, Napi::Object exports);

  explicit ModelRunnerBinding(const Napi::CallbackInfo& info);
  ~ModelRunnerBinding() override;

  const std::shared_ptr<DeviceThread>& device() const { return device_; }
  const std::shared_ptr<ModelRunner>& model() const { return model_; }
  Napi::Value shutdown();

 private:
  static Napi::Value declareParameters(const Napi::CallbackInfo& info);
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
  // Enqueues a task on the device's thread; fails with SHUT_DOWN after shutdown.
  void enqueue(DeviceThread::Work work, DeviceThread::Done done = nullptr);
  Napi::Promise promise(DeviceThread::Work work);

  Napi::ObjectReference deviceObject_;        // keeps the device from being collected first
  Napi::ObjectReference communicatorObject_;  // likewise; empty for a single rank
  std::shared_ptr<DeviceThread> device_;
  std::shared_ptr<ModelRunner> model_;
  std::vector<Napi::Reference<Napi::ArrayBuffer>> stepMemory_;
};

}  // namespace uniproc
