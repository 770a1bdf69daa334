// What the addon keeps for one Node environment (the main thread, or a worker of worker_threads),
// as its instance data. There is no state of the process.
#pragma once

#include <napi.h>

#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/device_thread.h"
#include "runtime/mailbox.h"
#include "runtime/stoppable.h"

namespace uniproc {

class ModelRunnerBinding;

// A JavaScript function for native threads to have called. Only the JavaScript thread looks inside;
// they carry its address.
struct Callback {
  Napi::FunctionReference function;
  bool holdsLoop = false;
};

class Environment {
 public:
  explicit Environment(Napi::Env env);
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  // Makes the environment's instance, and has it closed when the environment ends. Exports
  // setErrorFactory(make), by which the addon makes its errors.
  static void open(Napi::Env env, Napi::Object exports);
  static std::shared_ptr<Environment> of(Napi::Env env);

  Napi::FunctionReference errorFactory;
  Napi::FunctionReference deviceClass;
  Napi::FunctionReference communicatorClass;
  Napi::FunctionReference eventClass;
  std::set<ModelRunnerBinding*> models;

  // The typed JavaScript error for what native code threw.
  Napi::Error error(std::exception_ptr thrown);

  // `post` may be called from any thread, all else only from the JavaScript thread. The delivery
  // runs on the JavaScript thread, after those posted before.
  void post(std::function<void(Napi::Env)> delivery);

  // A promise of what `start` starts. `start` is given a function to call once, from any thread,
  // with the error or null; the promise then rejects, or resolves to `result` (undefined by
  // default), made on the JavaScript thread. What `start` throws rejects too. Keeps the event loop
  // running.
  using Settle = std::function<void(std::exception_ptr)>;
  using Result = std::function<Napi::Value(Napi::Env)>;
  Napi::Promise promise(const std::function<void(Settle)>& start, Result result = nullptr);
  // The same of a task on the device's thread.
  Napi::Promise promise(DeviceThread& device, DeviceThread::Work work, Result result = nullptr);

  Callback* addCallback(Napi::Function function);
  // The event loop runs on until the callback is removed.
  void hold(Callback* callback);
  void call(const Callback* callback, std::initializer_list<napi_value> arguments);
  // Calls it with the error or null, and removes it.
  void complete(Callback* callback, std::exception_ptr error);
  void remove(Callback* callback);

  // Threads are ended with the environment, if they were not retired before. `retire` has the
  // thread finish, joins and forgets it, then calls `retired`, all without waiting here.
  void addThread(std::shared_ptr<Stoppable> thread);
  void retire(const std::shared_ptr<Stoppable>& thread, const Settle& retired = nullptr);

 private:
  Napi::Error typedError(const std::string& code, const std::string& message,
                         const std::string& file, std::optional<int32_t> rank = std::nullopt);
  void close();

  const Napi::Env env_;
  Mailbox mailbox_;
  bool closed_ = false;
  std::unordered_map<Callback*, std::unique_ptr<Callback>> callbacks_;
  std::vector<std::shared_ptr<Stoppable>> threads_;
};

// Runs `body`; what native code throws in it becomes the typed JavaScript exception.
template <typename Body>
auto withTypedErrors(Napi::Env env, Body&& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw Environment::of(env)->error(std::current_exception());
  }
}

}  // namespace uniproc
