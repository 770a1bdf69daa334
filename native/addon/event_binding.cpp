#include "addon/event_binding.h"

#include <utility>

#include "addon/values.h"
#include "base/error.h"

namespace uniproc {

void EventBinding::define(Napi::Env env, Napi::Object exports) {
  const Napi::Function eventClass = DefineClass(env, "Event",
                                                {
                                                    InstanceAccessor<&EventBinding::done>("done"),
                                                    method<&EventBinding::signal>("signal"),
                                                    method<&EventBinding::onReady>("onReady"),
                                                });
  Environment::of(env)->eventClass = Napi::Persistent(eventClass);
  exports.Set("Event", eventClass);
}

Napi::Object EventBinding::create(const Environment& environment, std::shared_ptr<Event> event) {
  const Napi::Object object = environment.eventClass.New({});
  Unwrap(object)->event_ = std::move(event);
  return object;
}

EventBinding& EventBinding::of(const Environment& environment, Napi::Value value) {
  const Napi::Object object = toObject(value, "event");
  if (!object.InstanceOf(environment.eventClass.Value())) {
    throw Napi::TypeError::New(value.Env(), "event must be a NativeEvent");
  }
  return *Unwrap(object);
}

EventBinding::EventBinding(const Napi::CallbackInfo& info)
    : Binding(info), event_(std::make_shared<Event>(Event::Source::kHost)) {}

Callback* EventBinding::addWaiter(Napi::Function function) {
  Callback* waiter = environment_->addCallback(function);
  if (event_->source() == Event::Source::kDevice || event_->done()) {
    environment_->hold(waiter);
  } else {
    waiters_.push_back(waiter);
  }
  return waiter;
}

Napi::Value EventBinding::done(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), event_->done());
}

Napi::Value EventBinding::signal(const Napi::CallbackInfo& info) {
  if (event_->source() == Event::Source::kDevice) {
    throw Error("INVALID_STATE", "this event is completed by its device, not by signal()");
  }
  if (signalled_) throw Error("INVALID_STATE", "the event was already signalled");
  signalled_ = true;
  if (!event_->done()) {  // otherwise it failed at shutdown, and the waiters were called
    for (Callback* waiter : waiters_) environment_->hold(waiter);
    event_->complete();
  }
  return info.Env().Undefined();
}

Napi::Value EventBinding::onReady(const Napi::CallbackInfo& info) {
  Callback* waiter = addWaiter(toFunction(info[0], "callback"));
  event_->onReady([environment = environment_.get(), waiter](std::exception_ptr error) {
    environment->post(
        [environment, waiter, error](Napi::Env) { environment->complete(waiter, error); });
  });
  return info.Env().Undefined();
}

}  // namespace uniproc
