// The requests on the device, each in a slot for as long as it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/spec.h"
#include "runner/request.h"
#include "runtime/buffer.h"

namespace uniproc {

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

  // In place of the request that was there, if any; without waiting for the device, and without
  // allocating there. Throws Error REQUEST_INVALID as RequestLimits::check, or INVALID_STATE when
  // it names a block that is not there or too many: the slot is free then, and takes the next
  // request as if nothing had been.
  void add(Ops& ops, int32_t slot, const Request& request, int32_t numCacheBlocks);
  void remove(int32_t slot);
  // The cache is gone, and what the block tables point to with it.
  void forgetBlocks();

  // Throws Error INVALID_STATE when there is no such slot.
  Slot& at(int32_t slot);
  const RequestTable& table() const { return table_; }

 private:
  void checkBlocks(const std::vector<int32_t>& blockIds, int32_t numCacheBlocks) const;
  SamplingParams layLists(int32_t slot, const Request& request,
                          std::vector<HostToDevice>& copies) const;

  const RequestLimits limits_;
  std::vector<Slot> slots_;
  Buffer tokenIds_;
  Buffer numTokens_;
  Buffer numPromptTokens_;
  Buffer blockTable_;
  Buffer sampling_;
  Buffer slotLists_;   // [maxNumSeqs, kSlotListBytes]
  Buffer listMemory_;  // of requests whose lists do not fit there, each from its listOffset on
  RequestTable table_;
};

}  // namespace uniproc
