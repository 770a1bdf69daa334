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

// A message is cut into parts, one a block, and block b of a rank deals with the blocks b of the
// others alone: they are a channel, with memory and numbers of its own. So no block waits for
// another of its own rank; all of a launch have places on the smallest GPU at once (32 blocks), so
// that none waits for one that has none.
constexpr int kChannels = 32;

// Up to here messages are pushed in packets (allReducePackets): each is half data, so that the
// links carry twice the bytes, but the time of one way to the peers is all there is. From here on
// those bytes, 2 (N - 1) times the message's, would take longer than the second way (a microsecond,
// at hundreds of bytes per nanosecond) that the other kernel needs: at 8 ranks about here, at 2
// later.
constexpr int64_t kMaxPacketBytes = 64 * 1024;
constexpr int kPacketThreads = 256;
constexpr int kPacketData = 8;
static_assert(kMaxPacketBytes == int64_t{kChannels} * kPacketThreads * kPacketData);

constexpr int kVectorThreads = 512;
constexpr int kChannelVectors = kMaxBytes / kAccessBytes / kChannels;

// Two words of 4 bytes of a message, each with the message's number above it: whoever sees the
// number sees the word, since an access of 8 bytes is one.
struct alignas(16) Packet {
  uint64_t low;
  uint64_t high;
};

}  // namespace

// What a rank's peers write to and read from. Zeroed; the first message is number 1.
struct PeerAllReduce::Exchange {
  // By whether the message's number is odd: one message may be written while a slower peer still
  // reads the one before, not while it reads the one before that. A rank writes message n + 2 when
  // it has all of n + 1 of the channel, which its peers sent in a kernel after that of n.
  Packet packets[2][kMaxRanks][kChannels][kPacketThreads];  // by sender
  uint4 vectors[2][kChannels][kChannelVectors];             // this rank's own

  // The number of the last message that is in the sender's `vectors`.
  uint32_t sent[kMaxRanks][kChannels];

  // Messages that this rank has had, of either kind.
  uint32_t numPackets[kChannels];
  uint32_t numVectors[kChannels];
};

namespace {

using Exchange = PeerAllReduce::Exchange;
using Exchanges = PeerAllReduce::Exchanges;

// Memory of several GPUs and the host --------------------------------------------------------

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

// What this thread wrote or saw written before is seen by whoever sees `value`.
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

// Asks until `isThere` says so; false where the group has failed first. The word that tells is in
// the host's memory, far away: it is looked at only by those that wait long.
template <class IsThere>
__device__ inline bool waitUntil(const uint32_t* failed, IsThere isThere) {
  constexpr int kAsksPerLook = 1024;
  for (int asks = 1; !isThere(); ++asks) {
    if (asks % kAsksPerLook == 0 && loadRelaxed(failed) != 0) return false;
  }
  return true;
}

// Odd and even in turn, also where numbers begin again; 0 is what memory never written has.
__device__ inline uint32_t numberAfter(uint32_t number) { return number == ~0u ? 2 : number + 1; }

// Adds elements to what the ranks before `sender` brought. Nothing is before the first: -0 stays.
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

// The two kernels ----------------------------------------------------------------------------

// data [count] of 8 bytes each, in place, summed in the order of the ranks, so that all have the
// same. Grid: ceil(count / kPacketThreads) <= kChannels blocks, a thread for each 8 bytes.
//
// A rank sends (N - 1) * 16 bytes for each 8, and reads as many that have come into its own memory.
// At 8 KiB and 2 GPUs that is 16 KiB over a link, some tens of nanoseconds: the time is that of a
// launch, a load, one way over the link and a load by which it is noticed, about 3 microseconds.
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
  __syncthreads();  // all have read it
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
      const bool isThere = waitUntil(failed, [&] {
        got = loadPacket(&own.packets[number % 2][sender][channel][thread]);
        return static_cast<uint32_t>(got.low >> 32) == number &&
               static_cast<uint32_t>(got.high >> 32) == number;
      });
      if (!isThere) return;
      theirs = (got.low & 0xffffffffu) | got.high << 32;
    }
    add<T>(theirs, sender, sums);
  }
  data[index] = narrowed<T, uint64_t>(sums);
}

// data [count] of 16 bytes each, in place, summed in the order of the ranks. Grid: kChannels
// blocks, each with perBlock of them, at most kChannelVectors.
//
// A rank copies its own into its exchange memory, tells its peers, waits until they have told it,
// and reads theirs: (N - 1) times the message's bytes come in over the links, in loads of 16 bytes
// of which all threads of all blocks have one from each peer in flight. At 512 KiB and 2 GPUs that
// is 1.3 microseconds of a link's 400 GB/s beside 4 to 5 of a launch, a copy, one way for the word
// and two for the loads; at 8 GPUs, 9 beside 5.
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

  __syncthreads();  // the message is there, and all have read its number
  if (thread == 0) own.numVectors[channel] = number;
  bool isThere = true;
  if (thread < worldSize && thread != rank) {
    storeRelease(&exchanges.of[thread]->sent[rank][channel], number);
    // A peer may have sent the next one already.
    isThere = waitUntil(failed, [&] {
      const uint32_t sent = loadAcquire(&own.sent[thread][channel]);
      return sent == number || sent == numberAfter(number);
    });
  }
  // Of a peer that is gone nothing is read.
  if (!__syncthreads_and(isThere)) return;

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
  freeKeptMemory();
  void* own = memory_.allocate(sizeof(Exchange), "the messages between GPUs");
  exchanges_.of[rank] = static_cast<Exchange*>(own);
  try {
    check(cudaIpcGetMemHandle(&handle_, own), "cudaIpcGetMemHandle");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");  // zeroed before any peer writes
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
  farewell_.letGo();
  if (Exchange* own = std::exchange(exchanges_.of[rank_], nullptr)) {
    freeOnceLetGo(memory_, own, sizeof(Exchange), std::move(farewell_), deadline);
  }
}

bool PeerAllReduce::map(std::span<const cudaIpcMemHandle_t> handles, TcpFarewell farewell) {
  farewell_ = std::move(farewell);
  for (int32_t peer = 0; peer < worldSize_; ++peer) {
    if (peer == rank_) continue;
    void* theirs = nullptr;
    if (cudaIpcOpenMemHandle(&theirs, handles[peer], cudaIpcMemLazyEnablePeerAccess) !=
        cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // the device goes on
      return false;
    }
    exchanges_.of[peer] = static_cast<Exchange*>(theirs);
  }
  return true;
}

bool PeerAllReduce::takes(const void* data, int64_t count, CommType type, ReduceOp op) {
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
