// Sums over the GPUs of one host, each reading or writing the others' memory directly: for messages
// so small that NCCL's own time is most of theirs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/communicator.h"
#include "comm/deadline.h"
#include "comm/tcp_farewell.h"
#include "ops/cuda/memory.h"

namespace uniproc::cuda {

// This rank's memory for messages, that of its peers as this process maps it, and the sums made in
// them. All state is in that memory, so that a graph may hold a sum and be launched again and
// again.
class PeerAllReduce {
 public:
  static constexpr int32_t kMaxRanks = 8;
  static constexpr int64_t kMaxBytes = 512 * 1024;

  // The exchange memory by rank, as a kernel's argument.
  struct Exchange;
  struct Exchanges {
    Exchange* of[kMaxRanks] = {};
  };

  // Throws Error OUT_OF_MEMORY, and DEVICE_FAILED where this rank's memory cannot be shared.
  PeerAllReduce(int32_t rank, int32_t worldSize, MemoryAccount& memory, cudaStream_t stream);
  // As `close`, with no time to wait.
  ~PeerAllReduce() { close(Deadline(0)); }
  PeerAllReduce(const PeerAllReduce&) = delete;
  PeerAllReduce& operator=(const PeerAllReduce&) = delete;

  const cudaIpcMemHandle_t& handle() const { return handle_; }
  // Maps the memory of the others, by rank. False where one cannot be had: no link between the
  // GPUs, or another host's. They, and this rank, say by `farewell` when they have let go.
  bool map(std::span<const cudaIpcMemHandle_t> handles, TcpFarewell farewell);
  // Unmaps the others' memory, and frees its own once they have unmapped it (shared_memory.h). This
  // rank's sums must be done. Idempotent.
  void close(const Deadline& deadline) noexcept;

  // Whether `sum` takes it; so it must be on all ranks or on none.
  static bool takes(const void* data, int64_t count, CommType type, ReduceOp op);
  // In place: data [count]. Ends without a result once *failed is not zero.
  void sum(void* data, int64_t count, CommType type, const uint32_t* failed, cudaStream_t stream);

 private:
  const int32_t rank_;
  const int32_t worldSize_;
  MemoryAccount& memory_;
  Exchanges exchanges_;
  cudaIpcMemHandle_t handle_{};
  TcpFarewell farewell_;
};

}  // namespace uniproc::cuda
