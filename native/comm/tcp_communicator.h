// The CPU backend's communicator: between the memories of hosts, over TCP.
//
// Every rank is connected to every other. A group of CPU ranks is small, and so are most of its
// messages (a decode step's hidden state), where what counts is the number of times that a rank
// waits for another: once, where each sends to all and sums what it has received itself. In a ring
// it would be 2 (n - 1) times. Larger sums are shared out: each rank sums one part for all, which
// moves as few bytes as a ring does, in two waits. Either way an element is summed in the order of
// the ranks, so that the result does not depend on which way it went, nor on which rank made it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "comm/abort_signal.h"
#include "comm/deadline.h"
#include "comm/tcp_handshake.h"
#include "comm/tcp_mesh.h"

namespace uniproc {

class TcpCommunicator final : public Communicator {
 public:
  // Throws Error COMMUNICATOR_FAILED, as the rest does: see Communicator.
  explicit TcpCommunicator(const CommunicatorConfig& config);

  int32_t rank() const override { return config_.rank; }
  int32_t worldSize() const override { return config_.worldSize; }

  std::vector<std::byte> address() override;
  void connect(const std::vector<std::vector<std::byte>>& addresses) override;
  void allReduce(void* data, int64_t count, CommType type, ReduceOp op) override;
  void allGather(const void* in, void* out, int64_t count, CommType type) override;
  void broadcast(void* data, int64_t count, CommType type, int32_t root) override;
  void barrier() override;
  void abort(const std::string& reason) noexcept override { abort_.raise(reason); }

 private:
  // Both give `body` the deadline of what is done now, and keep what it throws for every later
  // call. A collective needs a connected group.
  template <typename Body>
  void orFail(const Body& body);
  template <typename Body>
  void collective(const Body& body);
  void fail(int32_t lost) noexcept;
  void requireNotConnected() const;

  void reduceAtOnce(std::byte* data, int64_t count, const CollectiveCall& call,
                    const Deadline& deadline);
  void reduceInParts(std::byte* data, int64_t count, const CollectiveCall& call,
                     const Deadline& deadline);
  void reduceReceived(std::byte* own, int64_t count, const CollectiveCall& call);
  void meet(const Deadline& deadline);

  const CommunicatorConfig config_;
  std::vector<int32_t> others_;  // the other ranks
  AbortSignal abort_;
  std::optional<TcpHandshake> handshake_;  // until connected
  std::optional<TcpMesh> mesh_;
  std::exception_ptr failure_;
  std::vector<std::byte> received_;   // by rank, of what is being reduced; keeps its largest size
  std::vector<const void*> sources_;  // by rank
};

}  // namespace uniproc
