// The addon's state for one Node environment (the main thread, or a worker of worker_threads),
// stored as its instance data. The process has no global state.
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

// A JavaScript function that native threads have called. They only pass its address; the JavaScript
// thread alone accesses it.
struct Callback {
  Napi::FunctionReference function;
  bool holdsLoop = false;
};

class Environment {
 public:
  explicit Environment(Napi::Env env);
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  // Creates the environment's instance, which closes when the environment ends. Exports
  // setErrorFactory(make), which sets the function that makes the addon's errors.
  static void open(Napi::Env env, Napi::Object exports);
  static std::shared_ptr<Environment> of(Napi::Env env);

  Napi::FunctionReference errorFactory;
  Napi::FunctionReference deviceClass;
  Napi::FunctionReference communicatorClass;
  Napi::FunctionReference eventClass;
  std::set<ModelRunnerBinding*> models;

  // Converts a native exception to the typed JavaScript error.
  Napi::Error error(std::exception_ptr thrown);

  // `post` is callable on any thread, everything else only on the JavaScript thread. Deliveries run
  // there in order.
  void post(std::function<void(Napi::Env)> delivery);

  // A promise for an operation that `start` starts. `start` receives a function to call once, on
  // any thread, with an error or null; the promise then rejects, or resolves to `result`, which
  // runs on the JavaScript thread (undefined by default). If `start` throws, the promise rejects.
  // Keeps the event loop alive until then.
  using Settle = std::function<void(std::exception_ptr)>;
  using Result = std::function<Napi::Value(Napi::Env)>;
  Napi::Promise promise(const std::function<void(Settle)>& start, Result result = nullptr);
  // The same for a task on the device's thread.
  Napi::Promise promise(DeviceThread& device, DeviceThread::Work work, Result result = nullptr);

  Callback* addCallback(Napi::Function function);
  // Keeps the event loop alive until the callback is removed.
  void hold(Callback* callback);
  void call(const Callback* callback, std::initializer_list<napi_value> arguments);
  // Calls the callback with the error or null, and removes it.
  void complete(Callback* callback, std::exception_ptr error);
  void remove(Callback* callback);

  // Threads end with the environment unless retired before. `retire` lets the thread finish, joins
  // and removes it, then calls `retired`, without blocking.
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

// Runs `body`; converts native exceptions to typed JavaScript errors.
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
