// A request as it enters a slot, and the bounds that the native side checks.
#pragma once

#include <cstdint>
#include <vector>

#include "model/spec.h"
#include "ops/ops.h"

namespace uniproc {

// NativeRequest of lib/native/index.ts. The lists of `sampling` are the vectors below it.
struct Request {
  std::vector<int32_t> tokenIds;  // prompt, and tokens generated before a preemption
  int32_t numPromptTokens = 0;
  // [numBlocks, numGroups]; kNoBlock where no query reads the group's block.
  std::vector<int32_t> blockIds;
  static constexpr int32_t kNoBlock = -1;
  SamplingParams sampling;
  std::vector<int32_t> logitBiasTokenIds;
  std::vector<float> logitBiases;
  std::vector<int32_t> allowedTokenIds;
  std::vector<int32_t> badWordsTokenIds;
  std::vector<int32_t> badWordsEnds;
  std::vector<int32_t> stopTokenIds;
  // Byte offset of the request's lists in the list memory; -1: they are in the slot's own memory.
  int64_t listOffset = -1;

  // Bytes of its lists on the device.
  size_t listBytes() const;
};

// The bounds of a request:
//
// - temperature, topP, minP, the penalties, logitBiases: any float32, including NaN and infinities
//   (SamplingOps::sample defines their effect).
// - topK, minTokens: any int32. seed: 64 bits.
// - numLogprobs, numPromptLogprobs: -1 to maxLogprobs.
// - tokenIds: 1 to maxModelLen token ids; numPromptTokens: 1 to their number.
// - logitBiasTokenIds: unique ids, as many as logitBiases.
// - badWordsEnds: strictly ascending from 1; the last equals the number of badWordsTokenIds.
// - Every list of `sampling`: up to kMaxListLength entries, so that total bytes and indices stay
// far
//   below int32's limit. Every token id: 0 to vocabSize - 1.
// - All lists together: up to kSlotListBytes, or with a listOffset up to the list memory's end.
// - listOffset: -1, or a multiple of kListAlignment.
//
// The engine, not the request, chooses block ids and disjoint list memory; RequestSlots checks the
// block ids.
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

  // Throws Error REQUEST_INVALID, which names the parameter, its value and the allowed range.
  // Stateless, so callable on any thread. Scans each list once.
  void check(const Request& request) const;

 private:
  void requireListMemory(const Request& request) const;
};

}  // namespace uniproc
