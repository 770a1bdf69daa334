// Decode attention for few rows with few keys, which leave the device part empty and are bound by
// latency: each row and group of heads has a cluster of blocks that merge through distributed
// shared memory. attention_decode_few.cuh divides a row into chunks and processes them.
#include <algorithm>

#include "ops/cuda/attention_decode_few.cuh"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"

namespace uniproc::cuda {
namespace decode_few {
namespace {

// What the blocks of a cluster send to the one that merges some of the elements. They store
// asynchronously, and an mbarrier counts the bytes that have arrived.
struct Inbox {
  static constexpr size_t kPartBytes = sizeof(float4) + sizeof(float2);

  float4* sums;       // [kMaxChunks, parts]
  float2* stats;      // [kMaxChunks, parts]
  int32_t parts;      // groups of four elements per block
  uint32_t received;  // shared address of the mbarrier

  __device__ Inbox(void* memory, int32_t partsIn, uint64_t* barrier)
      : sums(static_cast<float4*>(memory)),
        stats(reinterpret_cast<float2*>(sums + kMaxChunks * partsIn)),
        parts(partsIn),
        received(sharedAddress(barrier)) {}

  static size_t bytes(int32_t parts) {
    return kMaxChunks * static_cast<size_t>(parts) * kPartBytes;
  }

  // One thread calls it; then the cluster's blocks wait for each other, then they send.
  __device__ void expect(int32_t numParts) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(received) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(received),
                 "r"(numParts * static_cast<int32_t>(kPartBytes))
                 : "memory");
#endif
  }

  __device__ void send(uint32_t block, int32_t chunk, int32_t at, const Part& part) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const uint32_t barrier = inBlock(received, block);
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(inBlock(sharedAddress(sums + chunk * parts + at), block)),
        "f"(part.sums.x), "f"(part.sums.y), "f"(part.sums.z), "f"(part.sums.w), "r"(barrier)
        : "memory");
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            inBlock(sharedAddress(stats + chunk * parts + at), block)),
        "f"(part.stats.x), "f"(part.stats.y), "r"(barrier)
        : "memory");
#endif
  }

  __device__ void wait() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
        "@!done bra again;\n"
        "}" ::"r"(received)
        : "memory");
#endif
  }

  __device__ Part at(int32_t chunk, int32_t part) const {
    return {sums[chunk * parts + part], stats[chunk * parts + part]};
  }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
 private:
  // The shared address in another block of the cluster that corresponds to `address` in this one.
  __device__ static uint32_t inBlock(uint32_t address, uint32_t block) {
    uint32_t to;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(address), "r"(block));
    return to;
  }
#endif
};

__device__ void arriveAtCluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}

__device__ void waitForCluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// Grid: (cluster size, groups, numRows), clusters of (cluster size, 1, 1); 128 threads. Each block
// processes an equal run of a row's chunks and merges the chunks of an equal part of the elements.
// Reads each key and value once, 2 * headDim elements per key and KV head, but is bound by the
// latency of dependent accesses: batch, block table and keys; after the previous kernel qkv, then
// the stores into the inboxes.
template <class T, int kHeadDim, bool kFused>
__global__ void __maxnreg__((kHeadDim <= 128 ? 152 : 255))
    clusterKernel(const AttentionArgs args, const RopeArgs rope) {
  extern __shared__ __align__(16) unsigned char shared[];
  const auto row = static_cast<int32_t>(blockIdx.z);
  const auto rank = static_cast<int32_t>(blockIdx.x);
  const auto size = static_cast<int32_t>(gridDim.x);
  const Chunks chunks(args, row);
  if (chunks.count == 0) return waitForPrevious();

  __shared__ uint64_t barrier;
  const int32_t maxHeads = min(args.group, kHeads);
  const Run run = runOf(args, row, static_cast<int32_t>(blockIdx.y), rank * chunks.count / size,
                        (rank + 1) * chunks.count / size);
  const int32_t parts = ceilDiv(maxHeads * (kHeadDim / 4), size);
  const int32_t ownParts = max(min(run.heads * (kHeadDim / 4) - rank * parts, parts), 0);
  const Memory<T, kHeadDim> memory(shared, maxHeads);
  const Inbox inbox(memory.end(), parts, &barrier);
  if (threadIdx.x == 0) inbox.expect(chunks.count * ownParts);
  arriveAtCluster();
  const auto wait = [] {
    waitForCluster();  // all its blocks can receive
    waitForPrevious();
  };
  const auto emit = [&](int32_t chunk, int32_t element, const Part& part) {
    const int32_t i = element / 4;
    inbox.send(static_cast<uint32_t>(i / parts), chunk, i % parts, part);
  };
  if (run.firstChunk < run.lastChunk) {
    attend<T, kHeadDim, kFused>(args, rope, run, chunks, memory, wait, emit);
  } else {
    wait();
  }
  inbox.wait();

  T* out = static_cast<T*>(args.out) +
           (static_cast<int64_t>(args.queryStarts[row]) * args.numHeads + run.head) * kHeadDim;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < ownParts; i += kThreads) {
    Part part = inbox.at(0, i);
#pragma unroll 4
    for (int32_t chunk = 1; chunk < chunks.count; ++chunk) {
      part = fold(part, inbox.at(chunk, i), args.scale);
    }
    const int32_t element = (rank * parts + i) * 4;
    store(args, run.head + element / kHeadDim, part, out + element);
  }
}

// Blocks per row and group of heads: up to 8, a portable size, as long as all run at once.
int32_t clusterSize(int32_t numClusters, int32_t numMultiprocessors) {
  return numClusters * 8 <= numMultiprocessors ? 8 : numClusters * 4 <= numMultiprocessors ? 4 : 2;
}

template <class T, int kHeadDim, bool kFused>
void launchCluster(const AttentionArgs& args, const RopeArgs& rope, int32_t numMultiprocessors,
                   cudaStream_t stream) {
  const auto kernel = clusterKernel<T, kHeadDim, kFused>;
  const int32_t heads = std::min(args.group, kHeads);
  const int32_t groups = args.numKvHeads * groupsPerKvHead(args.group);
  const auto sharedBytes = [&](int32_t size) {
    return Memory<T, kHeadDim>::bytes(heads) + Inbox::bytes(ceilDiv(heads * (kHeadDim / 4), size));
  };
  const int32_t size = clusterSize(args.numRows * groups, numMultiprocessors);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(sharedBytes(size))),
        "cudaFuncSetAttribute of attentionDecodeFew");
  const dim3 grid(static_cast<unsigned>(size), static_cast<unsigned>(groups),
                  static_cast<unsigned>(args.numRows));
  launchClusters(kernel, grid, static_cast<unsigned>(size), kThreads, sharedBytes(size), stream,
                 args, rope);
  check(cudaGetLastError(), "attentionDecodeFew");
}

}  // namespace
}  // namespace decode_few

void attentionDecodeFew(const AttentionArgs& args, const RopeArgs* rope, DType type,
                        int32_t numMultiprocessors, cudaStream_t stream) {
  withTensorCores(type, args.headDim, [&]<class T, int kHeadDim>() {
    if (rope) {
      decode_few::launchCluster<T, kHeadDim, true>(args, *rope, numMultiprocessors, stream);
    } else {
      decode_few::launchCluster<T, kHeadDim, false>(args, {}, numMultiprocessors, stream);
    }
  });
}

}  // namespace uniproc::cuda
