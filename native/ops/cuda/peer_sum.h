// Kernels that sum over the ranks of one host through each other's GPU memory (peer_sum.cu).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/ops.h"

namespace uniproc::cuda {

constexpr int32_t kMaxPeerRanks = 8;

// The sizes of messages, in bytes, that the kernels take.
struct PeerSumLimits {
  // Up to this size a rank sends its message to every peer (one-shot); above it, each rank sums one
  // part of the message for all (two-shot).
  int64_t oneShot = 0;
  int64_t most = 0;
};

// The one table of the choice between one-shot, two-shot and NCCL. One-shot sends (N - 1) times the
// message over a rank's links, two-shot 2 (N - 1) / N times, and then waits for a second trip of
// 0.8 microseconds. At 350 GB/s these are equal near 190 KiB for 4 ranks and 55 KiB for 8. With 2
// ranks both send the same; two-shot adds half of the elements on each rank and is faster at 2 MiB.
constexpr PeerSumLimits peerSumLimits(int32_t worldSize) {
  constexpr int64_t kKiB = 1024;
  if (worldSize <= 2) return {1024 * kKiB, 2048 * kKiB};
  if (worldSize <= 4) return {128 * kKiB, 2048 * kKiB};
  return {64 * kKiB, 2048 * kKiB};
}

// A rank's memory that its peers write to, in device memory.
struct Exchange {
  // A two-shot message of 2 MiB has its terms and its sums here, each in groups of 32 accesses.
  static constexpr int64_t kInboxAccesses = 2 * (2048 * 1024 / 16) + kMaxPeerRanks * 32;
  static constexpr int64_t kInboxBytes = kInboxAccesses * 16;

  // Received words, by parity of the message's number; kEmpty where nothing has arrived. Filled
  // with bytes kEmptyByte before the first message.
  static constexpr int kEmptyByte = 0xff;
  uint4 inbox[2][kInboxAccesses];

  // kReadsPerMessage times the number of messages before the current one, plus what its blocks have
  // added (countRead).
  static constexpr uint32_t kReadsPerMessage = 1 << 16;
  uint32_t numReads;
};

constexpr bool fitsInbox(int32_t worldSize) {
  const auto [oneShot, most] = peerSumLimits(worldSize);
  return oneShot * worldSize <= Exchange::kInboxBytes &&
         2 * most + worldSize * 32 * 16 <= Exchange::kInboxBytes;
}
static_assert(fitsInbox(2) && fitsInbox(4) && fitsInbox(kMaxPeerRanks));

// The ranks, as a kernel argument.
struct PeerRanks {
  int32_t rank = 0;
  int32_t worldSize = 1;
  int32_t numMultiprocessors = 1;
  Exchange* exchanges[kMaxPeerRanks] = {};  // by rank
  const uint32_t* failed = nullptr;         // host memory: not zero once the group has failed
};

// All functions enqueue on `stream`; check cudaGetLastError after them. Data is of type `type`,
// 16-byte aligned and a multiple of 16 bytes; a sum has at most peerSumLimits().most bytes. The
// kernels end without a valid result once *failed is not zero.

// In place on data [count].
void peerSum(void* data, int64_t count, DType type, const PeerRanks& ranks, cudaStream_t stream);

// What rmsNorm (ops.h) does with the sum.
struct NormOfSum {
  void* residual = nullptr;
  const void* weight = nullptr;
  int32_t size = 0;
  float eps = 0.0f;
  void* out = nullptr;

  // Whether rows have whole 16-byte accesses and few enough for a block.
  bool isSupported(DType type) const;
};
// x [numTokens, size], summed over the ranks and rounded to the type, then normalized; the same
// bits as peerSum followed by rmsNorm. `x` may be `out`, and is otherwise not written.
void peerSumRmsNorm(const void* x, int32_t numTokens, const NormOfSum& norm, DType type,
                    const PeerRanks& ranks, cudaStream_t stream);

}  // namespace uniproc::cuda
