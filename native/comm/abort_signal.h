#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <vector>

#include "comm/socket.h"

namespace uniproc {

// Raised once, by any thread, to end the waits of another: those that go through `poll`.
class AbortSignal {
 public:
  // Throws Error COMMUNICATOR_FAILED.
  AbortSignal();

  // Does not wait. The first reason stands.
  void raise(const std::string& reason) noexcept;
  // Throws PeerLost with the reason, once it is raised.
  void check() const;

  // Waits for one of `sockets` to be ready; false when none is by then. Throws as `check`.
  bool poll(std::vector<pollfd>& sockets, std::chrono::steady_clock::time_point until) const;

 private:
  std::atomic<bool> raised_{false};
  mutable std::mutex mutex_;  // of the reason
  std::string reason_;
  // Can be read from once it is raised.
  FileDescriptor pipeOut_;
  FileDescriptor pipeIn_;
};

}  // namespace uniproc
