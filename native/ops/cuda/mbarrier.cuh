// Barriers in shared memory (mbarrier) and bulk tensor copies, of sm_90 and later. PTX ISA,
// "mbarrier" and "cp.async.bulk.tensor".
#pragma once

#include <cuda.h>

#include <cstdint>

namespace uniproc::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ inline uint32_t barrierAddress(const uint64_t& barrier) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(&barrier));
}

// A phase ends after `count` arrivals and the announced bytes.
__device__ inline void initBarrier(uint64_t& barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrierAddress(barrier)), "r"(count)
               : "memory");
}

// Makes initialized barriers visible to bulk copies.
__device__ inline void fenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Orders this thread's writes to shared memory before later bulk copies and wgmma reads.
__device__ inline void fenceSharedWrites() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void arrive(uint64_t& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrierAddress(barrier))
               : "memory");
}

// Arrives and announces bytes that bulk copies will write.
__device__ inline void arriveExpecting(uint64_t& barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrierAddress(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ inline bool phaseEnded(uint64_t& barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}\n"
      : "=r"(ended)
      : "r"(barrierAddress(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}

// Waits for the end of the phase with this parity; the first phase has parity 0. Returns at once
// for the parity of the phase before the current one.
__device__ inline void waitForPhase(uint64_t& barrier, uint32_t parity) {
  while (!phaseEnded(barrier, parity)) {
  }
}

// Starts to copy the box at the coordinates to shared memory; its bytes count for `barrier`.
__device__ inline void copyBox(uint32_t to, const CUtensorMap& map, uint64_t& barrier, int32_t c0,
                               int32_t c1, int32_t c2, int32_t c3, int32_t c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrierAddress(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

// The same with two coordinates.
__device__ inline void copyBox(uint32_t to, const CUtensorMap& map, uint64_t& barrier, int32_t c0,
                               int32_t c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrierAddress(barrier)), "r"(c0), "r"(c1)
      : "memory");
}

// The same with three coordinates, for data that is read once: L2 drops it first.
__device__ inline void copyBoxOnce(void* to, const CUtensorMap& map, uint64_t& barrier, int32_t c0,
                                   int32_t c1, int32_t c2) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(
          static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "l"(&map), "r"(barrierAddress(barrier)), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
      : "memory");
}

// The same by an address in shared memory; `isReadOnce` as above, or kept in L2 as other data is.
__device__ inline void copyBox(uint32_t to, const CUtensorMap& map, uint64_t& barrier, int32_t c0,
                               int32_t c1, int32_t c2, bool isReadOnce) {
  uint64_t policy;
  if (isReadOnce) {
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  } else {
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  }
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(&map), "r"(barrierAddress(barrier)), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
      : "memory");
}

// A barrier of `threads` threads among those of the block; ids 1 to 15.
__device__ inline void syncNamed(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void arriveNamed(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Stage of a ring of kStages buffers, and the parity of its current round.
template <uint32_t kStages>
struct Stage {
  uint32_t index = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++index == kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

#endif

}  // namespace uniproc::cuda
