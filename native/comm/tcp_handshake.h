// How the ranks of a group connect over TCP. Each rank listens on its own port; its address holds
// its hosts, its port and a random token. A connection counts once each side has sent the other's
// token.
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
  // Starts listening; destruction stops it. Throws Error COMMUNICATOR_FAILED.
  TcpHandshake(int32_t rank, int32_t worldSize);

  std::vector<std::byte> address() const;

  // Returns a connection to each other rank, by rank; this rank's own is empty. Ignores connections
  // that do not send the token. Throws PeerLost if a rank has not connected by the deadline, and
  // Error COMMUNICATOR_FAILED for invalid addresses.
  std::vector<Socket> connect(const std::vector<std::vector<std::byte>>& addresses,
                              const AbortSignal& abort, const Deadline& deadline);

 private:
  using Token = std::array<std::byte, 16>;
  struct Address;
  struct Greeting;
  struct PendingConnection;

  static Token randomToken();
  Address parse(const std::vector<std::byte>& bytes, int32_t rank) const;

  const int32_t rank_;
  const int32_t worldSize_;
  const Token token_;
  const Socket listener_;
};

}  // namespace uniproc
