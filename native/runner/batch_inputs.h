// A step's way from its staging set to the device: checked against what the slots hold, completed
// by what follows from it, copied in one piece.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/spec.h"
#include "runner/request_slots.h"
#include "runner/step_buffers.h"
#include "runtime/buffer.h"

namespace uniproc {

class BatchInputs {
 public:
  BatchInputs(Ops& ops, const ModelLimits& limits);

  // The step's batch on the device. Throws Error INVALID_STATE, naming the row, when the step goes
  // beyond the limits, the cache or what its slots hold; nothing has changed then. Counts the
  // step's block updates into the slots. Rows of slot -1 are added up to `numRows`, if that is more
  // than the step has; only a step whose rows compute one token each, and sample, may be so padded.
  Batch stage(Ops& ops, const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots,
              int32_t numCacheBlocks, int32_t numRows);

  // Of the step last staged, on the host: [numRows + 1], [numSampled].
  const int32_t* queryStarts(int32_t step) const { return host(step, kQueryStarts); }
  std::span<const int32_t> sampledSlots(int32_t step, int32_t numSampled) const {
    return {host(step, kSampledSlots), static_cast<size_t>(numSampled)};
  }
  // The same on the device.
  const int32_t* blockUpdates() const;
  const int32_t* lastTokens() const;    // [numSampled]: each sampled row's last token in the batch
  const int32_t* sampledSlots() const;  // [numSampled]
  // The indices start, start + 1, ... of tokens in the batch: a range to gather.
  const int32_t* tokensFrom(int32_t start) const { return allTokens_.as<int32_t>() + start; }

 private:
  // Arrays of maxNumSeqs entries (queryStarts has one more), one after the other in one buffer.
  enum Array : size_t { kSlots, kNumComputedTokens, kLastTokens, kSampledSlots, kQueryStarts };

  int32_t* host(int32_t step, size_t array) const;
  const int32_t* device(size_t array) const;
  // The parts of `stage`; each checks what it lays out.
  void countBlocks(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots,
                   int32_t numCacheBlocks);
  int32_t layRows(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots);
  void laySampled(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots);
  void pad(const StepLaunch& launch, int32_t numRows);

  const ModelLimits limits_;
  std::vector<HostBuffer> hosts_;  // [numSteps], as the steps in flight are still copied from
  Buffer device_;
  // What prepareInputs derives, [maxNumBatchedTokens] each.
  Buffer tokenIds_;
  Buffer positions_;
  Buffer cacheSlots_;
  Buffer tokenRows_;
  Buffer allTokens_;  // 0, 1, 2, ...
  // By slot: its blocks once the step being staged is through, and the last step it was in.
  std::vector<int32_t> numBlocks_;
  std::vector<uint64_t> lastStaged_;
  uint64_t numStaged_ = 0;
};

}  // namespace uniproc
