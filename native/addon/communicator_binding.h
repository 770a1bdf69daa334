#pragma once

#include <napi.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "addon/binding.h"
#include "comm/device_communicator.h"
#include "runtime/device_thread.h"

namespace uniproc {

// NativeCommunicator of lib/native/index.ts.
class CommunicatorBinding : public Binding<CommunicatorBinding> {
 public:
  static void define(Napi::Env env, Napi::Object exports);
  // The binding of a JavaScript Communicator, which must outlive its users. Throws TypeError.
  static CommunicatorBinding& of(const Environment& environment, Napi::Value value);

  explicit CommunicatorBinding(const Napi::CallbackInfo& info);
  ~CommunicatorBinding() override;

  const std::shared_ptr<DeviceThread>& device() const { return device_; }
  const std::shared_ptr<DeviceCommunicator>& communicator() const { return communicator_; }

 private:
  using Bytes = std::vector<std::byte>;

  Napi::Value address(const Napi::CallbackInfo& info);
  Napi::Value connect(const Napi::CallbackInfo& info);
  Napi::Value allReduce(const Napi::CallbackInfo& info);
  Napi::Value allGather(const Napi::CallbackInfo& info);
  Napi::Value broadcast(const Napi::CallbackInfo& info);
  Napi::Value barrier(const Napi::CallbackInfo& info);
  Napi::Value abort(const Napi::CallbackInfo& info);
  Napi::Value shutdown(const Napi::CallbackInfo& info);

  // Promises for a task on the device's thread, and for the bytes that it returns.
  Napi::Promise promise(std::function<void(Ops&, Communicator&)> work);
  Napi::Promise promiseOfBytes(std::function<Bytes(Ops&, Communicator&)> work);

  Napi::ObjectReference deviceObject_;  // keeps the device from being collected first
  std::shared_ptr<DeviceThread> device_;
  std::shared_ptr<DeviceCommunicator> communicator_;
};

}  // namespace uniproc
