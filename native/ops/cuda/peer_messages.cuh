// Messages between the ranks of one host, whose GPUs write to each other's memory over NVLink.
//
// A rank pushes its words into its peers' inboxes, and a receiver polls its own inbox until every
// word differs from kEmpty. So a message needs no flag, no second copy and no fence: its latency is
// one trip over the link, and its bytes are the message's own. (TensorRT-LLM's Lamport all-reduce
// uses -0.0 in the same way. Here an empty word is a NaN of one payload, which the sender replaces
// with another NaN: a sum with it is the same canonical NaN.) The receiver empties a word after
// reading it.
//
// Two inboxes alternate. A rank writes message n + 2 to an inbox after its kernel of message n + 1
// has ended, so after it has received words of n + 1 from every peer, which each peer sent after
// its kernel of message n, with its reads and its emptying stores, had ended.
#pragma once

#include "ops/cuda/device_math.cuh"
#include "ops/cuda/peer_sum.h"

namespace uniproc::cuda {

// System-scope memory accesses ---------------------------------------------------------------

// A 16-byte access; each 8-byte half is atomic.
struct Halves {
  uint64_t low;
  uint64_t high;
};

constexpr uint64_t kEmpty = ~uint64_t{0};           // a NaN in every element of every type
constexpr uint64_t kOtherNan = 0x7fff7fff7fff7fff;  // likewise

__device__ inline void send(uint4* to, const Halves& words) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};"
               :
               : "l"(to), "l"(words.low == kEmpty ? kOtherNan : words.low),
                 "l"(words.high == kEmpty ? kOtherNan : words.high)
               : "memory");
}

__device__ inline Halves loadRelaxed(const uint4* from) {
  Halves words;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(words.low), "=l"(words.high)
               : "l"(from)
               : "memory");
  return words;
}

__device__ inline void makeEmpty(uint4* slot) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %1};"
               :
               : "l"(slot), "l"(kEmpty)
               : "memory");
}

__device__ inline uint32_t loadRelaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline bool hasArrived(const Halves& words) {
  return words.low != kEmpty && words.high != kEmpty;
}

// Polls until `isReady` returns true; gives up once the group has failed. `failed` is in host
// memory, which is slow to read, so only long waits check it.
template <class IsReady>
__device__ inline void waitUntil(const uint32_t* failed, IsReady isReady) {
  constexpr int kPollsPerFailureCheck = 1024;
  for (int polls = 1; !isReady(); ++polls) {
    if (polls % kPollsPerFailureCheck == 0 && loadRelaxed(failed) != 0) return;
  }
}

// The parity of the current message's number.
__device__ inline uint32_t loadParity(const Exchange& own) {
  return loadRelaxed(&own.numReads) / Exchange::kReadsPerMessage % 2;
}

// Adds this block's share of kReadsPerMessage once all its threads have read the parity, and
// returns the parity. The shares of a launch add up to the next message's number, and no thread
// reads that before: its own block's share is still missing. All threads must call, after they have
// pushed their words, so that nothing waits for the barrier.
__device__ inline uint32_t countRead(Exchange& own, uint32_t parity) {
  const int same = __syncthreads_or(static_cast<int>(parity));  // needs every thread's load
  if (threadIdx.x == 0) {
    atomicAdd(&own.numReads, blockIdx.x == 0 ? Exchange::kReadsPerMessage - gridDim.x + 1 : 1);
  }
  return same == 0 ? 0 : 1;
}

// Sums ---------------------------------------------------------------------------------------

// Adds a sender's elements to the sums of the ranks before it. The first sender's are copied, which
// keeps -0.
template <class T, int N>
__device__ inline void add(const Halves& words, int sender, float (&sums)[N]) {
  static_assert(sizeof(Halves) == N * sizeof(T));
  T elements[N];
  std::memcpy(static_cast<void*>(elements), &words, sizeof words);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float element = widen(elements[i]);
    sums[i] = sender == 0 ? element : sums[i] + element;
  }
}

template <class T, int N>
__device__ inline Halves narrowed(const float (&sums)[N]) {
  static_assert(sizeof(Halves) == N * sizeof(T));
  T elements[N];
#pragma unroll
  for (int i = 0; i < N; ++i) elements[i] = narrow<T>(sums[i]);
  Halves words;
  std::memcpy(&words, static_cast<const void*>(elements), sizeof words);
  return words;
}

__device__ inline Halves loadHalves(const uint4* from) {
  const uint4 words = *from;
  return {words.x | uint64_t{words.y} << 32, words.z | uint64_t{words.w} << 32};
}

