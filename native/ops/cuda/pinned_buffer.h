// Pinned host memory that a host thread and the device use in turn.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "ops/cuda/event.h"

namespace uniproc::cuda {

class PinnedBuffer {
 public:
  // The Error OUT_OF_MEMORY names `what`.
  PinnedBuffer(size_t bytes, const char* what);
  // Waits until the device no longer uses the memory.
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  size_t bytes() const { return bytes_; }

  // Records that the device uses the memory until all current work on the stream has run.
  void recordUse(cudaStream_t stream);
  // Whether the device no longer uses the memory.
  bool isComplete() const;
  // Waits until `isComplete`; returns the memory.
  std::byte* acquire() const;

 private:
  const size_t bytes_;
  const CudaEvent done_{CudaEvent::Timing::kNo};
  std::byte* const memory_;
};

}  // namespace uniproc::cuda
