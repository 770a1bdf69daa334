// A TCP connection to each other rank, and the one thing that collectives are made of: an exchange,
// in which messages go to some ranks while others come from some.
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

// What a rank takes part in. It goes ahead of every message, so that ranks that do not make the
// same collectives are told, and do not take one's bytes for another's.
struct CollectiveCall {
  enum class Kind : uint8_t { kAllReduce, kAllGather, kBroadcast, kBarrier, kFarewell };

  Kind kind = Kind::kBarrier;
  CommType type = CommType::kInt64;
  ReduceOp op = ReduceOp::kSum;
  uint8_t unused = 0;
  int32_t root = 0;  // of a farewell: the rank that was lost
  int64_t count = 0;

  bool operator==(const CollectiveCall&) const = default;
  std::string name() const;  // as in 'allReduce (sum) of 12 float32'
};

// What goes ahead of a message. Not within TcpMesh: Clang has no default member initializers of a
// nested class before the outer one is complete, which std::optional needs of them.
struct CollectiveHeader {
  uint64_t sequence = 0;  // of the exchange
  CollectiveCall call;

  bool operator==(const CollectiveHeader&) const = default;
};

// A message on its way in one direction: `moved` bytes of header and data have passed.
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
  // `sockets` are to each rank, by rank; that of `rank`, this one, is empty.
  TcpMesh(int32_t rank, std::vector<Socket> sockets, const AbortSignal& abort);

  // What the next exchange moves: at most one message to, and one from, a rank. The memory must
  // stay until then.
  void send(int32_t rank, const void* data, size_t bytes);
  void receive(int32_t rank, void* data, size_t bytes);

  // Moves them all, in both directions at once, so that ranks that all send first do not wait for
  // each other whatever the sizes. Throws PeerLost, and Error COMMUNICATOR_FAILED when a rank makes
  // another call than this one; a mesh that has thrown is of no more use.
  void exchange(const CollectiveCall& call, const Deadline& deadline);

  // Tells the others, as far as that can be done at once, that this rank gives up over `lost`:
  // whoever waits for this rank is to know which rank was at fault. Where this one is, and cannot
  // say so, it ends the connection.
  void sayFarewell(int32_t lost) noexcept;

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
  [[noreturn]] void lose(const Peer& peer, const std::string& reason) const;

  const int32_t rank_;
  const AbortSignal& abort_;
  std::vector<Peer> peers_;  // by rank
  uint64_t sequence_ = 0;
  CollectiveCall call_ = {};  // the exchange's
  std::vector<pollfd> polled_;
  std::vector<Peer*> waiting_;
};

}  // namespace uniproc
