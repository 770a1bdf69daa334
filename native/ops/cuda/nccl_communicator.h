// The collectives of GPUs: NCCL's, and for small sums on one host those that read and write the
// peers' memory (all_reduce.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "comm/abort_signal.h"
#include "comm/tcp_farewell.h"
#include "comm/tcp_handshake.h"
#include "ops/cuda/all_reduce.h"
#include "ops/cuda/memory.h"
#include "ops/cuda/nccl_group.h"

namespace uniproc::cuda {

class NcclCommunicator final : public Communicator {
 public:
  // On the calling thread's device, in the order of the stream. Throws Error COMMUNICATOR_FAILED
  // where there is no NCCL.
  NcclCommunicator(const CommunicatorConfig& config, int device, cudaStream_t stream,
                   MemoryAccount& memory);
  // Once the peers need nothing of this rank any more, or after two seconds. What they may map of
  // its memory even then is freed later.
  ~NcclCommunicator() override;

  int32_t rank() const override { return config_.rank; }
  int32_t worldSize() const override { return config_.worldSize; }
  std::vector<std::byte> address() override;
  // Takes all device memory that it will ever need.
  void connect(const std::vector<std::vector<std::byte>>& addresses) override;

  bool hasPeerMemory() const override { return connected_ && peers_.has_value(); }
  void allReduce(void* data, int64_t count, CommType type, ReduceOp op) override;
  void allGather(const void* in, void* out, int64_t count, CommType type) override;
  void broadcast(void* data, int64_t count, CommType type, int32_t root) override;
  void barrier() override { barrier(config_.timeout); }
  void abort(const std::string& reason) noexcept override;

  // For whoever waits for what is on the stream.
  const std::shared_ptr<NcclGroup>& group() const { return group_; }

 private:
  // Whatever `body` throws is what the group fails with.
  template <class Body>
  void orFail(const Body& body);
  std::vector<std::byte> makeAddress();
  void join(const std::vector<std::vector<std::byte>>& addresses);
  void requireConnected() const;
  void barrier(int64_t timeout);
  void warmUp();
  bool onAllRanks(bool here);
  std::optional<TcpFarewell> meetPeers(const std::vector<std::vector<std::byte>>& addresses);

  const CommunicatorConfig config_;
  const cudaStream_t stream_;
  MemoryAccount& memory_;
  const std::shared_ptr<NcclGroup> group_;
  AbortSignal abort_;
  void* const word_;                       // 256 bytes, for what is too small to have a place
  std::optional<TcpHandshake> handshake_;  // with `peers_`, until they have met
  std::optional<PeerAllReduce> peers_;     // once connected, where all ranks have it
  bool hasAddress_ = false;
  bool connected_ = false;
};

}  // namespace uniproc::cuda
