// How the ranks of a group find each other over TCP: each listens on a port of its own, its address
// tells the others where and with which token, and a connection counts once both ends have shown
// that they know the other's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "comm/abort_signal.h"
#include "comm/deadline.h"
#include "comm/socket.h"

namespace uniproc {

class TcpHandshake {
 public:
  // Listens, until it is dropped. Throws Error COMMUNICATOR_FAILED.
  TcpHandshake(int32_t rank, int32_t worldSize);

  std::vector<std::byte> address() const;

  // A connection to each other rank, by rank; this rank's own is empty. Whoever does not know the
  // token is not noticed. Throws PeerLost when a rank has not connected by the deadline, and Error
  // COMMUNICATOR_FAILED for addresses that are none.
  std::vector<Socket> connect(const std::vector<std::vector<std::byte>>& addresses,
                              const AbortSignal& abort, const Deadline& deadline);

 private:
  using Token = std::array<std::byte, 16>;
  struct Address;
  struct Greeting;
  struct Line;

  static Token randomToken();
  Address parse(const std::vector<std::byte>& bytes, int32_t rank) const;

  const int32_t rank_;
  const int32_t worldSize_;
  const Token token_;
  const Socket listener_;
};

}  // namespace uniproc
