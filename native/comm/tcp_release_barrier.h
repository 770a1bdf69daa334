#pragma once

#include <poll.h>

#include <vector>

#include "comm/deadline.h"
#include "comm/socket.h"

namespace uniproc {

// A barrier that ranks pass before they free memory that they share.
// It holds one connection to each other rank, on which nothing is sent. A rank closes its sending
// side after it has released its mappings of the peers' memory; when a process dies, the system
// closes it. Unlike a collective, the barrier still works after the group has failed.
class TcpReleaseBarrier {
 public:
  TcpReleaseBarrier() = default;
  // `sockets` are by rank, as TcpHandshake returns them; this rank's own is empty.
  explicit TcpReleaseBarrier(std::vector<Socket> sockets);

  // Tells the other ranks that this rank has released their memory.
  void announceRelease() noexcept;
  // Waits until every other rank has released this rank's memory or ended; returns false at the
  // deadline.
  bool waitForPeers(const Deadline& deadline) noexcept;

 private:
  std::vector<Socket> waiting_;  // connections to ranks that have not released yet
  std::vector<pollfd> polled_;   // same size, so that waiting allocates no memory
};

}  // namespace uniproc
