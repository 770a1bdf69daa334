// One batch's memory shared with JavaScript; StepBuffers of lib/native/index.ts, which gives the
// shapes. JavaScript writes the inputs before it launches a step and reads the outputs after the
// step's event; in between, the device's thread owns them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "model/spec.h"

namespace uniproc {

// The scalar arguments of a step.
struct StepLaunch {
  int32_t step = 0;
  int32_t numRows = 0;
  int32_t numBlockUpdates = 0;
  int32_t numSampled = 0;
  int32_t numPromptLogprobRows = 0;
  bool awaitsBitmask = true;  // `sample` may get a bitmask
};

class StepBuffers {
 public:
  // `pooledWidth`: elements of an embedding; 0 for a model that samples.
  explicit StepBuffers(const ModelLimits& limits, int32_t pooledWidth = 0);
  StepBuffers(const StepBuffers&) = delete;
  StepBuffers& operator=(const StepBuffers&) = delete;

  std::span<int32_t> slots;
  std::span<int32_t> numComputedTokens;
  std::span<int32_t> numScheduledTokens;
  std::span<int32_t> blockUpdates;
  std::span<int32_t> sampledRows;
  std::span<int32_t> promptLogprobRows;

  // Adjacent, so that one copy from the device fills both.
  std::span<int32_t> sampledTokenIds;
  std::span<int32_t> numNans;
  std::span<int32_t> logprobTokenIds;
  std::span<float> logprobs;
  std::span<int32_t> logprobRanks;
  std::span<int32_t> promptLogprobTokenIds;
  std::span<float> promptLogprobs;
  std::span<int32_t> promptLogprobRanks;
  std::span<int32_t> promptNumNans;
  std::span<int32_t> pooledSizes;
  std::span<float> pooled;

  // All arrays above are in this one piece of memory.
  std::byte* data() const { return memory_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept;
  };

  size_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> memory_;
};

}  // namespace uniproc