// The sum of this rank's `mine` and a word of every peer, in rank order, rounded to T. A peer's
// word arrives in slots[sender * stride]. Polls a few senders at once, as registers allow.
template <class T>
__device__ inline Halves receiveSum(const Halves& mine, uint4* slots, int stride,
                                    const PeerRanks& ranks) {
  constexpr int kAtOnce = 4;
  float sums[kElementsPerAccess<T>] = {};
  for (int first = 0; first < ranks.worldSize; first += kAtOnce) {
    Halves parts[kAtOnce];
    uint32_t missing = 0;  // bits by sender
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int sender = first + i;
      parts[i] = mine;
      if (sender < ranks.worldSize && sender != ranks.rank) missing |= 1u << i;
    }
    waitUntil(ranks.failed, [&] {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (missing >> i & 1) parts[i] = loadRelaxed(slots + (first + i) * stride);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (hasArrived(parts[i])) missing &= ~(1u << i);
      }
      return missing == 0;
    });
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int sender = first + i;
      if (sender < ranks.worldSize) {
        if (sender != ranks.rank) makeEmpty(slots + sender * stride);
        add<T>(parts[i], sender, sums);
      }
    }
  }
  return narrowed<T>(sums);
}

// The two ways of a message of `count` 16-byte accesses. `push` sends this rank's access i,
// `receive` returns the sum of access i over the ranks. A block pushes all its accesses before it
// receives one.
template <class T>
class OneShot {
 public:
  __device__ OneShot(const PeerRanks& ranks, uint32_t parity, int count)
      : ranks_(ranks), parity_(parity), count_(count) {}

  __device__ void push(int i, const Halves& mine) const {
    for (int step = 1; step < ranks_.worldSize; ++step) {
      const int peer = (ranks_.rank + step) % ranks_.worldSize;
      send(ranks_.exchanges[peer]->inbox[parity_] + ranks_.rank * count_ + i, mine);
    }
  }

  __device__ Halves receive(int i, const Halves& mine) const {
    return receiveSum<T>(mine, ranks_.exchanges[ranks_.rank]->inbox[parity_] + i, count_, ranks_);
  }

 private:
  const PeerRanks& ranks_;
  const uint32_t parity_;
  const int count_;  // accesses of the message, and of a sender's part of the inbox
};

// Each rank owns every N-th group of 32 accesses: it receives the peers' terms of these, sums them
// and sends the sums back. A warp's accesses have one owner where rows are a multiple of 512 bytes.
// An inbox has a part of the owned accesses for each sender, then the sums.
template <class T>
class TwoShot {
 public:
  __device__ TwoShot(const PeerRanks& ranks, uint32_t parity, int count)
      : ranks_(ranks),
        parity_(parity),
        partCount_(ceilDiv(count, kGroup * ranks.worldSize) * kGroup) {}

  __device__ void push(int i, const Halves& mine) const {
    const int owner = ownerOf(i);
    if (owner == ranks_.rank) return;
    send(ranks_.exchanges[owner]->inbox[parity_] + ranks_.rank * partCount_ + partOf(i), mine);
  }

  __device__ Halves receive(int i, const Halves& mine) const {
    uint4* inbox = ranks_.exchanges[ranks_.rank]->inbox[parity_];
    if (ownerOf(i) == ranks_.rank) {
      const Halves sum = receiveSum<T>(mine, inbox + partOf(i), partCount_, ranks_);
      for (int step = 1; step < ranks_.worldSize; ++step) {
        const int peer = (ranks_.rank + step) % ranks_.worldSize;
        send(ranks_.exchanges[peer]->inbox[parity_] + sumOf(i), sum);
      }
      return sum;
    }
    uint4* slot = inbox + sumOf(i);
    Halves sum;
    waitUntil(ranks_.failed, [&] {
      sum = loadRelaxed(slot);
      return hasArrived(sum);
    });
    makeEmpty(slot);
    return sum;
  }

 private:
  static constexpr int kGroup = kWarpSize;

  __device__ int ownerOf(int i) const { return i / kGroup % ranks_.worldSize; }
  __device__ int partOf(int i) const {
    return i / (kGroup * ranks_.worldSize) * kGroup + i % kGroup;
  }
  __device__ int sumOf(int i) const { return ranks_.worldSize * partCount_ + i; }

  const PeerRanks& ranks_;
  const uint32_t parity_;
  const int partCount_;
};

}  // namespace uniproc::cuda
