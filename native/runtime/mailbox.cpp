#include "runtime/mailbox.h"

#include <stdexcept>
#include <utility>

namespace uniproc {

Mailbox::Mailbox(napi_env env) : env_(env) {
  napi_value name;
  if (napi_create_string_utf8(env, "uniproc", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this,
                                      &Mailbox::deliverNext, &wake_) != napi_ok ||
      napi_unref_threadsafe_function(env, wake_) != napi_ok) {
    throw std::runtime_error("Node.js failed to create a thread-safe function");
  }
}

void Mailbox::post(Delivery delivery) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  deliveries_.push_back(std::move(delivery));
  // One call per delivery, because Node runs microtasks and counts uncaught exceptions per call.
  napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

void Mailbox::deliverNext(napi_env env, napi_value, void* self, void*) {
  if (env == nullptr) return;  // the environment is shutting down
  auto& mailbox = *static_cast<Mailbox*>(self);
  Delivery delivery;
  {
    std::lock_guard lock(mailbox.mutex_);
    if (mailbox.deliveries_.empty()) return;
    delivery = std::move(mailbox.deliveries_.front());
    mailbox.deliveries_.pop_front();
  }
  delivery();
}

void Mailbox::hold() {
  if (holds_++ == 0) napi_ref_threadsafe_function(env_, wake_);
}

void Mailbox::release() {
  if (--holds_ == 0) napi_unref_threadsafe_function(env_, wake_);
}

void Mailbox::close() {
  std::deque<Delivery> dropped;
  std::lock_guard lock(mutex_);
  closed_ = true;
  dropped.swap(deliveries_);
}

}  // namespace uniproc
