// The way of small things from host memory of any kind to the device, while it is busy.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <deque>
#include <memory>
#include <span>

#include "ops/ops.h"

namespace uniproc::cuda {

// Several copies as one: their bytes are packed into a piece of pinned memory, which one kernel
// reads over the bus and puts where they belong. The event behind the kernel tells when the piece
// may be used again: the first to be lent is the first to be read, so that only the first in the
// row is ever asked. There are as many as some steps take; pieces are added where the first is
// still to be read, up to a limit.
class Staging {
 public:
  explicit Staging(cudaStream_t stream);

  // Ops::copyAllToDevice. Waits for the device only where it has all the pieces there may be.
  void copy(std::span<const HostToDevice> copies);

 private:
  class Piece {
   public:
    explicit Piece(size_t bytes);
    ~Piece();
    Piece(const Piece&) = delete;
    Piece& operator=(const Piece&) = delete;

    std::byte* data() const { return memory_; }
    size_t bytes() const { return bytes_; }
    // The device has it until all that is on the stream so far has run.
    void lend(cudaStream_t stream);
    bool isRead() const;
    void waitUntilRead() const;

   private:
    const size_t bytes_;
    std::byte* memory_ = nullptr;
    cudaEvent_t read_ = nullptr;
  };

  std::unique_ptr<Piece> unusedPiece(size_t bytes);
  void copyParts(std::span<const HostToDevice> copies);

  const cudaStream_t stream_;
  std::deque<std::unique_ptr<Piece>> lent_;  // in the order of their lending
};

}  // namespace uniproc::cuda
