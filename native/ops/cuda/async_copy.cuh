// Asynchronous copies of tensors into shared memory, from Hopper on: mbarriers and
// cp.async.bulk.tensor (PTX ISA, sections 9.7.9.25 and 9.7.13.15). Only code for sm_90 or later
// calls these functions.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace uniproc::cuda {

__device__ inline uint32_t sharedAddress(const void* address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

// A barrier in shared memory. A phase ends when all arrivals and all announced bytes have come in;
// waiters name the phase by its parity, the first is 0.
struct AsyncBarrier {
  uint64_t state;

  // One thread; then makeBarriersVisible() by that thread and a barrier of the block.
  __device__ void init(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedAddress(&state)),
                 "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedAddress(&state))
                 : "memory");
  }
  // Arrives and announces bytes that copies will bring.
  __device__ void arriveExpecting(uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(&state)),
        "r"(bytes)
        : "memory");
  }
  __device__ void wait(uint32_t parity) {
    uint32_t done = 0;
    while (!done) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(sharedAddress(&state)), "r"(parity)
          : "memory");
    }
  }
};

__device__ inline void makeBarriersVisible() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// L2 policy for data that is read once.
__device__ inline uint64_t evictFirst() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Copies the box of `map` at element (x, y, z), x being the innermost dimension, to shared memory;
// its bytes count at `barrier`.
__device__ inline void copyBox(void* to, const CUtensorMap& map, int32_t x, int32_t y, int32_t z,
                               AsyncBarrier& barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(sharedAddress(to)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(sharedAddress(&barrier.state)), "r"(x), "r"(y),
      "r"(z), "l"(policy)
      : "memory");
}

}  // namespace uniproc::cuda
