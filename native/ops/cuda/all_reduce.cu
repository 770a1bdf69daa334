#include <algorithm>
#include <utility>

#include "ops/cuda/all_reduce.h"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/shared_memory.h"

namespace uniproc::cuda {
namespace {

constexpr int kMaxRanks = PeerAllReduce::kMaxRanks;
constexpr int64_t kMaxBytes = PeerAllReduce::kMaxBytes;

// A message is divided into one part per block. Block b of a rank exchanges data only with blocks b
// of the other ranks: a channel, with its own memory and sequence numbers. No block waits for
// another block of its own rank, and all blocks of a launch are resident at once on the smallest
// GPU (32 blocks), so none waits for a block that has not started.
constexpr int kChannels = 32;

// Messages up to this size are pushed in packets (allReducePackets). Half of a packet is data,
// which doubles the bytes on the links but needs only one trip to the peers. For larger messages
// those bytes, 2 (N - 1) times the message, take longer than the second trip of the other kernel (a
// microsecond, at hundreds of bytes per nanosecond). The break-even size is about this for 8 ranks
// and larger for 2.
constexpr int64_t kMaxPacketBytes = 64 * 1024;
constexpr int kPacketThreads = 256;
constexpr int kPacketData = 8;
static_assert(kMaxPacketBytes == int64_t{kChannels} * kPacketThreads * kPacketData);

constexpr int kVectorThreads = 512;
constexpr int kChannelVectors = kMaxBytes / kAccessBytes / kChannels;

// Two 4-byte words of a message, each with the message's number in the upper half. An 8-byte access
// is atomic, so a reader that sees the number also sees the word.
struct alignas(16) Packet {
  uint64_t low;
  uint64_t high;
};

}  // namespace

// Memory that a rank's peers write to and read from. Zeroed; message numbers start at 1.
struct PeerAllReduce::Exchange {
  // Double buffer, indexed by the parity of the message number. A slower peer may still read
  // message n while n + 1 is written, but not while n + 2 is: a rank writes n + 2 only after it has
  // received n + 1 from all peers of the channel, which they sent in a kernel after the one that
  // read n.
  Packet packets[2][kMaxRanks][kChannels][kPacketThreads];  // by sender
  uint4 vectors[2][kChannels][kChannelVectors];             // this rank's own data

  // Number of the last message available in the sender's `vectors`.
  uint32_t sent[kMaxRanks][kChannels];

  // Messages that this rank has completed, by kind.
  uint32_t numPackets[kChannels];
  uint32_t numVectors[kChannels];
};

namespace {

using Exchange = PeerAllReduce::Exchange;
using Exchanges = PeerAllReduce::Exchanges;

// System-scope memory accesses ---------------------------------------------------------------

__device__ inline void sendPacket(Packet* to, const Packet& packet) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};"
               :
               : "l"(to), "l"(packet.low), "l"(packet.high)
               : "memory");
}

__device__ inline Packet loadPacket(const Packet* from) {
  Packet packet;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(packet.low), "=l"(packet.high)
               : "l"(from)
               : "memory");
  return packet;
}

// Makes this thread's writes, and the writes it has observed, visible to threads that read `value`.
__device__ inline void storeRelease(uint32_t* to, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(to), "r"(value) : "memory");
}

__device__ inline uint32_t loadAcquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline uint32_t loadRelaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Polls until `isReady` returns true; returns false if the group failed first. `failed` is in host
// memory, which is slow to read, so only long waits check it.
template <class IsReady>
__device__ inline bool waitUntil(const uint32_t* failed, IsReady isReady) {
  constexpr int kPollsPerFailureCheck = 1024;
  for (int polls = 1; !isReady(); ++polls) {
    if (polls % kPollsPerFailureCheck == 0 && loadRelaxed(failed) != 0) return false;
  }
  return true;
}

// Alternates parity, also on wrap-around; 0 is reserved for memory that was never written.
__device__ inline uint32_t numberAfter(uint32_t number) { return number == ~0u ? 2 : number + 1; }

// Adds a sender's elements to the sums of the ranks before it. The first sender's are copied, which
// keeps -0.
template <class T, class Words, int N>
__device__ inline void add(const Words& words, int sender, float (&sums)[N]) {
  static_assert(sizeof(Words) == N * sizeof(T));
  T elements[N];
  std::memcpy(static_cast<void*>(elements), &words, sizeof words);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float element = widen(elements[i]);
    sums[i] = sender == 0 ? element : sums[i] + element;
  }
}

