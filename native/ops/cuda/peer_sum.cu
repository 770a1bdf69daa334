// Sums over the ranks of one host, with and without the norm that follows (peer_messages.cuh).
//
// Residency. A block waits for words that peers' blocks send. All blocks of a launch are resident
// at once (residentBlocks), and a block sends its words before it waits for any, so each word is
// sent however the blocks are scheduled; of the sums that two-shot sends back, a thread takes the
// accesses in increasing order on every rank, so the lowest one that is missing is never held up.
// The kernel
// after becomes resident only when every block of this one has started (launch.cuh), so it takes no
// place that a block here needs, and its blocks sleep in their own wait or load weights; it cannot
// keep this kernel from ending. On every rank the same sums run in the same order on one stream, so
// no two ranks wait for each other in different sums.
#include <algorithm>

#include "ops/cuda/device_math.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/peer_messages.cuh"
#include "ops/cuda/peer_sum.h"
#include "ops/cuda/rms_norm.cuh"

namespace uniproc::cuda {
namespace {

// Threads for a sum without norm: small messages spread over several multiprocessors.
constexpr int kSumThreads = 128;
// Threads that are resident on a multiprocessor at once, by the kernels' launch bounds.
constexpr int kResidentThreads = kMaxNormThreads;
constexpr int kResidentBlocks = 16;  // of all GPUs, the fewest
// A row of more threads than this gets a cluster of blocks of kClusterThreads or more: one block
// would send it from one multiprocessor, and start late.
constexpr int kBlockThreads = 512;
constexpr int kClusterThreads = 128;

// Clusters -----------------------------------------------------------------------------------

__device__ inline uint32_t clusterSize() {
  uint32_t size = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
#endif
  return size;
}

__device__ inline uint32_t clusterRank() {
  uint32_t rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

__device__ inline void clusterArrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
#endif
}

__device__ inline void clusterWait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
#endif
}

// Writes to `local`, a variable in shared memory, of the cluster's block `rank`.
__device__ inline void storeInBlock(float* local, uint32_t rank, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(local));
  asm volatile(
      "{\n"
      ".reg .u32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.f32 [remote], %2;\n"
      "}"
      :
      : "r"(address), "r"(rank), "f"(value)
      : "memory");
#endif
}

// As blockSum, over the threads of a cluster of `numBlocks` blocks and with the same bits as over
// one block of as many threads. The blocks have called clusterArrive before; once per kernel.
__device__ inline float clusterSum(float value, uint32_t numBlocks, float* scratch) {
  const uint32_t warps = blockDim.x / kWarpSize;
  const uint32_t lane = threadIdx.x % kWarpSize;
  value = warpSum(value);
  clusterWait();  // all blocks run
  if (lane < numBlocks) {
    storeInBlock(scratch + clusterRank() * warps + threadIdx.x / kWarpSize, lane, value);
  }
  clusterArrive();
  clusterWait();
  return warpSum(lane < warps * numBlocks ? scratch[lane] : 0.0f);
}

// Kernels ------------------------------------------------------------------------------------

// In place: data [count] of 16 bytes each becomes the sum over the ranks, in rank order and float32
// and rounded once, so that all ranks get the same bytes. Grid: one block per kSumThreads accesses,
// or fewer that loop.
//
// One-shot sends (N - 1) times the message over a rank's links, two-shot 2 (N - 1) / N times. For
// 8 KiB and 2 GPUs that takes some tens of nanoseconds, so latency bounds it: a load, one trip over
// the link and the load that detects it, 0.8 microseconds, and the launch. For 512 KiB and 2 GPUs
// it takes 1.5 microseconds at the 350 GB/s that stores to a peer reach.
//
// Lets the next kernel start only after its own wait: then the next product loads its weights while
// the words travel. Before the wait it would load them while the previous product needs the memory.
template <class T, template <class> class Way>
__global__ void __launch_bounds__(kSumThreads, kResidentThreads / kSumThreads)
    sumOverRanks(uint4* data, int count, const __grid_constant__ PeerRanks ranks) {
  waitForPreviousAlone();
  letNextStart();
  Exchange& own = *ranks.exchanges[ranks.rank];
  const uint32_t parity = loadParity(own);
  const Way<T> sender(ranks, parity, count);
  const auto first = static_cast<int>(blockIdx.x * kSumThreads + threadIdx.x);
  const auto stride = static_cast<int>(gridDim.x * kSumThreads);
  for (int i = first; i < count; i += stride) sender.push(i, loadHalves(data + i));
  const Way<T> receiver(ranks, countRead(own, parity), count);
  for (int i = first; i < count; i += stride) {
    const Halves sum = receiver.receive(i, loadHalves(data + i));
    std::memcpy(data + i, &sum, sizeof sum);
  }
}

