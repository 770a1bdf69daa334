#pragma once

#include <napi.h>

#include <memory>

#include "addon/binding.h"
#include "runtime/output_thread.h"

namespace uniproc {

// NativeOutputThread of lib/native/index.ts.
class OutputThreadBinding : public Binding<OutputThreadBinding> {
 public:
  static void define(Napi::Env env, Napi::Object exports);

  explicit OutputThreadBinding(const Napi::CallbackInfo& info);
  ~OutputThreadBinding() override;

 private:
  Napi::Value submit(const Napi::CallbackInfo& info);
  Napi::Value shutdown(const Napi::CallbackInfo& info);

  std::shared_ptr<OutputThread> thread_;
};

}  // namespace uniproc
