// All-reduce among GPUs of one host that write to each other's memory directly, for messages so
// small that NCCL's latency dominates.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/communicator.h"
#include "comm/deadline.h"
#include "comm/tcp_release_barrier.h"
#include "ops/cuda/memory.h"
#include "ops/cuda/peer_sum.h"

namespace uniproc::cuda {

// This rank's exchange memory, the mapped memory of its peers, and the sums over them. All state is
// in that memory, so CUDA graphs can record a sum and replay it.
class PeerAllReduce {
 public:
  static constexpr int32_t kMaxRanks = kMaxPeerRanks;

  // `failed` is host memory that kernels can read. Throws Error OUT_OF_MEMORY, or DEVICE_FAILED if
  // this rank's memory cannot be shared.
  PeerAllReduce(int32_t rank, int32_t worldSize, int device, const uint32_t* failed,
                MemoryAccount& memory, cudaStream_t stream);
  // Calls `close` without waiting for peers.
  ~PeerAllReduce() { close(Deadline(0)); }
  PeerAllReduce(const PeerAllReduce&) = delete;
  PeerAllReduce& operator=(const PeerAllReduce&) = delete;

  const cudaIpcMemHandle_t& handle() const { return handle_; }
  // Maps the peers' memory, by rank. Returns false if one cannot be mapped: the GPUs have no link,
  // or are on different hosts. `releaseBarrier` synchronizes the release of the mappings.
  bool map(std::span<const cudaIpcMemHandle_t> handles, TcpReleaseBarrier releaseBarrier);
  // Unmaps the peers' memory, and frees its own once they have unmapped it (shared_memory.h). This
  // rank's sums must have completed. Idempotent.
  void close(const Deadline& deadline) noexcept;

  // Both return false without doing anything for arguments that they do not support; the answer
  // must be the same on all ranks. They end without a result once *failed is not zero.
  //
  // In place on data [count].
  bool allReduce(void* data, int64_t count, CommType type, ReduceOp op);
  // The sum of x [numTokens, norm.size] over the ranks, then the norm (Ops::sumRmsNorm).
  bool sumRmsNorm(const void* x, int32_t numTokens, const NormOfSum& norm, DType type);

 private:
  // Whether the kernels sum a message of that many bytes at this address.
  bool supports(const void* data, int64_t bytes) const;

  MemoryAccount& memory_;
  const cudaStream_t stream_;
  PeerRanks ranks_;
  cudaIpcMemHandle_t handle_{};
  TcpReleaseBarrier releaseBarrier_;
};

}  // namespace uniproc::cuda
