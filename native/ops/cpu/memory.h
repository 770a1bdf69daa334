// The memory that the CPU device hands out, and its account.
#pragma once

#include <cstddef>

#include "ops/ops.h"

namespace uniproc {

class MemoryAccount {
 public:
  DeviceMemory figures() const;
  void resetPeak() { peak_ = allocated_; }

  // Zeroed, 64-byte aligned. A large allocation takes no memory before it is written to. Throws
  // Error OUT_OF_MEMORY.
  void* allocate(size_t bytes, const char* what);
  void release(void* memory, size_t bytes) noexcept;

 private:
  size_t allocated_ = 0;
  size_t peak_ = 0;
};

}  // namespace uniproc