// x [numRows, size], summed as above; residual += the sum; out = rms norm of residual times weight
// [size], in the order of rmsNormRows. A thread holds kHeld accesses of a row. Grid: one block per
// row, or fewer that loop; for few wide rows a cluster per row. Beside the message, reads x,
// residual and weight once while its words travel, and writes residual and out. Bound by latency as
// sumOverRanks, and by the reduction over the row.
template <class T, template <class> class Way, int kHeld>
__global__ void __launch_bounds__(kMaxNormThreads)
    sumOverRanksRmsNorm(const T* x, T* residual, int numRows, int size, const T* weight, float eps,
                        T* out, const __grid_constant__ PeerRanks ranks) {
  constexpr int N = kElementsPerAccess<T>;
  __shared__ float scratch[kMaxNormThreads / kWarpSize];
  const uint32_t numBlocks = clusterSize();  // for a row
  const auto rowThreads = static_cast<int>(numBlocks * blockDim.x);
  const auto thread = static_cast<int>(clusterRank() * blockDim.x + threadIdx.x);
  const auto firstRow = static_cast<int>(blockIdx.x / numBlocks);
  const auto stride = static_cast<int>(gridDim.x / numBlocks);
  if (numBlocks > 1) clusterArrive();
  waitForPreviousAlone();
  letNextStart();
  const auto* messages = reinterpret_cast<const uint4*>(x);
  const int rowAccesses = size / N;
  Exchange& own = *ranks.exchanges[ranks.rank];
  const uint32_t parity = loadParity(own);
  const Way<T> sender(ranks, parity, numRows * rowAccesses);
  for (int row = firstRow; row < numRows; row += stride) {
    for (int access = thread; access < rowAccesses; access += rowThreads) {
      const int i = row * rowAccesses + access;
      sender.push(i, loadHalves(messages + i));
    }
  }
  const Way<T> receiver(ranks, countRead(own, parity), numRows * rowAccesses);
  for (int row = firstRow; row < numRows; row += stride) {
    float values[kHeld][N];
    Vector<T, N> weights[kHeld];
    float sum = 0;
#pragma unroll
    for (int held = 0; held < kHeld; ++held) {
      const int access = held * rowThreads + thread;
      if (access >= rowAccesses) break;
      const int i = row * rowAccesses + access;
      weights[held] = loadVector<N>(weight + access * N);
      loadWidened<N>(residual + i * N, values[held]);
      const Halves words = receiver.receive(i, loadHalves(messages + i));
      T elements[N];
      std::memcpy(static_cast<void*>(elements), &words, sizeof words);
      float added[N];
#pragma unroll
      for (int n = 0; n < N; ++n) added[n] = widen(elements[n]);
      addRounded<T>(values[held], added);
      storeNarrowed<N>(residual + i * N, values[held]);
      addSquares(sum, values[held]);
    }
    const float squares =
        numBlocks > 1 ? clusterSum(sum, numBlocks, scratch) : blockSum(sum, scratch);
    scaleRow(values, weights, rmsFactor(squares, size, eps), thread, rowThreads, size,
             out + row * size);
  }
}

// Blocks of `threads` that are resident at once.
int residentBlocks(int threads, const PeerRanks& ranks) {
  return ranks.numMultiprocessors * std::min(kResidentBlocks, kResidentThreads / threads);
}

