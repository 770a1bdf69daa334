// Small copies from host memory of any kind to a busy device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <deque>
#include <memory>
#include <span>

#include "ops/cuda/pinned_buffer.h"
#include "ops/ops.h"

namespace uniproc::cuda {

// Makes several copies as one: packs their bytes into a pinned buffer, from which one kernel
// scatters them over the bus. An event after the kernel marks the buffer reusable. Buffers complete
// in order, so only the oldest is polled; if it is in flight, another buffer is added, up to a
// limit. If the host has no memory for another or a larger buffer, existing ones are reused: one
// buffer suffices.
class Staging {
 public:
  explicit Staging(cudaStream_t stream);

  // Ops::copyAllToDevice. Waits for the device only if all buffers are in flight.
  void copy(std::span<const HostToDevice> copies);

 private:
  std::unique_ptr<PinnedBuffer> idleBuffer(size_t bytes);
  std::unique_ptr<PinnedBuffer> waitForOldest();
  void copyParts(std::span<const HostToDevice> copies, std::unique_ptr<PinnedBuffer> buffer);

  const cudaStream_t stream_;
  std::deque<std::unique_ptr<PinnedBuffer>> inFlight_;  // in order of use
};

}  // namespace uniproc::cuda
