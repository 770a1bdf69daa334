// The memory that the CUDA device hands out, and its account.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "ops/ops.h"

namespace uniproc::cuda {

class MemoryAccount {
 public:
  // Of the device current on the calling thread.
  explicit MemoryAccount(cudaStream_t stream) : stream_(stream) {}

  // total and free are the whole device's, whoever uses it.
  DeviceMemory figures() const;
  void resetPeak() { peak_ = allocated_; }

  // 256-byte aligned, zeroed on the stream. Throws Error OUT_OF_MEMORY.
  void* allocate(size_t bytes, const char* what);
  // Returns once the device no longer uses the memory.
  void release(void* memory, size_t bytes) noexcept;
  // Counts no longer what another is to free.
  void disown(size_t bytes) noexcept { allocated_ -= bytes; }

  // Pinned host memory, zeroed; not counted.
  static void* allocateHost(size_t bytes, const char* what);
  static void releaseHost(void* memory) noexcept;

 private:
  const cudaStream_t stream_;
  size_t allocated_ = 0;
  size_t peak_ = 0;
};

// Memory that kernels use between two points of the stream: as much as the largest of them asked
// for. What became too small is kept to the end, since recorded graphs may use it.
class Scratch {
 public:
  explicit Scratch(MemoryAccount& memory) : memory_(memory) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Zeroed when it is new.
  void* atLeast(size_t bytes);

 private:
  struct Piece {
    void* data;
    size_t bytes;
  };

  MemoryAccount& memory_;
  std::vector<Piece> pieces_;  // each larger than the one before
};

}  // namespace uniproc::cuda