template <class T, class Words, int N>
__device__ inline Words narrowed(const float (&sums)[N]) {
  static_assert(sizeof(Words) == N * sizeof(T));
  T elements[N];
#pragma unroll
  for (int i = 0; i < N; ++i) elements[i] = narrow<T>(sums[i]);
  Words words;
  std::memcpy(&words, static_cast<const void*>(elements), sizeof words);
  return words;
}

// Kernels ------------------------------------------------------------------------------------

// One-shot all-reduce by packets, in place: data [count] of 8 bytes each, summed in rank order, so
// that all ranks get the same bytes. Grid: ceil(count / kPacketThreads) <= kChannels blocks, one
// thread per 8 bytes.
//
// Sends (N - 1) * 16 bytes for each 8 and reads as many from its own memory. For 8 KiB and 2 GPUs,
// 16 KiB cross a link in some tens of nanoseconds, so latency bounds it: a launch, a load, one trip
// over the link and the load that detects it, about 3 microseconds.
template <class T>
__global__ void __launch_bounds__(kPacketThreads)
    allReducePackets(uint64_t* data, int count, int rank, int worldSize,
                     const __grid_constant__ Exchanges exchanges, const uint32_t* failed) {
  waitForPrevious();
  const int channel = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int index = channel * kPacketThreads + thread;
  Exchange& own = *exchanges.of[rank];
  const uint32_t number = numberAfter(own.numPackets[channel]);
  __syncthreads();  // all threads have read it
  if (thread == 0) own.numPackets[channel] = number;
  if (index >= count) return;

  const uint64_t mine = data[index];
  const uint64_t tag = uint64_t{number} << 32;
  const Packet packet = {tag | (mine & 0xffffffffu), tag | (mine >> 32)};
  for (int i = 1; i < worldSize; ++i) {
    const int peer = (rank + i) % worldSize;
    sendPacket(&exchanges.of[peer]->packets[number % 2][rank][channel][thread], packet);
  }

  constexpr int kElements = kPacketData / sizeof(T);
  float sums[kElements] = {};
  for (int sender = 0; sender < worldSize; ++sender) {
    uint64_t theirs = mine;
    if (sender != rank) {
      Packet got;
      const bool isReady = waitUntil(failed, [&] {
        got = loadPacket(&own.packets[number % 2][sender][channel][thread]);
        return static_cast<uint32_t>(got.low >> 32) == number &&
               static_cast<uint32_t>(got.high >> 32) == number;
      });
      if (!isReady) return;
      theirs = (got.low & 0xffffffffu) | got.high << 32;
    }
    add<T>(theirs, sender, sums);
  }
  data[index] = narrowed<T, uint64_t>(sums);
}

// All-reduce that reads the peers' vectors, in place: data [count] of 16 bytes each, summed in rank
// order. Grid: kChannels blocks, each with perBlock of them, at most kChannelVectors.
//
// A rank copies its data to its exchange memory, signals its peers, waits for their signals and
// reads their data: (N - 1) times the message's bytes arrive over the links, in 16-byte loads, one
// in flight per thread and peer. For 512 KiB and 2 GPUs the transfer takes 1.3 microseconds at a
// link's 400 GB/s, beside 4 to 5 for a launch, a copy, one trip for the signal and two for the
// loads; for 8 GPUs, 9 beside 5.
template <class T>
__global__ void __launch_bounds__(kVectorThreads)
    allReduceVectors(uint4* data, int count, int perBlock, int rank, int worldSize,
                     const __grid_constant__ Exchanges exchanges, const uint32_t* failed) {
  waitForPrevious();
  const int channel = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int begin = channel * perBlock;
  const int numOwn = max(0, min(perBlock, count - begin));
  Exchange& own = *exchanges.of[rank];
  const uint32_t number = numberAfter(own.numVectors[channel]);

  uint4* message = own.vectors[number % 2][channel];
  for (int i = thread; i < numOwn; i += kVectorThreads) message[i] = data[begin + i];

  __syncthreads();  // the message is stored, and all threads have read its number
  if (thread == 0) own.numVectors[channel] = number;
  bool isReady = true;
  if (thread < worldSize && thread != rank) {
    storeRelease(&exchanges.of[thread]->sent[rank][channel], number);
    // A peer may already have sent the next message.
    isReady = waitUntil(failed, [&] {
      const uint32_t sent = loadAcquire(&own.sent[thread][channel]);
      return sent == number || sent == numberAfter(number);
    });
  }
  // Reads nothing from a failed peer.
  if (!__syncthreads_and(isReady)) return;

  constexpr int kElements = kAccessBytes / sizeof(T);
  for (int i = thread; i < numOwn; i += kVectorThreads) {
    uint4 parts[kMaxRanks];
#pragma unroll
    for (int sender = 0; sender < kMaxRanks; ++sender) {
      if (sender < worldSize) {
        parts[sender] = __ldcg(&exchanges.of[sender]->vectors[number % 2][channel][i]);
      }
    }
    float sums[kElements] = {};
#pragma unroll
    for (int sender = 0; sender < kMaxRanks; ++sender) {
      if (sender < worldSize) add<T>(parts[sender], sender, sums);
    }
    data[begin + i] = narrowed<T, uint4>(sums);
  }
}

