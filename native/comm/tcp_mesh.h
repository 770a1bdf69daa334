// A TCP connection to each other rank, and the exchange that all collectives are built from:
// messages go to some ranks while others arrive.
#pragma once

#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "comm/abort_signal.h"
#include "comm/deadline.h"
#include "comm/socket.h"

namespace uniproc {

// Identifies the collective. Precedes every message, so that ranks that call different collectives
// fail instead of misreading each other's bytes.
struct CollectiveCall {
  enum class Kind : uint8_t { kAllReduce, kAllGather, kBroadcast, kBarrier, kFailure };

  Kind kind = Kind::kBarrier;
  CommType type = CommType::kInt64;
  ReduceOp op = ReduceOp::kSum;
  uint8_t unused = 0;
  int32_t root = 0;  // for a failure notice: the lost rank
  int64_t count = 0;

  bool operator==(const CollectiveCall&) const = default;
  std::string name() const;  // for example 'allReduce (sum) of 12 float32'
};

// Precedes every message. Not nested in TcpMesh: std::optional needs its default member
// initializers, which Clang does not provide before the outer class is complete.
struct CollectiveHeader {
  uint64_t sequence = 0;  // number of the exchange
  CollectiveCall call;

  bool operator==(const CollectiveHeader&) const = default;
};

// A message in one direction, of which `moved` bytes of header and data are transferred.
template <typename Byte>
struct MessageTransfer {
  CollectiveHeader header;
  Byte* data = nullptr;
  size_t bytes = 0;
  size_t moved = 0;

  size_t left() const { return sizeof header + bytes - moved; }
};

class TcpMesh {
 public:
  // `sockets` holds one connection per rank, by rank; the entry of `rank`, this one, is empty.
  TcpMesh(int32_t rank, std::vector<Socket> sockets, const AbortSignal& abort);

  // Add a message to the next exchange: at most one to and one from each rank. The memory must stay
  // valid until the exchange returns.
  void send(int32_t rank, const void* data, size_t bytes);
  void receive(int32_t rank, void* data, size_t bytes);

  // Transfers all added messages, in both directions at once, so that ranks that all send first do
  // not deadlock. Throws PeerLost, and Error COMMUNICATOR_FAILED when a rank calls another
  // collective; after an exception the mesh is unusable.
  void exchange(const CollectiveCall& call, const Deadline& deadline);

  // Tells the other ranks, without blocking, that this rank fails because rank `lost` did, so that
  // ranks waiting for this one learn which rank failed. If `lost` is this rank and a notice cannot
  // be sent, closes the connection instead.
  void notifyFailure(int32_t lost) noexcept;

 private:
  using Header = CollectiveHeader;
  template <typename Byte>
  using Transfer = MessageTransfer<Byte>;
  struct Peer {
    int32_t rank;
    Socket socket;
    std::optional<Transfer<const std::byte>> out;
    std::optional<Transfer<std::byte>> in;

    short events() const;
  };

  void advance(Peer& peer);
  void advanceIn(Peer& peer);
  void advanceOut(Peer& peer);
  void check(const Peer& peer, const Header& received) const;
  [[noreturn]] void throwPeerLost(const Peer& peer, const std::string& reason) const;

  const int32_t rank_;
  const AbortSignal& abort_;
  std::vector<Peer> peers_;  // by rank
  uint64_t sequence_ = 0;
  CollectiveCall call_ = {};  // the current exchange's
  std::vector<pollfd> polled_;
  std::vector<Peer*> waiting_;
};

}  // namespace uniproc
