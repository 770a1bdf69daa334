// Lets native threads run callbacks on the JavaScript thread of their Node environment.
#pragma once

#include <node_api.h>

#include <deque>
#include <functional>
#include <mutex>

namespace uniproc {

class Mailbox {
 public:
  // Runs on the JavaScript thread in a handle scope. Must not throw.
  using Delivery = std::function<void()>;

  // Throws std::runtime_error if Node cannot create a thread-safe function.
  explicit Mailbox(napi_env env);
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // Callable on any thread: enqueues `delivery`, which runs after earlier ones and never within
  // this call. Deliveries left when the environment ends are dropped.
  void post(Delivery delivery);

  // The event loop stays alive while holds exceed releases: one hold per pending result. JavaScript
  // thread only.
  void hold();
  void release();

  // Drops pending and later deliveries. JavaScript thread only.
  void close();

 private:
  static void deliverNext(napi_env env, napi_value callback, void* self, void* data);

  const napi_env env_;
  napi_threadsafe_function wake_ = nullptr;
  int holds_ = 0;
  std::mutex mutex_;  // guards the two members below
  std::deque<Delivery> deliveries_;
  bool closed_ = false;
};

}  // namespace uniproc
