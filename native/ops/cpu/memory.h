// Allocates the CPU device's memory and counts it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace uniproc {

class MemoryAccount {
 public:
  DeviceMemory usage() const;
  void resetPeak() { peak_ = allocated_; }

  // How an allocation is written: all at once, or in small parts over time.
  enum class Writes : uint8_t { kWhole, kSparse };
  // Zeroed and 64-byte aligned. The system commits a large allocation on first write, in huge pages
  // if possible; the beginning of a sparse one in small pages, so that the first tokens of a KV
  // cache do not take a huge page of each layer. Throws Error OUT_OF_MEMORY.
  void* allocate(size_t bytes, const char* what, Writes writes = Writes::kWhole);
  void release(void* memory, size_t bytes) noexcept;
  // Takes what the system has not committed of an allocation from `usage().free` of all devices of
  // the process.
  static void reserve(void* memory, size_t bytes);

 private:
  size_t allocated_ = 0;
  size_t peak_ = 0;
};

}  // namespace uniproc
