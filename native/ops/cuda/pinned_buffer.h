// Pinned host memory that goes to and fro between a thread and the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "ops/cuda/event.h"

namespace uniproc::cuda {

class PinnedBuffer {
 public:
  // `what` names it should there be too little memory.
  PinnedBuffer(size_t bytes, const char* what);
  // Once the device has done with it.
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  size_t bytes() const { return bytes_; }

  // The device has it until all that is on the stream so far has run.
  void lend(cudaStream_t stream);
  // Whether the device has done with it.
  bool isBack() const;
  // The memory, once it has.
  std::byte* take() const;

 private:
  const size_t bytes_;
  const CudaEvent done_{CudaEvent::Timing::kNo};
  std::byte* const memory_;
};

}  // namespace uniproc::cuda
