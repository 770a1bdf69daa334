// Allocates the CPU device's memory and counts it.
#pragma once

#include <cstddef>
#include <map>

#include "ops/ops.h"

namespace uniproc {

class MemoryAccount {
 public:
  DeviceMemory usage() const;
  void resetPeak() { peak_ = allocated_; }

  // Zeroed and 64-byte aligned. The system commits a large allocation on first write. Throws Error
  // OUT_OF_MEMORY.
  void* allocate(size_t bytes, const char* what);
  void release(void* memory, size_t bytes) noexcept;
  // Takes what the system has not committed of an allocation from `usage().free`.
  void reserve(void* memory, size_t bytes);

 private:
  size_t uncommittedBytes() const;

  size_t allocated_ = 0;
  size_t peak_ = 0;
  std::map<void*, size_t> reserved_;  // bytes by address
};

}  // namespace uniproc
