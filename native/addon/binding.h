// Common base of the N-API classes.
#pragma once

#include <napi.h>

#include <memory>

#include "addon/environment.h"

namespace uniproc {

template <typename Class>
class Binding : public Napi::ObjectWrap<Class> {
 public:
  explicit Binding(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<Class>(info), environment_(Environment::of(info.Env())) {}

 protected:
  // A method; exceptions of native code become typed JavaScript errors.
  template <Napi::Value (Class::*body)(const Napi::CallbackInfo&)>
  static Napi::ClassPropertyDescriptor<Class> method(const char* name) {
    return Binding::InstanceMethod(name, &Binding::template withTypedErrorsOf<body>);
  }

  // Returns the promise of the shutdown that the first call starts with `start`.
  template <typename Start>
  Napi::Value shutdownOnce(const Start& start) {
    if (shutdown_.IsEmpty()) {
      const Napi::Promise promise = start();
      shutdown_ = Napi::Persistent(promise.As<Napi::Object>());
    }
    return shutdown_.Value();
  }
  bool isShutDown() const { return !shutdown_.IsEmpty(); }

  const std::shared_ptr<Environment> environment_;

 private:
  template <Napi::Value (Class::*body)(const Napi::CallbackInfo&)>
  Napi::Value withTypedErrorsOf(const Napi::CallbackInfo& info) {
    return withTypedErrors(info.Env(), [&] { return (static_cast<Class*>(this)->*body)(info); });
  }

  Napi::ObjectReference shutdown_;
};

}  // namespace uniproc
