#include "runner/step_buffers.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace uniproc {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kPage = 4096;

constexpr size_t roundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

void StepBuffers::Free::operator()(std::byte* memory) const noexcept { std::free(memory); }

StepBuffers::StepBuffers(const ModelLimits& limits, int32_t pooledWidth) {
  const size_t rows = limits.maxNumSeqs;
  const size_t tokens = limits.maxNumBatchedTokens;
  const size_t width = 1 + limits.maxLogprobs;

  // Runs the same list twice: first to count the bytes, then to set the pointers.
  const auto layOut = [&] {
    size_t offset = 0;
    const auto lay = [&]<typename T>(std::span<T>& array, size_t size) {
      if (memory_) array = {reinterpret_cast<T*>(memory_.get() + offset), size};
      offset = roundUp(offset + size * sizeof(T), kCacheLine);
    };
    lay(slots, rows);
    lay(numComputedTokens, rows);
    lay(numScheduledTokens, rows);
    lay(blockUpdates, size_t{3} * limits.maxBlockUpdates());
    lay(sampledRows, rows);
    lay(promptLogprobRows, rows);
    std::span<int32_t> sampled;
    lay(sampled, 2 * rows);
    if (memory_) {
      sampledTokenIds = sampled.first(rows);
      numNans = sampled.subspan(rows);
    }
    lay(logprobTokenIds, rows * width);
    lay(logprobs, rows * width);
    lay(logprobRanks, rows);
    lay(promptLogprobTokenIds, tokens * width);
    lay(promptLogprobs, tokens * width);
    lay(promptLogprobRanks, tokens);
    lay(promptNumNans, tokens);
    lay(pooledSizes, pooledWidth > 0 ? rows : 0);
    lay(pooled, rows * pooledWidth);
    return roundUp(offset, kPage);
  };
  bytes_ = layOut();
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, bytes_)));
  if (!memory_) throw std::bad_alloc();
  std::memset(memory_.get(), 0, bytes_);
  layOut();
}

}  // namespace uniproc
