// The requests on the device, each in a slot for as long as it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/spec.h"
#include "runtime/buffer.h"

namespace uniproc {

// A request's state as it enters a slot; NativeRequest of lib/native/index.ts. The lists of
// `sampling` are the vectors below it.
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
};

class RequestSlots {
 public:
  // What the host knows of a slot. Tokens sampled by steps launched so far are counted in.
  struct Slot {
    bool taken = false;
    int32_t numTokens = 0;
    int32_t numPromptTokens = 0;
    int32_t numBlocks = 0;
    int32_t numLogprobs = -1;
    int32_t numPromptLogprobs = -1;
  };

  RequestSlots(Ops& ops, const ModelSpec& spec, const ModelLimits& limits);

  // In place of the request that was there, if any; without waiting for the device, unless
  // its lists are longer than any in the slot before. Throws Error INVALID_STATE, the slot then
  // being free, when the request does not fit the limits or names a token or block that is not
  // there.
  void add(Ops& ops, int32_t slot, const Request& request, int32_t numCacheBlocks);
  void remove(int32_t slot);
  // The cache is gone, and what the block tables point to with it.
  void forgetBlocks();

  // Throws Error INVALID_STATE when there is no such slot.
  Slot& at(int32_t slot);
  const RequestTable& table() const { return table_; }

 private:
  void check(const Request& request, int32_t numCacheBlocks) const;
  SamplingParams layLists(Ops& ops, int32_t slot, const Request& request,
                          std::vector<HostToDevice>& copies);
  std::byte* listMemory(Ops& ops, int32_t slot, size_t bytes);

  const int32_t vocabSize_;
  const int32_t maxLogprobs_;
  std::vector<Slot> slots_;
  Buffer tokenIds_;
  Buffer numTokens_;
  Buffer numPromptTokens_;
  Buffer blockTable_;
  Buffer sampling_;
  Buffer lists_;                   // of each slot in turn
  std::vector<Buffer> longLists_;  // by slot: of requests whose lists do not fit there
  RequestTable table_;
};

}  // namespace uniproc
