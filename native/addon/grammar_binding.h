#pragma once

#include <napi.h>

#include <memory>

#include "addon/binding.h"
#include "runtime/grammar_thread.h"

namespace uniproc {

// NativeGrammarThread of lib/native/grammarThread.ts.
class GrammarThreadBinding : public Binding<GrammarThreadBinding> {
 public:
  static void define(Napi::Env env, Napi::Object exports);

  explicit GrammarThreadBinding(const Napi::CallbackInfo& info);
  ~GrammarThreadBinding() override;

 private:
  Napi::Value setVocabulary(const Napi::CallbackInfo& info);
  Napi::Value addGrammar(const Napi::CallbackInfo& info);
  Napi::Value removeGrammar(const Napi::CallbackInfo& info);
  Napi::Value addMatcher(const Napi::CallbackInfo& info);
  Napi::Value removeMatcher(const Napi::CallbackInfo& info);
  Napi::Value fill(const Napi::CallbackInfo& info);
  Napi::Value shutdown(const Napi::CallbackInfo& info);

  Napi::Promise promise(GrammarThread::Work work, Environment::Result result = nullptr);

  std::shared_ptr<GrammarThread> thread_;
};

}  // namespace uniproc
