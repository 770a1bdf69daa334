#include "runner/request.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace uniproc {
namespace {

[[noreturn]] void throwInvalid(const std::string& message) {
  throw Error("REQUEST_INVALID", message);
}

void requireLogprobs(const char* name, int32_t value, int32_t most) {
  if (value >= -1 && value <= most) return;
  throwInvalid(name + std::string(" is ") + std::to_string(value) +
               "; it must be from -1 (none) to maxLogprobs, " + std::to_string(most));
}

template <typename T>
void requireLength(const char* name, const std::vector<T>& values) {
  const int64_t most = RequestLimits::kMaxListLength;
  if (static_cast<int64_t>(values.size()) <= most) return;
  throwInvalid(std::string(name) + " has " + std::to_string(values.size()) +
               " entries; the maximum is " + std::to_string(most));
}

// Requires values in [0, vocabSize).
void requireTokens(const char* name, const std::vector<int32_t>& values, int32_t vocabSize) {
  uint32_t largest = 0;  // a loop without branches, as it may scan a whole prompt
  for (const int32_t value : values) largest = std::max(largest, static_cast<uint32_t>(value));
  if (values.empty() || largest < static_cast<uint32_t>(vocabSize)) return;
  const auto first = std::find_if(values.begin(), values.end(),
                                  [&](int32_t value) { return value < 0 || value >= vocabSize; });
  throwInvalid(std::string(name) + "[" + std::to_string(first - values.begin()) + "] names token " +
               std::to_string(*first) + "; the vocabulary size is " + std::to_string(vocabSize));
}

// Requires unique values; they must be within the vocabulary.
void requireUnique(const char* name, const std::vector<int32_t>& values, int32_t vocabSize) {
  if (values.size() < 2) return;
  std::vector<bool> isNamed(static_cast<size_t>(vocabSize));
  for (const int32_t value : values) {
    if (isNamed[value]) {
      throwInvalid(std::string(name) + " names token " + std::to_string(value) + " twice");
    }
    isNamed[value] = true;
  }
}

template <typename T>
size_t bytesOf(const std::vector<T>& values) {
  return values.size() * sizeof(T);
}

}  // namespace

size_t Request::listBytes() const {
  return bytesOf(logitBiasTokenIds) + bytesOf(logitBiases) + bytesOf(allowedTokenIds) +
         bytesOf(badWordsTokenIds) + bytesOf(badWordsEnds) + bytesOf(stopTokenIds);
}

void RequestLimits::check(const Request& request) const {
  const auto numTokens = static_cast<int64_t>(request.tokenIds.size());
  if (numTokens > maxModelLen) {
    throwInvalid("a request has " + std::to_string(numTokens) + " tokens; maxModelLen is " +
                 std::to_string(maxModelLen));
  }
  if (request.numPromptTokens < 1 || request.numPromptTokens > numTokens) {
    throwInvalid("a request of " + std::to_string(numTokens) + " tokens has a prompt of " +
                 std::to_string(request.numPromptTokens));
  }
  requireTokens("tokenIds", request.tokenIds, vocabSize);
  requireLogprobs("numLogprobs", request.sampling.numLogprobs, maxLogprobs);
  requireLogprobs("numPromptLogprobs", request.sampling.numPromptLogprobs, maxLogprobs);

  const auto requireList = [this](const char* name, const std::vector<int32_t>& tokenIds) {
    requireLength(name, tokenIds);
    requireTokens(name, tokenIds, vocabSize);
  };
  requireList("logitBiasTokenIds", request.logitBiasTokenIds);
  requireList("allowedTokenIds", request.allowedTokenIds);
  requireList("badWordsTokenIds", request.badWordsTokenIds);
  requireList("stopTokenIds", request.stopTokenIds);
  requireUnique("logitBiasTokenIds", request.logitBiasTokenIds, vocabSize);
  if (request.logitBiases.size() != request.logitBiasTokenIds.size()) {
    throwInvalid("a request has " + std::to_string(request.logitBiases.size()) +
                 " logit biases for " + std::to_string(request.logitBiasTokenIds.size()) +
                 " tokens");
  }
  requireLength("badWordsEnds", request.badWordsEnds);
  int32_t end = 0;
  for (size_t i = 0; i < request.badWordsEnds.size(); ++i) {
    if (request.badWordsEnds[i] <= end) {
      throwInvalid("bad word " + std::to_string(i) + " of a request has no token");
    }
    end = request.badWordsEnds[i];
  }
  if (static_cast<size_t>(end) != request.badWordsTokenIds.size()) {
    throwInvalid("a request's bad words end at " + std::to_string(end) + " of " +
                 std::to_string(request.badWordsTokenIds.size()) + " tokens");
  }
  requireListMemory(request);
}

void RequestLimits::requireListMemory(const Request& request) const {
  const int64_t offset = request.listOffset;
  if (offset < -1 || offset > listMemoryBytes || (offset >= 0 && offset % kListAlignment != 0)) {
    throwInvalid("a request's listOffset is " + std::to_string(offset) + "; it must be -1 or a " +
                 "multiple of " + std::to_string(kListAlignment) + " up to " +
                 std::to_string(listMemoryBytes));
  }
  const int64_t room = offset < 0 ? kSlotListBytes : listMemoryBytes - offset;
  const auto bytes = static_cast<int64_t>(request.listBytes());
  if (bytes <= room) return;
  throwInvalid("a request's lists (allowed token ids, biases, bad words, stop token ids) take " +
               std::to_string(bytes) + " bytes; " + std::to_string(room) +
               " are available for them");
}

}  // namespace uniproc
