// Alignment that kernels require of addresses, for host code too.
#pragma once

#include <cstdint>

namespace uniproc::cuda {

constexpr int kAccessBytes = 16;  // widest access of a thread

inline bool isAligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % kAccessBytes == 0;
}

}  // namespace uniproc::cuda
