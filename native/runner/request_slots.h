// The requests on the device, each in a slot while it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/buffer.h"
#include "model/spec.h"
#include "runner/request.h"

namespace uniproc {

class RequestSlots {
 public:
  // The host's copy of a slot's state. Includes tokens sampled by all steps launched so far.
  struct Slot {
    bool taken = false;
    bool hasRun = false;  // some step computed tokens of the request
    int32_t numTokens = 0;
    int32_t numPromptTokens = 0;
    int32_t numBlocks = 0;  // in the block table of each group of layers
    int32_t numPromptLogprobs = -1;
    SampledFeatures features;
  };

  RequestSlots(Ops& ops, const ModelSpec& spec, const ModelLimits& limits);

  // Replaces the slot's request, if any; neither waits for the device nor allocates on it. Throws
  // Error REQUEST_INVALID, as RequestLimits::check, or INVALID_STATE for an invalid block or too
  // many; then the slot is free and usable.
  void add(Ops& ops, int32_t slot, const Request& request, int32_t numCacheBlocks);
  void remove(int32_t slot);
  // Clears the block tables after the cache was released.
  void forgetBlocks();

  // Throws Error INVALID_STATE if the slot does not exist.
  Slot& at(int32_t slot);
  const RequestTable& table() const { return table_; }

 private:
  void checkNumBlocks(const std::vector<int32_t>& blockIds) const;
  SamplingParams writeLists(int32_t slot, const Request& request,
                            std::vector<HostToDevice>& copies) const;

  // [numBlocks]: the entries of a group's block table.
  std::vector<int32_t> blocksOfGroup(const std::vector<int32_t>& blockIds, int32_t group,
                                     int32_t numCacheBlocks) const;

  const RequestLimits limits_;
  std::vector<Slot> slots_;
  Buffer tokenIds_;
  Buffer numTokens_;
  Buffer numPromptTokens_;
  Buffer blockTable_;
  Buffer sampling_;
  Buffer slotLists_;   // [maxNumSeqs, kSlotListBytes]
  Buffer listMemory_;  // lists that exceed a slot's memory, each at its listOffset
  RequestTable table_;
};

}  // namespace uniproc
