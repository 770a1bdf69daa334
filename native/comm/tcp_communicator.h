// The CPU backend's communicator, over TCP.
//
// Every rank is connected to every other. CPU groups are small and so are most messages (a decode
// step's hidden state), so latency dominates: the one-shot algorithm, where each rank sends its
// data to all and sums what it receives, waits for peers once; a ring waits 2 (n - 1) times. Larger
// sums use the two-shot algorithm: each rank sums one part for all, which moves as few bytes as a
// ring in two waits. Both add elements in rank order, so the result depends neither on the
// algorithm nor on the rank.
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
  // Throws Error COMMUNICATOR_FAILED; see Communicator.
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
  // Both run `body` with a deadline and store its exception, which every later call rethrows.
  // `collective` also requires a connected group.
  template <typename Body>
  void failOnError(const Body& body);
  template <typename Body>
  void collective(const Body& body);
  void fail(int32_t lost) noexcept;
  void requireNotConnected() const;

  void reduceOneShot(std::byte* data, int64_t count, const CollectiveCall& call,
                     const Deadline& deadline);
  void reduceTwoShot(std::byte* data, int64_t count, const CollectiveCall& call,
                     const Deadline& deadline);
  void reduceReceived(std::byte* own, int64_t count, const CollectiveCall& call);
  void exchangeEmpty(const Deadline& deadline);

  const CommunicatorConfig config_;
  std::vector<int32_t> others_;  // the other ranks
  AbortSignal abort_;
  std::optional<TcpHandshake> handshake_;  // until connected
  std::optional<TcpMesh> mesh_;
  std::exception_ptr failure_;
  std::vector<std::byte> received_;   // by rank, inputs of the current reduction; never shrinks
  std::vector<const void*> sources_;  // by rank
};

}  // namespace uniproc
