// The way native threads reach the JavaScript thread of their Node environment.
#pragma once

#include <node_api.h>

#include <deque>
#include <functional>
#include <mutex>

namespace uniproc {

class Mailbox {
 public:
  // Runs on the JavaScript thread inside a handle scope. Must not throw.
  using Delivery = std::function<void()>;

  // Throws std::runtime_error when Node gives no thread-safe function.
  explicit Mailbox(napi_env env);
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // From any thread: `delivery` will run, after those posted before, never from inside this call.
  // What was not delivered when the environment ends is dropped.
  void post(Delivery delivery);

  // The event loop runs on while there are more holds than releases: each stands for something
  // JavaScript waits for. JavaScript thread only.
  void hold();
  void release();

  // Drops what is not delivered yet and all that is posted from now on. JavaScript thread only.
  void close();

 private:
  static void deliverNext(napi_env env, napi_value callback, void* self, void* data);

  const napi_env env_;
  napi_threadsafe_function wake_ = nullptr;
  int holds_ = 0;
  std::mutex mutex_;  // of the two below
  std::deque<Delivery> deliveries_;
  bool closed_ = false;
};

}  // namespace uniproc
