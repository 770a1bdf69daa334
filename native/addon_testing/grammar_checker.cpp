#include "addon_testing/grammar_checker.h"

#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "addon/environment.h"
#include "addon/model_values.h"
#include "addon/values.h"

namespace uniproc {
namespace {

Napi::Value fromMask(Napi::Env env, std::span<const uint32_t> mask) {
  auto words = Napi::Int32Array::New(env, mask.size());
  std::memcpy(words.Data(), mask.data(), mask.size_bytes());
  return words;
}

}  // namespace

Napi::Function GrammarChecker::define(Napi::Env env) {
  return DefineClass(env, "GrammarChecker",
                     {
                         InstanceMethod<&GrammarChecker::reset>("reset"),
                         InstanceMethod<&GrammarChecker::append>("append"),
                         InstanceMethod<&GrammarChecker::accepts>("accepts"),
                         InstanceMethod<&GrammarChecker::mask>("mask"),
                         InstanceMethod<&GrammarChecker::plainMask>("plainMask"),
                     });
}

GrammarChecker::GrammarChecker(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  withTypedErrors(info.Env(), [&] {
    const auto bytes = info[0].As<Napi::Uint8Array>();
    const auto offsets = info[1].As<Napi::Uint32Array>();
    vocabulary_ = std::make_shared<const GrammarVocabulary>(
        std::vector<uint8_t>(bytes.Data(), bytes.Data() + bytes.ElementLength()),
        std::vector<uint32_t>(offsets.Data(), offsets.Data() + offsets.ElementLength()),
        toInt32(info[2], "vocabSize"));
    automaton_ = std::make_unique<GrammarAutomaton>(
        std::make_shared<const GrammarProgram>(toInt32Vector(info[3], "program")), vocabulary_);
    state_ = automaton_->start();
  });
}

Napi::Value GrammarChecker::reset(const Napi::CallbackInfo& info) {
  state_ = automaton_->start();
  return info.Env().Undefined();
}

Napi::Value GrammarChecker::append(const Napi::CallbackInfo& info) {
  return withTypedErrors(info.Env(), [&] {
    const auto bytes = info[0].As<Napi::Uint8Array>();
    if (state_ != GrammarAutomaton::kDead) {
      state_ = automaton_->advance(
          state_, {reinterpret_cast<const char*>(bytes.Data()), bytes.ElementLength()});
    }
    return Napi::Boolean::New(info.Env(), state_ != GrammarAutomaton::kDead);
  });
}

Napi::Value GrammarChecker::accepts(const Napi::CallbackInfo& info) {
  const bool accepts = state_ != GrammarAutomaton::kDead && automaton_->accepts(state_);
  return Napi::Boolean::New(info.Env(), accepts);
}

Napi::Value GrammarChecker::mask(const Napi::CallbackInfo& info) {
  return withTypedErrors(info.Env(),
                         [&] { return fromMask(info.Env(), automaton_->mask(state_)); });
}

Napi::Value GrammarChecker::plainMask(const Napi::CallbackInfo& info) {
  return withTypedErrors(info.Env(),
                         [&] { return fromMask(info.Env(), automaton_->plainMask(state_)); });
}

}  // namespace uniproc
