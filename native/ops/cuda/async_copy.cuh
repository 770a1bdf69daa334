// Asynchronous copies of 16 bytes into shared memory by threads (cp.async), of sm_80 and later.
#pragma once

#include <cstdint>

namespace uniproc::cuda {

// Starts an asynchronous copy of 16 bytes; a negative `index` writes zeros instead.
__device__ inline void copyAsync(uint32_t to, const void* from, int32_t index) {
  asm volatile(
      "{\n"
      ".reg .pred ignore;\n"
      "setp.lt.s32 ignore, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, ignore;\n"
      "}" ::"r"(to),
      "l"(from), "r"(index)
      : "memory");
}

// Closes a group of asynchronous copies.
__device__ inline void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kLeft of this thread's groups are in flight.
template <int kLeft>
__device__ inline void waitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace uniproc::cuda
