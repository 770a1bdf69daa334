// Collectives of GPUs: NCCL's, and for small sums on one host a kernel that accesses peer memory
// directly (all_reduce.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "comm/abort_signal.h"
#include "comm/tcp_handshake.h"
#include "comm/tcp_release_barrier.h"
#include "ops/cuda/all_reduce.h"
#include "ops/cuda/memory.h"
#include "ops/cuda/nccl_group.h"

namespace uniproc::cuda {

class NcclCommunicator final : public Communicator {
 public:
  // Uses the calling thread's current device and enqueues on `stream`. Throws Error
  // COMMUNICATOR_FAILED if NCCL cannot be loaded.
  NcclCommunicator(const CommunicatorConfig& config, int device, cudaStream_t stream,
                   MemoryAccount& memory);
  // Waits up to two seconds for the peers to release this rank's memory. Memory that a peer may
  // still map is freed later.
  ~NcclCommunicator() override;

  int32_t rank() const override { return config_.rank; }
  int32_t worldSize() const override { return config_.worldSize; }
  std::vector<std::byte> address() override;
  // Allocates all device memory that the communicator ever needs.
  void connect(const std::vector<std::vector<std::byte>>& addresses) override;

  bool hasPeerMemory() const override { return connected_ && peers_.has_value(); }
  void allReduce(void* data, int64_t count, CommType type, ReduceOp op) override;
  // Sums x [numTokens, norm.size] and normalizes the sum in one kernel (Ops::sumRmsNorm). Returns
  // false without doing anything where peer memory does not take the message.
  bool sumRmsNorm(const void* x, int32_t numTokens, const NormOfSum& norm, DType type);
  void allGather(const void* in, void* out, int64_t count, CommType type) override;
  void broadcast(void* data, int64_t count, CommType type, int32_t root) override;
  void barrier() override { barrier(config_.timeout); }
  void abort(const std::string& reason) noexcept override;

  // For threads that wait for operations on the stream.
  const std::shared_ptr<NcclGroup>& group() const { return group_; }

 private:
  // Runs `body`; fails the group with any exception it throws.
  template <class Body>
  void failOnError(const Body& body);
  std::vector<std::byte> makeAddress();
  void join(const std::vector<std::vector<std::byte>>& addresses);
  void requireConnected() const;
  void barrier(int64_t timeout);
  void warmUp();
  bool onAllRanks(bool here);
  std::optional<TcpReleaseBarrier> connectPeers(
      const std::vector<std::vector<std::byte>>& addresses);

  const CommunicatorConfig config_;
  const int device_;
  const cudaStream_t stream_;
  MemoryAccount& memory_;
  const std::shared_ptr<NcclGroup> group_;
  AbortSignal abort_;
  void* const word_;                       // 256 bytes, for barriers and flags
  std::optional<TcpHandshake> handshake_;  // together with `peers_`, until connected
  std::optional<PeerAllReduce> peers_;     // after connecting: set on all ranks or on none
  bool hasAddress_ = false;
  bool connected_ = false;
};

}  // namespace uniproc::cuda
