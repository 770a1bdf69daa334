// The way of small things from host memory of any kind to the device, while it is busy.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <deque>
#include <memory>
#include <span>

#include "ops/cuda/pinned_buffer.h"
#include "ops/ops.h"

namespace uniproc::cuda {

// Several copies as one: their bytes are packed into a piece of pinned memory, which one kernel
// reads over the bus and puts where they belong. The event behind the kernel tells when the piece
// may be used again: the first to be lent is the first to be read, so that only the first in the
// row is ever asked. There are as many as some steps take; pieces are added where the first is
// still to be read, up to a limit. Where the host has no memory for another, or for one as large,
// those there are serve: a copy needs no more than the first ones.
class Staging {
 public:
  explicit Staging(cudaStream_t stream);

  // Ops::copyAllToDevice. Waits for the device only where it has all the pieces there may be.
  void copy(std::span<const HostToDevice> copies);

 private:
  std::unique_ptr<PinnedBuffer> unusedPiece(size_t bytes);
  std::unique_ptr<PinnedBuffer> takeFirst();
  void copyParts(std::span<const HostToDevice> copies, std::unique_ptr<PinnedBuffer> piece);

  const cudaStream_t stream_;
  std::deque<std::unique_ptr<PinnedBuffer>> lent_;  // in the order of their lending
};

}  // namespace uniproc::cuda
