#include "addon/grammar_binding.h"

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "addon/model_values.h"
#include "addon/values.h"
#include "base/error.h"

namespace uniproc {
namespace {

template <typename T>
std::vector<T> toUnsigned(Napi::Value value, napi_typedarray_type type, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a typed array");
  }
  const auto array = value.As<Napi::TypedArrayOf<T>>();
  return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}

}  // namespace

void GrammarThreadBinding::define(Napi::Env env, Napi::Object exports) {
  exports.Set("GrammarThread",
              DefineClass(env, "GrammarThread",
                          {
                              method<&GrammarThreadBinding::setVocabulary>("setVocabulary"),
                              method<&GrammarThreadBinding::addGrammar>("addGrammar"),
                              method<&GrammarThreadBinding::removeGrammar>("removeGrammar"),
                              method<&GrammarThreadBinding::addMatcher>("addMatcher"),
                              method<&GrammarThreadBinding::removeMatcher>("removeMatcher"),
                              method<&GrammarThreadBinding::fill>("fill"),
                              method<&GrammarThreadBinding::shutdown>("shutdown"),
                          }));
}

GrammarThreadBinding::GrammarThreadBinding(const Napi::CallbackInfo& info) : Binding(info) {
  withTypedErrors(info.Env(), [&] {
    thread_ = std::make_shared<GrammarThread>(toString(info[0], "name"));
    environment_->addThread(thread_);
  });
}

GrammarThreadBinding::~GrammarThreadBinding() {
  if (thread_ && !isShutDown()) environment_->retire(thread_);
}

Napi::Promise GrammarThreadBinding::promise(GrammarThread::Work work, Environment::Result result) {
  const auto start = [&](Environment::Settle settle) {
    thread_->enqueue(std::move(work), std::move(settle));
  };
  return environment_->promise(start, std::move(result));
}

Napi::Value GrammarThreadBinding::setVocabulary(const Napi::CallbackInfo& info) {
  auto bytes = toUnsigned<uint8_t>(info[0], napi_uint8_array, "bytes");
  auto offsets = toUnsigned<uint32_t>(info[1], napi_uint32_array, "offsets");
  const int32_t vocabSize = toInt32(info[2], "vocabSize");
  return promise([bytes = std::move(bytes), offsets = std::move(offsets),
                  vocabSize](GrammarMatchers& matchers) mutable {
    matchers.setVocabulary(
        std::make_shared<const GrammarVocabulary>(std::move(bytes), std::move(offsets), vocabSize));
  });
}

Napi::Value GrammarThreadBinding::addGrammar(const Napi::CallbackInfo& info) {
  const int32_t id = toInt32(info[0], "id");
  return promise([id, program = toInt32Vector(info[1], "program")](GrammarMatchers& matchers) {
    matchers.addGrammar(id, program);
  });
}

Napi::Value GrammarThreadBinding::removeGrammar(const Napi::CallbackInfo& info) {
  const int32_t id = toInt32(info[0], "id");
  thread_->enqueue([id](GrammarMatchers& matchers) { matchers.removeGrammar(id); });
  return info.Env().Undefined();
}

Napi::Value GrammarThreadBinding::addMatcher(const Napi::CallbackInfo& info) {
  const int32_t id = toInt32(info[0], "id");
  const int32_t grammar = toInt32(info[1], "grammar");
  thread_->enqueue(
      [id, grammar, stopTokens = toInt32Vector(info[2], "stopTokenIds"),
       allowed = toInt32Vector(info[3], "allowedTokenIds")](GrammarMatchers& matchers) {
        matchers.addMatcher(id, grammar, stopTokens, allowed);
      });
  return info.Env().Undefined();
}

Napi::Value GrammarThreadBinding::removeMatcher(const Napi::CallbackInfo& info) {
  const int32_t id = toInt32(info[0], "id");
  thread_->enqueue([id](GrammarMatchers& matchers) { matchers.removeMatcher(id); });
  return info.Env().Undefined();
}

// fill(matcherIds [n], offsets [n + 1], tokens, mask [n, maskWords], statuses [n]): appends tokens
// [offsets[i], offsets[i + 1]) to text i and writes its mask and status. The two outputs must not
// be read until the promise resolves.
Napi::Value GrammarThreadBinding::fill(const Napi::CallbackInfo& info) {
  auto ids = toInt32Vector(info[0], "matcherIds");
  auto offsets = toInt32Vector(info[1], "offsets");
  auto tokens = toInt32Vector(info[2], "tokens");
  for (size_t i = 3; i < 5; ++i) {
    if (!info[i].IsTypedArray() ||
        info[i].As<Napi::TypedArray>().TypedArrayType() != napi_int32_array) {
      throw Napi::TypeError::New(info.Env(), "mask and statuses must be Int32Arrays");
    }
  }
  auto mask = info[3].As<Napi::Int32Array>();
  auto statuses = info[4].As<Napi::Int32Array>();
  const std::span<int32_t> maskOut(mask.Data(), mask.ElementLength());
  const std::span<int32_t> statusOut(statuses.Data(), statuses.ElementLength());
  bool isValid = offsets.size() == ids.size() + 1 && statusOut.size() == ids.size() &&
                 offsets[0] == 0 && static_cast<size_t>(offsets.back()) == tokens.size();
  for (size_t i = 0; isValid && i < ids.size(); ++i) isValid = offsets[i] <= offsets[i + 1];
  if (!isValid) throw Error("INVALID_STATE", "fill: the lists do not have one entry per matcher");

  auto work = [ids = std::move(ids), offsets = std::move(offsets), tokens = std::move(tokens),
               maskOut, statusOut](GrammarMatchers& matchers) {
    const size_t words = matchers.maskWords();
    if (maskOut.size() != words * ids.size()) {
      throw Error("INVALID_STATE", "fill: the mask does not have a row per matcher");
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto first = static_cast<size_t>(offsets[i]);
      const auto count = static_cast<size_t>(offsets[i + 1]) - first;
      statusOut[i] = static_cast<int32_t>(matchers.matcher(ids[i]).fill(
          std::span(tokens).subspan(first, count), maskOut.subspan(i * words, words)));
    }
  };
  return promise(std::move(work));
}

Napi::Value GrammarThreadBinding::shutdown(const Napi::CallbackInfo&) {
  return shutdownOnce([this] {
    return environment_->promise(
        [this](Environment::Settle settle) { environment_->retire(thread_, settle); });
  });
}

}  // namespace uniproc
