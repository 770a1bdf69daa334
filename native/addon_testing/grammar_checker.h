// A grammar's automaton on the calling thread.
#pragma once

#include <napi.h>

#include <memory>

#include "grammar/automaton.h"

namespace uniproc {

// GrammarChecker(bytes, offsets, vocabSize, program), as the arguments of setVocabulary and
// addGrammar. The text is empty at first.
class GrammarChecker : public Napi::ObjectWrap<GrammarChecker> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit GrammarChecker(const Napi::CallbackInfo& info);

 private:
  // reset(): empties the text.
  Napi::Value reset(const Napi::CallbackInfo& info);
  // append(bytes): appends to the text; returns whether the grammar may continue it or end there.
  Napi::Value append(const Napi::CallbackInfo& info);
  // accepts(): whether the text may end.
  Napi::Value accepts(const Napi::CallbackInfo& info);
  // mask(): the tokens that may follow; plainMask(): the same by trying each token alone.
  Napi::Value mask(const Napi::CallbackInfo& info);
  Napi::Value plainMask(const Napi::CallbackInfo& info);

  std::shared_ptr<const GrammarVocabulary> vocabulary_;
  std::unique_ptr<GrammarAutomaton> automaton_;
  int32_t state_ = GrammarAutomaton::kDead;
};

}  // namespace uniproc