template <class T, template <class> class Way>
void launchSum(void* data, int count, const PeerRanks& ranks, cudaStream_t stream) {
  const int blocks = std::min(ceilDiv(count, kSumThreads), residentBlocks(kSumThreads, ranks));
  launch(sumOverRanks<T, Way>, dim3(blocks), kSumThreads, 0, stream, static_cast<uint4*>(data),
         count, ranks);
}

// Blocks for a row of that many threads: a cluster if all rows fit on the GPU so.
int clusterBlocks(int numRows, int rowThreads, const PeerRanks& ranks) {
  // Kernels compiled for earlier GPUs have no clusters.
  if (rowThreads <= kBlockThreads || !kernelsWait()) return 1;
  for (int blocks = 8; blocks > 1; blocks /= 2) {
    if (rowThreads % (blocks * kWarpSize) == 0 && rowThreads / blocks >= kClusterThreads &&
        numRows * blocks <= ranks.numMultiprocessors) {
      return blocks;
    }
  }
  return 1;
}

constexpr int kMostHeld = 2;

template <class T, template <class> class Way, int kHeld = 1>
void launchSumRmsNorm(const void* x, int32_t numTokens, const NormOfSum& norm,
                      const PeerRanks& ranks, cudaStream_t stream) {
  const int rowThreads = normThreads(norm.size / kElementsPerAccess<T>, kHeld);
  if constexpr (kHeld < kMostHeld) {
    if (rowThreads > kMaxNormThreads) {
      return launchSumRmsNorm<T, Way, 2 * kHeld>(x, numTokens, norm, ranks, stream);
    }
  }
  const int cluster = clusterBlocks(numTokens, rowThreads, ranks);
  const int threads = rowThreads / cluster;
  const int blocks = std::min(numTokens * cluster, residentBlocks(threads, ranks));
  launchClusters(sumOverRanksRmsNorm<T, Way, kHeld>, dim3(blocks), static_cast<unsigned>(cluster),
                 static_cast<unsigned>(threads), 0, stream, static_cast<const T*>(x),
                 static_cast<T*>(norm.residual), numTokens, norm.size,
                 static_cast<const T*>(norm.weight), norm.eps, static_cast<T*>(norm.out), ranks);
}

// Whether a message of that many bytes is sent in one shot.
bool isOneShot(int64_t bytes, const PeerRanks& ranks) {
  return bytes <= peerSumLimits(ranks.worldSize).oneShot;
}

}  // namespace

bool NormOfSum::isSupported(DType type) const {
  const int elements = kAccessBytes / static_cast<int>(sizeOf(type));
  return size % elements == 0 && size / elements <= kMostHeld * kMaxNormThreads &&
         isAligned(residual) && isAligned(weight) && isAligned(out);
}

void peerSum(void* data, int64_t count, DType type, const PeerRanks& ranks, cudaStream_t stream) {
  const int64_t bytes = count * static_cast<int64_t>(sizeOf(type));
  const auto accesses = static_cast<int>(bytes / kAccessBytes);
  withType(type, [&](auto element) {
    using T = decltype(element);
    if (isOneShot(bytes, ranks)) {
      launchSum<T, OneShot>(data, accesses, ranks, stream);
    } else {
      launchSum<T, TwoShot>(data, accesses, ranks, stream);
    }
  });
}

void peerSumRmsNorm(const void* x, int32_t numTokens, const NormOfSum& norm, DType type,
                    const PeerRanks& ranks, cudaStream_t stream) {
  const int64_t bytes = int64_t{numTokens} * norm.size * static_cast<int64_t>(sizeOf(type));
  withType(type, [&](auto element) {
    using T = decltype(element);
    if (isOneShot(bytes, ranks)) {
      launchSumRmsNorm<T, OneShot>(x, numTokens, norm, ranks, stream);
    } else {
      launchSumRmsNorm<T, TwoShot>(x, numTokens, norm, ranks, stream);
    }
  });
}

}  // namespace uniproc::cuda
