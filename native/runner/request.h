// A request as it enters a slot, and all that the native side accepts of one.
#pragma once

#include <cstdint>
#include <vector>

#include "model/spec.h"
#include "ops/ops.h"

namespace uniproc {

// NativeRequest of lib/native/index.ts. The lists of `sampling` are the vectors below it.
struct Request {
  std::vector<int32_t> tokenIds;  // the prompt, and what was generated before a preemption
  int32_t numPromptTokens = 0;
  std::vector<int32_t> blockIds;
  SamplingParams sampling;
  std::vector<int32_t> logitBiasTokenIds;
  std::vector<float> logitBiases;
  std::vector<int32_t> allowedTokenIds;
  std::vector<int32_t> badWordsTokenIds;
  std::vector<int32_t> badWordsEnds;
  std::vector<int32_t> stopTokenIds;
  // Byte in the list memory from which on its lists are the request's; -1: in the slot's own.
  int64_t listOffset = -1;

  // Of its lists on the device.
  size_t listBytes() const;
};

// What a request may be, every bound of it:
//
// - temperature, topP, minP, the penalties, logitBiases: any float32, NaN and infinities too. The
//   sampler says what it makes of them (Ops::sample).
// - topK, minTokens: any int32. seed: 64 bits.
// - numLogprobs, numPromptLogprobs: -1 to maxLogprobs.
// - tokenIds: 1 to maxModelLen token ids; numPromptTokens: 1 to their number.
// - logitBiasTokenIds: each id once, as many as logitBiases.
// - badWordsEnds: rising from 1 on, the last the number of badWordsTokenIds: a word has a token.
// - Every list of `sampling`: up to kMaxListLength entries, so that the bytes of all, and each
//   index, are far from int32's limits. Every token id: 0 to vocabSize - 1.
// - All lists together: up to kSlotListBytes, or with a listOffset up to the list memory's end.
// - listOffset: -1, or a multiple of kListAlignment.
//
// Block ids, and that no two requests have the same list memory, are the engine's choice, not the
// request's: RequestSlots checks the block ids.
struct RequestLimits {
  static constexpr int32_t kMaxListLength = 1 << 24;
  static constexpr int64_t kSlotListBytes = 4096;  // a thousand entries
  static constexpr int64_t kListAlignment = 256;
  static constexpr int64_t kMaxListMemory = int64_t{1} << 31;

  int32_t vocabSize = 0;
  int32_t maxModelLen = 0;
  int32_t maxLogprobs = 0;
  int64_t listMemoryBytes = 0;

  RequestLimits(const ModelSpec& spec, const ModelLimits& limits)
      : vocabSize(spec.vocabSize),
        maxModelLen(limits.maxModelLen),
        maxLogprobs(limits.maxLogprobs),
        listMemoryBytes(limits.listMemoryBytes) {}

  // Throws Error REQUEST_INVALID, naming the parameter, its value and what is allowed. Touches no
  // state: any thread may call. Goes over each list once.
  void check(const Request& request) const;

 private:
  void requireRoom(const Request& request) const;
};

}  // namespace uniproc
