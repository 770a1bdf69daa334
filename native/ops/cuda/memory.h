// Allocates the CUDA device's memory and counts it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "ops/ops.h"

namespace uniproc::cuda {

class MemoryAccount {
 public:
  // Uses the calling thread's current device.
  explicit MemoryAccount(cudaStream_t stream) : stream_(stream) {}

  // `total` and `free` are the whole device's, including other processes.
  DeviceMemory usage() const;
  void resetPeak() { peak_ = allocated_; }

  // 256-byte aligned, zeroed on the stream. Throws Error OUT_OF_MEMORY.
  void* allocate(size_t bytes, const char* what);
  // Returns once the device no longer uses the memory.
  void release(void* memory, size_t bytes) noexcept;
  // Stops counting memory that another owner frees.
  void disown(size_t bytes) noexcept { allocated_ -= bytes; }

  // Pinned host memory, zeroed; not counted.
  static void* allocateHost(size_t bytes, const char* what);
  static void releaseHost(void* memory) noexcept;

 private:
  const cudaStream_t stream_;
  size_t allocated_ = 0;
  size_t peak_ = 0;
};

// Scratch memory for kernels, as large as the largest request. Smaller pieces are kept until
// destruction, since recorded graphs may use them.
class Scratch {
 public:
  explicit Scratch(MemoryAccount& memory) : memory_(memory) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // New memory is zeroed.
  void* atLeast(size_t bytes);

 private:
  struct Piece {
    void* data;
    size_t bytes;
  };

  MemoryAccount& memory_;
  std::vector<Piece> pieces_;  // each larger than the previous one
};

}  // namespace uniproc::cuda
