// Prepares a step's batch: checks the step buffers against the slots and computes derived arrays,
// which are copied to the device at once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/buffer.h"
#include "model/spec.h"
#include "runner/request_slots.h"
#include "runner/step_buffers.h"

namespace uniproc {

class BatchInputs {
 public:
  BatchInputs(Ops& ops, const ModelLimits& limits);

  // Returns the step's batch on the device, where it is once `copy` was made. Throws Error
  // INVALID_STATE, which names the row, if the step exceeds the limits, the cache or its slots;
  // then nothing has changed. Adds the step's block updates to the slots. Pads the batch with rows
  // of slot -1 up to `numRows`; only a step that computes and samples one token per row may be
  // padded.
  Batch prepare(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots,
                int32_t numCacheBlocks, int32_t numRows);

  // The copy of the last prepared step's arrays, for Ops::prepareInputs.
  const HostToDevice& copy() const { return copy_; }

  // Whether the step's batch will have Batch::isDecode. A row may read blocks that other rows of
  // this step write only in its first step, or when the step replaces one of its blocks: the
  // scheduler shares a block as soon as it schedules the step that fills it.
  static bool isDecode(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots);
  // Whether it will have Batch::hasFewKeys if padded to numRows.
  static bool hasFewKeys(const StepBuffers& step, const StepLaunch& launch, int32_t numRows);

  // The last prepared step on the host: [numRows + 1], [numSampled].
  const int32_t* queryStarts(int32_t step) const { return host(step, kQueryStarts); }
  std::span<const int32_t> sampledSlots(int32_t step, int32_t numSampled) const {
    return {host(step, kSampledSlots), static_cast<size_t>(numSampled)};
  }
  // The same on the device.
  const int32_t* blockUpdates() const;
  const int32_t* lastTokens() const;    // [numSampled]: each sampled row's last token in the batch
  const int32_t* sampledSlots() const;  // [numSampled]
  // Token indices start, start + 1, ... in the batch, for gathering a range.
  const int32_t* tokensFrom(int32_t start) const { return allTokens_.as<int32_t>() + start; }

 private:
  // Arrays of maxNumSeqs entries (queryStarts has one more), concatenated in one buffer.
  enum Array : size_t { kSlots, kNumComputedTokens, kLastTokens, kSampledSlots, kQueryStarts };

  int32_t* host(int32_t step, size_t array) const;
  const int32_t* device(size_t array) const;
  // The steps of `prepare`; each checks what it fills.
  void countBlocks(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots,
                   int32_t numCacheBlocks);
  // The slot's blocks after the step being prepared: the fewest of all groups.
  int32_t numBlocks(int32_t slot) const;
  int32_t fillRows(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots);
  void fillSampled(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots);
  void pad(const StepLaunch& launch, int32_t numRows);

  const ModelLimits limits_;
  std::vector<HostBuffer> hosts_;  // [numSteps], because steps in flight still read theirs
  Buffer device_;
  HostToDevice copy_;
  // Outputs of prepareInputs, [maxNumBatchedTokens] each.
  Buffer tokenIds_;
  Buffer positions_;
  Buffer cacheSlots_;  // of each group of layers
  Buffer allTokens_;   // 0, 1, 2, ...
  // By slot: the last step that contained it; in each group of layers, its blocks after the step
  // being prepared.
  std::vector<int32_t> numBlocks_;  // [numGroups, maxNumSeqs]
  std::vector<uint64_t> lastPrepared_;
  uint64_t numPrepared_ = 0;
};

}  // namespace uniproc