DType elementType(CommType type) {
  switch (type) {
    case CommType::kFloat16:
      return DType::kFloat16;
    case CommType::kBFloat16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

}  // namespace

PeerAllReduce::PeerAllReduce(int32_t rank, int32_t worldSize, MemoryAccount& memory,
                             cudaStream_t stream)
    : rank_(rank), worldSize_(worldSize), memory_(memory) {
  freeRetainedMemory();
  void* own = memory_.allocate(sizeof(Exchange), "the all-reduce buffers shared between GPUs");
  exchanges_.of[rank] = static_cast<Exchange*>(own);
  try {
    check(cudaIpcGetMemHandle(&handle_, own), "cudaIpcGetMemHandle");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");  // zeroed before a peer writes
  } catch (...) {
    memory_.release(own, sizeof(Exchange));
    throw;
  }
}

void PeerAllReduce::close(const Deadline& deadline) noexcept {
  for (int32_t peer = 0; peer < worldSize_; ++peer) {
    if (peer == rank_ || !exchanges_.of[peer]) continue;
    static_cast<void>(cudaIpcCloseMemHandle(std::exchange(exchanges_.of[peer], nullptr)));
  }
  releaseBarrier_.announceRelease();
  if (Exchange* own = std::exchange(exchanges_.of[rank_], nullptr)) {
    freeAfterPeersRelease(memory_, own, sizeof(Exchange), std::move(releaseBarrier_), deadline);
  }
}

bool PeerAllReduce::map(std::span<const cudaIpcMemHandle_t> handles,
                        TcpReleaseBarrier releaseBarrier) {
  releaseBarrier_ = std::move(releaseBarrier);
  for (int32_t peer = 0; peer < worldSize_; ++peer) {
    if (peer == rank_) continue;
    void* theirs = nullptr;
    if (cudaIpcOpenMemHandle(&theirs, handles[peer], cudaIpcMemLazyEnablePeerAccess) !=
        cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // clear the error: the device still works
      return false;
    }
    exchanges_.of[peer] = static_cast<Exchange*>(theirs);
  }
  return true;
}

bool PeerAllReduce::supports(const void* data, int64_t count, CommType type, ReduceOp op) {
  const int64_t bytes = count * static_cast<int64_t>(sizeOf(type));
  return op == ReduceOp::kSum && type != CommType::kInt64 && bytes <= kMaxBytes &&
         bytes % kAccessBytes == 0 && reinterpret_cast<uintptr_t>(data) % kAccessBytes == 0;
}

void PeerAllReduce::sum(void* data, int64_t count, CommType type, const uint32_t* failed,
                        cudaStream_t stream) {
  const int64_t bytes = count * static_cast<int64_t>(sizeOf(type));
  withType(elementType(type), [&](auto element) {
    using T = decltype(element);
    if (bytes <= kMaxPacketBytes) {
      const int packets = static_cast<int>(bytes / kPacketData);
      launch(allReducePackets<T>, dim3(ceilDiv(packets, kPacketThreads)), kPacketThreads, 0, stream,
             static_cast<uint64_t*>(data), packets, rank_, worldSize_, exchanges_, failed);
    } else {
      const int vectors = static_cast<int>(bytes / kAccessBytes);
      launch(allReduceVectors<T>, dim3(kChannels), kVectorThreads, 0, stream,
             static_cast<uint4*>(data), vectors, ceilDiv(vectors, kChannels), rank_, worldSize_,
             exchanges_, failed);
    }
  });
}

}  // namespace uniproc::cuda
