#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "addon/binding.h"
#include "runtime/event.h"

namespace uniproc {

// NativeEvent of lib/native/index.ts.
class EventBinding : public Binding<EventBinding> {
 public:
  static void define(Napi::Env env, Napi::Object exports);
  // Creates the JavaScript object of a device event.
  static Napi::Object create(const Environment& environment, std::shared_ptr<Event> event);
  // The binding of a JavaScript Event. Throws TypeError.
  static EventBinding& of(const Environment& environment, Napi::Value value);

  // `new Event()` is a host event.
  explicit EventBinding(const Napi::CallbackInfo& info);

  const std::shared_ptr<Event>& event() const { return event_; }
  // A callback to call after this event is done. It keeps the event loop alive; for a host event
  // only after it is signalled, since it may never be.
  Callback* addWaiter(Napi::Function function);

 private:
  Napi::Value done(const Napi::CallbackInfo& info);
  Napi::Value signal(const Napi::CallbackInfo& info);
  Napi::Value onReady(const Napi::CallbackInfo& info);

  std::shared_ptr<Event> event_;
  bool signalled_ = false;
  std::vector<Callback*> waiters_;
};

}  // namespace uniproc
