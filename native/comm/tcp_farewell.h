// How ranks that share memory learn that the others no longer use it.
#pragma once

#include <poll.h>

#include <vector>

#include "comm/deadline.h"
#include "comm/socket.h"

namespace uniproc {

// A connection to each other rank, on which nothing is sent. A rank ends its side once it has let
// go of what it shares with the others; for a process that has died the system does so. So the
// connections know what a collective cannot tell once the group has failed.
class TcpFarewell {
 public:
  TcpFarewell() = default;
  // By rank, as TcpHandshake gives them; this rank's own is empty.
  explicit TcpFarewell(std::vector<Socket> sockets);

  // This rank has let go: for the others to know.
  void letGo() noexcept;
  // Waits until every other rank has, or is gone; false when one has not by the deadline.
  bool haveAllLetGo(const Deadline& deadline) noexcept;

 private:
  std::vector<Socket> waiting_;  // to ranks that have not let go
  std::vector<pollfd> polled_;   // as many, so that waiting takes no memory
};

}  // namespace uniproc
